"""Ask the agent on this device whether the text in pictures is upright.

    python examples/text_orientation/look.py PICTURE... [--state DIRECTORY]

A folder stands for the PNG files in it. The model takes pixels as they are: 48 rows of 192, a plane for each of blue,
green and red. Longer lines are pressed together, the place behind shorter ones is grey.
"""

import argparse
from pathlib import Path

from PIL import Image

from agent.cli import default_state_dir
from agent.client import ClientError, LocalClient

MODEL = "text-orientation"
OUTPUT = "save_infer_model/scale_0.tmp_1"
WIDTH, HEIGHT = 192, 48
GREY = (127, 127, 127)


def pixels(path: Path) -> bytes:
    """Return the input of the model, uint8 [1, 3, 48, 192]."""
    picture = Image.open(path).convert("RGB")
    width = min(WIDTH, round(picture.width * HEIGHT / picture.height))
    fitted = Image.new("RGB", (WIDTH, HEIGHT), GREY)
    fitted.paste(picture.resize((width, HEIGHT), Image.Resampling.BILINEAR))
    return b"".join(plane.tobytes() for plane in reversed(fitted.split()))


def pictures(paths: list[Path]) -> list[Path]:
    """Return the paths, with the pictures of folders in place of the folders."""
    return [file for path in paths for file in (sorted(path.glob("*.png")) if path.is_dir() else [path])]


def main() -> None:
    """Print a line for each picture."""
    arguments = argparse.ArgumentParser(description="Tell whether text is upright.")
    arguments.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE")
    arguments.add_argument("--state", type=Path, default=default_state_dir(), help="the agent's (default: %(default)s)")
    given = arguments.parse_args()
    try:
        with LocalClient(given.state / "agent.sock") as client:
            for path in pictures(given.pictures):
                answer = client.infer(MODEL, {"x": pixels(path)}).outputs[OUTPUT]
                print(f"{path.name:20} {answer.labels[0]:12} {max(answer.values):6.1%}")
    except (ClientError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
