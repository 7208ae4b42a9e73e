"""The commands of `fleet-agent`: join a fleet, run, and ask the running agent."""

import argparse
import itertools
import os
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from agent.client import AgentGoneError, AgentNotRunningError, Answer, ClientError, LocalClient
from agent.errors import AgentError, IdentityError
from agent.inputs import InputFileError, is_series, read_one, read_series
from agent.status import AgentStatus, as_table
from protocol.errors import ProtocolError

EXIT_FAILED: Final = 1
EXIT_NOT_ENROLLED: Final = 3
EXIT_NOT_RUNNING: Final = 4
EXIT_UNREAD: Final = 141
_NewCommand = Callable[..., argparse.ArgumentParser]
_INPUT_HELP: Final = (
    "JSON: {input: numbers}, or a list for a model of one input; a .bin file: the raw bytes of one input; "
    "- reads JSON from standard input; a .jsonl file or a folder: one after another, an answer for each"
)
_SYSTEM_STATE: Final = Path("/var/lib/fleet-agent")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except IdentityError as error:
        return _complain(error, EXIT_NOT_ENROLLED)
    except AgentNotRunningError as error:
        hint = "" if isinstance(error, AgentGoneError) else ", or name its state folder with --state"
        return _complain(f"{error}{_named(arguments.state) or hint}", EXIT_NOT_RUNNING)
    except BrokenPipeError:  # whoever read the output had seen enough; Python would try again, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_UNREAD
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else error, EXIT_FAILED)
    except (AgentError, ProtocolError) as error:
        return _complain(error, EXIT_FAILED)
    except KeyboardInterrupt:
        return 130


def default_state_dir() -> Path:
    """Return the state folder when none is named: the system's for root, else the user's."""
    if named := os.environ.get("FLEET_AGENT_STATE"):
        return Path(named)
    if os.geteuid() == 0:
        return _SYSTEM_STATE
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base) / "fleet-agent"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fleet-agent",
        description="Runs the models that a fleet's operator deploys to this device.",
        epilog="Begin with `fleetctl devices invite` on the operator's machine; paste the line that it prints here.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    state = argparse.ArgumentParser(add_help=False)
    state.add_argument(
        "--state",
        type=Path,
        default=default_state_dir(),
        metavar="DIR",
        help="where the agent keeps everything; also FLEET_AGENT_STATE (default: %(default)s)",
    )

    def command(name: str, text: str, example: str, *, has_state: bool = True) -> argparse.ArgumentParser:
        description, epilog = f"{text}.".capitalize(), f"Example: fleet-agent {example}"
        parents = [state] if has_state else []
        return commands.add_parser(name, parents=parents, help=text, description=description, epilog=epilog)

    _add_running(command)
    _add_asking(command)
    return parser


def _add_running(command: _NewCommand) -> None:
    """Add the commands that make this machine a device."""
    sub = command("enroll", "join a fleet", "enroll wf1.eyJj…")
    sub.add_argument("invite", metavar="INVITE", help="the text that `fleetctl devices invite` printed")
    sub.add_argument("--json", action="store_true", help="print the result as JSON")
    sub.set_defaults(run=_enroll)

    sub = command("run", "run the agent until it is told to stop", "run --state ./device-1")
    sub.add_argument(
        "--log-format",
        choices=("auto", "text", "json", "journal"),
        default="auto",
        help="on standard error: text, JSON lines, or lines with a priority for systemd's journal (default: by itself)",
    )
    sub.set_defaults(run=_run)

    text = "print a unit file that runs this agent as a service, on /var/lib/fleet-agent"
    command("systemd-unit", text, "systemd-unit", has_state=False).set_defaults(run=_systemd_unit)


def _add_asking(command: _NewCommand) -> None:
    """Add the commands that ask the agent, or look at what it keeps."""
    sub = command("status", "show the device, its link and its models", "status --json")
    sub.add_argument("--json", action="store_true", help="print as JSON")
    sub.set_defaults(run=_status)

    sub = command("infer", "run a model on what is given", "infer digits --input digit.json")
    sub.add_argument("model", metavar="MODEL", help="the name of the model")
    sub.add_argument("--input", required=True, metavar="FILE", help=_INPUT_HELP)
    sub.add_argument("--json", action="store_true", help="print as JSON")
    sub.add_argument(
        "--start",
        action="store_true",
        help="let a stateful model forget the calls before; of several, before the first",
    )
    sub.set_defaults(run=_infer)

    sub = command("captures", "list the inputs that were kept of calls that went wrong", "captures")
    sub.add_argument("--json", action="store_true", help="print JSON lines")
    sub.set_defaults(run=_captures)

    sub = command("replay", "run a captured input again on the same release", "replay digits-1.0.0-6fd9c2b1.capture")
    sub.add_argument("capture", metavar="CAPTURE", help="a name that `fleet-agent captures` prints, or a file")
    sub.add_argument("--module", type=Path, metavar="FILE", help="the release's .wasm, when it is not on this device")
    sub.add_argument("--json", action="store_true", help="print the result as JSON")
    sub.set_defaults(run=_replay)

    sub = command("logs", "show the agent's log", "logs -n 20 --follow")
    sub.add_argument("-n", type=_count, default=50, metavar="N", help="how many lines (default: %(default)s)")
    sub.add_argument("--follow", "-f", action="store_true", help="go on with new lines until Ctrl-C")
    sub.add_argument("--json", action="store_true", help="print JSON lines")
    sub.set_defaults(run=_logs)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > 1_000_000:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1000000, got {text!r}")
    return int(text)


def _enroll(arguments: argparse.Namespace) -> int:
    from agent.enroll import enroll  # noqa: PLC0415 - the other commands need none of it

    try:
        arguments.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise AgentError(f"cannot make {arguments.state}: {error}. Name another --state; the invite is good") from error
    enrollment = enroll(arguments.invite, arguments.state)
    if arguments.json:
        _print(msgspec.json.encode(enrollment).decode())
    else:
        _print(f"Enrolled as {enrollment.device_id}. Start the agent with: fleet-agent run{_named(arguments.state)}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from agent.daemon import Daemon  # noqa: PLC0415 - the other commands need none of it
    from agent.logs import start_logging  # noqa: PLC0415 - the other commands need none of it
    from agent.runtime import processors  # noqa: PLC0415 - the other commands need none of it

    if not arguments.state.is_dir():
        raise IdentityError(
            f"this device is not enrolled ({arguments.state} does not exist): run `fleetctl devices invite` on the "
            f"operator's machine and paste the line that it prints, `fleet-agent enroll <invite>`, here"
        )
    handlers = start_logging(arguments.state, arguments.log_format)
    processors.leave_one()
    try:
        Daemon(arguments.state).run()
    finally:
        for handler in handlers:
            handler.close()
    return 0


def _systemd_unit(_: argparse.Namespace) -> int:
    from agent.systemd import hidden_by_unit, unit  # noqa: PLC0415 - the other commands need none of it

    program = Path(sys.argv[0]).absolute()
    if hidden_by_unit(program):
        _complain(f"{program} is in a user's folder, which the unit hides: install it elsewhere, as in /opt/fleet", 0)
    _print(unit(program).rstrip())
    return 0


def _status(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        raw = client.status()
    _print(msgspec.json.encode(raw).decode() if arguments.json else as_table(msgspec.convert(raw, AgentStatus)))
    return 0


def _infer(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        names = [tensor.name for tensor in client.metadata(arguments.model).inputs]
        if is_series(arguments.input):
            return _infer_series(client, arguments, names)
        answer = client.infer(arguments.model, read_one(arguments.input, names), sequence_start=arguments.start)
    _print(msgspec.json.encode(_as_json(answer)).decode() if arguments.json else _as_text(answer))
    return 0


def _infer_series(client: LocalClient, arguments: argparse.Namespace, names: list[str]) -> int:
    """Answer one set of inputs after another, each as soon as it is; one that fails does not end the rest."""
    failed = count = 0
    is_first = True
    for where, inputs in read_series(arguments.input, names):
        count += 1
        problem: Exception | None = None
        try:
            if isinstance(inputs, InputFileError):
                raise inputs
            answer = client.infer(arguments.model, inputs, sequence_start=is_first and arguments.start)
            is_first = False
        except AgentNotRunningError:
            raise
        except (ClientError, InputFileError) as error:
            problem, failed = error, failed + 1
        if arguments.json:
            said: dict[str, object] = {"error": str(problem)} if problem else _as_json(answer)
            _print(msgspec.json.encode({"input": where, **said}).decode())
        elif problem:
            _complain(problem if isinstance(problem, InputFileError) else f"{where}: {problem}", 0)
        else:
            _print(f"{where}: {_as_text(answer)}")
    if count == 0:
        raise AgentError(f"{arguments.input} holds no inputs: expected files named *.json, *.bin or *.jsonl, or lines")
    return EXIT_FAILED if failed else 0


def _captures(arguments: argparse.Namespace) -> int:
    from agent.captures import FOLDER_NAME, CaptureError, capture_files, read_head  # noqa: PLC0415 - the others need none of it

    paths = capture_files(arguments.state / FOLDER_NAME)
    if not paths:
        _complain("no captures: max_captures in policy.toml says how many are kept", 0)
    status = 0
    for path in paths:
        try:
            head = read_head(path)
        except CaptureError as error:
            status = _complain(error, EXIT_FAILED)
            continue
        if arguments.json:
            release = {"model": head.manifest.model, "version": head.manifest.version}
            _print(msgspec.json.encode({"name": path.name, **release, "fault": head.fault}).decode())
        else:
            at = datetime.fromtimestamp(head.fault.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
            _print(f"{path.name}  {at}  {head.fault.message}")
    return status


def _replay(arguments: argparse.Namespace) -> int:
    from agent.captures import FOLDER_NAME, read_capture  # noqa: PLC0415 - the others need none of it
    from agent.replay import find_module, replay  # noqa: PLC0415 - the others need none of it

    places = (arguments.state / FOLDER_NAME / arguments.capture, Path(arguments.capture))
    path = next((path for path in places if path.exists()), None)
    if path is None:
        raise AgentError(
            f"no capture {arguments.capture}, neither in {places[0].parent} nor as a file: "
            f"see: fleet-agent captures{_named(arguments.state)}"
        )
    capture = read_capture(path)
    if arguments.module:
        module = arguments.module.read_bytes()
    else:
        module = find_module(arguments.state / "files", capture.head.manifest)
    result = replay(capture, module)
    _print(msgspec.json.encode(result).decode() if arguments.json else str(result))
    return 0 if result.outcome == "reproduced" else EXIT_FAILED


def _logs(arguments: argparse.Namespace) -> int:
    from agent.logs import follow, last_lines  # noqa: PLC0415 - the other commands need none of it

    following = follow(arguments.state) if arguments.follow else ()
    for line in itertools.chain(last_lines(arguments.state, arguments.n), following):
        _print(msgspec.json.encode(line).decode() if arguments.json else str(line))
    return 0


def _client(arguments: argparse.Namespace) -> LocalClient:
    return LocalClient(arguments.state / "agent.sock")


def _as_json(answer: Answer) -> dict[str, object]:
    outputs = {
        name: {"datatype": o.datatype, "shape": o.shape, "values": o.values, "labels": o.labels}
        | ({"has_nan": True} if o.has_nan else {})
        for name, o in answer.outputs.items()
    }
    return {"model": answer.model, "version": answer.version, "outputs": outputs}


def _as_text(answer: Answer) -> str:
    lines = [f"{answer.model} {answer.version}"]
    for name, output in answer.outputs.items():
        shown = ", ".join(f"{value:.6g}" for value in output.values[:16])
        more = f", … {len(output.values)} in all" if len(output.values) > 16 else ""
        label = f"  → {', '.join(output.labels)}" if output.labels else ""
        flag = "  (has NaN)" if output.has_nan else ""
        lines.append(f"  {name} {output.datatype}{list(output.shape)}: {shown}{more}{label}{flag}")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return a text that does nothing to a terminal: some of it may come from other devices, or from a module."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def _print(text: str) -> None:
    print(_plain(text), flush=True)  # noqa: T201 - what a command is asked for


def _named(state: Path) -> str:
    """Return the option that a command needs to find `state`, if it needs one."""
    return "" if state == default_state_dir() else f" --state {shlex.quote(str(state))}"


def _complain(error: object, status: int) -> int:
    print(f"fleet-agent: {_plain(str(error))}", file=sys.stderr)  # noqa: T201 - why a command failed
    return status
