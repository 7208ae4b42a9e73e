"""Data as the models meet them: written text, spoken vowels, bytes of files."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[Any]
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnpqrstuvwxyz23456789"
VOWELS_HZ = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (570, 840, 2410))
"""The formants of a, i, u and o (Peterson and Barney, 1952)."""


def picture_of_text(rng: np.random.Generator, height: int, width: int) -> Array:
    """Return a line of letters in dark on light, now and then upside down, (1, 3, height, width), from -1 to 1."""
    size = min(height, 48)
    text = "".join(rng.choice(list(LETTERS), width * 2 // size))
    picture = Image.new("RGB", (width, height), (240, 238, 230))
    place = (width // 2, height // 2)
    ImageDraw.Draw(picture).text(place, text, (20, 30, 60), ImageFont.load_default(size * 3 // 4), anchor="mm")
    if rng.random() < 0.5:
        picture = picture.rotate(180)
    return np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1


def scene(rng: np.random.Generator, side: int, block: int) -> Array:
    """Return squares of different colours, each with a grain, (1, 3, side, side), from 0 to 1."""
    coarse = np.kron(rng.random((1, 3, side // block, side // block)), np.ones((block, block)))
    return (0.9 * coarse + 0.1 * rng.random((1, 3, side, side))).astype(np.float32)


def vowel(rng: np.random.Generator, samples: int, rate_hz: int) -> Array:
    """Return a sung vowel: harmonics of the voice, the stronger the nearer they are to a formant."""
    time_s, pitch_hz = np.arange(samples) / rate_hz, rng.uniform(100, 220)
    formants = VOWELS_HZ[rng.integers(len(VOWELS_HZ))]
    sound = np.zeros(samples)
    for number in range(1, int(rate_hz / 2 / pitch_hz)):
        strength = sum(np.exp(-(((number * pitch_hz - f) / 120) ** 2)) for f in formants) + 0.02
        sound += strength * np.sin(2 * np.pi * number * pitch_hz * time_s + rng.uniform(0, 2 * np.pi))
    return (0.3 * sound / np.abs(sound).max()).astype(np.float32)


def bytes_of_a_file(rng: np.random.Generator, count: int) -> Array:
    """Return a piece of Python source, as numbers."""
    source = np.frombuffer(Path(__file__).read_bytes(), np.uint8)
    return np.resize(np.roll(source, rng.integers(len(source))), count)
