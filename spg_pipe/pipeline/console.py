"""What a person sees: messages, progress, and results as text or JSON."""

import codecs
import io
import json
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TextIO

from spg_pipe.artefacts.files import jsonable
from spg_pipe.errors import LESS_MEMORY, SpgError, Terminated, UsageError, printable, told

Update = Callable[..., None]
_SECONDS_A_LINE = 10
_SECONDS_A_DRAWING = 0.1
_SECONDS_A_RATE = 3600
"""A rate is the mean of this time."""
_CLOSED_PIPE = 128 + 13
"""The exit code that a shell gives a program that SIGPIPE ended."""
_SECONDS_TO_TIDY = 5
"""For which further SIGTERMs after the first are taken for the same one: `timeout` sends two."""
_NO_MEMORY = re.compile(
    "(out of|not enough|allocate) memory|could not create a (primitive|memory)|"
    "start new thread|failed to map segment"
)
"""How PyTorch, oneDNN, Python and the loader of libraries say so, of a GPU and of the host."""
_PLAIN = {
    **{"→": "->", "×": "x", "…": "...", "±": "+/-", "≤": "<=", "≥": ">=", "²": "2", "·": "*"},
    **{"–": "-", "−": "-", "─": "-", "’": "'", "σ": "sigma", "Σ": "Sigma", "τ": "tau"},
}
"""Our own characters outside ASCII, for streams that cannot hold them."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What a stream prints for characters that its encoding lacks, and where it goes on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = "".join(_PLAIN.get(each, each) for each in error.object[error.start : error.end])
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error("spg-plain", _plain)


def _print(text: str, stream: TextIO, end: str = "\n") -> None:
    """Print text from anywhere; end the command quietly if `head` or another closed the pipe."""
    try:
        print(printable(text), file=stream, end=end, flush=True)
    except OSError as error:
        # Python writes what is left once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(_CLOSED_PIPE) from None
        error.filename = stream.name
        raise


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
            _print(message, sys.stderr)

    def announce(self, message: str) -> None:
        """A line that nothing silences: who is contacted, and what is downloaded."""
        _print(message, sys.stderr)

    def detail(self, message: str) -> None:
        """A line that only -v shows."""
        if self.verbosity > 1 and not self.json:
            _print(message, sys.stderr)

    def result(self, content: Any, text: str | None = None) -> None:
        """The command's result: JSON for scripts, or a text for people."""
        if self.json:  # in ASCII, and so valid on any stream
            text = json.dumps(jsonable(content), indent=2, allow_nan=False, default=str)
        if text and (self.json or self.verbosity > 0):
            _print(text, sys.stdout)

    def text(self, text: str) -> None:
        """A result for people, where scripts were given theirs line by line."""
        if self.verbosity > 0 and not self.json:
            _print(text, sys.stdout)

    def line(self, text: str) -> None:
        """A line of a result that comes piece by piece, for scripts."""
        _print(text, sys.stdout)

    @contextmanager
    def progress(self, what: str, unit: str = "images") -> Iterator[Update]:
        """A progress bar: call the update with (done, total, loss=None, label=None); the
        total is None where nobody knows it.

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
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:,}{task.fields[of]} " + unit),
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
            number = bar.add_task(what, total=1, rate="", note="", of="")
            task, said = bar.tasks[0], time.monotonic()

            def update(
                done: int, total: int | None, loss: float | None = None, label: str = ""
            ) -> None:
                nonlocal said
                description = f"{what} {label}".strip()
                if description != task.description or done < task.completed:
                    bar.reset(number, description=description)
                bar.update(number, completed=done, total=total)
                now = time.monotonic()
                soon = now - said < (_SECONDS_A_DRAWING if live else _SECONDS_A_LINE)
                if soon and done != total:
                    return
                said, rate = now, f"{task.speed:,.1f}" if task.speed else ""
                note = f"loss {loss:.4g}" if loss is not None else ""
                of = "" if total is None else f"/{total:,}"
                task.fields.update(rate=rate and f"{rate} {unit}/s", note=note, of=of)
                if not live:
                    left = f"{rate}/s" if rate else ""
                    if rate and task.time_remaining is not None:
                        left += f", {task.time_remaining:.0f} s left"
                    facts = (f"{description}: {done:,}{of} {unit}", left, note)
                    _print(", ".join(filter(None, facts)), sys.stderr)

            yield update


def exit_code(main: Callable[[], Any]) -> int:
    """Run a command and turn what can go wrong into one message and an exit code.

    Returns
    -------
    int
        0 done, 1 failed with a message, 2 wrong usage, 130 interrupted, 141 nobody reads on, 143
        ended by SIGTERM.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as with `2>&-`
            setattr(sys, name, io.StringIO())
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # a test's or a notebook's may be something else
            stream.reconfigure(errors="spg-plain")
    # Pillow's warnings name no file: the notes of a folder's files say the same.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    received: list[float] = []
    try:
        with _sigterm_as_interrupt(received):
            return _code_of(main)
    except (SpgError, OSError) as error:
        _print(f"Error: {told(error) if isinstance(error, OSError) else error}", sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        again = "Training, extracting and predicting go on where they were: give the command again."
        _print(f"{'Ended by SIGTERM' if received else 'Interrupted'}. {again}", sys.stderr)
        return 128 + signal.SIGTERM if received else 130
    except (MemoryError, RuntimeError, ImportError) as error:
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        what = str(error).partition("\n")[0].rpartition("DefaultCPUAllocator: ")[2] or "host"
        gpu = " Or use --device cpu." if "CUDA" in what else ""
        _print(f"Error: out of memory ({what}). {LESS_MEMORY}{gpu}", sys.stderr)
        return 1


@contextmanager
def _sigterm_as_interrupt(received: list[float]) -> Iterator[None]:
    """Have SIGTERM end the block as Ctrl-C does; the time is added to `received`.

    The block's own handlers count while they are set. In another thread than the first nothing is
    changed: Python has signals handled in that one alone.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not received or now - received[-1] > _SECONDS_TO_TIDY:
            received.append(now)
            raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _code_of(main: Callable[[], Any]) -> int:
    """The exit code of a command that ends by itself, as Typer's do."""
    try:
        try:
            main()
        finally:
            _print("", sys.stdout, end="")
    except SystemExit as stop:
        if stop.code == 130:  # Typer's for Ctrl-C, and it says nothing
            raise KeyboardInterrupt from stop
        if isinstance(stop.code, str):  # a message
            raise
        return stop.code or 0
    return 0
