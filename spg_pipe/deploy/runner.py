"""Judge images with model.onnx: a line of JSON each. Needs `pip install onnxruntime pillow`."""

import argparse
import json
from datetime import date
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from PIL import Image, ImageOps

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}


def pixels_of(path: Path, *, turned: bool) -> np.ndarray:
    """(H, W, 3) uint8 without transparency, upright; a ValueError if grey has more than 8 bits."""
    with Image.open(path) as image:
        if image.mode[0] in "IF" or "LA;16" in str(image.tile[:1]):  # whose mode is RGBA
            raise ValueError("grey of more than 8 bits: save it as grey of 8 bits, or as RGB")
        upright = ImageOps.exif_transpose(image) if turned else image
        by = "RGBA" if upright.mode in ("LA", "P", "PA") else "RGB"  # hidden colours stay
        return np.asarray(upright.convert(by).convert("RGB"))


def judged(model: InferenceSession, pixels: np.ndarray, ended: bool, maps: Path | None) -> dict:
    """The score, the decision and the map's highest place; the map becomes a PNG of 16 bits."""
    heat, score, *decided = model.run(None, {"image": pixels[None]})
    if maps:
        Image.fromarray(np.rint(heat * 65535).astype(np.uint16)).save(maps)
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    decision = ("normal", "anomalous")[int(decided[0][0])] if decided and not ended else None
    peak = {"peak": float(heat.max()), "peak_row": row, "peak_column": column}
    return {"score": float(score[0]), "decision": decision, **peak, "map": maps and str(maps)}


def main() -> None:
    """Judge what is named; exits with 1 if an image cannot be judged or the threshold has ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--maps", type=Path, help="a folder for the maps, as PNG of 16 bits")
    asked = parser.parse_args()
    if asked.maps:
        asked.maps.mkdir(parents=True, exist_ok=True)
    model = InferenceSession(Path(__file__).with_name("model.onnx"))
    facts = model.get_modelmeta().custom_metadata_map
    failed = ended = "" < facts["valid_until"] < date.today().isoformat()
    inside = [sorted(each.rglob("*")) if each.is_dir() else [each] for each in asked.sources]
    for number, path in enumerate(path for paths in inside for path in paths):
        if path in asked.sources or (path.suffix.lower() in ENDINGS and path.is_file()):
            maps = asked.maps and asked.maps / f"{number:06}-{path.stem}.png"
            try:
                line = judged(model, pixels_of(path, turned=facts["exif"] == "true"), ended, maps)
            except Exception as error:  # Pillow raises a dozen types, also of a file that unfolds
                line, failed = {"error": str(error) or type(error).__name__}, True
            print(json.dumps({"path": str(path), **line}), flush=True)
    parser.exit(failed, f"The threshold held until {facts['valid_until']}.\n" if ended else None)


if __name__ == "__main__":
    main()
