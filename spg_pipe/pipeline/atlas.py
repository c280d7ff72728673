"""A detector and its SAE on stores → an atlas: tables, crops and a page of its atoms."""

from collections.abc import Sequence
from pathlib import Path

from spg_pipe.artefacts.files import fresh_folder, require_writable
from spg_pipe.detector.model import Detector
from spg_pipe.errors import NotThereError, SpgError
from spg_pipe.explain.atlas import describe
from spg_pipe.explain.atlas_files import AtlasRecord, write_crops, write_tables
from spg_pipe.explain.crops import Photographs
from spg_pipe.pipeline.checked import checked_detector
from spg_pipe.pipeline.checked_store import checked_store, named_input
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import Dataset
from spg_pipe.report.atlas import NO_CROPS, without_crops, write_page
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

    An `SpgError` if something is not there or does not belong together.

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
    saes = _saes(run, detector, sae)
    others = _other_seeds(run, saes, aux)
    usual = _usual_splits(run, aux)
    pairs = _stores(run, detector, splits or usual, aux, named=bool(splits))
    stores = [store for _, store in pairs]
    given = _given(stores, splits, usual, every=every)
    given |= named_input("detector", folder, own, detector.fingerprint)
    path = out.resolve() if out else run.paths.atlas(aux, seed, given)
    require_writable(path)
    require_replaceable(path, "atlas")
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
        write_page(fresh, found, record, "/".join(folder.resolve().parts[-2:]))
    if without_crops(found):
        run.console.say(f"  note: {NO_CROPS}")
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


def _usual_splits(run: RecipeRun, aux: str) -> list[str]:
    """The auxiliary set and the targets of its directions, as far as the recipe lists them."""
    known = [row.name for row in run.params.datasets]
    targets = [way.target for way in run.params.directions if way.aux == aux]
    return [name for name in (aux, *targets) if name in known]


def _given(
    stores: Sequence[FeatureStore], splits: Sequence[str], usual: Sequence[str], *, every: bool
) -> dict[str, object]:
    """What options change of an atlas: its name says so, and the recipe's is not replaced."""
    given: dict[str, object] = {"every": True} if every else {}
    if splits and set(splits) != set(usual):
        given["stores"] = sorted(store.fingerprint for store in stores)
    return given


def _stores(
    run: RecipeRun, detector: Detector, splits: Sequence[str], aux: str, *, named: bool
) -> list[tuple[Dataset, FeatureStore]]:
    """What the atlas is made on, in one order; what is not there is left out if none was named."""
    found: dict[str, tuple[Dataset, FeatureStore]] = {}
    for split in sorted(set(splits)):
        dataset = find_dataset(run.params, split)
        try:
            store = checked_store(run, dataset)
        except NotThereError as error:
            if named:
                raise
            run.console.say(f"Left out of the atlas: {error}")
            continue
        detector.check_backbone(store.spec.backbone, str(store.path))
        if store.spec.dataset in found:
            raise SpgError(
                f"--split {split}: another of the named sets is of {store.spec.dataset} too, and "
                "their categories could not be told apart. Name one of them."
            )
        found[store.spec.dataset] = (dataset, store)
    if not found:
        raise SpgError(
            f"There is no store to describe the atoms of {aux} on. Run `spg-pipe extract`, or "
            "name a dataset with --split."
        )
    return list(found.values())
