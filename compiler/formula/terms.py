"""Formulas written as Python arithmetic: `formula_of(lambda x, y: maximum(x, 0) * y, DType.F32, DType.F32)`."""

from collections.abc import Callable

from compiler.dtypes import DType
from compiler.errors import InternalError
from compiler.formula.formula import Formula, Number, Writer


class Term:
    """A value of a formula that is being written. Numbers beside it take its type."""

    def __init__(self, writer: Writer, number: int) -> None:
        self._writer = writer
        self.number = number

    @property
    def dtype(self) -> DType:
        """Its type."""
        return self._writer.dtype(self.number)

    def apply(self, operation: str, *others: "Term | Number") -> "Term":
        """Return the result of an operation on this and other values."""
        numbers = [self.term(other).number for other in others]
        return Term(self._writer, self._writer.apply(operation, self.number, *numbers))

    def cast(self, dtype: DType) -> "Term":
        """Return the value as another type."""
        return Term(self._writer, self._writer.cast(dtype, self.number))

    def choose(self, if_true: "Term | Number", if_false: "Term | Number") -> "Term":
        """Return one of two values, of which at least one is no plain number, by this truth."""
        typed = if_true if isinstance(if_true, Term) else if_false
        if not isinstance(typed, Term):
            raise InternalError("formula: a choice between two plain numbers has no type")
        first, second = typed.term(if_true), typed.term(if_false)
        return Term(self._writer, self._writer.apply("select", self.number, first.number, second.number))

    def term(self, other: "Term | Number") -> "Term":
        """Return a value, which may be a number of this one's type."""
        return other if isinstance(other, Term) else Term(self._writer, self._writer.const(self.dtype, other))

    def __add__(self, other: "Term | Number") -> "Term":
        return self.apply("add", other)

    def __radd__(self, other: Number) -> "Term":
        return self.term(other).apply("add", self)

    def __sub__(self, other: "Term | Number") -> "Term":
        return self.apply("sub", other)

    def __rsub__(self, other: Number) -> "Term":
        return self.term(other).apply("sub", self)

    def __mul__(self, other: "Term | Number") -> "Term":
        return self.apply("mul", other)

    def __rmul__(self, other: Number) -> "Term":
        return self.term(other).apply("mul", self)

    def __truediv__(self, other: "Term | Number") -> "Term":
        return self.apply("div", other)

    def __rtruediv__(self, other: Number) -> "Term":
        return self.term(other).apply("div", self)

    def __neg__(self) -> "Term":
        return self.apply("neg")

    def __lt__(self, other: "Term | Number") -> "Term":
        return self.apply("lt", other)

    def __le__(self, other: "Term | Number") -> "Term":
        return self.apply("le", other)

    def __gt__(self, other: "Term | Number") -> "Term":
        return self.term(other).apply("lt", self)

    def __ge__(self, other: "Term | Number") -> "Term":
        return self.term(other).apply("le", self)


def formula_of(function: Callable[..., Term], *args: DType) -> Formula:
    """Return the formula that `function` computes from operands of these types."""
    writer = Writer(args)
    return writer.formula(function(*(Term(writer, writer.arg(n)) for n in range(len(args)))).number)
