"""Images that wait: taken in up to a bound, judged by `judge_items`, answered one by one."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel

from spg_pipe.deploy.serving.bounds import RefusedError
from spg_pipe.predict.finish import Finish, finish
from spg_pipe.predict.items import Item, Reading
from spg_pipe.predict.judge import JudgedImage, Unreadable, judge_items
from spg_pipe.predict.pictures import map_png, overlay_picture, photograph_jpeg
from spg_pipe.predict.regions import regions_of
from spg_pipe.predict.result import Line
from spg_pipe.store.compute import give_memory_back

_SECONDS_A_TRIM = 10
LOG = logging.getLogger("spg_pipe.serve")


class Wanted(BaseModel):
    """What is made of an image besides its line and map."""

    map: bool = False
    """Add `map_png`: grey of 16 bits, value · 65535, base64."""
    overlay: bool = False
    """Add `overlay_jpeg`: the heat map over the photograph, base64."""
    photo: bool = False
    """Add `photo_jpeg`: the photograph as it was judged, upright, base64."""
    explain: bool = False
    """Add `explanation`: why it has its score (docs/explain.md)."""


class Answer(NamedTuple):
    """What is said of an image."""

    line: Line
    text: str
    """The same as JSON: a line of `predict`."""
    why: str
    """The line of `predict --explain`; empty if not wanted."""
    anomaly_map: np.ndarray
    """(H, W) float32; empty of a file that cannot be read."""
    pictures: dict[str, bytes]
    """Those that were wanted: the field of the answer → a file."""


@dataclass(frozen=True, eq=False)
class _Ticket:
    item: Item
    wanted: Wanted
    answer: Future[Answer] = field(default_factory=Future)


class Waiting:
    """The images in hand, and the thread that has them judged.

    Parameters
    ----------
    most : int
        Images in hand at once.
    on_judged : callable
        Is told each image's line, in the order in which they came, and how many were in hand.
    """

    def __init__(
        self,
        how: Finish,
        reading: Reading,
        most: int,
        on_judged: Callable[[Item, Line], None],
    ) -> None:
        self.how, self.reading, self.most, self._on_judged = how, reading, most, on_judged
        self.in_hand = 0
        self._waiting: deque[_Ticket] = deque()
        self._taken: dict[int, _Ticket] = {}
        self._changed = threading.Condition()
        self.closed = False
        """No more images are taken in."""
        self._ended = False
        """The thread is to end as soon as none waits."""
        self._thread = threading.Thread(target=self._judge, name="spg-serve", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether images are taken."""
        return self._thread.is_alive() and not self.closed

    @property
    def queued(self) -> int:
        """Images whose judging has not begun."""
        return len(self._waiting)

    def start(self) -> None:
        """Judge a black image, which loads what the first one needs, and begin."""
        black = Item("black", np.zeros((64, 64, 3), np.uint8))
        then = partial(finish, how=self.how)
        for _ in judge_items(self.how.predictor, [black], self.reading, then):
            regions_of(np.ones((8, 8), np.float32), 0.0)
        self._thread.start()

    def close(self) -> None:
        """Take no more images; those in hand are judged. Safe in a signal's handler."""
        self.closed = True

    def end(self, seconds: float) -> None:
        """Wait until the last image is judged, so many seconds at most."""
        self.close()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join(seconds)
        if self._thread.is_alive():
            LOG.error("An image is still being judged after %g s: it is given up.", seconds)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for an image, from its arrival to its answer; of the event loop alone.

        A `RefusedError` if there is none.
        """
        if self.in_hand >= self.most:
            message = f"{self.in_hand} images are in hand already, and that is all (--queue)."
            raise RefusedError(429, f"{message} Send this one again in a second.", retry=1)
        self.in_hand += 1
        try:
            yield
        finally:
            self.in_hand -= 1

    def judged(self, item: Item, wanted: Wanted) -> Future[Answer]:
        """What will be said of an image; cancelled, it is not judged if that has not begun."""
        ticket = _Ticket(item, wanted)
        with self._changed:
            # What nobody waits for any more would pile up behind a device that hangs.
            self._waiting = deque(each for each in self._waiting if not each.answer.cancelled())
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket.answer

    def take(self, most: int, ended: Callable[[], bool]) -> list[Item]:
        """Up to so many images that wait, as soon as there is one; none once all is over."""
        items = list[Item]()
        with self._changed:
            while not items and not ended():
                while self._waiting and len(items) < most:
                    ticket = self._waiting.popleft()
                    if ticket.answer.set_running_or_notify_cancel():
                        self._taken[id(ticket.item)] = ticket
                        items.append(ticket.item)
                if not items:
                    if self._ended:
                        break
                    self._changed.wait()
        return items

    def _judge(self) -> None:
        """Until all is done; what an error breaks off is answered with it, and work goes on."""
        while not (self._ended and not self._waiting):
            stream, trimmed = _Stream(self), time.monotonic()
            try:
                for item, line in judge_items(
                    self.how.predictor,
                    stream,
                    self.reading,
                    self._answered,
                    explained=lambda item: self._taken[id(item)].wanted.explain,
                ):
                    if line is not None:
                        self._on_judged(item, line)
                    if time.monotonic() - trimmed > _SECONDS_A_TRIM:
                        give_memory_back()
                        trimmed = time.monotonic()
            except Exception as error:  # of one image; the others' senders are to have an answer
                refusal = _refusal(error)
                with self._changed:
                    stream.ended = True
                    self._changed.notify_all()
                    broken, self._taken = list(self._taken.values()), {}
                for ticket in broken:
                    ticket.answer.set_exception(refusal)

    def _answered(self, judged: JudgedImage | Unreadable) -> tuple[Item, Line | None]:
        ticket = self._taken.pop(id(judged.item))
        try:
            answer = self._answer(judged, ticket.wanted)
        except Exception as error:  # of this image alone
            ticket.answer.set_exception(_refusal(error))
            return ticket.item, None
        ticket.answer.set_result(answer)
        return ticket.item, answer.line

    def _answer(self, judged: JudgedImage | Unreadable, wanted: Wanted) -> Answer:
        entry = finish(judged, self.how)
        if isinstance(judged, Unreadable):
            return Answer(entry.result, entry.text, "", np.empty((0, 0), np.float32), {})
        pixels, anomaly_map = judged.pixels, judged.anomaly_map
        limit = getattr(entry.result, "pixel_threshold", None)
        pictures = dict[str, bytes]()
        if wanted.map:
            pictures["map_png"] = map_png(anomaly_map)
        if wanted.overlay:
            shown = self.how.predictor.shown
            pictures["overlay_jpeg"] = overlay_picture(pixels, anomaly_map, shown, limit)
        if wanted.photo:
            pictures["photo_jpeg"] = photograph_jpeg(pixels)
        why = entry.why if wanted.explain else ""
        return Answer(entry.result, entry.text, why, anomaly_map, pictures)


def _refusal(error: Exception) -> RefusedError:
    """What senders are told of an error that broke their images off; its trace is logged."""
    LOG.error("An image could not be judged.", exc_info=error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return RefusedError(503, "Memory is short. Send the image again later.", retry=1)
    message = "The image could not be judged, by a fault of the server that it has logged."
    return RefusedError(500, message)


@dataclass
class _Stream:
    """What one call of `judge_items` takes, until that is broken off."""

    source: Waiting
    ended: bool = False

    def take(self, most: int) -> list[Item]:
        """See `Arriving`."""
        return self.source.take(most, lambda: self.ended)
