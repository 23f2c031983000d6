"""The exported graphs against what the five official implementations answered on two images."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from flowedge.bundle import open_bundle
from support.command_line import flowedge
from support.golden import RECORDS, Record, unpack


@dataclass(frozen=True, slots=True)
class Exported:
    """A record unpacked, and the bundle made from its checkpoint."""

    record: Record
    folder: Path
    bundle: Path

    def weights(self) -> tuple[str | Path, ...]:
        """The option that names the backbone's weights, where the checkpoint lacks them."""
        return (
            () if self.record.weights is None else ("--backbone-weights", self.folder / self.record.weights)
        )


@pytest.fixture(scope="module", params=RECORDS, ids=[record.folder for record in RECORDS])
def exported(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    record: Record = request.param
    place = tmp_path_factory.mktemp("golden")
    made = Exported(record, unpack(record, shared, place), place / "golden.flowedge")
    checkpoint = made.folder / record.checkpoint
    done = flowedge("export", checkpoint, "-o", made.bundle, *record.options, *made.weights())
    assert done.status == 0, done.stderr
    return made


def check(shared: Path, made: Exported, *options: str) -> subprocess.CompletedProcess[str]:
    tool = shared / "tools" / "check_golden.py"
    return subprocess.run(
        [sys.executable, tool, made.bundle, made.folder, *options],
        check=False,
        capture_output=True,
        text=True,
    )


def test_levels_map_and_score_are_those_of_the_official_implementation(
    shared: Path, exported: Exported
) -> None:
    done = check(shared, exported, "--tol", "3e-5")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_comparison_can_fail(shared: Path, exported: Exported) -> None:
    assert check(shared, exported, "--tol", "1e-12").returncode == 1


def test_verify_refuses_a_photograph_that_the_network_cannot_take(exported: Exported, tmp_path: Path) -> None:
    preprocessing = open_bundle(exported.bundle).manifest.preprocessing
    if not preprocessing.keep_aspect:
        pytest.skip("it takes photographs of any shape")
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((60, 90, 3), np.uint8))
    checkpoint = exported.folder / exported.record.checkpoint
    options = ("--against", checkpoint, "--data", tmp_path, *exported.weights())
    done = flowedge("verify", exported.bundle, *options)
    assert done.status == 2
    assert "a frame of 60x90 becomes" in done.stderr
    assert "Crop" in done.stderr


def test_the_bundle_verifies_against_the_checkpoint_in_freia_and_timm(exported: Exported) -> None:
    checkpoint = exported.folder / exported.record.checkpoint
    done = flowedge("verify", exported.bundle, "--against", checkpoint, *exported.weights())
    assert done.status == 0, done.stdout + done.stderr
