"""What a person sees: messages, progress, and results as text or JSON."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from spg_pipe.artefacts.files import jsonable
from spg_pipe.errors import SpgError, UsageError

Update = Callable[..., None]
_SECONDS_A_LINE = 10
_SECONDS_A_DRAWING = 0.1
_SECONDS_A_RATE = 3600
"""A rate is the mean of this time."""


@dataclass
class Console:
    """How much is said. Messages go to stderr, results to stdout."""

    verbosity: int = 1
    """0 quiet, 1 normal, 2 verbose."""
    json: bool = False
    bars: bool = True
    """Draw progress on a terminal; otherwise lines there too: for processes side by side."""

    def say(self, message: str) -> None:
        """A line for a person; silent when quiet or in JSON mode."""
        if self.verbosity > 0 and not self.json:
            print(message, file=sys.stderr, flush=True)

    def detail(self, message: str) -> None:
        """A line that only -v shows."""
        if self.verbosity > 1 and not self.json:
            print(message, file=sys.stderr, flush=True)

    def result(self, content: Any, text: str | None = None) -> None:
        """The command's result: JSON for scripts, or a text for people."""
        if self.json:
            print(json.dumps(jsonable(content), indent=2, allow_nan=False, default=str))
        elif text and self.verbosity > 0:
            print(text)

    @contextmanager
    def progress(self, what: str, unit: str = "images") -> Iterator[Update]:
        """A progress bar: call the update with (done, total, loss=None, label=None).

        On a terminal it is drawn live; elsewhere, or without `bars`, a line is written every ten
        seconds. The rate is that of the current label since its first update: each layer counts
        anew, and a resumed run begins far from 0.
        """
        if self.verbosity == 0 or self.json:
            yield lambda *_args, **_kwargs: None
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        live = self.bars and sys.stderr.isatty()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,}/{task.total:,} " + unit),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(
            *columns,
            console=RichConsole(stderr=True),
            get_time=time.monotonic,
            speed_estimate_period=_SECONDS_A_RATE,
            disable=not live,
        ) as bar:
            number = bar.add_task(what, total=1, rate="", note="")
            task, said = bar.tasks[0], time.monotonic()

            def update(done: int, total: int, loss: float | None = None, label: str = "") -> None:
                nonlocal said
                description = f"{what} {label}".strip()
                if description != task.description or done < task.completed:
                    bar.reset(number, description=description)
                bar.update(number, completed=done, total=total)
                now = time.monotonic()
                if now - said < (_SECONDS_A_DRAWING if live else _SECONDS_A_LINE) and done < total:
                    return
                said, rate = now, f"{task.speed:,.1f}" if task.speed else ""
                note = f"loss {loss:.4g}" if loss is not None else ""
                task.fields.update(rate=rate and f"{rate} {unit}/s", note=note)
                if not live:
                    left = f"{rate}/s, {task.time_remaining:.0f} s left" if rate else ""
                    facts = (f"{description}: {done:,}/{total:,} {unit}", left, note)
                    print(", ".join(filter(None, facts)), file=sys.stderr, flush=True)

            yield update


def exit_code(main: Callable[[], Any]) -> int:
    """Run a command and turn what can go wrong into one message and an exit code.

    Returns
    -------
    int
        0 done, 1 failed with a message, 2 wrong usage, 130 interrupted.
    """
    try:
        main()
    except (SpgError, OSError) as error:
        # Disk full, read-only folders and the like: the message of the system names the file.
        print(f"Error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except (KeyboardInterrupt, SystemExit) as stop:
        # Typer turns Ctrl-C into exit code 130 and says nothing.
        if isinstance(stop, SystemExit) and stop.code != 130:
            raise
        again = "Run the same command again: training and extracting go on from where they were."
        print(f"Interrupted. {again}", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error):
            raise
        what = str(error).partition("\n")[0] or "host"
        advice = "Lower extract.batch_images or sae.batch_images, or use --device cpu."
        print(f"Error: out of memory ({what}). {advice}", file=sys.stderr)
        return 1
    return 0
