"""Whether a detector's defects were painted on normal images of the target itself."""

from pathlib import Path

from spg_pipe.detector.model import Detector
from spg_pipe.images.files import content_ids
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.synthetic import reads
from spg_pipe.recipe.params import Dataset
from spg_pipe.store.reader import FeatureStore


def note_own_images(
    run: RecipeRun, detector: Detector, dataset: Dataset, store: FeatureStore
) -> None:
    """Say so where a target is known to the painted auxiliary set of a detector.

    The images' contents are compared, as far as they are here; and, for a set that the recipe
    makes, its source with the target's folder: other images of the same category there are no
    zero-shot target either.

    Parameters
    ----------
    dataset, store
        The target.
    """
    if not detector.record.painted_on:
        return
    files = [dataset.root / path for path in store.table["path"][store.table["label"] != 1]]
    known = content_ids(files) | set(store.spec.sources.values())
    if note := detector.own_images_note(dataset.name, known):
        run.console.say(note)
    elif categories := _own_categories(run, detector, dataset, store):
        run.console.say(
            f"Note: the defects of {detector.record.auxiliary.dataset} were painted on normal "
            f"images of {', '.join(categories)} from {dataset.root}, the folder of {dataset.name} "
            "itself; this is not zero-shot."
        )


def _own_categories(
    run: RecipeRun, detector: Detector, dataset: Dataset, store: FeatureStore
) -> list[str]:
    """Categories of the target whose folder the detector's synthetic sets were made from."""
    params, auxiliary = run.params, detector.record.auxiliary
    aux = next((one for one in params.datasets if one.name == auxiliary.dataset), None)
    names = auxiliary.synthetic.categories if auxiliary.synthetic else ()
    painted = {name.rpartition("/")[2] for name in names}
    ours = {name.rpartition("/")[2] for name in store.table["category"]}
    places = [dataset.root / part for part in dataset.sets] or [dataset.root]
    sources = [made.source for made in params.synthetic_sets if aux and reads(aux, made)]
    found: set[str] = set()
    for source, place in ((one.resolve(), two.resolve()) for one in sources for two in places):
        if source.is_relative_to(place) or place.is_relative_to(source):
            found |= (painted | _between(source, place)) & (ours | _between(place, source))
    return sorted(found)


def _between(inner: Path, outer: Path) -> set[str]:
    """Names of the folders from `outer` down to `inner`; none if it is not below.

    `parts/good` is of the category `good` by itself, and of `parts` in a target of that folder.
    """
    if inner == outer or not inner.is_relative_to(outer):
        return set()
    return {outer.name, *inner.relative_to(outer).parts}
