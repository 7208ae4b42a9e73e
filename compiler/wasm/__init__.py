"""WebAssembly modules, written as bytes: the one encoder of the project.

    module = Module()
    module.memory(1, 1, export="memory")
    double = module.function("double", [ValueType.F32], export="double")
    x = double.param_f32()
    double.leave(f32.add(x, x))
    wasm = module.encode()

Expressions are typed and build their code at once; no tree is kept, so that large kernels are cheap. Refuses (with
EncodeError, our own bug) what no module could be; an engine's validator has the last word.
"""

from compiler.wasm import f32, f32x4, f64, f64x2, i8x16, i16x8, i32, i32x4, i64, i64x2, memory, v128
from compiler.wasm.expr import (
    F32,
    F64,
    I32,
    I64,
    V128,
    Effect,
    Expr,
    F32Local,
    F64Local,
    I32Local,
    I64Local,
    V128Local,
)
from compiler.wasm.function import Callee, Function, Label, select
from compiler.wasm.module import GlobalI32, Module, custom_section
from compiler.wasm.types import MAX_PAGES, PAGE_BYTES, EncodeError, FunctionType, ValueType

__all__ = [
    "F32",
    "F64",
    "I32",
    "I64",
    "MAX_PAGES",
    "PAGE_BYTES",
    "V128",
    "Callee",
    "Effect",
    "EncodeError",
    "Expr",
    "F32Local",
    "F64Local",
    "Function",
    "FunctionType",
    "GlobalI32",
    "I32Local",
    "I64Local",
    "Label",
    "Module",
    "V128Local",
    "ValueType",
    "custom_section",
    "f32",
    "f32x4",
    "f64",
    "f64x2",
    "i8x16",
    "i16x8",
    "i32",
    "i32x4",
    "i64",
    "i64x2",
    "memory",
    "select",
    "v128",
]
