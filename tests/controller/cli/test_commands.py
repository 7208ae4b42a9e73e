"""Tests of the commands against a real service: documents, words, and errors that say what to do."""

import json
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from tests.controller.cli.fleets import ENVIRONMENT, Fleet, call
from tests.controller.wat_models import DOUBLE, GROW, LOOP, TRAP, TRIPLE, wasm


def push(fleet: Fleet, path: Path, model: str, *args: str, code: int = 0) -> dict[str, object]:
    pushed: dict[str, object] = fleet.ask("push", str(path), "--model", model, "--no-wait", *args, code=code)
    return pushed


def failure(fleet: Fleet, *args: str) -> str:
    done = fleet.run(*args)
    assert 1 == done.returncode, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("group", ["devices", "models", "releases", "rollouts"])
def test_a_bare_group_lists(fleet: Fleet, group: str) -> None:
    """`fleetctl devices` is `fleetctl devices list`, with its options."""
    assert fleet.ask(group) == fleet.ask(group, "list")
    assert isinstance(fleet.ask(group), list)


def test_an_invite_is_a_line_to_paste(fleet: Fleet) -> None:
    """The line stands alone, unbroken; the document has its parts."""
    done = fleet.run("devices", "invite", "invited-1", "--group", "site-i")
    line = next(line for line in done.stdout.splitlines() if line.startswith("fleet-agent enroll "))
    assert line.endswith(line.split()[2])
    invited = fleet.ask("devices", "invite", "--valid-min", "5")
    assert invited["command"] == f"fleet-agent enroll {invited['invite']}"
    assert datetime.fromisoformat(invited["expires_at"]).tzinfo is not None


def test_an_enrolled_device_is_not_invited_by_mistake(fleet: Fleet) -> None:
    """The advised command says what it does: the device's present key ends when the invite is used."""
    fleet.enroll("returning-1")
    said = failure(fleet, "devices", "invite", "returning-1")
    assert "returning-1 has enrolled already" in said
    assert f"`fleetctl --home {fleet.home} devices invite returning-1 --replace`" in said
    done = fleet.run("devices", "invite", "returning-1", "--replace")
    assert (0, True) == (done.returncode, "present key, which counts no more" in done.stdout)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("devices", "show", "nobody"), "there is no device 'nobody'"),
        (("devices", "explain", "nobody"), "nobody"),
        (("devices", "list", "--to", "nowhere"), "nowhere"),
        (("releases", "show", "nothing", "1.0.0"), "nothing"),
        (("releases", "yank", "nothing", "1.0.0", "--reason", "x"), "nothing"),
        (("releases", "retire", "nothing", "1.0.0", "--yes"), "there is no release nothing 1.0.0"),
        (("models", "undeploy", "nothing"), "nothing"),
        (("rollouts", "show", "r-none"), "there is no rollout 'r-none'"),
        (("rollouts", "watch", "r-none"), "there is no rollout 'r-none'"),
        (("rollouts", "stop", "r-none"), "there is no rollout 'r-none'"),
        (("query", "nothing"), "nothing"),
        (("query", "nothing", "--show-sql"), "no query is named 'nothing'"),
        (("query", "--sql", "DELETE FROM releases"), "SELECT"),
        (("query", "--sql", "SELECT * FROM sqlite_master"), "may not be used"),
        (("query", "--sql", "SELEKT"), "SELEKT"),
    ],
    ids=" ".join,
)
def test_what_does_not_exist_is_said(fleet: Fleet, args: tuple[str, ...], said: str) -> None:
    """The name that was asked for is in the message; the exit code is 1."""
    assert said in failure(fleet, *args)


def test_a_wrong_token_is_said(fleet: Fleet, tmp_path: Path) -> None:
    """The hint names the option that gives the right one; the token is not repeated."""
    (tmp_path / "wrong.token").write_text("this-is-wrong\n")
    done = call("--home", str(fleet.home), "--token-file", str(tmp_path / "wrong.token"), "models")
    assert 1 == done.returncode
    assert "token" in done.stderr
    assert "this-is-wrong" not in done.stderr


def test_an_address_may_be_given(fleet: Fleet) -> None:
    """With address and token no folder is needed."""
    token = str(fleet.home / "operator" / "api.token")
    given = ("--home", "nowhere", "--api-url", fleet.server.running["api_url"], "--token-file", token)
    assert 0 == call(*given, "models").returncode


def test_pushing_says_every_default(fleet: Fleet, doubler: Path) -> None:
    """What nobody said is on the screen with its origin, and every step is one line."""
    path = doubler.rename(doubler.with_name("plain-name.wasm"))
    shown = fleet.run("push", str(path), "--to", "all").stdout.splitlines()
    assert "model plain-name (from the file name) · version 1.0.0 (the first) · to all" in shown
    assert ["inspect", "preflight"] == [line.split()[1] for line in shown[:2]]
    assert any(line.startswith("✓ sign       release counter 1, targets version ") for line in shown)


def test_a_file_that_changed_is_the_next_release(fleet: Fleet, doubler: Path) -> None:
    """Versions and counters count by themselves; the files of the first release are not sent again."""
    first = push(fleet, doubler, "counting")
    doubler.write_bytes(wasm(TRIPLE))
    second = push(fleet, doubler, "counting")
    assert [("1.0.0", 1), ("1.0.1", 2)] == [(p["version"], p["release_counter"]) for p in (first, second)]
    listed = fleet.ask("releases", "--model", "counting")
    assert [2, 1] == [r["release_counter"] for r in listed]
    assert {"1.0.1"} == {m["latest"] for m in fleet.ask("models") if m["name"] == "counting"}


def test_pushing_the_same_file_again_makes_no_release(fleet: Fleet, doubler: Path) -> None:
    """The release that exists is rolled out; nothing is uploaded or signed."""
    first = push(fleet, doubler, "same")
    again = push(fleet, doubler, "same")
    assert (True, False, None) == (first["is_new"], again["is_new"], again["upload"])
    assert first["manifest_digest"] == again["manifest_digest"]
    shown = fleet.run("push", str(doubler), "--model", "same", "--no-wait").stdout
    assert "version 1.0.0 (the latest has the same content)" in shown
    assert "same 1.0.0 exists with the same content" in shown


def test_a_version_that_is_taken_is_refused(fleet: Fleet, doubler: Path) -> None:
    """A release never changes; the hint names a free version."""
    push(fleet, doubler, "taken", "--version", "2.0.0")
    doubler.write_bytes(wasm(TRIPLE))
    said = failure(fleet, "push", str(doubler), "--model", "taken", "--version", "2.0.0")
    assert "version 2.0.0 exists with other content" in said
    assert "--version 2.0.1" in said
    assert 1 == len(fleet.ask("releases", "--model", "taken"))


def test_a_version_below_the_newest_is_warned_of(fleet: Fleet, doubler: Path) -> None:
    """It may be meant: a correction of an older line, or the way back. --json has its document all the same."""
    push(fleet, doubler, "lower", "--version", "2.0.0")
    warning = "warning: lower 1.0.0 is lower than 2.0.0, its newest release: a device that runs that one goes back"
    assert [] == [line for line in fleet.run("push", str(doubler), "--model", "lower").stderr.splitlines() if line]
    doubler.write_bytes(wasm(TRIPLE))
    for is_new in (True, False):
        done = fleet.run("push", str(doubler), "--model", "lower", "--version", "1.0.0", "--no-wait", "--json")
        assert (warning, is_new) == (done.stderr.strip(), json.loads(done.stdout)["is_new"])


def test_a_model_that_must_not_run_here_does_not(fleet: Fleet, doubler: Path, tmp_path: Path) -> None:
    """--skip-preflight needs the outputs: to record them the module would have to run."""
    doubler.write_bytes(wasm(TRAP))
    vectors = tmp_path / "vectors.json"
    vectors.write_text('{"inputs": [{"x": [1, 2]}]}')
    args = ("push", str(doubler), "--model", "unrun", "--skip-preflight", "--test-data", str(vectors), "--dry-run")
    done = fleet.run(*args)
    assert 2 == done.returncode
    assert "the model has to run here to record its own" in " ".join(done.stderr.split())
    vectors.write_text('{"inputs": [{"x": [1, 2]}], "outputs": [{"y": [2, 4]}]}')
    assert "- preflight  skipped" in fleet.run(*args).stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x89PNG\r\n\x1a\n", "not a wasm file"),
        (b"(module)", "missing: memory, fleet_input"),
        (b'(module (import "wasi_snapshot_preview1" "fd_write" (func)))', "fd_write"),
        (wasm(memory="3000 3000"), "expected a memory of at most 134,217,728 bytes"),
        (wasm(TRAP), "unreachable"),
        (wasm(LOOP, deadline_ms=50), "50 ms"),
    ],
    ids=["picture", "no-abi", "import", "memory", "trap", "loop"],
)
def test_bad_models_are_refused_before_anything_happens(fleet: Fleet, doubler: Path, content: bytes, said: str) -> None:
    """What a device would refuse never leaves the operator's machine; there is a hint on how to mend it."""
    doubler.write_bytes(content)
    before = fleet.ask("query", "--sql", "SELECT count(*) FROM audit_log")["rows"]
    error = failure(fleet, "push", str(doubler), "--model", "bad")
    assert said in error
    assert "\nhint: " in error
    assert before == fleet.ask("query", "--sql", "SELECT count(*) FROM audit_log")["rows"]


def test_an_unknown_group_is_refused_before_signing(fleet: Fleet, doubler: Path) -> None:
    """A typing error in --to leaves no release behind."""
    assert "there is no group or device 'sight-a'" in failure(
        fleet, "push", str(doubler), "--model", "typo", "--to", "sight-a"
    )
    assert "typo" not in {m["name"] for m in fleet.ask("models")}


def test_a_dry_run_changes_nothing(fleet: Fleet, doubler: Path) -> None:
    """The plan is there, the release is not."""
    planned = push(fleet, doubler, "planned", "--dry-run")
    assert (True, None, None) == (planned["is_new"], planned["rollout"], planned["upload"])
    assert isinstance(planned["plan"], dict)
    assert "planned" not in {m["name"] for m in fleet.ask("models")}


def test_growing_memory_is_in_the_contract(fleet: Fleet, doubler: Path) -> None:
    """What a module needed here is what devices are asked for."""
    doubler.write_bytes(wasm(GROW, memory="1 4"))
    assert {"memory_bytes": 4 * 65_536, "stack_kib": 64, "deadline_ms": 1_000, "imports": []} == push(
        fleet, doubler, "growing", "--dry-run"
    )["contract"]


def test_releases_can_be_yanked(fleet: Fleet, doubler: Path) -> None:
    """A yanked release says why, and is refused from then on."""
    push(fleet, doubler, "yanked")
    done = fleet.run("releases", "yank", "yanked", "1.0.0", "--reason", "wrong labels")
    assert "yanked 1.0.0 is yanked; 0 devices still run it\n" == done.stdout
    assert "status    yanked: wrong labels" in fleet.run("releases", "show", "yanked", "1.0.0").stdout
    assert "wrong labels" == fleet.ask("releases", "show", "yanked", "1.0.0")["yank_reason"]


def test_releases_can_be_retired(fleet: Fleet, doubler: Path) -> None:
    """The floor rises to the next release; the newest always stays."""
    for infer in (DOUBLE, TRIPLE):
        doubler.write_bytes(wasm(infer))
        push(fleet, doubler, "old")
    retired = fleet.ask("releases", "retire", "old", "1.0.0", "--yes")
    assert (2, ["1.0.0"]) == (retired["min_release_counter"], retired["retired"])
    assert [False, True] == [r["is_below_floor"] for r in fleet.ask("releases", "--model", "old")]
    assert "one has to stay installable" in failure(fleet, "releases", "retire", "old", "1.0.1", "--yes")


def test_retiring_asks_first(fleet: Fleet, doubler: Path) -> None:
    """What cannot be taken back is not done without a yes."""
    for infer in (DOUBLE, TRIPLE):
        doubler.write_bytes(wasm(infer))
        push(fleet, doubler, "asked")
    done = call("--home", str(fleet.home), "releases", "retire", "asked", "1.0.0", stdin="n\n")
    assert (1, True) == (done.returncode, "Retire asked 1.0.0? This cannot be taken back" in done.stderr)
    assert [False, False] == [r["is_below_floor"] for r in fleet.ask("releases", "--model", "asked")]


def test_queries_are_listed_with_their_sql(fleet: Fleet) -> None:
    """The list, the SQL and the rows of each named query can be had."""
    queries = fleet.ask("query", "--list")
    assert {"latency", "failures", "fleet-status"} <= {q["name"] for q in queries}
    assert queries == fleet.ask("query")
    assert "SELECT" in fleet.run("query", "latency", "--show-sql").stdout
    for named in queries:
        parameters = [f"--param={key}=nobody" for key in named["required"]]
        assert [] != fleet.ask("query", named["name"], *parameters)["columns"]


def test_rows_come_as_table_csv_or_json(fleet: Fleet) -> None:
    """One result, three forms."""
    sql = ("query", "--sql", "SELECT 1 AS n, 'a,b' AS text, NULL AS empty")
    assert "n  text  empty\n1  a,b   -\n" == fleet.run(*sql).stdout
    assert 'n,text,empty\n1,"a,b",\n' == fleet.run(*sql, "--format", "csv").stdout
    expected = {"columns": ["n", "text", "empty"], "rows": [[1, "a,b", None]], "is_cut": False}
    assert expected == json.loads(fleet.run(*sql, "--format", "json").stdout)
    assert "no rows\n" == fleet.run("query", "--sql", "SELECT 1 AS n WHERE 0").stdout


def test_rows_that_were_left_out_are_mentioned(fleet: Fleet) -> None:
    """A cut result warns on stderr, so that stdout stays what it is."""
    sql = "SELECT 1 AS n UNION SELECT 2 UNION SELECT 3"
    done = fleet.run("query", "--sql", sql, "--limit", "2", "--format", "csv")
    assert "n\n1\n2\n" == done.stdout
    assert "warning: only the first 2 rows; ask for more with --limit\n" == done.stderr


def test_a_parameter_needs_a_value(fleet: Fleet) -> None:
    """NAME=VALUE or nothing."""
    done = fleet.run("query", "version-spread", "--param", "model")
    assert (2, True) == (done.returncode, "expected NAME=VALUE, got 'model'" in done.stderr)


def test_a_file_in_the_way_is_said(fleet: Fleet, doubler: Path, tmp_path: Path) -> None:
    """What the system refuses is an error with the path, not a traceback."""
    shutil.copytree(fleet.home, tmp_path / "copy", ignore=shutil.ignore_patterns("server"))
    (tmp_path / "copy" / "operator" / "seen_targets.json").unlink(missing_ok=True)
    (tmp_path / "copy" / "operator" / "seen_targets.json").mkdir()
    address = ("--api-url", fleet.server.running["api_url"])
    done = call("--home", str(tmp_path / "copy"), *address, "push", str(doubler), "--model", "in-the-way")
    assert (1, True) == (done.returncode, "seen_targets.json: Is a directory" in done.stderr)


def test_two_operators_may_push_at_once(fleet: Fleet, doubler: Path, tmp_path: Path) -> None:
    """Releases that race, on one machine and from two, get a counter each; none is lost."""
    shutil.copytree(fleet.home / "operator", tmp_path / "laptop" / "operator")
    address = ("--api-url", fleet.server.running["api_url"], "push", "--model", "raced", "--json")
    racers = []
    for number, home in enumerate([fleet.home, fleet.home, tmp_path / "laptop", tmp_path / "laptop"]):
        path = doubler.with_name(f"racing-{number}.wasm")
        path.write_bytes(wasm(DOUBLE, producer=f"racer {number}"))
        command = [sys.executable, "-c", "from controller.entry import main; main()", "--home", str(home), *address]
        racers.append(subprocess.Popen([*command, str(path)], stdout=subprocess.PIPE, env=ENVIRONMENT))
    pushed = [json.loads(racer.communicate(timeout=60)[0]) for racer in racers]
    assert {1, 2, 3, 4} == {document["release_counter"] for document in pushed}
    assert 4 == len(fleet.ask("releases", "--model", "raced"))
