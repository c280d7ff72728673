"""`fit`: one's own labelled images → a detector, and what it would have said of each of them.

It writes a recipe and takes its stages one after the other; what is there and fits is kept, so the
same command goes on after a kill, and single commands go on from its folder.
"""

import importlib.util
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.artefacts.digests import file_digests
from spg_pipe.artefacts.files import require_writable, write_text
from spg_pipe.artefacts.record import write_record
from spg_pipe.backbones.load import resolve
from spg_pipe.backbones.packaged import PACKAGES
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, MaskState
from spg_pipe.datasets.walk import SYNTHETIC_RECORD
from spg_pipe.detector.out_of_fold import judge_out_of_fold
from spg_pipe.errors import NotThereError, SpgError, counted
from spg_pipe.pipeline import features, training
from spg_pipe.pipeline.checked import checked_detector, checked_sae, is_there
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.datasets import name_of, scan
from spg_pipe.pipeline.held_out import ESTIMATE, TABLE, HeldOut, table_of
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import parse_params
from spg_pipe.recipe.reader import parse_yaml
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore

if TYPE_CHECKING:
    import pandas as pd

_VIT, _CNN = "dinov2-vits14-imgfocus", "efficientnet-lite0"
_RECIPE = """\
# Written by `spg-pipe fit`. Its commands work in this folder: `spg-pipe train-guides`, …
name: {name}
artifacts: artifacts
seeds: [{seed}]
datasets:
  - {{name: {name}, layout: {layout}, root: {root}, split: all}}
auxiliaries: [{name}]
directions: []
backbone: {{alias: {backbone}, image_size: {image_size}}}
extract: {{skip_bad: {skip_bad}}}
sae: {{dict_size: 2048, tokens: 400000}}
"""


@dataclass(frozen=True)
class Labelled:
    """One's own labelled images, and what to make of them."""

    folder: Path
    layout: str | None = None
    """None: `synthetic` where `synthesise` made it, else `folder`."""
    out: Path | None = None
    """None: `fit_` and the folder's name, here."""
    backbone: str | None = None
    """None: the ViT where its package is installed, else the CNN."""
    image_size: int | None = None
    seed: int = 111
    skip_bad: bool = False

    @property
    def results(self) -> Path:
        """The folder of the recipe and all artefacts."""
        return self.out or Path(f"fit_{name_of(self.folder)}")

    def recipe(self) -> str:
        """The text of the recipe; an `SpgError` if there is no folder."""
        if not self.folder.is_dir():
            raise SpgError(f"{self.folder} is no folder. Name the folder of your labelled images.")
        synthetic = (self.folder / SYNTHETIC_RECORD).exists()
        backbone = self.backbone or default_backbone()
        texts = {  # quoted: a folder may be called 2024
            "name": name_of(self.folder),
            "layout": self.layout or ("synthetic" if synthetic else "folder"),
            "root": self.folder.resolve().as_posix(),
            "backbone": backbone,
        }
        return _RECIPE.format(
            **{key: json.dumps(text, ensure_ascii=False) for key, text in texts.items()},
            seed=self.seed,
            image_size=self.image_size or resolve(backbone).image_size,
            skip_bad=str(self.skip_bad).lower(),
        )


def default_backbone() -> str:
    """The better one of those that are installed."""
    installed = PACKAGES[_VIT].find() is not None and importlib.util.find_spec("onnx") is not None
    return _VIT if installed else _CNN


def fit(
    asked: Labelled, console: Console, *, device: str = "auto", workers: int | None = None
) -> Path:
    """Make a detector, judge its own images out of fold, and say what to do next.

    An `SpgError` if labels are missing that it needs, or the place holds another recipe.
    """
    out, text = asked.results, asked.recipe()
    params = parse_params(parse_yaml(text, "fit"), "The options of fit")
    _require_place(out, text, asked.folder)
    params = params.model_copy(update={"artifacts": out / params.artifacts})
    run = RecipeRun(params, console, device, workers)
    (dataset,), (seed,) = params.datasets, params.seeds
    manifest = scan(run, dataset, skip_bad=asked.skip_bad, tell=True)
    _require_labels(manifest.table, asked.folder, params.name)
    write_text(out / "params.yaml", text)
    manifest.save(run.paths.manifest(dataset))
    try:
        store = checked_store(run, dataset)
    except NotThereError as error:
        replace = "--replace" in error.command  # images came or went since
        store = FeatureStore(features.extract(run, dataset, replace=replace, from_manifest=True))
    if not is_there(lambda: checked_sae(run, store, params.name, seed)):
        training.train_sae(run, params.name, seed)
    if not is_there(lambda: checked_detector(run, params.name, seed)):
        training.train_guides(run, params.name, seed)
    saes = SaeRun.load(run.paths.sae(params.name, seed))
    contents = manifest.table.set_index("path")["sha256"].loc[store.array("path")].to_numpy()
    with console.progress("held out", "folds") as update:
        judged = judge_out_of_fold(
            store, saes, params, contents, device=choose_device(device), progress=update
        )
    held = HeldOut.of(checked_detector(run, params.name, seed), judged, store)
    table, listing = table_of(store, judged, contents), out / TABLE
    write_text(listing, table.to_csv(index=False))
    held = held.model_copy(update={"files_sha256": file_digests(out, TABLE)})
    write_record(out / ESTIMATE, held)
    detector = run.paths.detector(params.name, seed)
    words = [*held.in_words(table), f"All images: {listing}", "", *_next(detector, asked)]
    content = {"detector": detector, "table": listing, "held_out": held.model_dump(mode="json")}
    console.result(content, "\n".join(words))
    return detector


def _require_place(out: Path, text: str, folder: Path) -> None:
    if out.resolve().is_relative_to(folder.resolve()):
        raise SpgError(f"{out} lies among the images of {folder}. Choose another --out.")
    recipe = out / "params.yaml"
    if out.exists() and any(out.iterdir()):
        held = recipe.read_bytes() if recipe.is_file() else b""
        if held != text.encode():
            what = "another recipe" if held else "other files"
            raise SpgError(
                f"{out} holds {what}. Choose another --out; or go on from a recipe with the single "
                f"commands: `cd {shlex.quote(str(out))}`, `spg-pipe train-guides`."
            )
    require_writable(recipe)


def _require_labels(table: "pd.DataFrame", folder: Path, name: str) -> None:
    """Some category has normal images, and defects with masks."""
    normal, anomalous = table["label"] == LABEL_NORMAL, table["label"] == LABEL_ANOMALOUS
    masked = anomalous & (table["mask_state"] == MaskState.GIVEN)
    if set(table["category"][normal]) & set(table["category"][masked]):
        return
    images, painted = shlex.quote(str(folder)), f"{name}-painted"
    paint = (
        f"`spg-pipe synthesise {images} {painted}` paints defects on the normal images, and "
        f"`spg-pipe fit {painted}` takes these."
    )
    masks = f"masks, as {folder}/ground_truth/KIND/NAME_mask.png"
    if not normal.any():
        advice = (
            f"Put normal images into {folder}/good, and each kind of defect into a folder of its "
            f"own, with {masks}."
        )
        advice += "" if anomalous.any() else f" If all images are normal, {paint}"
    elif not anomalous.any():
        advice = (
            f"A detector is made from defects, too: {paint} Or judge by the normal images alone, "
            f"with a detector that is there: `spg-pipe predict DETECTOR IMAGES --normals {images}`."
        )
    elif not masked.any():
        advice = f"Give some defects {masks}. Or {paint}"
    else:
        advice = "No category has both normal images and defects with masks; at least one must."
    raise SpgError(
        f"{folder}: {counted(int(normal.sum()), 'normal image')}, "
        f"{counted(int(anomalous.sum()), 'defect')} ({int(masked.sum())} with a mask), "
        f"{int((~normal & ~anomalous).sum())} without a label. {advice}"
    )


def _next(detector: Path, asked: Labelled) -> list[str]:
    made, folder = shlex.quote(str(detector)), shlex.quote(str(asked.folder))
    return [
        f"The detector is the folder {detector}. Next:",
        f"  spg-pipe predict {made} {folder}     # or any other images",
        f"  spg-pipe calibrate {made} GOOD/      # normal images that are not in {folder}",
    ]
