"""Arithmetic on single elements, as a value: what a fused chain of elementwise operators computes."""

from compiler.formula.formula import Formula, Instruction, Writer, identity
from compiler.formula.terms import Term, formula_of

__all__ = ["Formula", "Instruction", "Term", "Writer", "formula_of", "identity"]
