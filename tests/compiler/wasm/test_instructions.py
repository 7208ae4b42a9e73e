"""Every instruction: its bytes and its types are those that the WebAssembly text format gives it."""

import ast
import inspect as python
from types import ModuleType

import pytest

from agent.runtime.module import assemble, inspect
from compiler import wasm
from compiler.wasm import F32, F64, I32, I64, V128, EncodeError, Expr, Module, ValueType, i8x16, i32, v128
from compiler.wasm.instruction import ExtractLane, Load, LoadLane, ReplaceLane, Store, StoreLane
from compiler.wasm.opcode import Immediate, Opcode
from compiler.wasm.opcodes import OPCODES
from protocol.wasm import sections

SHAPES = [
    wasm.i32,
    wasm.i64,
    wasm.f32,
    wasm.f64,
    v128,
    i8x16,
    wasm.i16x8,
    wasm.i32x4,
    wasm.i64x2,
    wasm.f32x4,
    wasm.f64x2,
]
EXPRESSIONS: dict[ValueType, type[Expr]] = {kind.type: kind for kind in (I32, I64, F32, F64, V128)}
IMMEDIATES = {
    Immediate.NONE: ("", b""),
    Immediate.MEMORY: ("offset=300 align=1", b"\0\xac\x02"),
    Immediate.LANE: ("1", b"\1"),
    Immediate.MEMORY_LANE: ("offset=300 align=1 1", b"\0\xac\x02\1"),
    Immediate.BYTES_16: ("i8x16 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", bytes(range(16))),
    Immediate.I32: ("-5", b"\x7b"),
    Immediate.I64: ("-5", b"\x7b"),
    Immediate.F32: ("1.5", b"\0\0\xc0\x3f"),
    Immediate.F64: ("1.5", b"\0\0\0\0\0\0\xf8\x3f"),
}
TYPED = [opcode for opcode in OPCODES.values() if opcode.immediate in IMMEDIATES and (opcode.operands or opcode.result)]
CODE_SECTION = 10


def code_of(opcode: Opcode, immediate: str) -> bytes:
    """Return the body that an assembler makes of one instruction between its operands and its result."""
    params = " ".join(kind.name.lower() for kind in opcode.operands)
    result = f"(result {opcode.result.name.lower()})" if opcode.result else ""
    gets = " ".join(f"local.get {n}" for n in range(len(opcode.operands)))
    text = f"(module (memory 1) (func (param {params}) {result} {gets} {opcode.name} {immediate}))"
    [body] = [payload for number, payload in sections(assemble(text)) if number == CODE_SECTION]
    return body[3 + 2 * len(opcode.operands) : -1]


@pytest.mark.parametrize("opcode", TYPED, ids=lambda opcode: opcode.name)
def test_the_table_agrees_with_the_text_format(opcode: Opcode) -> None:
    """Assembled by name, an instruction of these types has our bytes."""
    text, encoded = IMMEDIATES[opcode.immediate]
    if opcode.name == "i8x16.shuffle":
        text = text.removeprefix("i8x16")
    assert code_of(opcode, text) == opcode.code + encoded


def test_every_vector_instruction_has_a_function() -> None:
    """The modules named after the shapes hold the whole of SIMD; a constant is one of its lanes' type."""
    made = {"v128.const"} | {
        f"{shape.__name__.split('.')[-1]}.{name.rstrip('_')}" for shape in SHAPES for name in vars(shape)
    }
    assert set() == {name for name, opcode in OPCODES.items() if opcode.prefix == 0xFD} - made


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__.split(".")[-1])
def test_functions_are_named_after_their_instruction(shape: ModuleType) -> None:
    """`f32x4.add` makes `f32x4.add`, and nothing else."""
    prefix = shape.__name__.split(".")[-1]
    for node in ast.parse(python.getsource(shape)).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            [target], [name, *_] = node.targets, node.value.args
            if isinstance(target, ast.Name) and isinstance(name, ast.Constant):
                assert f"{prefix}.{target.id.rstrip('_')}" == name.value


MEMORY_ACCESSES = [
    (f"{shape.__name__.split('.')[-1]}.{name}", access)
    for shape in SHAPES
    for name, access in vars(shape).items()
    if isinstance(access, Load | Store | LoadLane | StoreLane)
]


@pytest.mark.parametrize(("name", "access"), MEMORY_ACCESSES, ids=[name for name, _ in MEMORY_ACCESSES])
def test_memory_accesses_hint_their_natural_alignment(name: str, access: object) -> None:
    """The alignment that an assembler chooses is the one that we write."""
    opcode = OPCODES[name]
    value = EXPRESSIONS[opcode.operands[-1]](b"")
    address = I32(b"")
    if isinstance(access, Load):
        made = access(address, 300).code
    elif isinstance(access, Store):
        made = access(address, value, 300).code
    else:
        assert isinstance(access, LoadLane | StoreLane)
        made = access(address, V128(b""), 1, 300).code
    lane = "1" if opcode.immediate is Immediate.MEMORY_LANE else ""
    assert code_of(opcode, f"offset=300 {lane}") == made


def test_every_lane_access_validates() -> None:
    """An engine accepts each first and last lane."""
    module = Module()
    module.memory(1)
    function = module.function("f")
    zero = wasm.i32x4.const(0)
    for shape in SHAPES:
        for name, access in vars(shape).items():
            if isinstance(access, ExtractLane):
                for lane in (0, access.lanes - 1):
                    function.drop(access(zero, lane))
            elif isinstance(access, ReplaceLane):
                value = EXPRESSIONS[OPCODES[f"{shape.__name__.split('.')[-1]}.{name}"].operands[1]]
                constant = {I32: wasm.i32, I64: wasm.i64, F32: wasm.f32, F64: wasm.f64}[value].const(1)
                function.drop(access(zero, access.lanes - 1, constant))
    inspect(module.encode())


def test_what_no_module_could_hold_is_refused() -> None:
    """Lanes, offsets and constants out of range are our own bug, found when they are written."""
    vector = wasm.f32x4.const(1.0)
    with pytest.raises(EncodeError, match="lane from 0 to 3, got 4"):
        wasm.f32x4.extract_lane(vector, 4)
    with pytest.raises(EncodeError, match="sixteen lanes"):
        i8x16.shuffle(vector, vector, [0] * 15)
    with pytest.raises(EncodeError, match="sixteen lanes"):
        i8x16.shuffle(vector, vector, [32] * 16)
    with pytest.raises(EncodeError, match="offset"):
        v128.load(i32.const(0), -1)
    with pytest.raises(EncodeError, match="offset"):
        v128.load(i32.const(0), 1 << 32)
    with pytest.raises(EncodeError, match="32-bit"):
        i32.const(1 << 32)
    with pytest.raises(EncodeError, match="64-bit"):
        wasm.i64.const(-(1 << 63) - 1)
