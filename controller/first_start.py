"""What every start puts in order: the roots, the first targets, the database's name, the listener's certificate."""

import logging
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.api.metadata import Snapshot, Targets, Timestamp

from controller.core import Core
from controller.delivery import metadata
from controller.delivery.assigning import TELEMETRY_INTERVAL
from controller.delivery.memory import name_instance
from controller.store import outbox
from controller.store.metadata import keep, newest, newest_root
from controller.store.models import DeviceRow, MetadataRow
from controller.store.settings import get_setting, put_setting
from controller.trust import image
from controller.trust.roots import check_signers
from controller.workspace import ServerHome
from protocol.assignment import parse_metadata
from protocol.errors import ExpiredError

log = logging.getLogger(__name__)

_RENEW_LISTENER = timedelta(days=30)


def prepare(core: Core, home: ServerHome, *, telemetry_interval_s: int) -> None:
    """Bring a new or older database to what this workspace needs; a second time changes nothing.

    Raises:
        WorkspaceError: a key is not this fleet's; nothing was signed with it.
    """
    with core.store.write() as session:
        name_instance(session, core)
        for domain, raw in (("image", core.trust.image_root), ("director", core.trust.director_root)):
            version = parse_metadata(raw, "root").signed.version
            if session.get(MetadataRow, (domain, "root", version)) is None:
                keep(
                    session,
                    MetadataRow(domain=domain, name="root", version=version, raw=raw, signed_at_ms=core.now_ms()),
                )
        _check_keys(session, core)
        _accept_first_targets(session, core, home)
        metadata.renew_when_due(session, core)
        if get_setting(session, TELEMETRY_INTERVAL) != str(telemetry_interval_s):
            put_setting(session, TELEMETRY_INTERVAL, str(telemetry_interval_s))
            outbox.mark(session, "assign", session.scalars(select(DeviceRow.id)))
    _renew_listener(core, home)


def _check_keys(session: Session, core: Core) -> None:
    trust = core.trust
    image_signers = {
        Snapshot.type: ("image-snapshot.pem", trust.snapshot),
        Timestamp.type: ("image-timestamp.pem", trust.timestamp),
    }
    check_signers(newest_root(session, "image"), image_signers)
    check_signers(newest_root(session, "director"), {Targets.type: ("director.pem", trust.director)})


def _accept_first_targets(session: Session, core: Core, home: ServerHome) -> None:
    if newest(session, "image", "targets") is not None:
        return
    raw = home.first_targets
    try:
        accepted = image.accept_targets(None, raw, newest_root(session, "image"), core.now())
    except ExpiredError as error:
        log.warning("the first targets are too old to start from", extra={"reason": str(error)})
        return
    row = MetadataRow(domain="image", name="targets", version=accepted.version, raw=raw, signed_at_ms=core.now_ms())
    keep(session, row)
    metadata.sign_snapshot(session, core)


def _renew_listener(core: Core, home: ServerHome) -> None:
    """Replace the listener's certificate before it ends, or when it is no good; devices know it by the fleet's CA."""
    ends = home.authority.end_of_listener(home.listener)
    if ends is None:
        log.warning("the listener's certificate and key cannot be used: it gets new ones")
    if ends is None or ends - core.now() < _RENEW_LISTENER:
        home.save_listener(home.authority.issue_listener_certificate(home.config.devices.public_host, core.now()))
        log.info("the listener has a new certificate")
