"""Judge images with model.onnx: a line of JSON each. Needs `pip install onnxruntime pillow`."""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}


def pixels_of(path: Path, *, turned: bool) -> np.ndarray:
    """(H, W, 3) uint8 without transparency, upright; a ValueError if it has more than 8 bits."""
    with Image.open(path) as image:
        if image.mode[0] in "IF":
            raise ValueError(f"{image.mode} has more than 8 bits: save it as RGB or grey of 8")
        upright = ImageOps.exif_transpose(image) if turned else image
        if upright.mode in ("LA", "P", "PA"):  # by way of alpha, so that hidden colours stay
            upright = upright.convert("RGBA")
        return np.asarray(upright.convert("RGB"))


def judged(model: onnxruntime.InferenceSession, path: Path, picture: Path | None) -> dict:
    """The model's score, decision and highest place of the map, which becomes a 16-bit PNG."""
    facts = model.get_modelmeta().custom_metadata_map
    pixels = pixels_of(path, turned=facts["exif"] == "true")
    names = [output.name for output in model.get_outputs()]
    found = dict(zip(names, model.run(names, {"image": pixels[None]}), strict=True))
    if picture:
        Image.fromarray(np.rint(found["map"] * 65535).astype(np.uint16)).save(picture)
    row, column = divmod(int(found["map"].argmax()), pixels.shape[1])
    said = ("normal", "anomalous")[int(found["decision"][0])] if "decision" in found else None
    line = {"score": float(found["score"][0]), "decision": said, "peak": float(found["map"].max())}
    return line | {"peak_row": row, "peak_column": column, "map": picture and str(picture)}


def main() -> int:
    """Judge what is named; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--maps", type=Path, help="a folder for the maps, as PNG of 16 bits")
    given, failed = parser.parse_args(), 0
    inner = [sorted(each.rglob("*")) if each.is_dir() else [each] for each in given.sources]
    found = [p for some in inner for p in some if p in given.sources or p.suffix.lower() in ENDINGS]
    if given.maps:
        given.maps.mkdir(parents=True, exist_ok=True)
    session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"))
    for number, path in enumerate(found):
        try:
            line = judged(session, path, given.maps and given.maps / f"{number:06}-{path.stem}.png")
        except (OSError, ValueError) as error:
            line, failed = {"error": str(error)}, 1
        print(json.dumps({"path": str(path), **line}), flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
