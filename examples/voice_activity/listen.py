"""Find where somebody speaks, by asking the agent on this device about 32 ms at a time.

    python examples/voice_activity/listen.py SOUND.wav [--state DIRECTORY]

The model remembers what it heard; the agent keeps that memory in the module, and the first call clears it. Beside the
new samples a call takes the last 64 of the call before.
"""

import argparse
import wave
from array import array
from collections.abc import Iterator
from pathlib import Path

from agent.cli import default_state_dir
from agent.client import ClientError, LocalClient

MODEL = "voice-activity"
RATE_HZ = 16_000
CHUNK, BEFORE = 512, 64
BEGINS, ENDS = 0.5, 0.35
SHORTEST_PAUSE = 8  # chunks: a quarter of a second
BARS = "▁▂▃▄▅▆▇█"


def read(path: Path) -> "array[float]":
    """Return the samples of a sound, from -1 to 1."""
    with wave.open(str(path)) as wav:
        kind = (wav.getnchannels(), wav.getsampwidth(), wav.getframerate())
        if kind != (1, 2, RATE_HZ):
            raise SystemExit(f"{path}: expected one channel of 16 bits at {RATE_HZ} Hz, got {kind}")
        return array("f", (value / 32768 for value in array("h", wav.readframes(wav.getnframes()))))


def probabilities(client: LocalClient, samples: "array[float]") -> Iterator[float]:
    """Yield for each chunk how probable it is that somebody speaks."""
    padded = array("f", bytes(4 * BEFORE)) + samples
    for start in range(0, len(samples) - CHUNK + 1, CHUNK):
        heard = padded[start : start + BEFORE + CHUNK]
        answer = client.infer(MODEL, {"input": heard.tobytes()}, sequence_start=start == 0)
        yield answer.outputs["output"].values[0]


def segments(chunks: list[float]) -> Iterator[tuple[float, float]]:
    """Yield from when to when somebody speaks, in seconds; short pauses do not count."""
    start = last = None
    for number, probability in enumerate([*chunks, *[0.0] * (SHORTEST_PAUSE + 1)]):
        if probability >= BEGINS and start is None:
            start = number
        if probability >= ENDS and start is not None:
            last = number
        if start is not None and last is not None and number - last > SHORTEST_PAUSE:
            yield start * CHUNK / RATE_HZ, (last + 1) * CHUNK / RATE_HZ
            start = None


def main() -> None:
    """Print the segments under a picture of the whole."""
    arguments = argparse.ArgumentParser(description="Find where somebody speaks.")
    arguments.add_argument("sound", type=Path, metavar="SOUND.wav")
    arguments.add_argument("--state", type=Path, default=default_state_dir(), help="the agent's (default: %(default)s)")
    given = arguments.parse_args()
    try:
        with LocalClient(given.state / "agent.sock") as client:
            heard = list(probabilities(client, read(given.sound)))
    except (ClientError, OSError, wave.Error, EOFError) as error:
        raise SystemExit(f"error: {error}") from error
    groups = [heard[n : n + 4] for n in range(0, len(heard), 4)]
    print("".join(BARS[min(7, int(8 * max(group)))] for group in groups))
    for start, end in segments(heard):
        print(f"speech from {start:5.2f} s to {end:5.2f} s")


if __name__ == "__main__":
    main()
