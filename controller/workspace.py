"""The fleet's folder: the operator's half, the server's half, and their keys.

The two halves live apart: the service runs without the operator's, which alone can add a release. Everything in them
is readable by its owner alone. An existing fleet is never overwritten.
"""

import os
import secrets
import shlex
import shutil
import tempfile
from datetime import datetime
from functools import cached_property
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from agent import durable
from controller.config import InitialSettings, OperatorConfig, ServerConfig, read_config, read_file
from controller.errors import WorkspaceError
from controller.trust.authority import Authority, KeyPair, create_authority
from controller.trust.image import first_targets
from controller.trust.keys import generate_signer, load_signer, save_signer
from controller.trust.roots import ROOT_KEYS, sign_director_root, sign_image_root
from protocol.topics import DEFAULT_PREFIX, Topics

ADVICE = (
    "The root keys decide who may sign; daily work needs none of them. Move operator/keys/image-root-*.pem and "
    "operator/keys/director-root-*.pem to offline places, the three of a kind apart: two replace any other key.",
    "The folder operator/ belongs on the machine that releases models, server/ on the one that serves the fleet. "
    "Back both up: nobody can make a lost key anew.",
)


MIN_TOKEN_CHARS = 20
"""A shorter token was cut off: an empty one would let everybody in."""


class OperatorHome:
    """The operator's half: what a person who releases models needs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys_path = path / "keys"
        self.seen_targets_path = path / "seen_targets.json"

    @cached_property
    def config(self) -> OperatorConfig:
        """The settings; raises WorkspaceError."""
        return read_config(self.path / "config.toml", OperatorConfig)

    @property
    def api_token(self) -> str:
        """The secret that the API asks for."""
        return read_token(self.path / "api.token")

    @property
    def image_root(self) -> bytes:
        """The image repository's first root, exactly as signed."""
        return read_file(self.path / "image_root.json")

    @property
    def director_root(self) -> bytes:
        """The director's first root, exactly as signed."""
        return read_file(self.path / "director_root.json")

    @property
    def targets_signer(self) -> CryptoSigner:
        """The key that releases models."""
        return load_signer(self.keys_path / "image-targets.pem")

    @property
    def seen_targets(self) -> bytes | None:
        """The targets metadata that this operator signed or saw last."""
        return read_file(self.seen_targets_path) if self.seen_targets_path.exists() else None

    def remember_targets(self, targets_raw: bytes) -> None:
        """Keep targets metadata, so that the service cannot show an older one later."""
        durable.replace(self.seen_targets_path, targets_raw)


class ServerHome:
    """The server's half: what the service needs to run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys_path = path / "keys"
        self.database_path = path / "fleet.db"
        self.files_path = path / "files"
        self.listener_certificate_path = path / "listener.pem"
        self.listener_key_path = path / "listener.key"

    @cached_property
    def config(self) -> ServerConfig:
        """The settings; raises WorkspaceError."""
        return read_config(self.path / "config.toml", ServerConfig)

    @property
    def database_url(self) -> str:
        """The database as an SQLAlchemy URL."""
        return self.config.database.url or f"sqlite:///{self.database_path.absolute()}"

    @property
    def topics(self) -> Topics:
        """The topics of this fleet."""
        return Topics(self.config.prefix)

    @property
    def api_token(self) -> str:
        """The secret that the API asks for."""
        return read_token(self.path / "api.token")

    @property
    def authority(self) -> Authority:
        """The fleet's certificate authority."""
        return Authority.load(self.ca_pem, read_file(self.path / "ca.key"))

    @property
    def ca_pem(self) -> bytes:
        """The certificate of the fleet's authority."""
        return read_file(self.path / "ca.pem")

    @property
    def image_root(self) -> bytes:
        """The image repository's first root, exactly as signed."""
        return read_file(self.path / "image_root.json")

    @property
    def director_root(self) -> bytes:
        """The director's first root, exactly as signed."""
        return read_file(self.path / "director_root.json")

    @property
    def first_targets(self) -> bytes:
        """Version 1 of the image targets (no release yet), which the service starts from."""
        return read_file(self.path / "first_targets.json")

    @property
    def snapshot_signer(self) -> CryptoSigner:
        """The key of the image repository's snapshot."""
        return load_signer(self.keys_path / "image-snapshot.pem")

    @property
    def timestamp_signer(self) -> CryptoSigner:
        """The key of the image repository's timestamp."""
        return load_signer(self.keys_path / "image-timestamp.pem")

    @property
    def director_signer(self) -> CryptoSigner:
        """The key that signs what each device must run."""
        return load_signer(self.keys_path / "director.pem")

    @property
    def listener(self) -> KeyPair:
        """The certificate and key of the device-facing listener as they are; empty where a file is missing."""
        paths = (self.listener_certificate_path, self.listener_key_path)
        certificate, key = (read_file(path) if path.is_file() else b"" for path in paths)
        return KeyPair(certificate, key)

    def save_listener(self, pair: KeyPair) -> None:
        """Put a new certificate and key of the device-facing listener in place."""
        durable.replace(self.listener_key_path, pair.key_pem)
        durable.replace(self.listener_certificate_path, pair.certificate_pem)


class Workspace:
    """Both halves of a fleet on one machine, as `fleetctl init` makes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.operator = OperatorHome(path / "operator")
        self.server = ServerHome(path / "server")
        self.advice: tuple[str, ...] = ADVICE


def read_token(path: Path) -> str:
    """Return the secret in a file; raises WorkspaceError when it is too short to be one."""
    token = read_file(path).decode(errors="replace").strip()
    if len(token) < MIN_TOKEN_CHARS or not token.isascii():
        raise WorkspaceError(
            f"expected a token of at least {MIN_TOKEN_CHARS} ASCII characters in {path}",
            hint="copy the file back from a backup, the same one into operator/ and server/",
        )
    return token


def open_workspace(path: Path) -> Workspace:
    """Return the fleet at `path`; raises WorkspaceError when there is none."""
    workspace = Workspace(path)
    if not workspace.server.path.is_dir() and not workspace.operator.path.is_dir():
        init = f"fleetctl init {shlex.quote(str(path))}"
        raise WorkspaceError(f"there is no fleet in {path}", hint=f"run `{init}`, or name another folder")
    return workspace


def create_workspace(  # noqa: PLR0913 - the options of `fleetctl init`, each with its default
    path: Path,
    *,
    now: datetime,
    host: str = "127.0.0.1",
    api_port: int = 8470,
    enroll_port: int = 8471,
    mqtt_port: int = 1883,
    prefix: str = DEFAULT_PREFIX,
) -> Workspace:
    """Return a new fleet at `path`, with a new key for every role. `host` is the name under which devices find it.

    Raises:
        WorkspaceError: something is at `path` already, or a value cannot be a setting.
    """
    settings = InitialSettings(
        host=host, api_port=api_port, enroll_port=enroll_port, mqtt_port=mqtt_port, prefix=prefix
    )
    path = path.absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise WorkspaceError(f"{path} exists and is not empty", hint="a fleet is never overwritten: name a new folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
        try:
            _fill(partial, settings, now)
            os.rename(partial, path)  # noqa: PTH104 - replaces an empty folder, and only an empty one
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        durable.sync_folder(path.parent)
    except OSError as error:
        raise WorkspaceError(
            f"cannot make {path}: {error.strerror}", hint="name a folder that you may write"
        ) from error
    return Workspace(path)


def _fill(path: Path, settings: InitialSettings, now: datetime) -> None:
    draft = Workspace(path)
    operator, server = draft.operator, draft.server
    for folder in (operator.path, operator.keys_path, server.path, server.keys_path, server.files_path):
        folder.mkdir(mode=0o700)
    targets, snapshot, timestamp, director = (generate_signer() for _ in range(4))
    image_roots = [generate_signer() for _ in range(ROOT_KEYS)]
    director_roots = [generate_signer() for _ in range(ROOT_KEYS)]
    for number in range(ROOT_KEYS):
        save_signer(operator.keys_path / f"image-root-{number + 1}.pem", image_roots[number])
        save_signer(operator.keys_path / f"director-root-{number + 1}.pem", director_roots[number])
    save_signer(operator.keys_path / "image-targets.pem", targets)
    save_signer(server.keys_path / "image-snapshot.pem", snapshot)
    save_signer(server.keys_path / "image-timestamp.pem", timestamp)
    save_signer(server.keys_path / "director.pem", director)
    image_root = sign_image_root(image_roots, targets=targets, snapshot=snapshot, timestamp=timestamp, now=now)
    director_root = sign_director_root(director_roots, director=director, now=now)
    token = secrets.token_urlsafe(32).encode() + b"\n"
    for home in (operator.path, server.path):
        durable.create(home / "image_root.json", image_root)
        durable.create(home / "director_root.json", director_root)
        durable.create(home / "api.token", token)
    durable.create(operator.path / "config.toml", settings.operator_toml().encode())
    durable.create(server.path / "config.toml", settings.server_toml().encode())
    durable.create(server.path / "first_targets.json", first_targets(targets, now))
    authority = create_authority(now)
    durable.create(server.path / "ca.pem", authority.pair.certificate_pem)
    durable.create(server.path / "ca.key", authority.pair.key_pem)
    listener = authority.issue_listener_certificate(settings.host, now)
    durable.create(server.listener_certificate_path, listener.certificate_pem)
    durable.create(server.listener_key_path, listener.key_pem)
    for folder in (operator.path, server.path, path):
        durable.sync_folder(folder)
