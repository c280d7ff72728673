"""Links to folders: what DVC sees of a dataset, and what its stages refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from dvc.fs import LocalFileSystem
from e2e.helpers import one_message, run_stage, spg
from layouts import write_mvtec

from spg_pipe.datasets.walk import walk
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.datasets import require_tracked


def link(folder: Path, below: str) -> Path:
    """A set in which a file or folder, or the whole set, is a link; the set's folder."""
    root = write_mvtec(folder / "parts", categories=("bottle",))
    (root / below).rename(folder / "elsewhere")
    (root / below).symlink_to(folder / "elsewhere")
    return root


@pytest.mark.parametrize(
    ("below", "sees"),
    [
        ("", True),
        ("bottle/test/good/000.png", True),
        ("bottle", False),
        ("bottle/test/good", False),
    ],
)
def test_what_dvc_does_not_see_is_refused(tmp_path: Path, below: str, sees: bool) -> None:
    root = link(tmp_path, below)
    (root / ".cache").symlink_to(tmp_path)
    ours = set(map(str, walk(root).images))
    assert (ours <= set(LocalFileSystem().find(str(root)))) is sees
    if sees:
        require_tracked(root)
        return
    with pytest.raises(SpgError, match=rf"parts/{below}\. Put the folders themselves there"):
        require_tracked(root)


def test_a_stage_refuses_linked_folders_and_the_command_reads_them(tmp_path: Path) -> None:
    link(tmp_path, "bottle")
    row = {"name": "parts", "layout": "mvtec", "root": "parts"}
    made = {"made": {"root": "made", "source": "parts", "layout": "mvtec"}}
    recipe = {"name": "x", "datasets": [row], "auxiliaries": [], "directions": []}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(recipe | {"synthetic_sets": made}))
    for stage in ("prepare@data0", "synthesise@made"):
        assert "does not look into linked folders" in one_message(run_stage(stage, tmp_path))
        assert not (tmp_path / "artifacts").exists()
    assert spg("prepare", cwd=tmp_path).returncode == 0
