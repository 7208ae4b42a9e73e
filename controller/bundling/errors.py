"""What can be wrong with a model file. Every message says what was expected, every hint what to do.

ControllerError
└── BundleError            the file cannot become a release
    ├── ModelFileError     it is not a module: missing, too large, not wasm, WAT that does not assemble
    ├── ModelSpecError     nothing says which tensors it takes, or what says so is wrong
    ├── CompilationError   it is an ONNX model that the compiler refuses; `code` is that of the compiler
    ├── TensorValueError   numbers that do not fit a tensor
    ├── TestDataError      the test data is not in the format, or does not fit the model
    └── PreflightError     a device would refuse or fail it; `code` is that of the device
"""

from agent.runtime.errors import ModelError
from compiler.errors import CompilerError
from controller.errors import ControllerError

_HINTS = {
    "abi": (
        "export memory, fleet_input(i32) -> i32, fleet_output(i32) -> i32 and fleet_infer() -> i32; "
        "docs/PROTOCOL.md describes them and examples/linear_regression is the smallest module that has them"
    ),
    "undeclared_import": (
        "a device provides no imports: build without them (C: -nostdlib, Rust: wasm32-unknown-unknown), "
        "then see `fleetctl inspect FILE`"
    ),
    "memory_cap": "make the module's memory smaller, or allow more with --memory-mib (devices have a limit too)",
    "trap": "try it with `fleetctl run FILE --input data.json`; the function named above is where it stopped",
    "stack_overflow": "use less stack, or raise stack_kib (64, 256 or 1024) in the module's fleet.model or model.toml",
    "deadline_exceeded": "make it faster, or raise deadline_ms in the module's fleet.model or model.toml",
    "model_status": "fleet_infer() must return 0 for these inputs; give others with --test-data FILE",
    "self_test_failed": (
        "the module does not give the outputs that --test-data expects: mend the one or the other "
        "(atol and rtol in the test data loosen the comparison)"
    ),
    "compile_failed": "see whether the module passes `wasm-tools validate`",
}


_COMPILER_HINTS = {
    "bad_model_file": "export the model again, then check it with `python -m onnx.checker FILE`",
    "unbound_shape": "a module has fixed shapes: give one shape for each input named above",
    "bad_option": "see what the model takes with `python -m onnx.printer FILE`, or in any viewer of ONNX models",
    "unsupported": "docs/COMPILER.md says what can be compiled; export the model without the rest",
    "too_large": "use smaller inputs, or a smaller model",
    "internal": "this is a defect of the compiler: please report it with the model",
}


class BundleError(ControllerError):
    """The file cannot become a release."""

    code = "bad_bundle"


class ModelFileError(BundleError):
    """The file is not a module."""

    code = "bad_model_file"


class ModelSpecError(BundleError):
    """Nothing says which tensors the module takes, or what says so is wrong."""

    code = "bad_model_spec"


class CompilationError(BundleError):
    """The compiler refuses the model; `code` is the compiler's."""

    code = "compiler"


class TensorValueError(BundleError):
    """Numbers that do not fit a tensor."""

    code = "bad_tensor"


class TestDataError(BundleError):
    """The test data is not in the format, or does not fit the model."""

    __test__ = False  # pytest collects classes of this name
    code = "bad_test_data"


class PreflightError(BundleError):
    """A device would refuse or fail the module; `code` is the reason that the device would give."""

    code = "preflight_failed"


def refused_by_runtime(file_name: str, error: ModelError) -> PreflightError:
    """Return what the device runtime said about the module as an error for people."""
    refusal = PreflightError(f"{file_name}: {error}", hint=_HINTS.get(error.code, ""))
    refusal.code = error.code
    return refusal


def refused_by_compiler(file_name: str, error: CompilerError) -> CompilationError:
    """Return what the compiler said about a model as an error for people."""
    text = str(error) if file_name in str(error) else f"{file_name}: {error}"
    refusal = CompilationError(text, hint=_COMPILER_HINTS.get(error.code, ""))
    refusal.code = error.code
    return refusal
