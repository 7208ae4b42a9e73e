"""ONNX in, one standalone WebAssembly module out.

    compiled = compile_model(Path("model.onnx"), CompileOptions(input_shapes={"image": (1, 3, 224, 224)}))
    Path("model.wasm").write_bytes(compiled.wasm)

`read_model`, `import_model`, `optimise` and `generate` are the same in four phases.

The way is importer → graph → passes → memory plan and kernels → module, each a package or a module here. The encoder
and the inspector need neither ONNX nor numpy; the names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.emission import Layer
    from compiler.errors import CompilerError, OptionError
    from compiler.importer import import_model, node_count, read_model
    from compiler.kernels.target import Target
    from compiler.options import CompileOptions, Normalization
    from compiler.pipeline import CompiledModel, compile_model, generate, optimise

__all__ = [
    "CompileOptions",
    "CompiledModel",
    "CompilerError",
    "Layer",
    "Normalization",
    "OptionError",
    "Target",
    "compile_model",
    "generate",
    "import_model",
    "node_count",
    "optimise",
    "read_model",
]

_HOMES = {
    "CompileOptions": "compiler.options",
    "CompiledModel": "compiler.pipeline",
    "CompilerError": "compiler.errors",
    "Target": "compiler.kernels.target",
    "Layer": "compiler.emission",
    "Normalization": "compiler.options",
    "OptionError": "compiler.errors",
    "compile_model": "compiler.pipeline",
    "generate": "compiler.pipeline",
    "import_model": "compiler.importer",
    "node_count": "compiler.importer",
    "optimise": "compiler.pipeline",
    "read_model": "compiler.importer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(name)
    return getattr(import_module(_HOMES[name]), name)
