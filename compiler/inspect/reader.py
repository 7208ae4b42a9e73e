"""A cursor over the payload of one section. Whatever it is fed, it moves forward or raises MalformedError."""

from compiler.wasm.types import ValueType
from protocol.errors import MalformedError

FUNCTION_FORM = 0x60
VALUE_TYPES: dict[int, str] = {kind.value: kind.name.lower() for kind in ValueType}
_SHOWN_TYPES = 16
_HAS_MAX, _IS_SHARED, _IS_64_BIT = 0x01, 0x02, 0x04


class Reader:
    """Reads numbers, names and types one after the other."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self.at = 0

    @property
    def is_at_end(self) -> bool:
        """Whether everything was read."""
        return self.at == len(self._data)

    def byte(self) -> int:
        """Read one byte."""
        if self.at >= len(self._data):
            raise self.error("it is cut off")
        self.at += 1
        return self._data[self.at - 1]

    def take(self, size_bytes: int) -> bytes:
        """Read some bytes."""
        if size_bytes > len(self._data) - self.at:
            raise self.error(f"it ends {size_bytes - len(self._data) + self.at} bytes too early")
        self.at += size_bytes
        return self._data[self.at - size_bytes : self.at]

    def number(self) -> int:
        """Read an unsigned number of at most 32 bits."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 32:
                    break
                return value
        raise self.error("it has a number that does not fit 32 bits")

    def signed(self) -> int:
        """Read a signed number of at most 64 bits."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value - (1 << shift + 7) if byte & 0x40 else value
        raise self.error("it has a number that does not fit 64 bits")

    def name(self) -> str:
        """Read a name."""
        raw = self.take(self.number())
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.error("it has a name that is not UTF-8") from None

    def value_type(self) -> str:
        """Read a value type."""
        code = self.byte()
        if code not in VALUE_TYPES:
            raise self.error(f"it has a value type 0x{code:02x} that devices do not know")
        return VALUE_TYPES[code]

    def signature(self) -> str:
        """Read a function type, as `(i32, f32) -> i32`."""
        form = self.byte()
        if form != FUNCTION_FORM:
            raise self.error(f"expected a function type, got 0x{form:02x}")
        params, results = self._types(), self._types()
        return f"({params}) -> {results if results and ',' not in results else f'({results})'}"

    def _types(self) -> str:
        """Read a list of value types; a long one is cut short, because every function may repeat it."""
        count = self.number()
        names = [self.value_type() for _ in range(count)]
        return ", ".join(names if count <= _SHOWN_TYPES else [*names[:_SHOWN_TYPES], f"… {count} in all"])

    def limits(self) -> tuple[int, int | None]:
        """Read the least and the greatest size of a memory or table."""
        flags = self.byte()
        if flags & ~_HAS_MAX:
            kind = "shared" if flags & _IS_SHARED else "64-bit" if flags & _IS_64_BIT else "unknown"
            raise self.error(f"it has a memory or table of a kind that devices do not offer ({kind})")
        return self.number(), self.number() if flags & _HAS_MAX else None

    @property
    def remaining_bytes(self) -> int:
        """How much is left."""
        return len(self._data) - self.at

    def end(self) -> None:
        """Refuse anything left over."""
        if not self.is_at_end:
            raise self.error(f"{len(self._data) - self.at} bytes are left over")

    def error(self, problem: str) -> MalformedError:
        """Return an error that names the place."""
        return MalformedError(f"{self._what}, byte {self.at}: {problem}")
