"""Define the fixtures that several suites share."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from support.artifacts import made_once
from support.command_line import flowedge

if TYPE_CHECKING:
    from support.family_graphs import FamilyBundle

# The threads of OpenMP wait for each other in busy loops. Where two processes share two cores, a network took 23 s of
# processor time with two threads, and 1.6 s with one. PyTorch reads the variable when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The time that an example takes, or that it takes to make one, decides nothing.
settings.register_profile("flowedge", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("flowedge")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


def pytest_collection_finish() -> None:
    """Leave the thousands of tests and the imported modules out of every garbage collection that follows."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the tests a cache folder of their own, so that none reads or writes the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_progress_lines() -> Iterator[None]:
    """Commands in this process print no plain lines of progress, so that no output depends on the machine's speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowedge.cli.progress.SECONDS_BETWEEN_LINES", threading.TIMEOUT_MAX)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_busy_waiting() -> Iterator[None]:
    """Threads of ONNX Runtime sleep while they wait, because the processes of a test run share the cores.

    A network took twice the processor time while its threads waited in busy loops.
    """
    from flowedge.runtime.engines import onnxrt_session

    options_of = onnxrt_session.session_options

    def patient(*arguments: Any) -> Any:
        options = options_of(*arguments)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxrt_session, "session_options", patient)
        yield


@pytest.fixture
def without_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open engines without a proof, for bundles without a self-test and graphs that are wrong on purpose."""
    monkeypatch.setattr("flowedge.runtime.opening.opening.prove", lambda bundle, engine, threads: None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of records and photographs beside the checkout, or skip the test where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("the shared records (../shared) are not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exports of the same network in this run are traced once."""
    from support.traced_graphs import trace_each_network_once  # torch, which most tests do without

    with pytest.MonkeyPatch.context() as patch:
        trace_each_network_once(patch, tmp_path_factory)
        yield


@pytest.fixture(scope="session")
def small_checkpoint(traced_once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a CFLOW of 3 MB for 64x64 pixels with random weights."""

    def make(folder: Path) -> None:
        from support.small_cflow import write_small_cflow  # torch and timm, which most tests do without

        write_small_cflow(folder / "small.ckpt")

    return made_once(tmp_path_factory, "small-checkpoint", make) / "small.ckpt"


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the small checkpoint. A test copies the bundle before it changes it."""

    def make(folder: Path) -> None:
        done = flowedge("export", small_checkpoint, "-o", folder / "small.flowedge")
        assert done.status == 0, done.stderr

    return made_once(tmp_path_factory, "small-bundle", make) / "small.flowedge"


@pytest.fixture(scope="session")
def tile_checkpoint(traced_once: None, shared: Path) -> Path:
    """Return the CFLOW that anomalib trained on photographs of magnetic tiles."""
    checkpoint = shared / "checkpoints" / "cflow_magnetic_tile.ckpt"
    if not checkpoint.is_file():
        pytest.skip("the magnetic tile checkpoint (../shared/checkpoints) is not beside this checkout")
    return checkpoint


@pytest.fixture(scope="session")
def tiles(shared: Path) -> Path:
    """Return the photographs of magnetic tiles, in MVTec AD's layout."""
    return shared / "data" / "magnetic_tile"


@pytest.fixture(scope="session")
def tile_bundle(tile_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the tile checkpoint without calibration. A test copies the bundle before it changes it."""

    def make(folder: Path) -> None:
        done = flowedge("export", tile_checkpoint, "-o", folder / "tile.flowedge")
        assert done.status == 0, done.stderr

    return made_once(tmp_path_factory, "tile", make) / "tile.flowedge"


@pytest.fixture(scope="session")
def calibrated_tile_bundle(tile_bundle: Path, tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibrate the tile bundle on the good training images."""

    def make(folder: Path) -> None:
        bundle = folder / "tile.flowedge"
        shutil.copytree(tile_bundle, bundle)
        done = flowedge("calibrate", bundle, "--data", tiles / "train" / "good")
        assert done.status == 0, done.stderr

    return made_once(tmp_path_factory, "calibrated-tile", make) / "tile.flowedge"


@pytest.fixture(scope="session")
def family_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], FamilyBundle]:
    """Return the small bundle of a family, with random weights. A test copies the bundle before it changes it."""
    from support.family_graphs import read_family_bundle, write_family_bundle

    def of(family: str) -> FamilyBundle:
        folder = made_once(
            tmp_path_factory, f"family-{family}", lambda empty: write_family_bundle(family, empty)
        )
        return read_family_bundle(family, folder)

    return functools.cache(of)
