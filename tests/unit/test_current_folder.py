"""A command runs and loads nothing from the current folder, which may hold any file."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from flowedge.children import clean_environment, find_program, python_command
from support.tiny_bundle import write_tiny_bundle

MODULES: tuple[str, ...] = (
    "numpy",
    "flowedge",
    "cv2",
    "msgspec",
    "onnxruntime",
    "openvino",
    "typer",
    "rich",
    "json",
    "re",
    "os",
)
MODULES += (
    "sitecustomize",
    "usercustomize",
    "site",
    "encodings",
    "subprocess",
    "torch",
    "numba",
    "report",
    "runtime",
)
LIBRARIES = (
    "libc.so.6",
    "libm.so.6",
    "libstdc++.so.6",
    "libgomp.so.1",
    "libonnxruntime.so.1",
    "libopenvino.so",
)
PROGRAMS = ("nvidia-smi", "uname", "ldconfig", "gcc", "python3")
SCRIPT = Path(sys.executable).with_name("flowedge")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of two pictures, a bundle, and planted files that leave a mark when they are run or loaded."""
    folder = tmp_path_factory.mktemp("pictures")
    write_tiny_bundle(folder / "tiny.flowedge")
    for number in range(2):
        assert cv2.imwrite(str(folder / f"{number}.png"), np.full((16, 24, 3), 90 * number, np.uint8))
    mark = folder / "mark"
    for name in MODULES:
        (folder / f"{name}.py").write_text(
            f"open({str(mark)!r}, 'a').write({name!r}); raise SystemExit(99)\n"
        )
    for name in LIBRARIES:  # a loader that finds one of these ends its process
        (folder / name).write_bytes(b"not a library")
    for name in PROGRAMS:
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {mark}\n")
        (folder / name).chmod(stat.S_IRWXU)
    return folder


@pytest.mark.skipif(not SCRIPT.is_file(), reason="the flowedge command is not installed beside this Python")
@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", "tiny.flowedge", "--engines", "onnxruntime-cpu", "--batch", "1", "--seconds", "0"),
        ("run", "tiny.flowedge", ".", "--json"),
        ("doctor", "--json"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_runs_nothing_of_the_current_folder(arguments: tuple[str, ...], pictures: Path) -> None:
    environment = {
        **clean_environment(),
        "PATH": f":{os.environ['PATH']}",
    }  # an empty entry is the current folder
    done = subprocess.run(
        [SCRIPT, *arguments], cwd=pictures, capture_output=True, text=True, check=False, env=environment
    )
    assert not (pictures / "mark").exists(), (pictures / "mark").read_text()
    assert "invalid ELF header" not in done.stdout + done.stderr
    assert "file too short" not in done.stdout + done.stderr
    assert done.returncode in (0, 1), "the tiny bundle has no self-test, which the bench calls a problem"


@pytest.mark.parametrize("path", [os.pathsep, ".", f"/opt{os.pathsep}"])
def test_an_entry_of_pythonpath_that_means_the_current_folder_leads_to_no_library_there(
    path: str, tmp_path: Path
) -> None:
    for name in ("typer", "rich", "msgspec"):
        (tmp_path / f"{name}.py").write_text("open('mark', 'w'); raise SystemExit(99)")
    command = [sys.executable, "-c", "import sys; del sys.path[0]; from flowedge.cli import main; main()"]
    done = subprocess.run(
        [*command, "cache", "list", "--json"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        env={**clean_environment(), "PYTHONPATH": path},
    )
    assert not (tmp_path / "mark").exists(), done.stderr
    assert done.returncode == 0, done.stderr


def test_a_fresh_interpreter_imports_nothing_from_the_current_folder(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    monkeypatch.syspath_prepend(str(pictures))  # as an empty entry of PYTHONPATH does
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}{pictures}")
    command = python_command("flowedge.runtime.bench.worker")
    done = subprocess.run(command, input=b"", capture_output=True, check=False, env=clean_environment())
    assert not (pictures / "mark").exists(), (pictures / "mark").read_text()
    assert b"flowedge/runtime/bench/worker.py" in done.stderr.replace(b"/runtime/", b"/flowedge/runtime/"), (
        "it ran"
    )


def test_opencv_leaves_the_loader_no_way_into_the_current_folder() -> None:
    entries = clean_environment().get("LD_LIBRARY_PATH", "/")
    assert all(map(os.path.isabs, entries.split(os.pathsep)))


def test_a_program_of_the_current_folder_is_not_found(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    for path in (f":{os.environ['PATH']}", ".", ""):
        monkeypatch.setenv("PATH", path)
        assert find_program("nvidia-smi") in (None, shutil.which("nvidia-smi", path=os.defpath))
