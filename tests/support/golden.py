"""The records that the official implementations made, beside the checkout where they are."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True)
class Record:
    """A golden record: its checkpoint, and what the exporter needs besides."""

    folder: str
    checkpoint: str
    options: tuple[str, ...] = ()
    weights: str | None = None


RECORDS = (
    Record("cflow_official", "mvtec_resnet18_freia-cflow_pl3_cb2_inp256_run0_bottle.pt"),
    Record("fastflow_official", "9.pt"),
    Record("uflow_official", "bottle_auroc.ckpt"),
    Record("msflow_official", "best_det.pt", ("--image-size", "256", "256"), "resnet18.pth"),
    Record("csflow_official", "bottle_test", ("--image-size", "256", "256"), "efficientnet-b5.pth"),
)


def unpack(record: Record, shared: Path, place: Path) -> Path:
    """The record's folder below ``place``, laid out; skips the test where the records are not there."""
    source = shared / "golden" / record.folder
    if not source.is_dir():
        pytest.skip("the golden records (../shared/golden) are not beside this checkout")
    tool = shared / "tools" / "unpack_golden.py"
    subprocess.run([sys.executable, tool, place, source], check=True, capture_output=True)
    return place / record.folder
