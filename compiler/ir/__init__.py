"""The graph that the compiler works on: few operations, static shapes, every value with its type."""

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, TensorType

__all__ = ["Graph", "GraphBuilder", "Node", "TensorType"]
