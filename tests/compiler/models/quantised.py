"""Models as onnxruntime quantises them: per channel with QuantizeLinear and DequantizeLinear around everything (`qdq`),
with quantised operators (`qoperator`), or weights alone, with activations by their range in each call (`dynamic`); and
in 16-bit floats (`half`).
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from tests.compiler.models.catalogue import Inputs, Model

KINDS: Final = ("qdq", "qoperator", "dynamic", "half")
_FORMATS: Final = {"qdq": QuantFormat.QDQ, "qoperator": QuantFormat.QOperator}


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Two inputs of the kind that a model expects."""

    def __init__(self, model: Model) -> None:
        self._inputs: Iterator[Inputs] = iter([model.inputs(0), model.inputs(1)])

    def get_next(self) -> Inputs | None:
        return next(self._inputs, None)


def quantised(model: Model, kind: str) -> bytes:
    """Return a model of floats, quantised in one of KINDS."""
    if kind == "half":
        return _with_half_weights(model.read())
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "quantised.onnx")
        source.write_bytes(model.read())
        if kind == "dynamic":
            quantize_dynamic(source, target, weight_type=QuantType.QInt8)
        else:
            quantize_static(
                source,
                target,
                _Calibration(model),
                quant_format=_FORMATS[kind],
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
        return target.read_bytes()


def _with_half_weights(source: bytes) -> bytes:
    """Return a model whose weights are 16-bit floats, each with a Cast behind it."""
    model = onnx.load_from_string(source)
    casts = []
    for tensor in model.graph.initializer:
        numbers = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or abs(numbers).max(initial=0) > np.finfo(np.float16).max:
            continue
        name = f"{tensor.name}_half"
        half = numpy_helper.from_array(numbers.astype(np.float16), name)
        casts.append(onnx.helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT))
        tensor.CopyFrom(half)
    for node in reversed(casts):
        model.graph.node.insert(0, node)
    return model.SerializeToString()
