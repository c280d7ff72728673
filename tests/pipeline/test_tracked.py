"""Links to folders: what DVC sees of a dataset, and what its stages refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dvc.fs import LocalFileSystem
from e2e.helpers import one_message, run_stage, spg
from layouts import write_mvtec

from spg_pipe.datasets.walk import files_below
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.datasets import require_tracked


def link_root(folder: Path) -> Path:
    (folder / "link").symlink_to("parts")
    return folder / "link"


def link_category(folder: Path) -> Path:
    (folder / "parts" / "bottle").rename(folder / "bottle")
    (folder / "parts" / "bottle").symlink_to(folder / "bottle")
    return folder / "parts"


def link_inside_category(folder: Path) -> Path:
    (folder / "parts" / "bottle" / "test" / "good").rename(folder / "good")
    (folder / "parts" / "bottle" / "test" / "good").symlink_to("../../../good")
    return folder / "parts"


def link_file(folder: Path) -> Path:
    image = folder / "parts" / "bottle" / "test" / "good" / "000.png"
    image.rename(folder / "000.png")
    image.symlink_to(folder / "000.png")
    return folder / "parts"


def link_hidden(folder: Path) -> Path:
    (folder / "parts" / ".cache").symlink_to(folder)
    return folder / "parts"


@pytest.mark.parametrize(
    ("linked", "sees"),
    [
        (link_root, True),
        (link_file, True),
        (link_hidden, True),
        (link_category, False),
        (link_inside_category, False),
    ],
)
def test_what_dvc_does_not_see_is_refused(
    tmp_path: Path, linked: Callable[[Path], Path], sees: bool
) -> None:
    write_mvtec(tmp_path / "parts", categories=("bottle",))
    root = linked(tmp_path)
    ours = {str(path) for paths in files_below(root) for path in paths}
    assert (ours <= set(LocalFileSystem().find(str(root)))) is sees
    if sees:
        require_tracked(root)
    else:
        with pytest.raises(SpgError, match=r"parts/bottle.*Put the folders themselves there"):
            require_tracked(root)


def test_a_stage_refuses_linked_folders_and_the_command_reads_them(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "parts", categories=("bottle",))
    link_category(tmp_path)
    row = {"name": "parts", "layout": "mvtec", "root": "parts"}
    made = {"name": "made", "root": "made", "source": "parts", "layout": "mvtec"}
    recipe = {"name": "x", "datasets": [row], "auxiliaries": [], "directions": []}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(recipe | {"synthetic_sets": [made]}))
    for stage in ("prepare@data0", "synthesise@data0"):
        assert "does not look into linked folders" in one_message(run_stage(stage, tmp_path))
        assert not (tmp_path / "artifacts").exists()
    assert spg("prepare", cwd=tmp_path).returncode == 0
