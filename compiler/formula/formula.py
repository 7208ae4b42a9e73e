"""A formula: straight-line code on single elements, without loops, memory or shapes.

It is what is left of a chain of elementwise operators when they are fused. Every instruction makes one value from
earlier ones; equal instructions are the same instruction. The operations are

    arg             an element of an operand                     const        a number
    neg abs sign sqrt floor ceil trunc round                     (round: to the nearest, ties to even)
    exp log sigmoid tanh erf sin cos tan asin acos atan          not is_nan is_inf bit_not
    add sub mul div min max pow mod fmod                         (min, max: NaN wins; mod: the sign of the divisor)
    at_least at_most                                             (max and min with a bound that is not NaN: NaN stays)
    eq lt le                                                     and or xor
    bit_and bit_or bit_xor shift_left shift_right                (shift_right: brings in the sign, if there is one)
    select          the second value where the first is true, else the third
    cast            to another type, as a C cast does; out of range the nearest value

and `compiler.formula.reference` says what each of them means.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from compiler.dtypes import DType
from compiler.errors import InternalError

COMPARISONS: Final = frozenset({"eq", "lt", "le", "is_nan", "is_inf"})
_UNARY = "neg abs sign sqrt floor ceil trunc round not is_nan is_inf bit_not cast"
_FUNCTIONS = "exp log sigmoid tanh erf sin cos tan asin acos atan"
_BINARY = "add sub mul div min max pow mod fmod at_least at_most eq lt le"
_BITS = "and or xor bit_and bit_or bit_xor shift_left shift_right"
OPERAND_COUNTS: Final[dict[str, int]] = {
    **dict.fromkeys(["arg", "const"], 0),
    **dict.fromkeys(f"{_UNARY} {_FUNCTIONS}".split(), 1),
    **dict.fromkeys(f"{_BINARY} {_BITS}".split(), 2),
    "select": 3,
}

Number = bool | int | float


class Instruction(msgspec.Struct, frozen=True):
    """One step: `operands` are the numbers of earlier steps."""

    operation: str
    dtype: DType
    operands: tuple[int, ...] = ()
    value: Number = 0
    """The number of a const, the position of an arg."""


class Formula(msgspec.Struct, frozen=True):
    """Straight-line code; `result` is the number of the step that is the answer."""

    instructions: tuple[Instruction, ...]
    result: int
    args: tuple[DType, ...]

    @property
    def dtype(self) -> DType:
        """The type of the answer."""
        return self.instructions[self.result].dtype

    @property
    def is_identity(self) -> bool:
        """Whether it only passes its one operand on."""
        return self.instructions[self.result].operation == "arg"

    def uses(self) -> list[int]:
        """Return how often each step is used, the answer once more."""
        counts = [0] * len(self.instructions)
        for instruction in self.instructions:
            for operand in instruction.operands:
                counts[operand] += 1
        counts[self.result] += 1
        return counts


class Writer:
    """Writes a formula. Values are numbers of steps."""

    def __init__(self, args: Sequence[DType]) -> None:
        self.args = tuple(args)
        self._instructions: list[Instruction] = []
        self._numbers: dict[tuple[Instruction, str], int] = {}

    def arg(self, position: int) -> int:
        """Return an element of operand number `position`."""
        return self._add(Instruction("arg", self.args[position], (), position))

    def const(self, dtype: DType, value: Number) -> int:
        """Return a number."""
        return self._add(Instruction("const", dtype, (), value))

    def apply(self, operation: str, *operands: int) -> int:
        """Return the value of an operation whose operands are of one type (a select: its second and third)."""
        if OPERAND_COUNTS.get(operation) != len(operands):
            raise InternalError(f"formula: {operation} does not take {len(operands)} operands")
        types = [self._instructions[operand].dtype for operand in operands]
        if operation == "abs" and not types[0].is_signed:
            return operands[0]
        typed = types[1:] if operation == "select" else types
        if len(set(typed)) != 1:
            raise InternalError(f"formula: {operation} of {[t.value for t in types]}")
        return self._add(Instruction(operation, DType.BOOL if operation in COMPARISONS else typed[0], tuple(operands)))

    def cast(self, dtype: DType, operand: int) -> int:
        """Return a value as another type."""
        if self._instructions[operand].dtype is dtype:
            return operand
        return self._add(Instruction("cast", dtype, (operand,)))

    def dtype(self, number: int) -> DType:
        """Return the type of a value."""
        return self._instructions[number].dtype

    def inline(self, formula: Formula, args: Sequence[int]) -> int:
        """Return the answer of `formula`, whose operands are values of this one."""
        numbers: list[int] = []
        for instruction in formula.instructions:
            if instruction.operation == "arg":
                numbers.append(args[int(instruction.value)])
            else:
                numbers.append(self.again(instruction, [numbers[operand] for operand in instruction.operands]))
        return numbers[formula.result]

    def again(self, instruction: Instruction, operands: Sequence[int]) -> int:
        """Return the value of an instruction of another formula, with operands of this one."""
        return self._add(msgspec.structs.replace(instruction, operands=tuple(operands)))

    def formula(self, result: int) -> Formula:
        """Return the formula with this answer, without the steps that it does not need."""
        needed = {result}
        for number in range(len(self._instructions) - 1, -1, -1):
            if number in needed:
                needed.update(self._instructions[number].operands)
        kept = sorted(needed)
        numbers = {old: new for new, old in enumerate(kept)}
        instructions = tuple(
            msgspec.structs.replace(i, operands=tuple(numbers[operand] for operand in i.operands))
            for i in (self._instructions[number] for number in kept)
        )
        return Formula(instructions, numbers[result], self.args)

    def _add(self, instruction: Instruction) -> int:
        key = instruction, repr(instruction.value)  # repr tells 0.0 from -0.0, which are equal as numbers
        if key not in self._numbers:
            self._numbers[key] = len(self._instructions)
            self._instructions.append(instruction)
        return self._numbers[key]


def identity(dtype: DType) -> Formula:
    """Return the formula that passes its operand on."""
    writer = Writer([dtype])
    return writer.formula(writer.arg(0))
