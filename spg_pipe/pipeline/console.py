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
            print(json.dumps(jsonable(content), indent=2, allow_nan=False))
        elif text and self.verbosity > 0:
            print(text)

    @contextmanager
    def progress(self, what: str, unit: str = "images") -> Iterator[Update]:
        """A progress bar: call the update with (done, total, loss=None, label=None).

        On a terminal it is drawn live; elsewhere, or without `bars`, a line is written every ten
        seconds.
        """
        if self.verbosity == 0 or self.json:
            yield lambda *_args, **_kwargs: None
        elif self.bars and sys.stderr.isatty():
            yield from _live(what, unit)
        else:
            yield from _lines(what, unit)


class _Clock:
    """Units a second since the current label began: each layer counts anew.

    What was done before the first update does not count: a resumed run begins far from 0.
    """

    def __init__(self) -> None:
        self.label: str | None = None
        self.started = 0.0
        self.first = 0

    def rate(self, done: int, label: str) -> float | None:
        """None until a label's second update."""
        now = time.monotonic()
        if label != self.label or done < self.first:  # or another pass over the same layer
            self.label, self.started, self.first = label, now, done
        if done <= self.first:
            return None
        return (done - self.first) / max(now - self.started, 1e-3)


def _live(what: str, unit: str) -> Iterator[Update]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    clock = _Clock()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,} {task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=RichConsole(stderr=True)) as bar:
        task = bar.add_task(what, total=1, unit=unit, rate="", note="")

        def update(done: int, total: int, loss: float | None = None, label: str = "") -> None:
            if label != clock.label:
                bar.reset(task)
            rate = clock.rate(done, label)
            bar.update(
                task,
                completed=done,
                total=total,
                rate="" if rate is None else f"{rate:,.1f} {unit}/s",
                note=f"loss {loss:.4g}" if loss is not None else "",
                description=f"{what} {label}".strip(),
            )

        yield update


def _lines(what: str, unit: str) -> Iterator[Update]:
    clock = _Clock()
    last = time.monotonic()

    def update(done: int, total: int, loss: float | None = None, label: str = "") -> None:
        nonlocal last
        rate = clock.rate(done, label)
        now = time.monotonic()
        if now - last < _SECONDS_A_LINE and done < total:
            return
        last = now
        note = f", loss {loss:.4g}" if loss is not None else ""
        speed = ""
        if rate is not None:
            speed = f", {rate:,.1f}/s, {max(0, total - done) / max(rate, 1e-9):.0f} s left"
        print(
            f"{f'{what} {label}'.strip()}: {done:,}/{total:,} {unit}{speed}{note}",
            file=sys.stderr,
            flush=True,
        )

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
    except SpgError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as stop:
        # Typer turns Ctrl-C into this exit code and says nothing.
        if stop.code == 130:
            return _interrupted()
        raise
    except OSError as error:
        # Disk full, read-only folders and the like: the message of the system names the file.
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error):
            raise
        print(
            f"Error: out of memory ({str(error).splitlines()[0] if str(error) else 'host'}). "
            "Lower extract.batch_images or sae.batch_images, or use --device cpu.",
            file=sys.stderr,
        )
        return 1
    return 0


def _interrupted() -> int:
    again = "Run the same command again: training and extracting go on from where they were."
    print(f"Interrupted. {again}", file=sys.stderr)
    return 130
