"""Normal images → auxiliary sets with painted defects."""

from collections.abc import Sequence

from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.datasets import require_tracked
from spg_pipe.pipeline.run import RecipeRun, require_set
from spg_pipe.recipe.params import Dataset, SyntheticSet
from spg_pipe.recipe.protocol import protocol


def synthesise_sets(
    run: RecipeRun, datasets: Sequence[Dataset] = (), name: str | None = None
) -> None:
    """Make the recipe's synthetic sets that the datasets read, or that a DVC stage names."""
    params = run.params
    require_set(params, "synthetic_sets", name)
    exif, skip_bad = protocol(params.method.protocol).exif_of_own_images, params.extract.skip_bad
    for made in params.synthetic_sets:
        if made.name == name or any(reads(dataset, made) for dataset in datasets):
            if name is not None:
                require_tracked(made.source)
            synthesise(made, run.console, exif, skip_bad=skip_bad, workers=run.workers)


def reads(dataset: Dataset, made: SyntheticSet) -> bool:
    """Whether a dataset is a synthetic set, or a union with it."""
    roots = [dataset.root / part for part in dataset.sets] or [dataset.root]
    return made.root.resolve() in {root.resolve() for root in roots}


def synthesise(
    made: SyntheticSet,
    console: Console,
    exif_of_own_images: bool = True,
    *,
    skip_bad: bool = False,
    workers: int | None = None,
) -> dict[str, object]:
    """Paint defects on a folder's normal images.

    An `SpgError` if the source is no folder; otherwise as `build_manifest` and `write_synthetic`.

    Parameters are as of `build_manifest`. Returns `root`; `written`, false if the very set was
    there already; the numbers of `normal` and `anomalous` images.
    """
    from spg_pipe.datasets.build import build_manifest
    from spg_pipe.datasets.layouts.synthetic import read_synthetic
    from spg_pipe.datasets.paint.synthetic import write_synthetic

    if not made.source.is_dir():
        raise SpgError(
            f"The source of the synthetic set {made.name}, {made.source}, is no folder. Name a "
            "folder of normal images."
        )
    # Not validated: the folder's name may be none that a recipe takes for a dataset.
    fields = made.model_dump(include={"layout", "split", "categories"})
    dataset = Dataset.model_construct(name=made.source.resolve().name, root=made.source, **fields)
    with console.progress(f"read {made.name}") as update:
        source = build_manifest(
            dataset,
            exif_of_own_images=exif_of_own_images,
            skip_bad=skip_bad,
            workers=workers,
            progress=update,
        )
    with console.progress(f"synthesise {made.name}") as update:
        written = write_synthetic(source, made, workers=workers, progress=update)
    normal = len(read_synthetic(made.root).source.images)
    anomalous = normal * made.per_image
    what = f"{normal} normal and {anomalous} synthetic anomalous images"
    console.say(f"{made.name}: {what} {'→' if written else 'are already in'} {made.root}")
    for note in source.notes:
        console.say(f"  note: {note}")
    numbers = {"normal": normal, "anomalous": anomalous}
    return {"root": str(made.root), "written": written} | numbers
