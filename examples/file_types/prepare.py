"""Take the model of file types out of the package `magika`, and make some files for it to look at.

    python examples/file_types/prepare.py [--out DIRECTORY]

Into `build/` beside this file it writes `file-types.onnx`, `labels.txt` with the name of each type, and `samples/`.
"""

import argparse
import importlib.metadata
import io
import json
import shutil
import wave
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw

HERE = Path(__file__).parent
MODEL = "magika/models/standard_v3_3"


def shipped(name: str) -> Path:
    """Return a file of the installed package, which is not imported: it would want onnxruntime and more."""
    return Path(str(importlib.metadata.distribution("magika").locate_file(f"{MODEL}/{name}")))


def samples() -> dict[str, bytes]:
    """Return files of different types by name; not one tells its type by the end of its name."""
    picture = Image.new("RGB", (96, 64), "white")
    ImageDraw.Draw(picture).ellipse((20, 8, 76, 56), fill="orange", outline="black")
    encoded = {kind: io.BytesIO() for kind in ("PNG", "JPEG", "PDF")}
    for kind, file in encoded.items():
        picture.save(file, kind)
    source = Path(__file__).read_bytes()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("prepare.txt", source)
    sound = io.BytesIO()
    with wave.open(sound, "wb") as wav:
        wav.setparams((1, 2, 8_000, 0, "NONE", ""))
        wav.writeframes(bytes(range(256)) * 32)
    return {
        "picture": encoded["PNG"].getvalue(),
        "photo": encoded["JPEG"].getvalue(),
        "page": encoded["PDF"].getvalue(),
        "archive": archive.getvalue(),
        "sound": sound.getvalue(),
        "script": source,
        "program": Path("/bin/sh").read_bytes(),
        "numbers": b"device,temperature,humidity\n" + b"".join(b"cam-%d,%d.5,%d\n" % (n, n % 30, n) for n in range(99)),
        "empty": b"",
    }


def main() -> None:
    """Write the files."""
    arguments = argparse.ArgumentParser(description="Prepare the model of file types.")
    arguments.add_argument("--out", type=Path, default=HERE / "build", help="where to (default: %(default)s)")
    out: Path = arguments.parse_args().out
    (out / "samples").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(shipped("model.onnx"), out / "file-types.onnx")
    labels = json.loads(shipped("config.min.json").read_text())["target_labels_space"]
    (out / "labels.txt").write_text("\n".join(labels) + "\n")
    for name, content in samples().items():
        (out / "samples" / name).write_bytes(content)
    print(f"file-types.onnx and the names of its {len(labels)} types are in {out}")


if __name__ == "__main__":
    main()
