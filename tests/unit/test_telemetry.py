"""No command looks up an address or leaves a file in the user's home that is not FlowEdge's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from flowedge import telemetry

# Run commands one after the other in one process. The first that does not end with 0 ends the process.
SEVERAL = """
import json, sys
from flowedge.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["flowedge", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code:
            sys.exit(f"{arguments}: {end.code}")
"""
# A process that reports does so from threads of its own: strace follows them, and stops at these calls alone.
STRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg,sendmmsg")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five good images to train on, and two of each kind to test on, of 64x64 pixels of noise."""
    folder = tmp_path_factory.mktemp("dataset")
    random = np.random.default_rng(0)
    for part, images in (("train/good", 5), ("test/good", 2), ("test/hole", 2)):
        (folder / part).mkdir(parents=True)
        for number in range(images):
            frame = random.integers(0, 256, (64, 64, 3), np.uint8)
            assert cv2.imwrite(str(folder / part / f"{number}.png"), frame)
    (folder / "ground_truth/hole").mkdir(parents=True)
    for number in range(2):
        mask = np.zeros((64, 64), np.uint8)
        mask[20:30, 20:30] = 255
        assert cv2.imwrite(str(folder / f"ground_truth/hole/{number}.png"), mask)
    return folder


def addresses_called(commands: list[list[str]], home: Path, record: Path) -> list[str]:
    """Run commands in one traced process with a fresh home, and return the calls that leave the machine."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*STRACE, "-o", record, sys.executable, "-c", SEVERAL, json.dumps(commands)],
        env=environment,
        cwd=home.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("strace may not trace here (ptrace is forbidden)")
    assert done.returncode == 0, done.stderr
    return [line for line in record.read_text(errors="replace").splitlines() if "sa_family=AF_INET" in line]


def strange_files(home: Path) -> list[Path]:
    """Return what lies in a home besides FlowEdge's own cache."""
    own = home / ".cache/flowedge"
    return [
        path for path in home.rglob("*") if path not in (own.parent, own) and not path.is_relative_to(own)
    ]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace, which counts system calls, is not here")
def test_no_command_looks_up_an_address_or_leaves_a_strange_file(
    small_checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    home, bundle = tmp_path / "home", str(tmp_path / "small.flowedge")
    home.mkdir()
    exporting = [["export", str(small_checkpoint), "-o", bundle], ["info", str(small_checkpoint)]]
    on_the_device = [
        ["info", bundle],
        ["verify", bundle],
        ["calibrate", bundle, "--data", str(dataset), "--fp16"],
        ["run", bundle, str(dataset / "test/good")],
        ["run", bundle, str(dataset / "test/good"), "--engine", "openvino"],
        ["eval", bundle, str(dataset)],
        ["bench", bundle, "--seconds", "0", "--batch", "1", "--precisions", "fp32", "--engines", "openvino"],
        ["doctor"],
    ]
    for commands in (exporting, on_the_device):
        assert addresses_called(commands, home, tmp_path / "calls") == []
        assert strange_files(home) == []


def test_a_runtime_that_the_program_loaded_before_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    loaded = SimpleNamespace(disable_telemetry_events=lambda: told.append("off"))
    monkeypatch.setitem(sys.modules, "onnxruntime", loaded)
    telemetry.switch_off()
    assert told == ["off"]


def test_openvino_still_works_with_its_reporter_kept_out() -> None:
    pytest.importorskip("openvino")
    code = "import flowedge, openvino; from openvino.tools.ovc import telemetry_utils as used; print(used.tm.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub", done.stderr
