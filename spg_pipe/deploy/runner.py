"""Judge images with model.onnx: a line of JSON each. Needs `pip install onnxruntime pillow`."""

import argparse
import json
import sys
from datetime import date
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}


def pixels_of(path: Path, *, turned: bool) -> np.ndarray:
    """(H, W, 3) uint8 without transparency, upright; a ValueError if grey has more than 8 bits."""
    with Image.open(path) as image:
        if image.mode[0] in "IF" or "LA;16" in str(image.tile[:1]):  # whose mode is RGBA
            raise ValueError("grey of more than 8 bits: save it as grey of 8 bits, or as RGB")
        upright = ImageOps.exif_transpose(image) if turned else image
        if upright.mode in ("LA", "P", "PA"):  # by way of alpha, so that hidden colours stay
            upright = upright.convert("RGBA")
        return np.asarray(upright.convert("RGB"))


def judged(model: onnxruntime.InferenceSession, path: Path, map_path: Path | None) -> dict:
    """The model's score, decision and highest place of the map, which becomes a 16-bit PNG."""
    facts = model.get_modelmeta().custom_metadata_map
    pixels = pixels_of(path, turned=facts["exif"] == "true")
    names = [output.name for output in model.get_outputs()]
    outputs = dict(zip(names, model.run(names, {"image": pixels[None]}), strict=True))
    if map_path:
        Image.fromarray(np.rint(outputs["map"] * 65535).astype(np.uint16)).save(map_path)
    row, column = divmod(int(outputs["map"].argmax()), pixels.shape[1])
    decides = "decision" in outputs and not has_ended(facts["valid_until"])
    decision = ("normal", "anomalous")[int(outputs["decision"][0])] if decides else None
    line = {"score": float(outputs["score"][0]), "decision": decision}
    line |= {"peak": float(outputs["map"].max()), "peak_row": row, "peak_column": column}
    return line | {"map": map_path and str(map_path)}


def has_ended(last_day: str) -> bool:
    """Whether a calibration's last day, YYYY-MM-DD or empty, is over."""
    return bool(last_day) and date.today().isoformat() > last_day


def main() -> int:
    """Judge what is named; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--maps", type=Path, help="a folder for the maps, as PNG of 16 bits")
    asked = parser.parse_args()
    inside = [sorted(each.rglob("*")) if each.is_dir() else [each] for each in asked.sources]
    every = [path for paths in inside for path in paths]
    images = [path for path in every if path in asked.sources or path.suffix.lower() in ENDINGS]
    if asked.maps:
        asked.maps.mkdir(parents=True, exist_ok=True)
    model = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"))
    last_day = model.get_modelmeta().custom_metadata_map["valid_until"]
    if failed := has_ended(last_day):
        print(f"The threshold held until {last_day}: no image is decided.", file=sys.stderr)
    for number, path in enumerate(images):
        try:
            line = judged(model, path, asked.maps and asked.maps / f"{number:06}-{path.stem}.png")
        except Exception as error:  # Pillow raises a dozen types, also of a file that unfolds
            line, failed = {"error": str(error) or type(error).__name__}, True
        print(json.dumps({"path": str(path), **line}), flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
