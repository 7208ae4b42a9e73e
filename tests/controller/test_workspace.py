"""The fleet's folder: made whole or not at all, private, and never overwritten."""

import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root

from controller.errors import ControllerError, WorkspaceError
from controller.trust import image
from controller.workspace import OperatorHome, ServerHome, Workspace, create_workspace, open_workspace, read_token

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)

EXPECTED_FILES = {
    "operator/api.token",
    "operator/config.toml",
    "operator/director_root.json",
    "operator/image_root.json",
    "operator/keys/director-root-1.pem",
    "operator/keys/director-root-2.pem",
    "operator/keys/director-root-3.pem",
    "operator/keys/image-root-1.pem",
    "operator/keys/image-root-2.pem",
    "operator/keys/image-root-3.pem",
    "operator/keys/image-targets.pem",
    "server/api.token",
    "server/ca.key",
    "server/ca.pem",
    "server/config.toml",
    "server/director_root.json",
    "server/first_targets.json",
    "server/image_root.json",
    "server/keys/director.pem",
    "server/keys/image-snapshot.pem",
    "server/keys/image-timestamp.pem",
    "server/listener.key",
    "server/listener.pem",
}


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    """A new fleet."""
    return create_workspace(tmp_path / "fleet", now=NOW)


def content(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_fleet_has_two_halves_with_a_key_for_each_role(workspace):
    """The operator's keys are in one folder, the server's in the other, and no key is used twice."""
    files = content(workspace.path)
    assert EXPECTED_FILES == set(files)
    keys = [data for name, data in files.items() if name.endswith((".pem", ".key")) and b"PRIVATE KEY" in data]
    assert 12 == len(keys) == len(set(keys))


def test_nobody_else_may_look_inside(workspace):
    """Folders have mode 0700, files 0600, whatever the umask."""
    paths = [workspace.path, *workspace.path.rglob("*")]
    assert {(True, 0o700), (False, 0o600)} == {(p.is_dir(), stat.S_IMODE(p.stat().st_mode)) for p in paths}


def test_the_halves_fit_together(workspace):
    """Both have the same roots and token; the roots name the keys; the first targets are acceptable."""
    operator, server = workspace.operator, workspace.server
    assert operator.api_token == server.api_token
    assert 43 == len(server.api_token)
    assert operator.image_root == server.image_root
    assert operator.director_root == server.director_root
    assert operator.image_root != operator.director_root
    image_root = Metadata[Root].from_bytes(server.image_root).signed
    director_root = Metadata[Root].from_bytes(server.director_root).signed
    for root, role, signer in (
        (image_root, "targets", operator.targets_signer),
        (image_root, "snapshot", server.snapshot_signer),
        (image_root, "timestamp", server.timestamp_signer),
        (director_root, "targets", server.director_signer),
    ):
        assert [signer.public_key.keyid] == root.roles[role].keyids
    for root in (image_root, director_root):
        assert (2, 3) == (root.roles["root"].threshold, len(root.roles["root"].keyids))
    assert 1 == image.accept_targets(None, server.first_targets, server.image_root, NOW).version
    assert server.ca_pem == server.authority.pair.certificate_pem


def test_a_server_runs_without_the_operators_half(workspace):
    """Nothing that the service reads is in the operator's folder."""
    shutil.rmtree(workspace.operator.path)
    server = ServerHome(workspace.server.path)
    for read in ("config", "api_token", "authority", "image_root", "director_root", "first_targets"):
        assert getattr(server, read)
    for signer in (server.snapshot_signer, server.timestamp_signer, server.director_signer):
        assert signer.sign(b"x")


def test_a_token_without_end_is_not_read_whole(workspace):
    """A file that was given by mistake is an error, and fills no memory."""
    with pytest.raises(WorkspaceError, match="expected at most 16,777,216 bytes in /dev/zero, got more"):
        read_token(Path("/dev/zero"))


@pytest.mark.parametrize("left", [b"", b"\n", b"cut-off", "zu-kurz-und-nicht-äscii".encode()])
def test_a_token_that_was_cut_off_lets_nobody_in(workspace, left):
    """An empty or damaged token is an error that names the file, never a service that is open to all."""
    (workspace.server.path / "api.token").write_bytes(left)

    with pytest.raises(WorkspaceError, match=r"api\.token"):
        _ = workspace.server.api_token


def test_init_says_where_root_keys_belong(workspace):
    """The advice names the files to move."""
    assert "operator/keys/image-root-*.pem" in " ".join(workspace.advice)


def test_settings_are_those_asked_for(tmp_path):
    """Host, ports and prefix go to both configurations."""
    path = tmp_path / "fleet"
    made = create_workspace(
        path, now=NOW, host="fleet.example", api_port=1, enroll_port=2, mqtt_port=3, prefix='plant "a"/x'
    )
    config = made.server.config
    assert "http://127.0.0.1:1" == made.operator.config.api_url
    assert 'plant "a"/x/v1/tuf/timestamp' == made.server.topics.timestamp
    assert ("127.0.0.1", 1) == (config.api.host, config.api.port)
    assert ("0.0.0.0", 2, "fleet.example") == (config.devices.host, config.devices.port, config.devices.public_host)
    assert ("mqtt://127.0.0.1:3", "mqtt://fleet.example:3") == (config.mqtt.url, config.mqtt.device_url)
    assert f"sqlite:///{path}/server/fleet.db" == made.server.database_url


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_fleet_on_one_machine_listens_there_alone(tmp_path, host):
    """A loopback host keeps every listener on loopback."""
    config = create_workspace(tmp_path / "fleet", now=NOW, host=host).server.config
    assert ("127.0.0.1", "127.0.0.1", "") == (config.api.host, config.devices.host, config.mqtt.device_url)


@pytest.mark.parametrize(
    "setting",
    [
        {"host": "a b"},
        {"host": "-x"},
        {"host": 'x"\nport = 1'},
        {"host": ""},
        {"host": "a" * 300},
        {"api_port": -1},
        {"enroll_port": 65_536},
        {"mqtt_port": 10**9},
        {"prefix": "a/+"},
        {"prefix": ""},
    ],
    ids=lambda setting: repr(setting)[:40],
)
def test_a_setting_that_cannot_be_leaves_nothing(tmp_path, setting):
    """A bad host, port or prefix is refused before anything is made."""
    with pytest.raises(WorkspaceError, match="expected a "):
        create_workspace(tmp_path / "fleet", now=NOW, **setting)
    assert [] == list(tmp_path.iterdir())


def test_an_existing_fleet_is_never_overwritten(workspace):
    """A second init changes nothing."""
    before = content(workspace.path)
    with pytest.raises(WorkspaceError, match="exists and is not empty") as caught:
        create_workspace(workspace.path, now=NOW)
    assert "never overwritten" in caught.value.hint
    assert before == content(workspace.path)
    assert [workspace.path] == list(workspace.path.parent.iterdir())


def test_other_things_are_not_overwritten_either(tmp_path):
    """A folder with anything in it, and a file, stay as they are; an empty folder becomes the fleet."""
    folder, file, empty = tmp_path / "folder", tmp_path / "file", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    file.write_text("something")
    for path in (folder, file):
        with pytest.raises(WorkspaceError, match="exists and is not empty"):
            create_workspace(path, now=NOW)
    assert {"thesis.tex": b"years of work"} == content(folder)
    assert EXPECTED_FILES == set(content(create_workspace(empty, now=NOW).path))


def test_a_folder_that_may_not_be_made_says_so(tmp_path):
    """A parent that is a file gives an error of ours."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkspaceError, match=r"cannot make .*: "):
        create_workspace(tmp_path / "file" / "fleet", now=NOW)


INIT = """
    import resource, signal, sys
    from datetime import UTC, datetime
    from pathlib import Path
    from controller.errors import WorkspaceError
    from controller.workspace import create_workspace

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if int(sys.argv[2]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    try:
        create_workspace(Path(sys.argv[1]), now=datetime(2026, 1, 1, tzinfo=UTC))
    except WorkspaceError as error:
        sys.exit(str(error))
"""


def start_init(path: Path, max_file_bytes: int = 0) -> subprocess.Popen[str]:
    """Run init in a process of its own; no file that it writes may be larger than `max_file_bytes`."""
    command = [sys.executable, "-c", textwrap.dedent(INIT), str(path), str(max_file_bytes)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_full_disk_leaves_nothing(tmp_path):
    """When a file cannot be written, init says so and takes everything back."""
    process = start_init(tmp_path / "fleet", max_file_bytes=700)
    _, said = process.communicate(timeout=60)
    assert 1 == process.returncode
    assert said.startswith(f"cannot make {tmp_path}/fleet: File too large")
    assert [] == list(tmp_path.iterdir())


def test_a_killed_init_leaves_a_whole_fleet_or_none(tmp_path):
    """Killed at any moment, init never leaves half a fleet under the name that was asked for."""
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = start_init(folder / "fleet")
        while process.poll() is None and len(list(folder.rglob("*.pem"))) < 3 * number:
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        if (folder / "fleet").exists():
            assert EXPECTED_FILES == set(content(folder / "fleet"))
        else:
            create_workspace(folder / "fleet", now=NOW)


def test_a_missing_fleet_says_what_to_run(tmp_path):
    """Every way to open what is not there names `fleetctl init`."""
    with pytest.raises(WorkspaceError, match="there is no fleet in") as caught:
        open_workspace(tmp_path / "nothing")
    assert "fleetctl init" in caught.value.hint
    for read in (
        lambda: ServerHome(tmp_path).config,
        lambda: OperatorHome(tmp_path).config,
        lambda: ServerHome(tmp_path).api_token,
        lambda: ServerHome(tmp_path).authority,
    ):
        with pytest.raises(WorkspaceError, match="is missing") as caught:
            read()
        assert "fleetctl init" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("port = 8470", 'port = "8470"', r"Expected `int`, got `str` - at `\$\.api\.port`"),
        ("port = 8470", "port = 70000", r"Expected `int` <= 65535 - at `\$\.api\.port`"),
        ("port = 8470", "prot = 8470", r"unknown field `prot` - at `\$\.api`"),
        ('version = "5"', 'version = "4"', "Invalid enum value '4'"),
        ('prefix = "fleet"', 'prefix = "a/#"', "prefix: expected a topic prefix"),
        ("[api]", "[api", "at line"),
    ],
)
def test_a_mistake_in_the_settings_is_pointed_at(workspace, old, new, message):
    """The message names the file and the place."""
    path = workspace.server.path / "config.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(WorkspaceError, match=message) as caught:
        ServerHome(workspace.server.path).config  # noqa: B018 - reading it is the test
    assert str(path) in str(caught.value)


def test_settings_that_are_left_out_have_defaults(workspace):
    """An empty file is a valid configuration of the server."""
    before = workspace.server.config
    (workspace.server.path / "config.toml").write_text("# nothing\n")
    assert before == ServerHome(workspace.server.path).config


def test_the_operator_remembers_what_it_signed(workspace):
    """The list seen last is kept beside the keys, and replaced as a whole."""
    operator = workspace.operator
    assert operator.seen_targets is None
    for raw in (b"first", b"second"):
        operator.remember_targets(raw)
        assert raw == OperatorHome(operator.path).seen_targets
    assert 0o600 == stat.S_IMODE(operator.seen_targets_path.stat().st_mode)


def test_a_listener_certificate_is_replaced(workspace):
    """The service renews its own certificate when it nears its end."""
    server = workspace.server
    pair = server.authority.issue_listener_certificate("fleet.example", NOW)
    server.save_listener(pair)
    assert pair.certificate_pem == server.listener_certificate_path.read_bytes()
    assert pair.key_pem == server.listener_key_path.read_bytes()


def test_every_error_has_a_code_of_its_own():
    """The codes that scripts see are distinct."""
    kinds = [ControllerError, *ControllerError.__subclasses__()]
    own = [kind for kind in kinds if kind.__module__ == "controller.errors"]
    assert len(own) > 1
    assert len(own) == len({kind.code for kind in own})
