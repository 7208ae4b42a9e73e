"""Arithmetic on single elements, as a value: what a fused chain of elementwise operators computes."""

from compiler.formula.formula import Formula, Instruction, Writer, identity

__all__ = ["Formula", "Instruction", "Writer", "identity"]
