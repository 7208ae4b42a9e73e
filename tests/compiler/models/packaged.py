"""Models that packages ship: found without importing the packages, which need far more than their model."""

import importlib.metadata
from pathlib import Path

MAGIKA_BYTES = 2048


def magika() -> bytes:
    """Return the classifier of file types (Apache-2.0)."""
    return _file("magika", "magika/models/standard_v3_3/model.onnx").read_bytes()


def silero(name: str) -> bytes:
    """Return one of the voice detectors (MIT)."""
    return _file("silero-vad", f"silero_vad/data/{name}.onnx").read_bytes()


def pp_ocr(name: str) -> bytes:
    """Return one of the three networks that read text in pictures (Apache-2.0)."""
    return _file("rapidocr-onnxruntime", f"rapidocr_onnxruntime/models/{name}.onnx").read_bytes()


def _file(distribution: str, path: str) -> Path:
    return Path(str(importlib.metadata.distribution(distribution).locate_file(path)))
