"""Unpack the records of the official implementations, and export their checkpoints once a test run."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.artifacts import made_once
from support.command_line import flowedge


@dataclass(frozen=True, slots=True)
class Record:
    """A golden record: its checkpoint, and the further files that the exporter needs."""

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


# An export takes ten seconds, and CS-Flow's three EfficientNets a minute. test_anomalib.py compares another export of
# FastFlow, and test_golden.py compares both networks without an export.
WITHOUT_AN_EXPORT = ("fastflow_official", "csflow_official")
PARAMETERS = tuple(
    pytest.param(
        record, id=record.folder, marks=pytest.mark.slow if record.folder in WITHOUT_AN_EXPORT else ()
    )
    for record in RECORDS
)


def unpack(record: Record, shared: Path, place: Path) -> Path:
    """Lay out the record's folder below ``place``, or skip the test where the records are missing."""
    source = shared / "golden" / record.folder
    if not source.is_dir():
        pytest.skip("the golden records (../shared/golden) are not beside this checkout")
    tool = shared / "tools" / "unpack_golden.py"
    subprocess.run([sys.executable, tool, place, source], check=True, capture_output=True)
    return place / record.folder


@dataclass(frozen=True, slots=True)
class ExportedRecord:
    """A record that was unpacked, and the bundle of its checkpoint.

    Attributes:
        record: The record's facts.
        folder: The unpacked record.
        bundle: The exported bundle, with the outputs of ``--nfa`` where the record allows it.
    """

    record: Record
    folder: Path
    bundle: Path

    @property
    def checkpoint(self) -> Path:
        """The path of the record's checkpoint."""
        return self.folder / self.record.checkpoint

    def weights(self) -> tuple[str | Path, ...]:
        """The option that names the backbone's weights, where the checkpoint lacks them."""
        return (
            () if self.record.weights is None else ("--backbone-weights", self.folder / self.record.weights)
        )


def exported_record(record: Record, shared: Path, factory: pytest.TempPathFactory) -> ExportedRecord:
    """Unpack and export a record once a run. Skip the test where the records are not there."""
    if not (shared / "golden" / record.folder).is_dir():
        pytest.skip("the golden records (../shared/golden) are not beside this checkout")

    def make(place: Path) -> None:
        made = ExportedRecord(record, unpack(record, shared, place), place / "golden.flowedge")
        options = (*record.options, *made.weights(), "--nfa")
        done = flowedge("export", made.checkpoint, "-o", made.bundle, *options)
        assert done.status == 0, done.stderr

    place = made_once(factory, record.folder, make)
    return ExportedRecord(record, place / record.folder, place / "golden.flowedge")
