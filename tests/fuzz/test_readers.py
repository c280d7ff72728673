"""What the guided fuzzer feeds: each whole file is read, and a few others without atheris."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from fuzz.edits import RAW
from fuzz.harness import nothing_outside
from fuzz.readers import READERS, World
from spg_pipe.errors import SpgError
from spg_pipe.images.decoding import LIMIT

EXAMPLES = 25
FOUND = [("scores", {"layers": []}, "layers: tuple should have at least 1 item")]
"""What the guided fuzzer found: reader, values of its JSON, what is said now."""


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


@pytest.mark.parametrize(("name", "changes", "says"), FOUND)
def test_what_was_found_is_a_message(
    tmp_path: Path, name: str, changes: dict[str, object], says: str
) -> None:
    reader = READERS[name](World(tmp_path))
    whole = json.loads(reader.corpus[0].removeprefix(RAW))
    with pytest.raises(SpgError, match=says):
        reader.read(RAW + json.dumps(whole | changes).encode())
