"""Commands that say why: what a detector's atoms look for."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spg_pipe.cli.options import RECIPE, Options, shared


@shared("backbone", "aux", "seed", "device", *RECIPE)
def atlas(
    options: Options,
    detector: Annotated[
        Path | None, Argument(metavar="[DETECTOR]", help="A detector's folder [the recipe's].")
    ] = None,
    split: Annotated[
        list[str] | None,
        Option(help="Describe on this set; repeatable [the auxiliary set and its targets]."),
    ] = None,
    every: Annotated[bool, Option("--all", help="Every latent, not only the guides'.")] = False,
    sae: Annotated[Path | None, Option(help="The detector's SAE, instead of the recipe's.")] = None,
    out: Annotated[Path | None, Option(help="Write the atlas here.")] = None,
) -> None:
    """Describe what each atom of a detector looks for: tables, crops and a page (Atlas)."""
    from spg_pipe.pipeline.atlas import atlas as make

    run = options.run()
    paths = make(run, detector=detector, splits=split or (), sae=sae, out=out, every=every)
    text = "\n".join(f"Atlas: {path / 'index.html'}" for path in paths)
    run.console.result({"atlases": paths}, text)


COMMANDS = (atlas,)
