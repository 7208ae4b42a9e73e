"""What the engine offers: fixed-width SIMD alone, or relaxed SIMD too.

Relaxed instructions may differ in the last bit between machines; with `SIMD128` every machine gives the same bits.
"""

import enum

from compiler.wasm import V128, f32x4, i32x4


class Target(enum.Enum):
    """The engine features that code may use; the value is the name of the last one."""

    SIMD128 = "simd128"
    RELAXED = "relaxed_simd"

    @property
    def features(self) -> tuple[str, ...]:
        """What an engine must have, as a variant of a bundle names it."""
        return ("simd128",) if self is Target.SIMD128 else ("simd128", "relaxed_simd")

    def madd(self, a: V128, b: V128, c: V128) -> V128:
        """Return a * b + c. On x86 the fused instruction overwrites `a`: pass a value that is not needed again."""
        if self is Target.RELAXED:
            return f32x4.relaxed_madd(a, b, c)
        return f32x4.add(f32x4.mul(a, b), c)

    def nmadd(self, a: V128, b: V128, c: V128) -> V128:
        """Return c - a * b."""
        if self is Target.RELAXED:
            return f32x4.relaxed_nmadd(a, b, c)
        return f32x4.sub(c, f32x4.mul(a, b))

    def truncate(self, a: V128) -> V128:
        """Return the floats as whole numbers; what does not fit 32 bits becomes some number."""
        if self is Target.RELAXED:
            return i32x4.relaxed_trunc_f32x4_s(a)
        return i32x4.trunc_sat_f32x4_s(a)
