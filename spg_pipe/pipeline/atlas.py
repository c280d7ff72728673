"""A detector and its SAE on stores → an atlas: tables, crops and a page of its atoms."""

from collections.abc import Sequence
from pathlib import Path

from spg_pipe.artefacts.files import fresh_folder, require_writable
from spg_pipe.detector.model import Detector
from spg_pipe.errors import NotThereError, SpgError
from spg_pipe.explain.atlas import Atlas, describe
from spg_pipe.explain.atlas_files import AtlasRecord, write_crops, write_tables
from spg_pipe.explain.crops import Photographs
from spg_pipe.explain.parts import MAP_GUIDES
from spg_pipe.pipeline.checked import checked_detector
from spg_pipe.pipeline.checked_store import checked_store, named_input
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import Dataset
from spg_pipe.report.atlas import FACTORS, AtlasContent, write_page
from spg_pipe.report.factors import factors_figure
from spg_pipe.report.page import require_replaceable
from spg_pipe.sae.run import SaeRun, read_sae_record
from spg_pipe.store.reader import FeatureStore


def atlas(
    run: RecipeRun,
    *,
    detector: Path | None = None,
    splits: Sequence[str] = (),
    sae: Path | None = None,
    out: Path | None = None,
    every: bool = False,
) -> list[Path]:
    """Detector + SAE + FeatureStores → an atlas folder, for each auxiliary set and seed.

    Parameters
    ----------
    detector : Path, optional
        One detector's folder, instead of the recipe's.
    splits : sequence of str
        Whose stores to describe it on. Default: the auxiliary set and the targets of its
        directions, as far as their tokens are there.
    sae : Path, optional
        The folder of the SAE that the detector was made with, instead of the recipe's.
    out : Path, optional
        Where the atlas goes, instead of its place in the recipe.
    every : bool
        Describe every latent of the SAE.

    Raises
    ------
    SpgError
        If something is not there or does not belong together.
    """
    if detector is not None:
        return [_atlas_of(run, detector, splits, sae, out, every=every)]
    pairs = [(aux, seed) for aux in run.params.auxiliaries for seed in run.params.seeds]
    if (sae or out) and len(pairs) != 1:
        raise SpgError(
            f"--sae and --out are of one detector, the recipe has {len(pairs)}: add --aux and "
            "--seed, or name a detector."
        )
    for aux, seed in pairs:
        checked_detector(run, aux, seed)
    folders = [run.paths.detector(aux, seed) for aux, seed in pairs]
    return [_atlas_of(run, folder, splits, sae, out, every=every) for folder in folders]


def _atlas_of(
    run: RecipeRun,
    folder: Path,
    splits: Sequence[str],
    sae: Path | None,
    out: Path | None,
    *,
    every: bool,
) -> Path:
    detector = Detector.load(folder)
    aux, seed = detector.record.auxiliary.dataset, detector.record.seed
    own = run.paths.detector(aux, seed)
    given = named_input("detector", folder, own, detector.fingerprint)
    path = out or run.paths.atlas(aux, seed, given)
    require_writable(path)
    require_replaceable(path, "atlas")
    saes = _saes(run, detector, sae)
    others = _other_seeds(run, saes, aux)
    pairs = _stores(run, detector, splits, aux)
    stores = [store for _, store in pairs]
    with run.console.progress(f"atlas {aux} seed {seed}") as update:
        found = describe(
            detector,
            saes,
            others,
            stores,
            every=every,
            device=choose_device(run.device),
            progress=update,
        )
    record = AtlasRecord.of(detector, stores, [each.record.seed for each in others], every=every)
    with fresh_folder(path) as fresh:
        photographs = [Photographs(store, dataset.root) for dataset, store in pairs]
        with run.console.progress(f"crops {aux} seed {seed}") as update:
            found = write_crops(found, photographs, fresh, update)
        write_tables(found, record, fresh)
        title = f"{run.params.name}, {aux}, seed {seed}"
        figure = factors_figure(found.factors.table, found.factors.generality, MAP_GUIDES, title)
        if figure is not None:
            (fresh / FACTORS).write_bytes(figure)
        content = _content(title, record, found)
        write_page(fresh, content)
    for note in content.notes:
        run.console.say(f"  note: {note}")
    run.console.say(f"Atlas of {aux}, seed {seed} → {path}")
    return path


def _saes(run: RecipeRun, detector: Detector, named: Path | None) -> SaeRun:
    """The SAE that the detector was made with."""
    aux, seed = detector.record.auxiliary.dataset, detector.record.seed
    path = named or run.paths.sae(aux, seed)
    if not path.is_dir():
        raise NotThereError(
            f"The SAE of the detector is not at {path}. Name its folder with --sae, or run "
            f"`spg-pipe train-sae --aux {aux} --seed {seed}`.",
            command=f"train-sae --aux {aux} --seed {seed}",
        )
    held, wanted = read_sae_record(path).fingerprint, detector.record.sae.fingerprint
    if held != wanted:
        raise SpgError(
            f"{path} is another SAE ({held[:8]}) than the detector was made with ({wanted[:8]}). "
            "Name that one with --sae, or make the detector again with `spg-pipe train-guides`."
        )
    return SaeRun.load(path)


def _other_seeds(run: RecipeRun, saes: SaeRun, aux: str) -> list[SaeRun]:
    """SAEs of the recipe's other seeds that were trained as this one, as far as they are there."""
    found = []
    for seed in (run.base or run.params).seeds:
        path = run.paths.sae(aux, seed)
        if seed == saes.record.seed or not path.is_dir():
            continue
        record = read_sae_record(path)
        if (record.store, record.sae) == (saes.record.store, saes.record.sae):
            found.append(SaeRun.load(path))
    return found


def _stores(
    run: RecipeRun, detector: Detector, splits: Sequence[str], aux: str
) -> list[tuple[Dataset, FeatureStore]]:
    """What the atlas is made on: as named, or as far as it is there."""
    found = []
    known = [row.name for row in run.params.datasets]
    targets = [way.target for way in run.params.directions if way.aux == aux]
    for split in splits or [name for name in (aux, *targets) if name in known]:
        dataset = find_dataset(run.params, split)
        try:
            store = checked_store(run, dataset)
        except NotThereError as error:
            if splits:
                raise
            run.console.say(f"Left out of the atlas: {error}")
            continue
        detector.check_backbone(store.spec.backbone, str(store.path))
        found.append((dataset, store))
    if not found:
        raise SpgError(
            f"There is no store to describe the atoms of {aux} on. Run `spg-pipe extract`, or "
            "name a dataset with --split."
        )
    return found


def _content(title: str, record: AtlasRecord, found: Atlas) -> AtlasContent:
    sets = ", ".join(f"{s.dataset}/{s.split} ({s.images:,} images)" for s in record.stores)
    whole = found.atoms[found.atoms["category"].isna()]
    facts = [
        ("Detector", title),
        ("Backbone", f"{record.backbone.alias}, layers {', '.join(record.backbone.layers)}"),
        ("Guides", record.detector.guides.kind),
        ("Described on", sets),
        ("Atoms of the detector", f"{int(whole['in_detector'].sum()):,}"),
        ("Other seeds' dictionaries", ", ".join(map(str, record.other_seeds)) or "none"),
        ("Licences", "; ".join(record.licences)),
    ]
    notes = []
    if whole[["crops", "projection_crops"]].isna().all(axis=None):
        notes.append("No photograph could be read, so there are no crops.")
    return AtlasContent(
        title=title,
        facts=facts,
        atoms=found.atoms,
        categories=found.categories,
        layouts=found.layouts,
        reading=_reading(found),
        notes=notes,
    )


def _reading(found: Atlas) -> list[str]:
    """What the figure of factors says."""
    shares = found.factors.shares
    if shares.empty:
        return []
    sentences = []
    for row in shares.to_dict("records"):
        part = "the guides' part of the map" if row["component"] == MAP_GUIDES else "whole images"
        sentences.append(
            f"Of {part}: {row['general_atoms']} of {row['atoms']} atoms are general. They carry "
            f"{_percent(row['general'])} (95 % interval {_percent(row['general_low'])} to "
            f"{_percent(row['general_high'])}) of what all atoms add to the gap between anomalous "
            f"and normal ones, without signs, mean over {row['categories']} categories. Where the "
            "same direction is written with random atoms, general ones carry "
            f"{_percent(row['general_random'])} ({_percent(row['general_random_low'])} to "
            f"{_percent(row['general_random_high'])}): so much is the direction's, not the "
            "dictionary's."
        )
    return sentences


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
