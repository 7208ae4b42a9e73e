"""One function: its parameters, its locals and its code, written from top to bottom.

Blocks are context managers that yield a label; branches name the label, never a depth.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Final, cast

from compiler.wasm import leb
from compiler.wasm.expr import (
    EXPRESSIONS,
    I32,
    E,
    Effect,
    Expr,
    F32Local,
    F64Local,
    I32Local,
    I64Local,
    V128Local,
    i32_operand,
)
from compiler.wasm.types import EncodeError, FunctionType, ValueType

_EMPTY_BLOCK: Final = 0x40
_BLOCK, _LOOP, _IF = 0x02, 0x03, 0x04
_ELSE, _END = 0x05, 0x0B
_BR, _BR_IF, _BR_TABLE = 0x0C, 0x0D, 0x0E
_RETURN, _CALL, _CALL_INDIRECT = 0x0F, 0x10, 0x11
_DROP, _SELECT, _UNREACHABLE = 0x1A, 0x1B, 0x00


class Callee:
    """A function that can be called: one of the module, or an import."""

    def __init__(self, index: int, name: str, results: tuple[ValueType, ...], params: Sequence[ValueType] = ()) -> None:
        self.index = index
        self.name = name
        self.results = results
        self._params = list(params)

    @property
    def signature(self) -> FunctionType:
        """What the function takes and returns."""
        return FunctionType(tuple(self._params), self.results)

    def __call__(self, *arguments: Expr | int) -> Effect:
        """Return code that calls the function, which returns nothing. Whole numbers are passed as i32."""
        if self.results:
            raise EncodeError(f"{self.name} returns {self.results}: use its value")
        return Effect(self._call(arguments))

    def value(self, kind: type[E], *arguments: Expr | int) -> E:
        """Return what a call of the function returns."""
        if self.results != (kind.type,):
            raise EncodeError(f"{self.name}: expected it to return {self.results}, got {kind.type}")
        return kind(self._call(arguments))

    def _call(self, arguments: Sequence[Expr | int]) -> bytes:
        values = [i32_operand(a) if isinstance(a, int) else a for a in arguments]
        if [v.type for v in values] != self._params:
            raise EncodeError(f"{self.name}: expected arguments {self._params}, got {[v.type for v in values]}")
        return b"".join(v.code for v in values) + bytes([_CALL]) + leb.unsigned(self.index)


class Label:
    """Where a branch goes: behind a block, or back to the top of a loop."""

    __slots__ = ("depth",)

    def __init__(self, depth: int) -> None:
        self.depth = depth


class Branches(Label):
    """A running `if`; `otherwise` starts its other branch."""

    __slots__ = ("_body", "_has_else")

    def __init__(self, depth: int, body: bytearray) -> None:
        super().__init__(depth)
        self._body = body
        self._has_else = False

    def otherwise(self) -> None:
        """Write the boundary between what is done and what is done otherwise."""
        if self._has_else:
            raise EncodeError("an if has one other branch")
        self._has_else = True
        self._body.append(_ELSE)


class Function(Callee):
    """A function under construction. Parameters come before locals."""

    def __init__(self, index: int, name: str, results: tuple[ValueType, ...]) -> None:
        super().__init__(index, name, results)
        self._locals: list[ValueType] = []
        self._body = bytearray()
        self._labels: list[Label] = []

    def param_i32(self) -> I32Local:
        """Add a parameter."""
        return I32Local(self._add_param(ValueType.I32), self._body)

    def param_i64(self) -> I64Local:
        """Add a parameter."""
        return I64Local(self._add_param(ValueType.I64), self._body)

    def param_f32(self) -> F32Local:
        """Add a parameter."""
        return F32Local(self._add_param(ValueType.F32), self._body)

    def param_f64(self) -> F64Local:
        """Add a parameter."""
        return F64Local(self._add_param(ValueType.F64), self._body)

    def param_v128(self) -> V128Local:
        """Add a parameter."""
        return V128Local(self._add_param(ValueType.V128), self._body)

    def i32(self) -> I32Local:
        """Add a local; it starts as 0."""
        return I32Local(self._add_local(ValueType.I32), self._body)

    def i64(self) -> I64Local:
        """Add a local; it starts as 0."""
        return I64Local(self._add_local(ValueType.I64), self._body)

    def f32(self) -> F32Local:
        """Add a local; it starts as 0."""
        return F32Local(self._add_local(ValueType.F32), self._body)

    def f64(self) -> F64Local:
        """Add a local; it starts as 0."""
        return F64Local(self._add_local(ValueType.F64), self._body)

    def v128(self) -> V128Local:
        """Add a local; it starts as 0."""
        return V128Local(self._add_local(ValueType.V128), self._body)

    def keep(self, value: E) -> E:
        """Write code that computes a value once; return a local that holds it."""
        return cast("E", self.variable(value))

    def variable(self, value: Expr) -> Any:
        """Write code that starts a new local of the type of `value` with it."""
        make: dict[ValueType, Callable[[], Any]] = {
            ValueType.I32: self.i32,
            ValueType.I64: self.i64,
            ValueType.F32: self.f32,
            ValueType.F64: self.f64,
            ValueType.V128: self.v128,
        }
        local = make[value.type]()
        local.set(value)
        return local

    def v128s(self, count: int) -> list[V128Local]:
        """Add `count` locals."""
        return [self.v128() for _ in range(count)]

    def do(self, effect: Effect) -> None:
        """Write code that leaves no value."""
        self._body.extend(effect.code)

    def drop(self, value: Expr) -> None:
        """Write code that computes a value and forgets it."""
        self._body.extend(value.code)
        self._body.append(_DROP)

    def leave(self, value: Expr) -> None:
        """Write the value that the function returns at its end."""
        self._body.extend(value.code)

    def return_(self, *values: Expr) -> None:
        """Write a return from the middle of the function."""
        for value in values:
            self._body.extend(value.code)
        self._body.append(_RETURN)

    def unreachable(self) -> None:
        """Write a trap."""
        self._body.append(_UNREACHABLE)

    @contextmanager
    def block(self) -> Iterator[Label]:
        """Write a block; a branch to its label goes behind it."""
        with self._nest(Label(len(self._labels)), bytes([_BLOCK, _EMPTY_BLOCK])) as label:
            yield label

    @contextmanager
    def loop(self) -> Iterator[Label]:
        """Write a loop; a branch to its label repeats it, and its end is left without one."""
        with self._nest(Label(len(self._labels)), bytes([_LOOP, _EMPTY_BLOCK])) as label:
            yield label

    @contextmanager
    def if_(self, condition: I32) -> Iterator[Branches]:
        """Write what is done when `condition` is not 0."""
        branches = Branches(len(self._labels), self._body)
        with self._nest(branches, condition.code + bytes([_IF, _EMPTY_BLOCK])):
            yield branches

    @contextmanager
    def repeat(self, counter: I32Local, times: I32 | int) -> Iterator[Label]:
        """Write a loop that runs `times` times, which is at least once; `counter` counts down to 0."""
        if isinstance(times, int) and times < 1:
            raise EncodeError(f"expected a loop that runs at least once, got {times}")
        counter.set(i32_operand(times))
        with self.loop() as again:
            yield again
            self.branch(again, counter.tee(counter - 1))

    def branch(self, label: Label, condition: I32 | None = None) -> None:
        """Write a branch, which is taken when `condition` is not 0."""
        depth = leb.unsigned(self._depth_of(label))
        if condition is None:
            self._body.extend(bytes([_BR]) + depth)
        else:
            self._body.extend(condition.code + bytes([_BR_IF]) + depth)

    def branch_table(self, selector: I32, labels: Sequence[Label], default: Label) -> None:
        """Write a branch to `labels[selector]`, or to `default` behind their end."""
        depths = b"".join(leb.unsigned(self._depth_of(label)) for label in (*labels, default))
        self._body.extend(selector.code + bytes([_BR_TABLE]) + leb.unsigned(len(labels)) + depths)

    def encode(self) -> bytes:
        """Return the body as an entry of the code section."""
        if self._labels:
            raise EncodeError(f"{self.name}: {len(self._labels)} blocks are still open")
        runs = [(len(list(group)), kind) for kind, group in groupby(self._locals)]
        head = leb.unsigned(len(runs)) + b"".join(leb.unsigned(n) + bytes([kind]) for n, kind in runs)
        return leb.unsigned(len(head) + len(self._body) + 1) + head + self._body + bytes([_END])

    @contextmanager
    def _nest(self, label: Label, start: bytes) -> Iterator[Label]:
        self._body.extend(start)
        self._labels.append(label)
        yield label
        self._labels.pop()
        self._body.append(_END)

    def _depth_of(self, label: Label) -> int:
        if label.depth >= len(self._labels) or self._labels[label.depth] is not label:
            raise EncodeError(f"{self.name}: a branch goes to a block that is not open")
        return len(self._labels) - 1 - label.depth

    def _add_param(self, kind: ValueType) -> int:
        if self._locals:
            raise EncodeError(f"{self.name}: parameters come before locals")
        self._params.append(kind)
        return len(self._params) - 1

    def _add_local(self, kind: ValueType) -> int:
        self._locals.append(kind)
        return len(self._params) + len(self._locals) - 1


def select(condition: I32, if_true: E, if_false: E) -> E:
    """Return one of two numbers or vectors; both are computed."""
    kind = cast("type[E]", EXPRESSIONS[if_true.type])  # of a local, the class of its value
    return kind(if_true.code + if_false.code + condition.code + bytes([_SELECT]))
