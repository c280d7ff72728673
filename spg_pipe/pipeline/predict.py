"""A detector on a person's own images: scores and heat maps at the images' own size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spg_pipe.artefacts.files import write_bytes, write_text
from spg_pipe.backbones.base import Backbone
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.backbones.tiling import check_sides, tiled
from spg_pipe.bank.few_shot import (
    KNOWN,
    judge_alone,
    judge_fused,
    note_of_copies,
    note_of_known,
    require_fusible,
    sees,
)
from spg_pipe.bank.memory import MemoryBank
from spg_pipe.datasets.contents import content_ids
from spg_pipe.datasets.images import IMAGE_EXTENSIONS, is_image, preprocess, read_image
from spg_pipe.datasets.layouts.folder import MASK_FOLDERS
from spg_pipe.decision.maps import SHOWN, SIGMA, anomaly_maps, resize_maps, shown_range
from spg_pipe.decision.rules import Published, Rule
from spg_pipe.detector.judge import Judged, judge
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError
from spg_pipe.guides.model import TAU
from spg_pipe.metrics.tables import ZERO_SHOT
from spg_pipe.pipeline.console import Console
from spg_pipe.predict.files import OVERLAYS, SCORES, check_place, is_own_folder, whole_result
from spg_pipe.predict.normals import bank_of_images, normal_images
from spg_pipe.predict.prediction import HEADER, Prediction, as_csv, as_row
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import BankParams, ScoreParams
from spg_pipe.store.extract import views_at_once

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Bank:
    """Normal images of the target, and whether they judge without the guides."""

    memory: MemoryBank
    alone: bool = False

    def sees(self, detector: Detector) -> str:
        """What scores saw that are made with it."""
        return sees(None if self.alone else detector, [self.memory.images])

    @property
    def shown(self) -> tuple[float, float]:
        """As `shown_range`: darkest is the most that normal images have, brightest thrice it."""
        weight, (low, high) = (
            (1.0, (0.0, 0.0)) if self.alone else (self.memory.params.weight, SHOWN)
        )
        top = weight * max(self.memory.map_top, 1.0)
        return shown_range(log_odds=True, between=(low + top, high + 3 * top))


def find_images(source: Path) -> list[Path]:
    """An image, or all images below a folder, sorted, but for those in folders of masks.

    Raises
    ------
    SpgError
        If there is none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise SpgError(f"{source} does not exist. Give an image or a folder of images.")
    every = [p for p in source.rglob("*") if is_image(p) and p.is_file()]
    found = sorted(path for path in every if not _is_mask(path, source))
    if not found:
        known = " ".join(sorted(IMAGE_EXTENSIONS))
        masks = f"; {len(every)} lie in folders of masks" if every else ""
        raise SpgError(f"{source} has no images (looked for {known}{masks}).")
    return found


def _is_mask(path: Path, source: Path) -> bool:
    return not {*MASK_FOLDERS}.isdisjoint(path.relative_to(source).parts[:-1])


def choose_images(source: Path, out: Path) -> list[Path]:
    """The images to score, after a look at what `out` holds already.

    Raises
    ------
    SpgError
        If there is no image, or a result in `out` would replace something that is not one.
    """
    images = find_images(source)
    if source.is_dir() and source.resolve().is_relative_to(out.resolve()):
        raise SpgError(f"--out {out} holds the images themselves. Choose a folder of its own.")
    # A second run must not take the overlays of the first, finished or not, for images.
    images = [path for path in images if not _is_overlay(path, out)]
    if not images:
        raise SpgError(
            f"{source} has no images but the heat maps of an earlier run in {out / OVERLAYS}. "
            "Give your own images, or another --out."
        )
    check_place(out, [_overlay_name(path, source) for path in images], HEADER.encode())
    return images


def predict(
    detector: Detector,
    backbone: Backbone,
    source: Path,
    out: Path,
    *,
    score: ScoreParams | None = None,
    bank: Bank | None = None,
    batch_images: int = 4,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[Prediction]:
    """Score images and write scores.csv and overlays/ below `out`.

    Each image is judged on its own; the detector's protocol says whether its EXIF orientation
    counts. Files of an earlier result are replaced when all images are done, never before.

    Parameters
    ----------
    backbone : Backbone
        The detector's, or the same in tiles (`backbones.tiling`).
    score : ScoreParams, optional
        Default: what the detector was saved with.
    bank : Bank, optional
        Few-shot: normal images of the target, added to the detector's decision or alone.
    batch_images : int
        Images at once; tiled images come one by one.

    Raises
    ------
    SpgError
        If the backbone is not the detector's, an image cannot be read, or a result would replace
        what is not one. `out` is then as it was.
    """
    detector.check_backbone(backbone.spec, "The backbone that was loaded")
    images = choose_images(source, out)
    exif = detector.record.protocol.exif_of_own_images
    rule = detector.rule(score)
    log_odds = rule.rule == "additive" or bank is not None
    shown = bank.shown if bank else shown_range(log_odds=log_odds)
    batch_images = max(1, batch_images // backbone.spec.views)
    results: list[Prediction] = []
    with whole_result(out, [_overlay_name(path, source) for path in images]) as folder:
        for start in range(0, len(images), batch_images):
            batch = images[start : start + batch_images]
            pixels = [read_image(path, exif=exif) for path in batch]
            judged = _judge(detector, backbone.spec, *_tokens(backbone, pixels, device), rule, bank)
            size = backbone.spec.preprocess.size
            maps = anomaly_maps(judged.patches, size, log_odds=log_odds)
            columns = dict(judged.columns)
            known = columns.pop(KNOWN, np.zeros(len(batch), bool))
            for i, path in enumerate(batch):
                full = resize_maps(maps[i][None], pixels[i].shape[:2])[0]
                name = _overlay_name(path, source)
                _write_overlay(folder / name, pixels[i], full, shown)
                row, column = np.unravel_index(int(full.argmax()), full.shape)
                results.append(
                    Prediction(
                        path=path.relative_to(_base(source)).as_posix(),
                        score=float(columns["score"][i]),
                        height=full.shape[0],
                        width=full.shape[1],
                        peak_row=int(row),
                        peak_column=int(column),
                        overlay=name.as_posix(),
                        protocol=detector.record.protocol.name,
                        parts={n: float(v[i]) for n, v in columns.items() if n != "score"},
                        sees=_sees(detector, bank) if bank else "",
                        among_normals=bool(known[i]),
                    )
                )
            if progress:
                progress(len(results), len(images))
        write_text(folder / SCORES, as_csv(results))
    return results


def _judge(
    detector: Detector,
    seen: BackboneSpec,
    tokens: dict[str, torch.Tensor],
    grids: dict[str, tuple[int, int]],
    rule: Rule,
    bank: Bank | None,
) -> Judged:
    if bank is None:
        return judge(detector, tokens, grids, seen, rule)
    found = bank.memory.distances(tokens)
    if bank.alone:
        return judge_alone(found)
    return judge_fused(detector, found, tokens, seen, bank.memory.params.weight)


def predict_folder(
    detector_path: Path,
    source: Path,
    out: Path,
    *,
    weights: Path | None,
    device: str,
    console: Console,
    tiles: Sequence[int] = (),
    normals: Path | None = None,
    alone: bool = False,
    bank: BankParams | None = None,
) -> tuple[dict[str, Any], str]:
    """Load a detector and its backbone, predict, and describe the result.

    Parameters
    ----------
    tiles : sequence of int
        Sides in pixels at which images are cut into tiles of the detector's image size; none: an
        image is seen as a whole.
    normals : Path, optional
        A folder with a few normal images of the target: few-shot.
    alone : bool
        They judge without the guides.
    bank : BankParams, optional
        Of their memory bank.

    Returns
    -------
    content : dict
        For `--json`: detector, protocol and settings, licences, predictions.
    text : str
        For people.
    """
    from spg_pipe.backbones import load_backbone

    detector = Detector.load(detector_path)
    images = choose_images(source, out)
    exif = detector.record.protocol.exif_of_own_images
    seen = normal_images(normals, exif=exif) if normals else None
    if seen and not alone:
        require_fusible(detector, None)
    spec = detector.backbone
    check_sides(tiles, spec)
    chosen = choose_device(device)
    backbone = load_backbone(
        spec.alias,
        image_size=spec.preprocess.size,
        layers=spec.layers,
        norm=spec.norm,
        protocol=detector.record.protocol.name,
        weights=weights,
        device=chosen,
    )
    if tiles:
        backbone = tiled(backbone, tiles, at_once=views_at_once(spec, 4, chosen))
    console.say("Licences of what this detector was made from:")
    for licence in detector.record.licences:
        console.say(f"  {licence}")
    contents = content_ids(images) if detector.painted_on and not alone else set()
    if note := detector.own_images_note(str(source), contents):
        console.say(note)
    made = None
    if seen is not None:
        with console.progress("normals") as update:
            memory = bank_of_images(
                detector,
                backbone.spec,
                seen,
                lambda pixels: _tokens(backbone, pixels, chosen),
                bank or BankParams(),
                device=chosen,
                progress=update,
            )
        made = Bank(memory, alone)
        if memory.copies:
            console.say(note_of_copies(memory.copies, len(seen)))
    with console.progress("predict") as update:
        rows = predict(detector, backbone, source, out, bank=made, device=chosen, progress=update)
    if source.is_dir() and (masks := sum(_is_mask(p, source) for p in source.rglob("*"))):
        console.say(
            f"Note: {masks} files in folders of masks ({', '.join(MASK_FOLDERS)}) left out."
        )
    lines = [f"{row.score:.4f}  {row.path}" for row in sorted(rows, key=lambda r: -r.score)]
    about = _about(detector, backbone.spec, made)
    known = [row.path for row in rows if row.among_normals]
    if known:
        console.say(note_of_known(known, len(rows), "whatever they show."))
    content = {
        "detector": str(detector_path),
        **about,
        "licences": detector.record.licences,
        "out": str(out),
        "predictions": [as_row(row) for row in rows],
    }
    told = f"protocol {about['protocol']}, σ {about['sigma']:g}, image score "
    told += f"{about['image_score']}, {about['backbone']}"
    if "fingerprint" in about:
        told += f", seed {about['seed']}, detector {about['fingerprint'][:8]}"
    if "sees" in about:
        told += f"; {about['sees']}"
    return content, "\n".join([*lines, told, f"{len(rows)} images → {out / SCORES}"])


def _about(detector: Detector, spec: BackboneSpec, bank: Bank | None) -> dict[str, Any]:
    """What every score depends on, besides the image: of the detector what was used of it."""
    rule = detector.record.rule
    layers = "+".join(spec.layers)
    about: dict[str, Any] = {
        "protocol": detector.record.protocol.name,
        "sigma": SIGMA,
        "image_score": rule.image_score if isinstance(rule, Published) else rule.rule,
        "backbone": f"{spec.seen_at} layers {layers} ({spec.norm}-norm)",
    }
    if bank:
        together = "k-NN bank alone" if bank.alone else f"{about['image_score']} + k-NN bank"
        about |= {
            "bank": bank.memory.params.model_dump(mode="json"),
            "image_score": together,
        }
    if saw := _sees(detector, bank):
        about["sees"] = saw
    if bank is None or not bank.alone:
        about |= {
            "fingerprint": detector.fingerprint,
            "tau": TAU,
            "guides": "contrast" if detector.contrast else "trained",
            "seed": detector.record.seed,
        }
    return about


def _sees(detector: Detector, bank: Bank | None) -> str:
    """What is told besides the detector's licences: painted defects, normal images of the target.

    Empty for a zero-shot detector that learnt from labels.
    """
    if bank:
        return bank.sees(detector)
    return "" if detector.sees == ZERO_SHOT else detector.sees


def _base(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def _overlay_name(image: Path, source: Path) -> Path:
    """File of an image's heat map, relative to the output folder."""
    relative = image.relative_to(_base(source))
    return Path(OVERLAYS) / relative.with_name(relative.name + ".png")


def _is_overlay(path: Path, out: Path) -> bool:
    place, root = path.resolve(), out.resolve()
    inside = place.relative_to(root).parts if place.is_relative_to(root) else ()
    return len(inside) > 1 and is_own_folder(inside[0])


def _tokens(
    backbone: Backbone, pixels: list[np.ndarray], device: str
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[int, int]]]:
    """Layer → (B, 1 + N, D), CLS first, and layer → (h, w), of images at their own sizes."""
    batch = np.stack([preprocess(image, backbone.spec.preprocess) for image in pixels])
    output = backbone(torch.from_numpy(batch).to(device))
    tokens = {
        name: torch.cat([value.prefix[:, :1], value.patches], dim=1)
        for name, value in output.items()
    }
    return tokens, {name: value.grid for name, value in output.items()}


def _write_overlay(
    path: Path, image: np.ndarray, anomaly_map: np.ndarray, shown: tuple[float, float]
) -> None:
    import io

    from PIL import Image

    from spg_pipe.report.render import eight_bit, overlay

    data = io.BytesIO()
    low, high = shown
    picture = overlay(eight_bit(image), anomaly_map, low=low, high=high)
    Image.fromarray(picture).save(data, format="PNG")
    write_bytes(path, data.getvalue())
