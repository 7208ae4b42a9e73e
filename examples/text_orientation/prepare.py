"""Take the network that tells how text lies out of the package `rapidocr-onnxruntime`, and draw some text for it.

    python examples/text_orientation/prepare.py [--out DIRECTORY]

Into `build/` beside this file it writes `text-orientation.onnx`, `labels.txt` and pictures: labels as they stand on
devices, each upright and turned by 180 degrees.
"""

import argparse
import importlib.metadata
import shutil
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
MODEL = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
TEXTS = {"caution": "CAUTION: hot surface", "serial": "S/N 4711-0815-A", "fuse": "Fuse 250 V / 6.3 A"}


def drawn(text: str) -> Image.Image:
    """Return dark text on a light label."""
    font = ImageFont.load_default(36)
    left, top, right, bottom = (int(n) for n in font.getbbox(text))
    picture = Image.new("RGB", (right - left + 40, bottom - top + 24), (236, 232, 214))
    ImageDraw.Draw(picture).text((20 - left, 12 - top), text, (30, 30, 40), font)
    return picture


def main() -> None:
    """Write the files."""
    arguments = argparse.ArgumentParser(description="Prepare the network that tells how text lies.")
    arguments.add_argument("--out", type=Path, default=HERE / "build", help="where to (default: %(default)s)")
    out: Path = arguments.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model = importlib.metadata.distribution("rapidocr-onnxruntime").locate_file(MODEL)
    shutil.copyfile(str(model), out / "text-orientation.onnx")
    (out / "labels.txt").write_text("upright\nupside down\n")
    for name, text in TEXTS.items():
        picture = drawn(text)
        picture.save(out / f"{name}.png")
        picture.rotate(180).save(out / f"{name}-turned.png")
    print(f"text-orientation.onnx and {2 * len(TEXTS)} pictures are in {out}")


if __name__ == "__main__":
    main()
