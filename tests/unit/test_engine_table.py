"""The table of engines shows an INT8 graph that is slower than fp32 on the same engine."""

from __future__ import annotations

from typing import Any

from bench.table_engines import lines_of


def row(engine: str, precision: str, p50_ms: float, *, kind: str = "bundle") -> dict[str, Any]:
    return {
        "kind": kind,
        "engine": engine,
        "precision": precision,
        "timings": [{"p50_ms": p50_ms}],
        "parity": None,
        "cold_start_ms": None,
        "stages": None,
    }


def test_each_lower_precision_is_compared_with_fp32_on_its_own_engine_and_a_slower_int8_is_marked() -> None:
    rows = [
        row("onnxruntime-cpu", "fp32", 20.0),
        row("openvino", "fp32", 30.0),
        row("openvino", "bf16", 40.0),
        row("onnxruntime-cpu", "int8-cpu", 25.0),
        row("openvino", "int8-cpu", 15.0),
        row("torch", "fp32", 50.0, kind="torch"),
    ]
    cells = [line.split(" | ")[5] for line in lines_of("fastflow", {"rows": rows})]
    assert cells == ["-", "-", "0.75x", "SLOWER: 0.80x", "2.00x", "-"]


def test_a_lower_precision_without_fp32_on_its_engine_is_compared_with_nothing() -> None:
    (line,) = lines_of("fastflow", {"rows": [row("openvino", "int8-cpu", 15.0)]})
    assert line.split(" | ")[5] == "-"
