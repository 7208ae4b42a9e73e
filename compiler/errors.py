"""The compiler's errors.

CompilerError
├── ModelFileError      the file is not a model that can be read
├── UnboundShapeError   a dimension is not known: bind it with an option
├── OptionError         an option does not fit the model
├── UnsupportedError    the model needs what is not implemented; all of it is listed at once
├── TooLargeError       the model needs more memory than a module can have
└── InternalError       our own bug
    └── EncodeError     what was built is no WebAssembly module (in compiler.wasm)
"""


class CompilerError(Exception):
    """The root; `code` is stable, for programs to tell errors apart."""

    code = "compiler"


class ModelFileError(CompilerError):
    """The file is not an ONNX model, or not a valid one."""

    code = "bad_model_file"


class UnboundShapeError(CompilerError):
    """A dimension of the model is not fixed."""

    code = "unbound_shape"


class OptionError(CompilerError):
    """An option does not fit the model."""

    code = "bad_option"


class UnsupportedError(CompilerError):
    """The model uses operators, types or attributes that are not implemented; `problems` has one line for each."""

    code = "unsupported"

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class TooLargeError(CompilerError):
    """The model does not fit the memory of a module."""

    code = "too_large"


class InternalError(CompilerError):
    """Our own bug."""

    code = "internal"
