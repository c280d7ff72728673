"""What the guided fuzzer feeds: each whole file is read, and a few others without atheris."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fuzz.edits import RAW
from fuzz.harness import nothing_outside
from fuzz.readers import READERS, World
from spg_pipe.errors import SpgError
from spg_pipe.images.decoding import LIMIT

EXAMPLES = 25


@pytest.mark.parametrize("name", READERS)
def test_a_whole_file_is_read_and_a_damaged_one_is_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(LIMIT, "1")
    reader, chance = READERS[name](World(tmp_path)), random.Random(1)  # noqa: S311
    for content in reader.corpus:
        if content is reader.corpus[0] or RAW in content[:2]:
            reader.read(content)
    for _ in range(EXAMPLES):
        content = bytearray(chance.choice(reader.corpus))
        for _ in range(3):
            content[chance.randrange(1, len(content))] = chance.randrange(256)
        with nothing_outside(tmp_path):
            try:
                reader.read(bytes(content))
            except SpgError:
                continue
