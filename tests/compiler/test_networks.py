"""Networks of full size agree with onnxruntime, and take no more memory than they need."""

from collections.abc import Callable

import numpy as np
import pytest

from compiler import CompileOptions, Target, compile_model
from protocol.tensors import TensorSpec
from tests.compiler import networks
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import Array, run_onnxruntime

NETWORKS = [
    networks.mobilenet_v2,
    networks.mobilenet_v3_small,
    networks.efficientnet_lite0,
    networks.resnet18,
    networks.detector,
    networks.text_encoder,
    networks.decoder,
    networks.lstm,
]


def random_input(tensor: TensorSpec) -> Array:
    """Return numbers for an input: of a normal distribution, or tokens."""
    rng = np.random.default_rng(1)
    if tensor.datatype == "FP32":
        return rng.standard_normal(tensor.shape, dtype=np.float32)
    return rng.integers(0, 256, tensor.shape).astype(tensor.datatype.lower())


@pytest.mark.parametrize("target", list(Target))
@pytest.mark.parametrize("build", NETWORKS)
def test_networks_agree_with_onnxruntime(build: Callable[[], bytes], target: Target) -> None:
    """Within the tolerance that holds for every model, and within 1.25 of the least memory that values need."""
    model = build()
    compiled = compile_model(model, CompileOptions(target=target))
    inputs = {tensor.name: random_input(tensor) for tensor in compiled.spec.inputs}
    assert_close(run_compiled(compiled, inputs), run_onnxruntime(model, inputs))
    assert compiled.arena_bytes <= 1.25 * compiled.arena_bound_bytes
