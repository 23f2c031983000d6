"""The table of engines compares each row with fp32 on the same engine, and with the peer at its best."""

from __future__ import annotations

from typing import Any

from bench.table_engines import lines_of


def row(engine: str, precision: str, fastest_ms: float, *, kind: str = "bundle") -> dict[str, Any]:
    return {
        "kind": kind,
        "engine": engine,
        "precision": precision,
        "timings": [{"p50_ms": 2 * fastest_ms, "percentiles_ms": [fastest_ms, 3 * fastest_ms]}],
        "parity": None,
        "own_correlation": 0.9 if kind == "peer" and precision == "int8" else None,
        "cold_start_ms": None,
        "stages": None,
    }


def column(name: str, rows: list[dict[str, Any]]) -> list[str]:
    return [line.split(" | ")[COLUMNS.index(name)] for line in lines_of("fastflow", {"rows": rows})]


COLUMNS = [
    *("model", "what", "answers", "correlation", "p50", "fastest"),
    *("beside fp32", "beside the peer", "beside the peer's best"),
]


def test_each_lower_precision_is_compared_with_fp32_on_its_own_engine_and_a_slower_one_is_marked() -> None:
    rows = [
        row("onnxruntime-cpu", "fp32", 20.0),
        row("openvino", "fp32", 30.0),
        row("openvino", "bf16", 40.0),
        row("onnxruntime-cpu", "int8-cpu", 25.0),
        row("openvino", "int8-cpu", 15.0),
        row("torch", "fp32", 50.0, kind="torch"),
    ]
    assert column("beside fp32", rows) == ["-", "-", "SLOWER: 0.75x", "SLOWER: 0.80x", "2.00x", "-"]
    assert column("beside the peer", rows) == ["-"] * 6


def test_the_peer_is_compared_with_itself_and_ours_with_its_best() -> None:
    rows = [
        row("openvino", "int8-cpu", 10.0),
        row("onnxruntime-cpu", "", 40.0, kind="peer"),
        row("openvino", "fp32", 30.0, kind="peer"),
        row("openvino", "bf16", 12.0, kind="peer"),
        row("openvino", "int8", 15.0, kind="peer"),
    ]
    assert column("what", rows)[1:] == [
        "anomalib's ONNX, ONNX Runtime",
        "anomalib's ONNX, OpenVINO fp32",
        "anomalib's ONNX, OpenVINO bf16",
        "anomalib's ONNX, OpenVINO INT8 by NNCF",
    ]
    assert column("correlation", rows) == ["-", "-", "-", "-", "0.90000"]
    assert column("beside fp32", rows) == ["-", "-", "-", "2.50x", "2.00x"]
    assert column("beside the peer", rows) == ["4.00x", "1.00x", "1.33x", "3.33x", "2.67x"]
    assert column("beside the peer's best", rows) == ["1.20x", "0.30x", "0.40x", "1.00x", "0.80x"]


def test_a_lower_precision_without_fp32_on_its_engine_is_compared_with_nothing() -> None:
    assert column("beside fp32", [row("openvino", "int8-cpu", 15.0)]) == ["-"]
