"""Image files of any name, and results over whatever lies in the output folder already."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from tiny import TinyBackbone, photograph

from fuzz.harness import nothing_outside
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError, printable
from spg_pipe.predict.finish import Finish, finish
from spg_pipe.predict.items import Reading, find_items
from spg_pipe.predict.judge import judge_items
from spg_pipe.predict.predictor import Predictor
from spg_pipe.predict.result import Result
from spg_pipe.predict.run import ResultFolder, RunRecord

LETTERS = st.characters(exclude_characters="/\0", codec="utf-8")
BYTES = (
    st.text(LETTERS, min_size=1).map(str.encode)
    | st.binary(min_size=1)
    | st.sampled_from([b"n" * 255, b"a.png", "é".encode() * 127, b"overlays", b".spg-predict.1"])
)
NAMES = BYTES.map(lambda name: name.translate(None, b"/\0")[:251] + b".png")


@given(names=st.lists(NAMES, min_size=1, max_size=3, unique=True), nested=st.booleans())
def test_every_image_has_a_score_and_a_heat_map_or_an_error(
    tiny_detector: Detector, names: list[bytes], nested: bool
) -> None:
    root = tempfile.TemporaryDirectory()
    with root as folder, nothing_outside(Path(folder)), mock.patch("os.fsync"):  # it takes longest
        source, out = Path(folder, "in"), Path(folder, "out")
        first, *others = map(os.fsdecode, names)
        above = source / first if nested else source
        for name in others if nested else (first, *others):
            above.mkdir(parents=True, exist_ok=True)
            photograph(source / "new", (8, 8), format="PNG").rename(above / name)
        try:
            items = find_items([str(source)], out)
        except SpgError as error:  # all are hidden
            printable(str(error)).encode()
            return
        predictor = Predictor(tiny_detector, TinyBackbone())
        with ResultFolder(out, RunRecord(identity={})) as into:
            then = partial(finish, how=Finish(predictor, out, into.plan))
            entries = list(judge_items(predictor, items, Reading(), then))
            for entry in entries:
                into.add(entry)
            into.finish()
        assert len({entry.result.path for entry in entries}) == len(items.listed)
        good = [entry.result for entry in entries if isinstance(entry.result, Result)]
        overlays = {str(result.files.overlay) for result in good}
        assert len(overlays) == len(good)
        assert all((out / overlay).is_file() for overlay in overlays)
