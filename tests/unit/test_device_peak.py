"""The bench compares an engine with the peaks of its own device, tried on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from flowedge.errors import EngineUnavailableError
from flowedge.runtime.bench import device_peak as device_peak_module
from flowedge.runtime.bench.combination import Combination
from flowedge.runtime.bench.device_peak import device_peak
from flowedge.runtime.bench.environment import find_environment
from flowedge.runtime.bench.protocol import Job, Peak, Started
from flowedge.runtime.engines import onnxrt
from flowedge.runtime.opening.engine import engine_spec

ORT = "onnxruntime-cpu"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_peaks_of_a_device_are_measured_by_graphs_of_its_own_engine(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    sizes = {
        "_SIDE_ON_A_CPU": 64,
        "_COPIED_ON_A_CPU": 1 << 14,
        "_SIDE_ON_A_GPU": 64,
        "_COPIED_ON_A_GPU": 1 << 14,
    }
    for name, size in sizes.items():
        monkeypatch.setattr(device_peak_module, name, size)
    # The chains for a GPU run on the CPU as well, where float16 is slow and right.
    spec = replace(engine_spec(ORT), device="nvidia gpu")
    peak = device_peak(spec, precision, 0.0, threads=1)
    assert min(peak.gflops, peak.copy_gb_s) > 0
    side, kind = 64, "FLOAT" if precision == "fp32" else "FLOAT16"
    product = device_peak_module._chain("MatMul", 3, (side, side), kind)
    x = np.full((1, 1), 1 / side, np.float32)
    assert onnxrt.repeatable(spec, product, x)() == pytest.approx(1 / side, rel=1e-3)
    copied = device_peak_module._chain("Add", 3, (8, 8), "FLOAT")
    assert onnxrt.repeatable(spec, copied, np.ones((1, 1), np.float32))() == 4
    with pytest.raises(EngineUnavailableError, match="cannot be measured with openvino"):
        device_peak(engine_spec("openvino"), precision, 0.0)


def test_a_row_on_a_device_is_compared_with_the_peaks_that_its_own_worker_measured() -> None:
    started = Started(engine="x", version="1", device="nvidia gpu", load_ms=1, first_ms=1, graph=__file__)
    run = Combination(job=Job(kind="bundle", engine="x"), label="x", frame_size=(8, 8), macs=10**9)
    run.worker = SimpleNamespace(started=started, cold_start_ms=1.0)  # type: ignore[assignment]
    run.windows = {1: [2.0, 2.0, 2.0]}
    row = run.row(find_environment(), [1], "")
    assert (row.peak_share, row.device_gflops) == (None, None)
    run.device_peak = Peak(gflops=4000, copy_gb_s=100)
    row = run.row(msgspec.structs.replace(find_environment(), gflops=1, copy_gb_s=1), [1], "")
    assert row.peak_share == pytest.approx(2 * 10**9 / 2e-3 / 4000e9)
    assert row.bandwidth_share == pytest.approx(Path(__file__).stat().st_size / 2e-3 / 100e9)
    assert (row.device_gflops, row.device_copy_gb_s) == (4000, 100)
