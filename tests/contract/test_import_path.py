"""Importing the runtime and the calibration needs no torch, which edge devices do not have."""

from __future__ import annotations

import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "torchvision", "timm", "FrEIA", "onnx", "onnxscript", "scipy", "skimage", "sklearn"}
ENGINE_LIBRARIES = {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}
ENGINE_FILES = "flowedge.runtime.engines."


def modules_of(folder: str, package: str) -> list[str]:
    """Return the names of a package and all its modules, found on disk without importing any."""
    names = [package]
    for found in pkgutil.iter_modules([str(REPOSITORY / folder)], prefix=f"{package}."):
        below = f"{folder}/{found.name.rpartition('.')[2]}"
        names += modules_of(below, found.name) if found.ispkg else [found.name]
    return names


def loaded_by(modules: list[str]) -> set[str]:
    """Return the top-level names in ``sys.modules`` of a fresh interpreter that imported these modules."""
    script = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
    script += "\n".join(f"import {module}" for module in modules)
    script += "\nimport json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


CORE = ["flowedge", "flowedge.errors", "flowedge.manifest", "flowedge.bundle", "flowedge.onnx_constants"]
CORE += ["flowedge.geometry"]
# The program that the Python of a peer runs, which imports the packages of the peer.
FOREIGN_PROGRAM = "flowedge.runtime.bench.nncf_int8"
RUNTIME = modules_of("runtime", "flowedge.runtime")
CALIBRATION = modules_of("calibration", "flowedge.calibration")
# Run where graphs are made, which has the onnx package and ONNX Runtime.
GRAPH_EDITORS = [name for name in CALIBRATION if name.startswith("flowedge.calibration.precision")]


def test_the_modules_were_found() -> None:
    assert "flowedge.runtime.engines.onnxrt" in RUNTIME
    assert len(CALIBRATION) > 1


@pytest.mark.parametrize(
    "modules",
    [
        ["flowedge"],
        CORE,
        [name for name in RUNTIME if not name.startswith((*ENGINE_FILES, FOREIGN_PROGRAM))],
        [name for name in CALIBRATION if name not in GRAPH_EDITORS],
    ],
    ids=["flowedge", "core", "runtime", "calibration"],
)
def test_no_heavy_package_and_no_engine_is_loaded(modules: list[str]) -> None:
    assert loaded_by(modules) & (HEAVY | ENGINE_LIBRARIES) == set()


@pytest.mark.parametrize("module", [name for name in RUNTIME if name.startswith(ENGINE_FILES)])
def test_an_engines_file_loads_its_own_library_and_nothing_heavy(module: str) -> None:
    library = module.removeprefix(ENGINE_FILES)
    if library in ENGINE_LIBRARIES and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    assert loaded_by([module]) & HEAVY == set()


@pytest.mark.parametrize("module", GRAPH_EDITORS)
def test_a_graph_editor_loads_onnx_and_no_framework(module: str) -> None:
    assert loaded_by([module]) & (HEAVY | ENGINE_LIBRARIES) <= {"onnx", "onnxruntime"}


def test_flowedge_alone_loads_not_even_numpy() -> None:
    # flowedge.telemetry puts an empty entry in the place of the last one.
    known = {*sys.stdlib_module_names, "flowedge", "openvino_telemetry"}
    assert loaded_by(["flowedge"]) - loaded_by([]) <= known


def test_the_check_itself_sees_a_heavy_package() -> None:
    assert "PIL" in loaded_by(["flowedge", "PIL"])
