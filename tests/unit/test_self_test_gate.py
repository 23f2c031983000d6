"""A precision ships only with a graph that passes the self-test of its bundle, as a device replays it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from flowedge.bundle import open_bundle
from flowedge.calibration.calibration_record import read_record
from flowedge.calibration.precision import PrecisionRequest, add_precisions
from flowedge.calibration.precision.gate_images import GateImages
from flowedge.calibration.precision.planning_time import time_of_planning
from flowedge.calibration.precision.self_test_gate import SelfTestGate
from flowedge.errors import PrecisionError
from flowedge.runtime.opening.engine import JUDGE
from flowedge.runtime.verify import PARITY_LIMITS, verify_bundle
from support.block_graph import LIMITS, SIZE, Layer, write_with_selftest
from support.recorded_reports import RecordedReports


def layers_of(middle: float) -> list[Layer]:
    """Make layers that keep the brightness of an image, and a last one that gives its distance from a grey level."""
    same = np.eye(4, dtype=np.float32)[:, :, None, None]
    nothing = np.zeros(4, np.float32)
    return [
        Layer("l0", np.full((4, 3, 2, 2), 1 / 12, np.float32), nothing, stride=2),
        *(Layer(f"l{n}", same, nothing) for n in (1, 2)),
        Layer("l3", 4 * same, np.full(4, -4 * middle, np.float32)),
    ]


@pytest.fixture(scope="module")
def bright(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Write pictures whose grey levels are 120 to 210. The frames of a self-test have darker spots."""
    folder = tmp_path_factory.mktemp("bright")
    rng = np.random.default_rng(0)
    paths = tuple(folder / f"{n}.png" for n in range(4))
    for path in paths:
        clouds = cv2.resize(rng.uniform(120, 210, (6, 8, 3)), SIZE[::-1], interpolation=cv2.INTER_LINEAR)
        assert cv2.imwrite(str(path), clouds.astype(np.uint8))
    return paths


def request_of(*wanted: str) -> PrecisionRequest:
    limits = dict.fromkeys(("fp16", "bf16", "int8"), LIMITS)
    return PrecisionRequest(wanted=wanted, limits=limits, defects_per_image=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("search_sees_it", [True, False])
def test_a_block_that_passes_on_images_and_fails_the_self_test_stays_in_float(
    tmp_path: Path, bright: tuple[Path, ...], search_sees_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The range of the last block's output comes from bright images, and cuts off the dark spots of the self-test."""
    if not search_sees_it:
        # Only the whole graph then shows it, as where its kernels round in another way than its pieces do.
        monkeypatch.setattr(SelfTestGate, "checks", lambda *arguments: ())
    bundle = write_with_selftest(tmp_path / "dark.flowedge", layers_of(0.65))
    told = RecordedReports()
    done, reports = add_precisions(bundle, bright, request_of("int8"), threads=1, reports=told)
    steps = [step for step in told.steps if step.startswith("int8-cpu")]
    assert (steps[0] == "int8-cpu: comparing with fp32") is not search_sees_it, "it saves the images"
    assert "int8-cpu: replaying the self-test for each block" in steps
    by_name = {report.precision: report for report in reports}
    reverted = {name: {b.name: b.reason for b in one.blocks if b.reason} for name, one in by_name.items()}
    assert reverted["int8-gpu"] == {}, "this layout does not round the output of the last block"
    assert list(reverted["int8-cpu"]) == ["backbone/l3"]
    assert "the self-test failed before it was reverted" in reverted["int8-cpu"]["backbone/l3"]
    for name, report in by_name.items():
        checks = verify_bundle(done, engine=JUDGE, precision=name)
        assert all(check.passed for check in checks)
        assert PARITY_LIMITS[name] in {check.limit for check in checks}
        nearest = max(checks, key=lambda check: check.value / check.limit)
        quantity = report.gate.quantity("self_test")
        assert quantity.value == pytest.approx(nearest.value)
        assert quantity.limit == nearest.limit
    assert "self-test failed" in (done.path / "gate.int8-cpu.html").read_text()
    record = read_record(open_bundle(done.path))
    assert record is not None
    assert record.lower_precisions == reports


def test_images_alone_let_that_block_pass(
    tmp_path: Path, bright: tuple[Path, ...], without_proof: None
) -> None:
    bundle = write_with_selftest(tmp_path / "dark.flowedge", layers_of(0.65), with_selftest=False)
    _, reports = add_precisions(bundle, bright, request_of("int8"), threads=1)
    for report in reports:
        assert not [block for block in report.blocks if block.reason]
        assert "self_test" not in {quantity.name for quantity in report.gate.quantities}


def test_a_graph_that_cannot_pass_its_self_test_is_not_written(
    tmp_path: Path, bright: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowedge.runtime.verify.PARITY_LIMITS", {"fp32": 1e-4, "fp16": 1e-9})
    bundle = write_with_selftest(tmp_path / "dark.flowedge", layers_of(0.65))
    with pytest.raises(
        PrecisionError, match=r"self-test, level \d against the expected answers: .* at most 1e-09"
    ):
        add_precisions(bundle, bright, request_of("fp16"), threads=1)
    assert {graph.precision for graph in open_bundle(bundle.path).manifest.graphs} == {"fp32"}


def test_the_image_keeps_values_beyond_those_of_all_good_images(
    tmp_path: Path, bright: tuple[Path, ...]
) -> None:
    """A black spot of a defect reaches the first convolution, although every good image is bright."""
    wide = np.full((256, 3, 2, 2), 1 / 12, np.float32), np.zeros(256, np.float32)
    narrow = np.full((4, 256, 1, 1), 1 / 256, np.float32), np.zeros(4, np.float32)
    layers = [Layer("l0", *wide, stride=2), Layer("l1", *narrow), *layers_of(0.65)[2:]]
    bundle = write_with_selftest(tmp_path / "dark.flowedge", layers)
    done, _ = add_precisions(bundle, bright, request_of("int8"), threads=1)
    assert "backbone/l0" in done.manifest.graph("int8-cpu").int8
    model = onnx.load(str(done.graph_path("int8-cpu")))
    numbers = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    (scale,) = (one for name, one in numbers.items() if name.endswith(".parts.scale"))
    (zero,) = (one for name, one in numbers.items() if name.endswith(".parts.zero"))
    assert int(zero) == 14, "steps for the negative remainders of three channels, which are enlarged 16 times"
    assert float(scale) == pytest.approx(1 / (255 - 14), rel=5e-3), "PLAIN gives 0 to 1"


def test_a_long_planning_tells_its_time_before_it_begins(
    tmp_path: Path, bright: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four images, a defect of each and two layouts are 40 frames of twice the time of fp32, and 3 blocks 12 frames."""
    prepare = GateImages.prepare
    monkeypatch.setattr(GateImages, "prepare", lambda *arguments: 0 * prepare(*arguments) + 2.0)
    bundle = write_with_selftest(tmp_path / "dark.flowedge", layers_of(0.65))
    reports = RecordedReports()
    add_precisions(bundle, bright, request_of("int8"), threads=1, reports=reports)
    expected = "Planning int8-gpu, int8-cpu takes about 3 min 4 s from here"
    assert [note.partition(",")[0] for note in reports.notes] == ["Planning int8-gpu"]
    assert reports.notes[0].startswith(expected)
    assert reports.steps.index("preparing the gate") < reports.steps.index("int8-gpu: comparing with fp32")
    quick = time_of_planning(0.01, ("fp16",), images=500, frames=144, blocks=0)
    assert quick is None, "a planning of seconds tells nothing"
