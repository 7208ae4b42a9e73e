"""What every start puts in order: the roots, the first targets, the database's name, the listener's certificate."""

import logging
from datetime import timedelta

from cryptography import x509
from sqlalchemy import select
from sqlalchemy.orm import Session

from controller.core import Core
from controller.delivery import metadata
from controller.delivery.assigning import TELEMETRY_INTERVAL
from controller.delivery.memory import name_instance
from controller.store import outbox
from controller.store.metadata import keep, newest, newest_root
from controller.store.models import DeviceRow, MetadataRow
from controller.store.settings import get_setting, put_setting
from controller.trust import image
from controller.workspace import ServerHome
from protocol.assignment import parse_metadata
from protocol.errors import ExpiredError

log = logging.getLogger(__name__)

_RENEW_LISTENER = timedelta(days=30)


def prepare(core: Core, home: ServerHome, *, telemetry_interval_s: int) -> None:
    """Bring a new or older database to what this workspace needs; a second time changes nothing."""
    with core.store.write() as session:
        name_instance(session, core)
        for domain, raw in (("image", core.trust.image_root), ("director", core.trust.director_root)):
            version = parse_metadata(raw, "root").signed.version
            if session.get(MetadataRow, (domain, "root", version)) is None:
                keep(
                    session,
                    MetadataRow(domain=domain, name="root", version=version, raw=raw, signed_at_ms=core.now_ms()),
                )
        _accept_first_targets(session, core, home)
        metadata.renew_when_due(session, core)
        if get_setting(session, TELEMETRY_INTERVAL) != str(telemetry_interval_s):
            put_setting(session, TELEMETRY_INTERVAL, str(telemetry_interval_s))
            outbox.mark(session, "assign", session.scalars(select(DeviceRow.id)))
    _renew_listener(core, home)


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
    """Replace the listener's certificate before it ends; devices know it by the fleet's CA."""
    certificate = x509.load_pem_x509_certificate(home.listener_certificate_path.read_bytes())
    if certificate.not_valid_after_utc - core.now() < _RENEW_LISTENER:
        home.save_listener(home.authority.issue_listener_certificate(home.config.devices.public_host, core.now()))
        log.info("the listener has a new certificate")
