"""`fleetctl run`: tries a model once on this machine, without any fleet."""

import time
from contextlib import closing
from statistics import median

import msgspec

from agent.runtime.errors import ModelError
from agent.runtime.instance import LoadedModel
from controller.bundling.errors import refused_by_runtime
from controller.bundling.preflight import load, sample_inputs
from controller.bundling.source import ModelSource, read_source
from controller.bundling.testdata import Vector, read_vector
from controller.bundling.values import Number, from_bytes
from controller.cli import options, wording
from controller.cli.screen import Screen, plain
from protocol.limits import DEFAULT_MEMORY_CAP_BYTES, MIB
from protocol.tensors import TensorSpec

_DEFAULT_MEMORY_MIB = DEFAULT_MEMORY_CAP_BYTES // MIB
_TIMED_CALLS = 9
_TOP = 5


class OutputTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One output, as in the Open Inference Protocol; `top` has the best labels with their values."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Number]
    top: list[tuple[str, Number]] | None = None


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What `fleetctl run` found."""

    file: str
    input: str
    outputs: tuple[OutputTensor, ...]
    latency_us: float
    memory_bytes: int


def run_model(
    file: options.ModelFile,
    input_file: options.InputFile = None,
    memory_mib: options.MemoryMib = _DEFAULT_MEMORY_MIB,
    is_json: options.Json = False,
) -> None:
    """Try a model on this machine: no fleet is needed.

    It runs under the caps that a device would set for it.
    """
    screen = Screen(is_json=is_json)
    source = read_source(file)
    try:
        with closing(load(source, memory_mib * MIB)) as model:
            if input_file is None:
                inputs, origin = sample_inputs(source, model), "seeded random numbers"
            else:
                inputs, origin = read_vector(input_file, source.spec.inputs), input_file
            model.reset()
            outputs, latency_us = _run(model, inputs, is_stateful=source.spec.stateful)
            memory_bytes = model.memory_bytes
    except ModelError as error:
        raise refused_by_runtime(source.file_name, error) from error
    result = RunResult(
        file=str(file),
        input=origin,
        outputs=tuple(_describe(source, t, data) for t, data in zip(source.spec.outputs, outputs, strict=True)),
        latency_us=round(latency_us, 1),
        memory_bytes=memory_bytes,
    )
    screen.document(result)
    _show(screen, result)


def _run(model: LoadedModel, inputs: Vector, *, is_stateful: bool) -> tuple[list[bytes], float]:
    """Return the outputs of the first call and the time of a call: the median of several, where calls are alike."""
    outputs, first_us = _timed(model, inputs)
    if is_stateful:
        return outputs, first_us
    return outputs, median(_timed(model, inputs)[1] for _ in range(_TIMED_CALLS))


def _timed(model: LoadedModel, inputs: Vector) -> tuple[list[bytes], float]:
    started = time.perf_counter_ns()
    outputs = model.infer(inputs)
    return outputs, (time.perf_counter_ns() - started) / 1_000


def _describe(source: ModelSource, tensor: TensorSpec, data: bytes) -> OutputTensor:
    numbers = from_bytes(tensor, data)
    labels = source.spec.labels.get(tensor.name)
    top = None
    if labels is not None and len(labels) == len(numbers):
        top = sorted(zip(labels, numbers, strict=True), key=lambda pair: pair[1], reverse=True)[:_TOP]
    return OutputTensor(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, data=numbers, top=top)


def _show(screen: Screen, result: RunResult) -> None:
    for output in result.outputs:
        screen.say(plain(f"{output.name}  {output.datatype} {list(output.shape)}", "bold"))
        if output.top is not None:
            screen.table(("  label", "value"), ((f"  {k}", _number(v)) for k, v in output.top), right=("value",))
        else:
            shown = ", ".join(map(_number, output.data[:10]))
            screen.say(f"  {shown}{', …' if len(output.data) > 10 else ''}")
    memory = wording.size(result.memory_bytes)
    screen.say(f"\n{wording.duration_us(result.latency_us)} for one call · {memory} of memory · input: {result.input}")


def _number(value: Number) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
