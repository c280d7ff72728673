"""`serve`: what `predict` decides, behind HTTP."""

import re
from dataclasses import replace
from pathlib import Path

from spg_pipe.deploy.serving.bounds import MILLION, Bounds
from spg_pipe.errors import SpgError, UsageError, one_line
from spg_pipe.images.decoding import LIMIT, pixel_limit
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.predict import Ask, deciding
from spg_pipe.predict.finish import Finish
from spg_pipe.predict.items import Item
from spg_pipe.predict.result import Line, Result


def serve(
    ask: Ask, console: Console, bounds: Bounds, host: str, port: int, name: str | None
) -> None:
    """Serve a detector until SIGINT or SIGTERM.

    Of `ask`, sources and pictures are not used. `name` is that of the model in addresses, by
    default that of the detector's folder. An `SpgError` if the extra `serve` is missing, the
    address cannot be had, or as of `predict_images`.
    """
    name = ask.detector.resolve().name if name is None else name
    _require_allowed(name, bounds)
    try:
        from spg_pipe.deploy.serving.app import Service
        from spg_pipe.deploy.serving.counts import Counts
        from spg_pipe.deploy.serving.run import address_of, bound_socket, run
        from spg_pipe.deploy.serving.waiting import Waiting
    except ModuleNotFoundError as error:
        raise SpgError(
            f"The library {error.name} is missing. Install the extra: "
            "pip install 'spg-pipe[serve]'."
        ) from None
    with bound_socket(host, port) as listening:
        (_, predictor, reading, record), decider = deciding(ask, console)
        # Images come one by one, as from standard input: no set tells their white.
        reading = replace(reading, strict_white=True)
        how = Finish(predictor, Path(), limits=decider.limits, overlays=False, explained=False)
        counts = Counts()

        def on_judged(item: Item, line: Line) -> None:
            counts.judged(line)
            if decider.warns(item.group, line.score if isinstance(line, Result) else None):
                counts.drift.inc()
                console.announce(decider.warning(item.name))

        def on_ready() -> None:
            console.say(record.facts)
            console.say(one_line(f"{name} is served at {address_of(listening)}, until Ctrl-C."))

        made, decides = decider.calibration, decider.how.threshold is not None
        service = Service(
            name,
            Waiting(how, reading, bounds.images, on_judged),
            any(limits.image for limits in made.groups.values()) if made else decides,
            bounds,
            counts,
            valid_until=made.valid_until if made else None,
        )
        run(service, listening, on_ready)


def _require_allowed(name: str, bounds: Bounds) -> None:
    """Refuse a name that no address may have, and more pixels than are decoded."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name) or not name.strip("."):
        raise UsageError(
            f"The name {name!r} would be part of addresses: expected are letters, digits, dots, "
            "dashes and underscores. Give one with --name."
        )
    if bounds.pixels > (most := pixel_limit()):
        raise SpgError(
            f"--max-megapixels {bounds.pixels // MILLION}: at most {most // MILLION} are decoded. "
            f"Set the environment variable {LIMIT} for more."
        )
