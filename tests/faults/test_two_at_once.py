"""Two processes that write one artefact at the same time: the last whole one stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from e2e.helpers import ROOT, environment

WRITER = """
import os, sys
from pathlib import Path
from spg_pipe.artefacts.files import fresh_folder, write_text

os.fsync = lambda descriptor: None  # of no use here: more rounds
for number in range(300):
    with fresh_folder(Path("made")) as folder:
        for name in ("a", "b"):
            (folder / name).write_text(f"{sys.argv[1]} {number}")
    write_text(Path("file"), sys.argv[1] * 9999)
"""


def test_folders_and_files_are_whole_and_no_writer_fails(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, name],
            cwd=tmp_path,
            env=environment() | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("left", "right")
    ]
    said = [writer.communicate(timeout=120)[1] for writer in writers]
    assert said == ["", ""]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "made"]
    made = {path.name: path.read_text() for path in (tmp_path / "made").iterdir()}
    assert set(made) == {"a", "b"}
    assert made["a"] == made["b"]
    assert (tmp_path / "file").read_text().strip() in ("left" * 9999, "right" * 9999)
