"""Curves that grow while training runs, by DVCLive, for DVC's extension of VS Code and Studio."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spg_pipe.artefacts.files import whole_file
from spg_pipe.pipeline.run import RecipeRun

_PLOTS = b"plots:\n- plots/metrics:\n    x: step\n"
"""For DVC. DVCLive writes it too, but at every step once more (3.49), or into the project's own."""

_SECONDS = 1.0
"""Between two calls for attention, each of which reads the curves again and waits for the disk."""


@contextmanager
def live_curve(run: RecipeRun, artefact: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Where to tell each row of an artefact's curve: it is shown at once, where somebody can look.

    That is in the folder of a DVC project, of artefacts in it, with the extra `track`; elsewhere
    nothing is written.
    The files lie in `dvclive/`, beside `artifacts/` and with the same names below. Whatever DVCLive
    raises ends the live curve, which is said once, and not the training.
    """
    elsewhere = run.params.artifacts.is_absolute() or not Path(".dvc").is_dir()
    if elsewhere or find_spec("dvclive") is None:
        yield lambda row: None
        return
    from dvclive import Live

    folder = Path("dvclive") / artefact.relative_to(run.params.artifacts)
    live: Live | None = None
    shown = 0.0

    @contextmanager
    def guarded() -> Iterator[None]:
        nonlocal live
        try:
            yield
        except Exception as error:  # Git without a commit, an unreadable index, a full disk, …
            live = None
            run.console.say(f"  note: no live curve: {type(error).__name__}: {error}")

    def tell(row: Mapping[str, Any]) -> None:
        nonlocal shown
        figures = dict(row)
        layer = f"{figures.pop('layer')}/" if "layer" in figures else ""
        with guarded():
            if live is None:
                return
            live.step = int(figures.pop("step" if "step" in figures else "epoch"))
            for name, value in figures.items():
                live.log_metric(f"{layer}{name}", float(value))
            if time.monotonic() - shown > _SECONDS:
                live.next_step()
                shown = time.monotonic()

    with guarded():
        live = Live(str(folder), save_dvc_exp=False, dvcyaml=None)
        with whole_file(folder / "dvc.yaml") as file:
            file.write(_PLOTS)
    try:
        yield tell
    finally:
        with guarded():
            if live is not None:
                live.end()  # sends to Studio what DVC's settings name a token for, nothing else
