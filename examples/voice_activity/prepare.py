"""Take the voice detector out of the package `silero-vad`, and make a sound for it to listen to.

    python examples/voice_activity/prepare.py [--out DIRECTORY]

Into `build/` beside this file it writes `voice-activity.onnx` and `sound.wav`: silence, something like speech, silence,
noise, and speech again. The speech says nothing: pulses of a voice with a changing pitch go through three resonances,
which wander from vowel to vowel, with a hiss between the syllables.
"""

import argparse
import importlib.metadata
import shutil
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sound = NDArray[np.float64]
HERE = Path(__file__).parent
RATE_HZ = 16_000
SYLLABLE_S = 0.22
VOWELS_HZ = np.array([(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (570, 840, 2410), (530, 1840, 2480)])
"""The three lowest resonances of five vowels (Peterson and Barney, 1952)."""
WIDTHS_HZ = (80, 100, 120)


def speech(rng: np.random.Generator, seconds: float) -> Sound:
    """Return something like speech."""
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    pitch_hz = 120 + 15 * np.sin(time_s * 4.8) + 8 * np.sin(time_s * 13) - 3 * time_s
    pulses = np.diff(np.floor(np.cumsum(pitch_hz) / RATE_HZ), prepend=0)
    voice = np.convolve(pulses, np.exp(-np.arange(60) / 12))[: len(time_s)] + 0.01 * rng.standard_normal(len(time_s))
    syllables = int(seconds / SYLLABLE_S) + 2
    vowels = VOWELS_HZ[rng.integers(len(VOWELS_HZ), size=syllables)]
    starts_s = np.arange(syllables) * SYLLABLE_S
    sound = np.zeros(len(time_s))
    for track, width_hz in zip(vowels.T, WIDTHS_HZ, strict=True):
        sound += resonate(voice, np.interp(time_s, starts_s, track), width_hz)
    sound *= np.sqrt(np.abs(np.sin(np.pi * time_s / SYLLABLE_S)))
    hiss = np.diff(rng.standard_normal(len(time_s) + 1)) * (np.mod(time_s, SYLLABLE_S) < 0.05)
    sound += 0.1 * np.abs(sound).max() * hiss
    return 0.4 * sound / np.abs(sound).max()


def resonate(source: Sound, centres_hz: Sequence[float] | NDArray[Any], width_hz: float) -> Sound:
    """Return a sound after a resonance whose centre moves."""
    radius = np.exp(-np.pi * width_hz / RATE_HZ)
    turns = 2 * radius * np.cos(2 * np.pi * np.asarray(centres_hz) / RATE_HZ)
    out = np.empty(len(source))
    last = before = 0.0
    for n, (x, turn) in enumerate(zip(source * (1 - radius), turns, strict=True)):
        last, before = x + turn * last - radius * radius * before, last
        out[n] = last
    return out


def sound() -> Sound:
    """Return the whole of it."""
    rng = np.random.default_rng(0)
    silence = np.zeros(RATE_HZ)
    noise = 0.05 * rng.standard_normal(2 * RATE_HZ)
    return np.concatenate([silence, speech(rng, 3), silence, noise, silence, speech(rng, 2), silence])


def main() -> None:
    """Write the files."""
    arguments = argparse.ArgumentParser(description="Prepare the voice detector.")
    arguments.add_argument("--out", type=Path, default=HERE / "build", help="where to (default: %(default)s)")
    out: Path = arguments.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model = importlib.metadata.distribution("silero-vad").locate_file("silero_vad/data/silero_vad.onnx")
    shutil.copyfile(str(model), out / "voice-activity.onnx")
    samples = sound()
    with wave.open(str(out / "sound.wav"), "wb") as wav:
        wav.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        wav.writeframes((samples * 32767).astype("<i2").tobytes())
    print(f"voice-activity.onnx and {len(samples) / RATE_HZ:.0f} s of sound.wav are in {out}")


if __name__ == "__main__":
    main()
