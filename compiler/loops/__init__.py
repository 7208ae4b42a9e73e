"""Kernels made from formulas: loops over a box of indices, with operands that lie in memory at regular strides."""
