"""The parts of the documents that are made from the code: `python -m tests.docs_blocks` writes them anew.

A part follows a comment `<!-- made: KIND ARGUMENT -->`: a fenced block, or a table up to the next empty line. A longer
one stands between `<!-- made from here: KIND ARGUMENT -->` and `<!-- to here -->`.
`tests/test_docs.py` fails when a part is not what the code says.
"""

import base64
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

from onnx import defs

from agent import errors as agent_errors
from agent.runtime import errors as runtime_errors
from agent.serving.listeners import ListenerError
from compiler.importer.importer import CONVERTERS
from protocol import errors as protocol_errors
from protocol import lifecycle, limits
from protocol.admission import AdmissionError
from protocol.codec import sha256
from protocol.compression import decompress
from protocol.repository import MetadataSet
from tests import docs_cli

HOUSE = Path(__file__).parent.parent
DOCUMENTS = sorted([*HOUSE.glob("*.md"), *(HOUSE / "docs").rglob("*.md"), *(HOUSE / "examples").rglob("*.md")])
RECORDED = HOUSE / "tests" / "protocol" / "recorded" / "v1"
WIDTH = 110

_PART = re.compile(
    r"^(?P<head>(?P<indent> *)<!-- made: (?P<kind>[a-z-]+) ?(?P<argument>\S*) -->\n)"
    r"(?P<part> *```.*?\n *```$|.+?(?=\n\n|\n*\Z))",
    re.DOTALL | re.MULTILINE,
)


_LONG_PART = re.compile(
    r"^(?P<head><!-- made from here: (?P<kind>[a-z-]+) ?(?P<argument>\S*) -->\n)"
    r"(?P<part>.*?)(?P<tail>^<!-- to here -->$)",
    re.DOTALL | re.MULTILINE,
)


def rewrite(text: str) -> str:
    """Return the document with every part as the code makes it now."""
    text = _LONG_PART.sub(lambda m: f"{m['head']}\n{make(m['kind'], m['argument'])}\n\n{m['tail']}", text)
    return _PART.sub(lambda m: m["head"] + textwrap.indent(make(m["kind"], m["argument"]), m["indent"]), text)


def make(kind: str, argument: str) -> str:
    """Return the part that a comment asks for."""
    return _MAKERS[kind](argument)


def _recorded(name: str) -> str:
    return _json_block(json.loads((RECORDED / name).read_bytes()))


def _envelope_payload(name: str) -> str:
    envelope = json.loads((RECORDED / name).read_bytes())
    return _json_block(json.loads(base64.b64decode(envelope["payload"])))


def _metadata_file(name: str) -> str:
    """One signed file of the recorded metadata set, named as `image/4.targets.json`."""
    domain, file = name.split("/")
    found = MetadataSet.from_bytes((RECORDED / "broker/fleet/v1/tuf/metadata").read_bytes())
    return _json_block(json.loads(getattr(found, domain)[file]))


def _recorded_manifest(_: str) -> str:
    """The manifest in the recording: the only file of a blob that is JSON."""
    for index_file in (RECORDED / "broker").rglob("index"):
        data = b"".join(path.read_bytes() for path in sorted(index_file.parent.glob("[0-9]*")))
        index = json.loads(index_file.read_bytes())
        if index["encoding"] == "zstd":
            data = decompress(data, limit_bytes=index["size"], what="file")
        assert index["digest"] == sha256(data)
        if data.startswith(b"{"):
            return _json_block(json.loads(data))
    raise LookupError("no manifest in the recording")


def _wat(_: str) -> str:
    return f"```wat\n{(RECORDED / 'module.wat').read_text().rstrip()}\n```"


def _limits(_: str) -> str:
    """Every limit with its value, as `protocol.limits` has it."""
    rows = ["| limit | value |", "|---|---|"]
    for name, value in vars(limits).items():
        if name.isupper() and name not in ("KIB", "MIB"):
            rows.append(f"| `{name}` | {_shown(name, value)} |")
    return "\n".join(rows)


def _shown(name: str, value: int | tuple[int, ...]) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if name == "MAX_INTEGER":
        return "2^53 - 1"
    for unit, size in (("MiB", limits.MIB), ("KiB", limits.KIB)):
        if "BYTES" in name and value % size == 0:
            return f"{value // size:,} {unit}"
    return f"{value:,}"


def _diagram(name: str) -> str:
    """A state diagram of one lifecycle table, without the ways out that nearly every state has."""
    table: dict[str, tuple[str, ...]] = getattr(lifecycle, name)
    common = set(lifecycle._LEAVE) if name == "DEPLOYMENT" else set()
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {next(iter(table))}"]
    for state, following in table.items():
        lines += [f"    {state} --> {after}" for after in following if after not in common and after != state]
        if not following and state not in common:
            lines.append(f"    {state} --> [*]")
    return "\n".join([*lines, "```"])


def _table(name: str) -> str:
    """One lifecycle table as rows."""
    table: dict[str, tuple[str, ...]] = getattr(lifecycle, name)
    rows = ["| state | may be followed by |", "|---|---|"]
    return "\n".join(
        rows
        + [
            f"| `{state}` | {', '.join(f'`{s}`' for s in following) or 'nothing: final'} |"
            for state, following in table.items()
        ]
    )


def _codes(which: str) -> str:
    """Error codes and what they mean, from the docstrings of the error classes."""
    module = {"protocol": protocol_errors, "agent": agent_errors, "runtime": runtime_errors}[which]
    classes = [each for each in vars(module).values() if isinstance(each, type) and hasattr(each, "code")]
    if which == "protocol":
        classes.append(AdmissionError)
    if which == "agent":
        classes.append(ListenerError)
    rows = ["| code | meaning |", "|---|---|"]
    return "\n".join(rows + [f"| `{each.code}` | {_first_sentence(each)} |" for each in classes[1:]])


def _first_sentence(each: type) -> str:
    return " ".join((each.__doc__ or "").split("\n\n")[0].split()).rstrip(".")


def _json_block(value: object) -> str:
    return f"```json\n{pretty(value)}\n```"


def pretty(value: object, indent: str = "") -> str:
    """Return JSON to read: what fits on a line is on one."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(flat) <= WIDTH or not isinstance(value, dict | list):
        return flat
    deeper = indent + "  "
    if isinstance(value, dict):
        inner = [f"{deeper}{json.dumps(key)}: {pretty(each, deeper)}" for key, each in value.items()]
        return "{\n" + ",\n".join(inner) + f"\n{indent}}}"
    return "[\n" + ",\n".join(f"{deeper}{pretty(each, deeper)}" for each in value) + f"\n{indent}]"


def _offer(_: str) -> str:
    return _json_block(json.loads(min((RECORDED / "broker").rglob("offer/*")).read_bytes()))


def _index(_: str) -> str:
    """The index of the blob that the offer above leads to."""
    offer = json.loads(min((RECORDED / "broker").rglob("offer/*")).read_bytes())
    return _recorded(f"broker/fleet/v1/blob/{offer['sources'][0]['blob']}/index")


def _operators(which: str) -> str:
    """The operators that the compiler converts, of one domain, or those that it takes by ONNX's own definitions."""
    if which == "defined":
        names = sorted({s.name for s in defs.get_all_schemas() if s.domain == "" and _is_defined(s.name)})
    else:
        domain = "" if which == "onnx" else which
        names = sorted(name for of, name in CONVERTERS if of == domain)
    return textwrap.fill(", ".join(f"`{name}`" for name in names), WIDTH, break_on_hyphens=False)


def _is_defined(name: str) -> bool:
    """Whether an operator without a converter is defined by operators that have one."""
    schema = defs.get_schema(name)
    if ("", name) in CONVERTERS or not schema.has_function:
        return False
    return all((node.domain, node.op_type) in CONVERTERS for node in schema.function_body.node)


_MAKERS: dict[str, Callable[[str], str]] = {
    "recorded": _recorded,
    "payload": _envelope_payload,
    "metadata": _metadata_file,
    "manifest": _recorded_manifest,
    "offer": _offer,
    "index": _index,
    "wat": _wat,
    "limits": _limits,
    "diagram": _diagram,
    "table": _table,
    "codes": _codes,
    "operators": _operators,
    "agent-commands": lambda _: docs_cli.agent_commands(),
}


if __name__ == "__main__":
    for document in DOCUMENTS:
        before = document.read_text()
        after = rewrite(before)
        if before != after:
            document.write_text(after)
            print(f"rewrote {document.relative_to(HOUSE)}")  # noqa: T201
