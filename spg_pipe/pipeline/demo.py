"""`spg-pipe demo`: the whole pipeline in a folder of its own, whatever params.yaml holds."""

import shlex
from pathlib import Path

from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.project import activation, init_dvc, pipeline_files, run_dvc, write_files
from spg_pipe.recipe.params import load_params
from spg_pipe.recipe.ready_made import fill_recipe


def run_demo(folder: Path, console: Console) -> None:
    """Run recipes/demo.yaml with DVC in `folder` and print a table per direction.

    An `SpgError` if the pipeline fails; its own messages come first.
    """
    _lay_out(folder)
    console.say(f"Running the demo's pipeline in {folder} (dvc repro) …")
    if run_dvc(folder, "repro", quiet=console.verbosity == 0):
        raise SpgError(f"The demo's pipeline failed (messages above). It ran in {folder}.")
    _print_tables(folder, console)


def _lay_out(folder: Path) -> None:
    """Put the pipeline's files there; unchanged files keep DVC from doing anything again."""
    if folder.exists() and any(folder.iterdir()) and not (folder / ".dvc").is_dir():
        raise SpgError(f"{folder} is not empty and is no demo folder. Choose another --folder.")
    write_files(folder, pipeline_files() | {"params.yaml": fill_recipe("demo", {})})
    if not (folder / ".dvc").is_dir():
        init_dvc(folder, git=False)


def _print_tables(folder: Path, console: Console) -> None:
    from spg_pipe.metrics import flat_rows
    from spg_pipe.pipeline.run import image_size
    from spg_pipe.pipeline.targets import read_metrics, tables_of
    from spg_pipe.recipe.paths import Paths

    params = load_params(folder / "params.yaml")
    paths = Paths(params, image_size(params))
    for direction in params.directions:
        runs = [
            read_metrics(folder / paths.metrics(direction.aux, direction.target, seed))
            for seed in params.seeds
        ]
        console.result(
            [flat_rows(table) for table in runs], "\n\n".join(tables_of(params, runs)) + "\n"
        )
    report = (folder / paths.report / "index.html").resolve()
    commands = next_commands(folder, folder / paths.detector(params.auxiliaries[0], 111))
    text = f"Report: {report}\n\nThe detector on images, and why one has its score:\n"
    console.result({"report": report, "commands": commands}, text + "\n".join(commands))


def next_commands(folder: Path, detector: Path) -> list[str]:
    """What to try with the demo's detector, as a shell takes it in the working directory."""
    image = sorted((folder / "artifacts/demo/demo-visa").glob("*/Data/Images/Anomaly/*"))[0]
    judge, images, one = (shlex.quote(str(p)) for p in (detector, image.parents[1], image))
    commands = [f"spg-pipe predict {judge} {images}", f"spg-pipe explain {judge} {one}"]
    return [*activation(), *commands]
