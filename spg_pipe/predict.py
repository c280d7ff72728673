"""A detector on a person's own images: scores and heat maps at the images' own size."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spg_pipe.artifacts import write_bytes, write_text
from spg_pipe.backbones.base import Backbone
from spg_pipe.console import Console, choose_device
from spg_pipe.datasets.images import IMAGE_EXTENSIONS, is_image, preprocess, read_image
from spg_pipe.detector import Detector
from spg_pipe.errors import SpgError
from spg_pipe.params import ScoreParams
from spg_pipe.scoring import resize_maps, score_images

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prediction:
    """The result for one image."""

    path: str
    score: float
    """Image score of the detector's recipe; higher is more anomalous. Not a probability."""
    score_cls: float
    height: int
    width: int
    peak_row: int
    """Row of the map's maximum, pixels of the original image."""
    peak_column: int
    overlay: str
    """File of the heat map, relative to the output folder."""


def find_images(source: Path) -> list[Path]:
    """An image, or all images below a folder, sorted.

    Raises
    ------
    SpgError
        If there is none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise SpgError(f"{source} does not exist. Give an image or a folder of images.")
    found = sorted(p for p in source.rglob("*") if is_image(p) and p.is_file())
    if not found:
        known = " ".join(sorted(IMAGE_EXTENSIONS))
        raise SpgError(f"{source} has no images (looked for {known}).")
    return found


def predict(
    detector: Detector,
    backbone: Backbone,
    source: Path,
    out: Path,
    *,
    score: ScoreParams | None = None,
    batch_images: int = 4,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[Prediction]:
    """Score images and write scores.csv and overlays/ below `out`.

    EXIF orientation is honoured. Each image is judged on its own.

    Raises
    ------
    SpgError
        If the backbone is not the detector's, or an image cannot be read.
    """
    detector.check_backbone(backbone.spec, "The backbone that was loaded")
    images = find_images(source)
    base = source if source.is_dir() else source.parent
    if source.is_dir() and source.resolve().is_relative_to(out.resolve()):
        raise SpgError(f"--out {out} holds the images themselves. Choose a folder of its own.")
    # A second run must not take the overlays of the first for images.
    images = [path for path in images if not path.resolve().is_relative_to(out.resolve())]
    # Scores are written last; those of an earlier run must not stand beside new overlays.
    (out / "scores.csv").unlink(missing_ok=True)
    params = score or detector.score
    results: list[Prediction] = []
    for start in range(0, len(images), batch_images):
        batch = images[start : start + batch_images]
        pixels = [read_image(path, exif=True) for path in batch]
        maps, scores, cls = next(score_images(detector, _tokens(backbone, pixels, device), params))
        for i, path in enumerate(batch):
            full = resize_maps(maps[i][None], pixels[i].shape[:2])[0]
            relative = path.relative_to(base)
            name = Path("overlays") / relative.with_name(relative.name + ".png")
            _write_overlay(out / name, pixels[i], full)
            row, column = np.unravel_index(int(full.argmax()), full.shape)
            results.append(
                Prediction(
                    path=relative.as_posix(),
                    score=float(scores[i]),
                    score_cls=float(cls[i]),
                    height=full.shape[0],
                    width=full.shape[1],
                    peak_row=int(row),
                    peak_column=int(column),
                    overlay=name.as_posix(),
                )
            )
        if progress:
            progress(len(results), len(images))
    write_text(out / "scores.csv", as_csv(results))
    return results


def predict_folder(
    detector_path: Path,
    source: Path,
    out: Path,
    *,
    weights: Path | None,
    device: str,
    console: Console,
) -> tuple[dict[str, Any], str]:
    """Load a detector and its backbone, predict, and describe the result.

    Returns
    -------
    content : dict
        For `--json`: detector, licences, predictions.
    text : str
        For people.
    """
    from spg_pipe.backbones import load_backbone

    detector = Detector.load(detector_path)
    find_images(source)
    spec = detector.backbone
    chosen = choose_device(device)
    backbone = load_backbone(
        spec.alias,
        image_size=spec.preprocess.size,
        layers=spec.layers,
        norm=spec.norm,
        protocol=detector.config["protocol"]["name"],
        weights=weights,
        device=chosen,
    )
    console.say("Licences of what this detector was made from:")
    for licence in detector.config["licences"]:
        console.say(f"  {licence}")
    with console.progress("predict") as update:
        rows = predict(detector, backbone, source, out, device=chosen, progress=update)
    lines = [f"{row.score:.4f}  {row.path}" for row in sorted(rows, key=lambda r: -r.score)]
    content = {
        "detector": str(detector_path),
        "licences": detector.config["licences"],
        "out": str(out),
        "predictions": [asdict(row) for row in rows],
    }
    return content, "\n".join([*lines, f"{len(rows)} images → {out / 'scores.csv'}"])


def _tokens(
    backbone: Backbone, pixels: list[np.ndarray], device: str
) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, tuple[int, int]]]]:
    batch = np.stack([preprocess(image, backbone.spec.preprocess) for image in pixels])
    output = backbone(torch.from_numpy(batch).to(device))
    tokens = {
        name: torch.cat([value.prefix[:, :1], value.patches], dim=1)
        for name, value in output.items()
    }
    yield tokens, {name: value.grid for name, value in output.items()}


def _write_overlay(path: Path, image: np.ndarray, anomaly_map: np.ndarray) -> None:
    import io

    from PIL import Image

    from spg_pipe.report.render import eight_bit, overlay

    data = io.BytesIO()
    Image.fromarray(overlay(eight_bit(image), anomaly_map)).save(data, format="PNG")
    write_bytes(path, data.getvalue())


def as_csv(rows: list[Prediction]) -> str:
    """Predictions as CSV text with a header."""
    import csv
    import io

    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(Prediction.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return stream.getvalue()
