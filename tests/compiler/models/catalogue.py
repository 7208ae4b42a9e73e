"""Every model by its name, with the options that its compilation takes and inputs of the kind that it expects."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler import CompileOptions
from tests.compiler import networks, onnx_models
from tests.compiler.models import data, packaged, transformers

Array = NDArray[Any]
Inputs = dict[str, Array]


class Model(msgspec.Struct, frozen=True):
    """A model, which is built or read when it is asked for."""

    name: str
    read: Callable[[], bytes]
    draw: Callable[[np.random.Generator], Inputs]
    options: CompileOptions = CompileOptions()

    def inputs(self, seed: int) -> Inputs:
        """Return inputs as data that the model is made for; the same for the same seed."""
        return self.draw(np.random.default_rng(seed))


def _normal(name: str, *shape: int) -> Callable[[np.random.Generator], Inputs]:
    """Numbers around 0, as in a normalised picture."""
    return lambda rng: {name: rng.standard_normal(shape).astype(np.float32)}


def _pixels(name: str, *shape: int) -> Callable[[np.random.Generator], Inputs]:
    """A picture whose pixels go from 0 to 1."""
    return lambda rng: {name: rng.random(shape).astype(np.float32)}


def _ocr(name: str, model: str, height: int, width: int) -> Model:
    return Model(
        name,
        partial(packaged.pp_ocr, model),
        lambda rng: {"x": data.picture_of_text(rng, height, width)},
        CompileOptions(input_shapes={"x": (1, 3, height, width)}),
    )


def _magika(rng: np.random.Generator) -> Inputs:
    """The first and the last 1,024 bytes of a file."""
    return {"bytes": data.bytes_of_a_file(rng, packaged.MAGIKA_BYTES)[None].astype(np.int32)}


def _sequence(chunks: int) -> Callable[[np.random.Generator], Inputs]:
    """Overlapping windows of a voice, with the state of the network before them."""

    def draw(rng: np.random.Generator) -> Inputs:
        sound = data.vowel(rng, 64 + 512 * chunks, 16_000)
        windows = np.lib.stride_tricks.sliding_window_view(sound, 576)[::512]
        return {"input": windows.copy(), **{name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}}

    return draw


def _silero(name: str, file: str, rate_hz: int, *, asks_for_rate: bool) -> Model:
    samples = 576 * rate_hz // 16_000

    def draw(rng: np.random.Generator) -> Inputs:
        state = rng.uniform(-0.5, 0.5, (2, 1, 128))
        return {"input": data.vowel(rng, samples, rate_hz)[None], "state": state.astype(np.float32)}

    options = CompileOptions(
        input_shapes={"input": (1, samples), "state": (2, 1, 128)},
        input_values={"sr": rate_hz} if asks_for_rate else {},
    )
    return Model(name, partial(packaged.silero, file), draw, options)


def _tokens(rng: np.random.Generator) -> Inputs:
    """A sentence that does not fill the window."""
    length = int(rng.integers(8, transformers.LENGTH))
    mask = np.arange(transformers.LENGTH)[None] < length
    ids = rng.integers(0, transformers.VOCABULARY, (1, transformers.LENGTH)) * mask
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": np.zeros_like(ids)}


def _decoding(rng: np.random.Generator) -> Inputs:
    """One token in the middle of a text."""
    cache = transformers.CACHE
    position = int(rng.integers(1, cache[2]))
    past = [rng.standard_normal(cache).astype(np.float32) * (np.arange(cache[2]) < position)[:, None] for _ in "kv"]
    return {
        "token": rng.integers(0, transformers.DECODER_VOCABULARY, (1,)),
        "position": np.array([position]),
        "keys": past[0].astype(np.float32),
        "values": past[1].astype(np.float32),
    }


PACKAGED: tuple[Model, ...] = (
    Model(
        "magika",
        packaged.magika,
        _magika,
        CompileOptions(input_shapes={"bytes": (1, packaged.MAGIKA_BYTES)}),
    ),
    Model(
        "silero-vad-sequence",
        partial(packaged.silero, "silero_vad_16k_sequence"),
        _sequence(8),
        CompileOptions(input_shapes={"input": (8, 576)}),
    ),
    _silero("silero-vad", "silero_vad", 16_000, asks_for_rate=True),
    _silero("silero-vad-8k", "silero_vad", 8_000, asks_for_rate=True),
    _silero("silero-vad-op15", "silero_vad_16k_op15", 16_000, asks_for_rate=True),
    _silero("silero-vad-half", "silero_vad_half", 16_000, asks_for_rate=False),
    _ocr("pp-ocr-cls", "ch_ppocr_mobile_v2.0_cls_infer", 48, 192),
    _ocr("pp-ocr-det", "ch_PP-OCRv4_det_infer", 320, 320),
    _ocr("pp-ocr-rec", "ch_PP-OCRv4_rec_infer", 48, 320),
)
"""From packages that are installed for the tests."""

BUILT: tuple[Model, ...] = (
    Model("mlp", onnx_models.mlp, _pixels("image", 1, 784)),
    Model("small-cnn", onnx_models.small_cnn, _pixels("image", 1, 1, 28, 28)),
    Model("lstm", networks.lstm, _normal("steps", 100, 1, 64)),
    Model("step-decoder", transformers.decoder, _decoding),
    Model("decoder", networks.decoder, lambda rng: {"tokens": rng.integers(0, 256, (1, 64))}),
    Model("mobilenet-v2", networks.mobilenet_v2, _normal("image", *networks.IMAGE)),
    Model("mobilenet-v3-small", networks.mobilenet_v3_small, _normal("image", *networks.IMAGE)),
    Model("efficientnet-lite0", networks.efficientnet_lite0, _normal("image", *networks.IMAGE)),
    Model("resnet-18", networks.resnet18, _normal("image", *networks.IMAGE)),
    Model("detector", networks.detector, lambda rng: {"image": data.scene(rng, 416, 32)}),
    Model("text-encoder", networks.text_encoder, _normal("embeddings", 1, 128, 384)),
    Model("minilm", transformers.minilm, _tokens),
)
"""Built by script, the small ones first."""
