"""Fixtures of the core's tests: one small store, its SAE and its detector, made once for all tests.

They are shared, so a test that changes files works on a copy (`copy_of`). What needs PyTorch is
imported inside the fixtures: pytest-xdist reads this file in a process that runs no test as well.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from spg_pipe.datasets.manifest import Manifest
    from spg_pipe.detector.model import Detector
    from spg_pipe.sae.run import SaeRun
    from spg_pipe.store.reader import FeatureStore

settings.register_profile("project", deadline=None, derandomize=True, max_examples=60)
settings.register_profile("fuzz", deadline=None, max_examples=5000)
settings.load_profile("project")


def pytest_configure(config: pytest.Config) -> None:
    # Parallel test processes, and the commands that they run, share the cores.
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if processes > 1:
        import torch

        threads = max(1, (os.cpu_count() or 1) // processes)
        torch.set_num_threads(threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # PyTorch says so once a process about a feature that spg_pipe/sae/sparse.py uses on purpose.
    config.addinivalue_line("filterwarnings", "ignore:Sparse CSR tensor support is in beta")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than the cores: a test that waits for the disk or a process leaves its core idle."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Long tests first: begun last, they would keep one process busy while the others wait.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 images of two categories; one defect of each has no mask."""
    from tiny import write_folder

    return write_folder(tmp_path_factory.mktemp("images") / "parts")


@pytest.fixture(scope="session")
def tiny_manifest(tiny_images: Path) -> Manifest:
    from tiny import manifest_of

    return manifest_of(tiny_images)


@pytest.fixture(scope="session")
def tiny_store(tiny_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """16 images in shards of 6: the last shard is short."""
    from tiny import extracted

    return extracted(tiny_manifest, tmp_path_factory.mktemp("stores") / "tiny.zarr")


@pytest.fixture(scope="session")
def tiny_sae(tiny_store: FeatureStore) -> SaeRun:
    from tiny import METHOD, SAE

    from spg_pipe.sae.train import train_sae

    return train_sae(tiny_store, SAE, METHOD, seed=111)[0]


@pytest.fixture(scope="session")
def tiny_detector(tiny_store: FeatureStore, tiny_sae: SaeRun) -> Detector:
    from tiny import plan_of

    from spg_pipe.detector.make import make_detector

    return make_detector(tiny_store, plan_of(tiny_sae))[0]


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a shared folder into this test's own place."""

    def copy(source: Path) -> Path:
        return shutil.copytree(source, tmp_path / f"copy-of-{source.name}")

    return copy
