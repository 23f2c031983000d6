"""The bench runs every combination in a process of its own, says what could not run, and shows what is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from flowedge.bundle import clone_bundle, open_bundle, write_bundle
from flowedge.cli import bench
from flowedge.errors import EngineUnavailableError
from flowedge.runtime.bench.environment import EnergyMeter
from flowedge.runtime.bench.macs import multiply_accumulates
from flowedge.runtime.bench.measure import ROUNDS, run_bench
from flowedge.runtime.bench.parity import lowest_correlation
from flowedge.runtime.bench.plan import BenchOptions
from flowedge.runtime.bench.process import Worker
from flowedge.runtime.bench.protocol import Command, Job, Peak
from flowedge.runtime.bench.timing_page import page_of
from flowedge.runtime.bench.timing_report import Report
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.opening.selftest import read_selftest
from flowedge.runtime.opening.timing import LEAST_RUNS, window_of
from support.command_line import Finished, flowedge
from support.recorded_reports import RecordedReports
from support.tiny_bundle import tiny_manifest, tiny_model, write_tiny_bundle

ORT = "onnxruntime-cpu"
WRONG = "wrong<b>&|`x`.flowedge"


@dataclass(frozen=True)
class Benched:
    """The files and the output of one run of the command over a good bundle, a wrong one, and two peers."""

    done: Finished
    report: dict[str, Any]
    tables: str
    page: str
    markdown: str
    folder: Path

    def row(self, name: str, engine: str = ORT, precision: str = "fp32") -> dict[str, Any]:
        found = [
            row
            for row in self.report["rows"]
            if Path(row["name"]).name == name
            and row["engine"] == engine
            and row["precision"] in (precision, "")
        ]
        assert len(found) == 1
        return dict(found[0])


@pytest.fixture(scope="module")
def benched(small_bundle: Path, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Benched:
    """Run the command once for all tests of its files and its output."""
    folder = tmp_path_factory.mktemp("bench")
    good = open_bundle(small_bundle)
    edited = onnx.load(str(good.graph_path("fp32")))
    weight = next(
        one for one in edited.graph.initializer if one.name.startswith("flow.") and len(one.dims) == 4
    )
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name))
    clone_bundle(good, folder / WRONG, files={"model.onnx": edited.SerializeToString()})
    onnx.save(tiny_model(), str(folder / "peer.onnx"))
    (folder / "broken<i>.onnx").write_bytes(b"not an ONNX file")
    files = {kind: folder / f"report.{kind}" for kind in ("html", "markdown")}
    done = flowedge(
        *("bench", small_bundle, folder / WRONG, "--engines", f"{ORT},openvino:NPU"),
        *("--precisions", "fp32", "--batch", "1,2", "--seconds", "0", "--frame-size", "90x120"),
        *("--peer", folder / "peer.onnx", "--peer", folder / "broken<i>.onnx", "--threads", "1"),
        *("--against", small_checkpoint),
        *(word for kind, file in files.items() for word in (f"--{kind}", file)),
        "--json",
    )
    tables = io.StringIO()
    with contextlib.redirect_stdout(tables):
        bench.print_report(msgspec.json.decode(done.stdout, type=Report))
    return Benched(
        done=done,
        report=json.loads(done.stdout),
        tables=tables.getvalue(),
        page=files["html"].read_text(),
        markdown=files["markdown"].read_text(),
        folder=folder,
    )


def test_every_combination_is_a_row_that_says_where_and_how_it_was_measured(
    benched: Benched, small_bundle: Path
) -> None:
    rows = benched.report["rows"]
    assert [(Path(row["name"]).name, row["kind"], row["engine"]) for row in rows] == [
        (small_bundle.name, "bundle", ORT),
        (small_bundle.name, "bundle", "openvino:NPU"),
        (small_bundle.name, "torch", "torch"),
        (WRONG, "bundle", ORT),
        (WRONG, "bundle", "openvino:NPU"),
        ("peer.onnx", "peer", ORT),
        ("broken<i>.onnx", "peer", ORT),
    ]
    for row in rows:
        assert row["command"].startswith("flowedge bench ")
        assert row["date"].endswith("+00:00")
        assert row["machine"]["cpu"]
        assert row["machine"]["cores"] >= 1
        assert row["threads"] == 1
    assert benched.row(small_bundle.name)["version"] == ort.__version__


def test_a_window_of_long_runs_has_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(window_of(lambda: None, 0.0)) == LEAST_RUNS
    monkeypatch.setattr("flowedge.runtime.opening.timing._LONG_S", 0.0)
    assert len(window_of(lambda: None, 0.0)) == 1
    assert len(window_of(lambda: None, 0.1)) > LEAST_RUNS, "seconds hold however long that is"


def test_a_measured_row_has_all_its_numbers(benched: Benched, small_bundle: Path) -> None:
    row = benched.row(small_bundle.name)
    assert row["problem"] == ""
    assert [timing["batch"] for timing in row["timings"]] == [1, 2]
    for found in row["timings"]:
        assert found["runs"] == ROUNDS * LEAST_RUNS
        assert 0 < found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"]
        assert len(found["percentiles_ms"]) == 101
        assert found["percentiles_ms"] == sorted(found["percentiles_ms"])
        mean = 1000 * found["batch"] / found["images_per_s"]
        assert found["percentiles_ms"][0] - 1e-3 <= mean <= found["percentiles_ms"][100] + 1e-3
    assert row["cold_start_ms"] > row["load_ms"] + row["first_ms"] > 0
    assert row["peak_resident_mb"] > 20
    assert row["device_memory_mb"] is None
    stages = row["stages"]
    assert stages["frame_size"] == [90, 120]
    assert stages["overhead_ms"] >= stages["preprocess_ms"] > 0
    assert [one["threads"] for one in row["shared"]] == [1, 2, 4]
    assert all(one["frames_per_s"] > 0 for one in row["shared"])
    assert row["macs"] > 10_000_000
    assert row["peak_share"] > 0
    assert row["bandwidth_share"] > 0
    assert row["machine"]["gflops"] > 0


def test_an_engine_that_answers_rightly_is_right_by_an_independent_measure(
    benched: Benched, small_bundle: Path
) -> None:
    parity = benched.row(small_bundle.name)["parity"]
    assert parity["is_right"]
    assert parity["failed"] == []
    assert parity["worst_error"] == pytest.approx(worst_error_of(small_bundle), rel=0.5, abs=1e-6)
    assert parity["worst_error"] < parity["limit"]
    assert parity["correlation"] > 0.999


def test_an_engine_that_answers_wrongly_is_shown_as_wrong_everywhere(benched: Benched) -> None:
    parity = benched.row(WRONG)["parity"]
    assert not parity["is_right"]
    assert parity["worst_error"] == pytest.approx(worst_error_of(benched.folder / WRONG), rel=1e-3)
    assert any("against the expected answers" in reason for reason in parity["failed"])
    assert benched.report["wrong"] == [f"{WRONG} {ORT} fp32"]
    assert benched.done.status == 1
    assert "WRONG" in benched.tables


def test_the_table_is_whole_in_a_pipe(benched: Benched, small_bundle: Path) -> None:
    row = benched.row(small_bundle.name)
    label = f"{small_bundle.name} {ORT} fp32"
    line = next(one for one in benched.tables.splitlines() if one.startswith(label))
    assert line.split()[-2:] == [f"{row['stages']['overhead_ms']:.2f}", f"{row['peak_resident_mb']:.0f}"]
    assert benched.page.count('<tr class="wrong">') == 2  # in the table of speed and in that of errors
    assert "Wrong answers: " in benched.page
    assert "WRONG" in benched.markdown


def worst_error_of(path: Path) -> float:
    """Compute the worst error of the levels by ONNX Runtime alone."""
    bundle = open_bundle(path)
    selftest = read_selftest(bundle)
    session = ort.InferenceSession(str(bundle.graph_path("fp32")), providers=["CPUExecutionProvider"])
    images = GraphInput(bundle.manifest)(selftest.frames)
    worst = 0.0
    for name, expected in selftest.answers.items():
        got = np.concatenate([session.run([name], {"image": image[None]})[0] for image in images])
        worst = max(worst, float(np.abs(got - expected).max() / np.abs(expected).max()))
    return worst


def test_what_cannot_run_is_a_row_with_the_reason_and_the_others_run_on(benched: Benched) -> None:
    for row in benched.report["rows"]:
        if row["engine"] == "openvino:NPU":
            assert row["problem"]
            assert row["timings"] == []
            assert row["parity"] is None
    broken = benched.row("broken<i>.onnx")
    assert "ONNX Runtime cannot load" in broken["problem"]
    assert benched.report["rows"][2]["problem"] == ""
    assert benched.report["rows"][2]["timings"][1]["runs"] > 0


def test_a_peer_is_timed_and_not_compared(benched: Benched) -> None:
    row = benched.row("peer.onnx")
    assert row["parity"] is None
    assert row["stages"] is None
    assert row["timings"][1]["p50_ms"] > 0
    assert row["macs"] == 4 * 3 * 2 * 2 * 8 * 12  # one convolution of stride 2 over 16x24


def test_the_page_opens_offline_and_names_are_text_in_it(benched: Benched) -> None:
    assert "wrong<b>" not in benched.page
    assert "<i>" not in benched.page
    assert "wrong&lt;b&gt;&amp;|`x`.flowedge" in benched.page
    assert not re.search(r"""(src|href)\s*=\s*["']|url\(|@import""", benched.page)
    pictures = re.findall(r"<svg.*?</svg>", benched.page, re.DOTALL)
    charts = [picture for picture in pictures if 'role="img"' in picture]
    assert len(charts) == 3
    for picture in pictures:
        ElementTree.fromstring(picture)  # each tag is closed, each name escaped
    rows = [line for line in benched.markdown.splitlines() if line.startswith("| ")]
    assert "wrong&lt;b&gt;&amp;\\|\\`x\\`.flowedge" in benched.markdown
    cells = {len(re.split(r"(?<!\\)\|", line)) for line in rows[: 2 + len(benched.report["rows"])]}
    assert len(cells) == 1


def test_a_report_without_anything_measured_is_a_page_and_status_1(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    files = ("--html", tmp_path / "page.html", "--json")
    done = flowedge("bench", bundle.path, "--precisions", "int8", "--engines", ORT, "--seconds", "0", *files)
    assert done.status == 1
    report = msgspec.json.decode(done.stdout, type=Report)
    assert "has no int8-cpu graph" in report.rows[0].problem
    assert "<svg" not in page_of(report)
    assert "has no int8-cpu graph" in (tmp_path / "page.html").read_text()


def test_a_bundle_that_takes_frames_is_given_frames_of_its_size(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", takes_frames=True)
    options = BenchOptions(engines=(ORT,), batches=(2,), frame_size=(300, 200), seconds=0)
    reports = RecordedReports()
    (row,) = run_bench([bundle.path], options, reports=reports).rows
    assert reports.counts == [(turn + 1, ROUNDS) for turn in range(ROUNDS)]
    assert row.problem == ""
    assert row.stages is not None
    assert row.stages.frame_size == bundle.manifest.frame_size
    assert row.timings[0].runs == ROUNDS * LEAST_RUNS
    assert row.parity is not None
    assert row.parity.is_right


def test_a_bundle_without_a_self_test_is_timed_and_not_compared(tmp_path: Path) -> None:
    manifest, model = tiny_manifest(), tiny_model().SerializeToString()
    bundle = write_bundle(tmp_path / "tiny.flowedge", manifest, {"model.onnx": model})
    (row,) = run_bench([bundle.path], BenchOptions(engines=(ORT,), batches=(1,), seconds=0)).rows
    assert row.timings[0].runs == ROUNDS * LEAST_RUNS
    assert row.parity is None
    assert "selftest" in row.parity_problem


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a bundle"),
        (("--peer", "x.onnx", "--batch", "0"), "--batch takes whole numbers"),
        (("--peer", "x.onnx", "--batch", "1,1"), "--batch takes different"),
        (("--peer", "x.onnx", "--against", "c.pt"), "no bundle is named"),
        (("--peer", "x.onnx", "--engines", "abacus"), "no engine 'abacus'"),
        (("nowhere.flowedge",), "nowhere.flowedge"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.onnx").touch()
    done = flowedge("bench", *arguments, cwd=tmp_path)
    assert done.status == 2
    assert message in done.stderr


def test_a_worker_that_dies_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    job = Job(kind="bundle", path=str(tmp_path), frame=str(tmp_path / "none.npy"))
    with pytest.raises(EngineUnavailableError, match=r"ended with status 1: FileNotFoundError.*none\.npy"):
        Worker(job)


def test_the_machines_own_speed_is_measured_and_its_other_answers_are_problems() -> None:
    with Worker(Job(kind="machine", threads=1)) as worker:
        peak = worker.ask(Command(do="peak"), Peak)
        with pytest.raises(EngineUnavailableError, match="cannot be counted"):
            worker.ask(Command(do="macs", graph="/nowhere/x.onnx"), Peak)
        assert worker.ask(Command(do="peak"), Peak).gflops > 0
    assert peak.gflops > 0
    assert peak.copy_gb_s > 0


def test_a_peer_whose_input_cannot_be_made_up_says_so(tmp_path: Path) -> None:
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "open"])
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "open"])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [taken], [given])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(tmp_path / "open.onnx"))
    options = BenchOptions(peers=(tmp_path / "open.onnx",), precisions=("fp32",), seconds=0)
    rows = run_bench([], options).rows
    assert [row.engine for row in rows] == [ORT, "openvino"]
    assert all("sides are fixed" in row.problem for row in rows)


def test_weights_in_a_file_beside_the_graph_are_counted_too(tmp_path: Path) -> None:
    model = tiny_model()
    onnx.save(
        model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="m.onnx.data", size_threshold=64
    )
    assert (tmp_path / "m.onnx.data").is_file()
    assert multiply_accumulates(tmp_path / "m.onnx") == 4 * 3 * 2 * 2 * 8 * 12


def test_the_correlation_is_numpys_and_of_the_worst_frame() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 1, 8, 8))
    expected = min(np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(a, b, strict=True))
    assert lowest_correlation(a, b) == pytest.approx(expected)
    assert lowest_correlation(a, 3 * a + 1) == pytest.approx(1)
    assert lowest_correlation(a, np.ones_like(a)) is None
    a[1, 0, 0, 0] = np.nan
    assert lowest_correlation(a, b) is None


def test_a_processors_energy_counter_is_read_across_its_end(tmp_path: Path) -> None:
    zone = tmp_path / "class" / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "max_energy_range_uj").write_text("10000000\n")
    (zone / "energy_uj").write_text("9000000\n")
    meter = EnergyMeter(tmp_path)
    meter.start()
    (zone / "energy_uj").write_text("9500000\n")
    assert meter.stop() == pytest.approx(0.5)
    meter.start()
    (zone / "energy_uj").write_text("500000\n")
    assert meter.stop() == pytest.approx(1.0)


def test_a_jetsons_sensor_of_its_input_is_added_up(tmp_path: Path) -> None:
    sensor = tmp_path / "class" / "hwmon" / "hwmon3"
    sensor.mkdir(parents=True)
    for name, text in {
        "in1_label": "VDD_CPU",
        "in2_label": "VDD_IN",
        "in1_input": "1",
        "curr1_input": "1",
        "in2_input": "5000",
        "curr2_input": "2000",
    }.items():
        (sensor / name).write_text(f"{text}\n")
    meter = EnergyMeter(tmp_path)
    assert meter.reports
    meter.start()
    joules = meter.stop()
    assert joules is not None
    assert 0 < joules < 10 * 60  # ten watts for as long as that took


def test_a_machine_that_reports_no_energy_gives_none(tmp_path: Path) -> None:
    meter = EnergyMeter(tmp_path)
    assert not meter.reports
    meter.start()
    assert meter.stop() is None
