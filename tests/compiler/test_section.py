"""The section that describes a model: written, replaced, read back; the rest of the module stays."""

import pytest

from agent.runtime.module import assemble, inspect
from compiler.section import read_model_section, with_model_section
from protocol.errors import MalformedError
from protocol.tensors import ModelSpec, TensorSpec
from protocol.wasm import sections

WASM = assemble('(module (memory (export "memory") 1 1) (func $f (export "f")) (data (i32.const 0) "abc"))')


def spec(name: str) -> ModelSpec:
    """Return a small spec with a name to tell it by."""
    tensor = TensorSpec(name="x", datatype="FP32", shape=(1, 2))
    return ModelSpec(name=name, inputs=(tensor,), outputs=(tensor,), labels={"x": ("no", "yes")})


def test_it_is_written_and_read_back() -> None:
    """A module without the section gets it, and stays valid."""
    assert read_model_section(WASM) is None
    described = with_model_section(WASM, spec("one"))
    assert spec("one") == read_model_section(described)
    assert list(sections(WASM)) == list(sections(described))[:-1]
    assert "f" in inspect(described).exports


def test_it_is_replaced() -> None:
    """There is never a second one, also when there were two, which no reader accepts."""
    once = with_model_section(WASM, spec("one"))
    assert with_model_section(WASM, spec("two")) == with_model_section(once, spec("two"))
    twice = once + once[len(WASM) :]
    with pytest.raises(MalformedError, match="got two"):
        read_model_section(twice)
    assert spec("two") == read_model_section(with_model_section(twice, spec("two")))


@pytest.mark.parametrize("module", [b"", b"PK\3\4", b"\0asm\x0d\0\1\0", WASM[:-1], WASM + b"\0\1\x80", WASM + b"\0"])
def test_what_is_no_module_is_refused(module: bytes) -> None:
    """Damage is reported, not carried over."""
    with pytest.raises(MalformedError):
        with_model_section(module, spec("one"))
