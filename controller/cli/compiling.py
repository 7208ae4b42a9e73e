"""The options of commands that compile a model first, and what they mean to the compiler."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from compiler.options import CompileOptions, Normalization, Weights
from controller.reading import read_file, why_unread
from protocol.errors import LimitExceededError
from protocol.limits import MIB

_MAX_LABELS_BYTES = MIB

InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="NAME=1x3x224x224",
        help="The shape of an input, where the model leaves it open; may be given several times.",
    ),
]
InputValues = Annotated[
    list[str] | None,
    typer.Option(
        "--input-value",
        metavar="NAME=NUMBER",
        help="A number for an input that is a setting, such as a sample rate: it is an input no more.",
    ),
]
Uint8Inputs = Annotated[
    list[str] | None,
    typer.Option("--uint8-input", metavar="NAME", help="Let the host give bytes (pixels) for this input of floats."),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        "--normalize",
        metavar="MEAN,STD",
        help="Make (byte - MEAN) / STD of the bytes; one number each, or one for each channel as in "
        "123.7:116.3:103.5,58.4:57.1:57.4. [default: 0,1, the bytes as they are]",
    ),
]
States = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="INPUT=OUTPUT",
        help="An input that is the OUTPUT of the call before: the module keeps it, zero at first and after a reset.",
    ),
]

Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--labels",
        metavar="OUTPUT=FILE",
        help="Names for the indices of an output's last dimension: a text file with one on each line.",
    ),
]

WeightsForm = Annotated[
    Weights | None,
    typer.Option(
        "--weights",
        help="small: in the fewest bytes that give exactly the same numbers, which the module expands when it starts; "
        "raw: as they are in memory. [default: small]",
    ),
]


class CompileFlags(msgspec.Struct, frozen=True, kw_only=True):
    """What a command line said about compiling."""

    input_shapes: list[str] | None = None
    input_values: list[str] | None = None
    uint8_inputs: list[str] | None = None
    normalize: str | None = None
    states: list[str] | None = None
    labels: list[str] | None = None
    weights: Weights | None = None

    @property
    def are_given(self) -> bool:
        """Whether there is any."""
        return self != CompileFlags()

    def options(self) -> CompileOptions:
        """Return the options of the compiler; raises typer.BadParameter."""
        normalization = _normalization(self.normalize)
        if self.normalize is not None and not self.uint8_inputs:
            raise typer.BadParameter("it is for inputs named with --uint8-input", param_hint="--normalize")
        return CompileOptions(
            input_shapes={name: _shape(text) for name, text in _pairs(self.input_shapes, "--input-shape")},
            input_values={name: _number(text) for name, text in _pairs(self.input_values, "--input-value")},
            uint8_inputs=dict.fromkeys(self.uint8_inputs or (), normalization),
            states=dict(_pairs(self.states, "--state")),
            labels={name: _lines(path) for name, path in _pairs(self.labels, "--labels")},
            weights=self.weights or Weights.SMALL,
        )


def _pairs(texts: Iterable[str] | None, option: str) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for text in texts or ():
        name, separator, value = text.rpartition("=")
        if not separator or not name or not value:
            raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint=option)
        if name in dict(pairs):
            raise typer.BadParameter(f"{name!r} is given twice", param_hint=option)
        pairs.append((name, value))
    return pairs


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.lower().split("x")
    if not all(size.isascii() and size.isdigit() and 0 < len(size) <= 10 for size in sizes):
        raise typer.BadParameter(f"expected a shape like 1x3x224x224, got {text!r}", param_hint="--input-shape")
    return tuple(map(int, sizes))


def _lines(path: str) -> tuple[str, ...]:
    """Return the lines of a text file; raises typer.BadParameter."""
    try:
        return tuple(read_file(Path(path), _MAX_LABELS_BYTES).decode().splitlines())
    except (OSError, LimitExceededError) as error:
        raise typer.BadParameter(why_unread(path, error), param_hint="--labels") from error
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"expected text in UTF-8, got {path}", param_hint="--labels") from error


def _number(text: str) -> float | int | bool:
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text)
    except ValueError:
        return _float(text, "--input-value")


def _normalization(text: str | None) -> Normalization:
    if text is None:
        return Normalization()
    mean, separator, std = text.partition(",")
    if not separator or "," in std:
        raise typer.BadParameter(
            f"expected MEAN,STD with a colon between the numbers of channels, got {text!r}", param_hint="--normalize"
        )
    means, stds = (tuple(_float(number, "--normalize") for number in part.split(":")) for part in (mean, std))
    if 0 in stds:
        raise typer.BadParameter(f"expected a STD other than 0, got {text!r}", param_hint="--normalize")
    return Normalization(means, stds)


def _float(text: str, option: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise typer.BadParameter(f"expected a number, got {text!r}", param_hint=option)
    return number
