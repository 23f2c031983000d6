"""The exported graph against what the official CFLOW answered on two images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.command_line import flowedge

RECORD = "cflow_official"
CHECKPOINT = "mvtec_resnet18_freia-cflow_pl3_cb2_inp256_run0_bottle.pt"


@pytest.fixture(scope="module")
def record(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record with its checkpoint decompressed."""
    if not (shared / "golden" / RECORD).is_dir():
        pytest.skip("the golden records (../shared/golden) are not beside this checkout")
    folder = tmp_path_factory.mktemp("golden")
    tool = shared / "tools" / "unpack_golden.py"
    subprocess.run(
        [sys.executable, tool, folder, shared / "golden" / RECORD], check=True, capture_output=True
    )
    return folder / RECORD


@pytest.fixture(scope="module")
def bundle(record: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bundle") / "bottle.flowedge"
    done = flowedge("export", record / CHECKPOINT, "-o", target)
    assert done.status == 0, done.stderr
    return target


def check(shared: Path, bundle: Path, record: Path, *options: str) -> subprocess.CompletedProcess[str]:
    tool = shared / "tools" / "check_golden.py"
    return subprocess.run(
        [sys.executable, tool, bundle, record, *options], check=False, capture_output=True, text=True
    )


def test_levels_map_and_score_are_those_of_the_official_implementation(
    shared: Path, bundle: Path, record: Path
) -> None:
    done = check(shared, bundle, record)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_comparison_can_fail(shared: Path, bundle: Path, record: Path) -> None:
    assert check(shared, bundle, record, "--tol", "1e-12").returncode == 1


def test_the_bundle_verifies_against_the_checkpoint_in_freia_and_timm(bundle: Path, record: Path) -> None:
    done = flowedge("verify", bundle, "--against", record / CHECKPOINT)
    assert done.status == 0, done.stdout + done.stderr
