"""``flowedge threshold`` and the tables of ``calibrate`` and ``eval``: thresholds explain themselves."""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

import flowedge as package
from flowedge.bundle import clone_bundle, open_bundle
from flowedge.calibration import (
    ChangeOrigin,
    NewThresholds,
    ThresholdRequest,
    calibrate_bundle,
    fit_thresholds,
    set_thresholds,
)
from flowedge.calibration.calibration_images import hash_of_images
from flowedge.calibration.dataset import good_images
from flowedge.errors import BundleError, CalibrationError
from flowedge.manifest import NfaThreshold, Threshold, Thresholds
from flowedge.runtime.frames.images import read_image
from support.block_graph import write_photographs
from support.command_line import Finished, flowedge
from support.family_graphs import FamilyBundle
from support.small_dataset import write_dataset
from support.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.usefixtures("without_proof")

FITTED = Thresholds(
    image=Threshold(value=1.5, method="quantile", parameter=0.99, images=240),
    pixel=Threshold(value=1.25, method="quantile", parameter=0.9995, images=240),
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of two precisions with fitted thresholds."""
    path = tmp_path / "tiny.flowedge"
    return write_tiny_bundle(path, precisions=("fp32", "fp16"), thresholds=FITTED).path


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A bundle of one precision with fitted thresholds."""
    return write_tiny_bundle(tmp_path / "single.flowedge", thresholds=FITTED).path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Eight good images for the fit, two good and two anomalous ones for the test."""
    write_dataset(tmp_path / "bottle")
    return tmp_path / "bottle"


def done(*arguments: str | Path) -> Finished:
    finished = flowedge(*arguments)
    assert finished.status == 0, finished.stderr
    return finished


def thresholds_of(bundle: Path) -> dict[str, Thresholds]:
    return {graph.precision: graph.thresholds for graph in open_bundle(bundle).manifest.graphs}


def scores_of(bundle: Path, images: list[Path]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    with package.load(bundle) as detector:
        return np.array([detector(read_image(image)).score for image in images])


# --- set ------------------------------------------------------------------------------------------------------


def test_set_changes_one_precision_and_keeps_author_reason_and_the_old_value(bundle: Path) -> None:
    before = open_bundle(bundle).manifest
    finished = done(
        *("threshold", "set", bundle, "--image", "-0.25", "--precision", "fp16"),
        *("--reason", "too many false alarms", "--by", "ann"),
    )
    assert "fp16: image 1.5 (quantile 0.99, 240 images), pixel 1.25" in finished.stdout
    assert "→ image -0.25 (set by hand), pixel 1.25" in finished.stdout
    after = open_bundle(bundle).manifest  # which checks the hash over its content
    by_hand = msgspec.structs.replace(FITTED, image=Threshold(value=-0.25, method="manual"))
    assert thresholds_of(bundle) == {"fp32": FITTED, "fp16": by_hand}
    (entry,) = after.threshold_history
    assert (entry.by, entry.reason, entry.command) == (
        "ann",
        "too many false alarms",
        "flowedge threshold set",
    )
    assert [(c.precision, c.before, c.after) for c in entry.changes] == [("fp16", FITTED, by_hand)]
    unchanged = {name: getattr(before, name) for name in before.__struct_fields__ if name not in ("graphs",)}
    assert {name: getattr(after, name) for name in unchanged} == {
        **unchanged,
        "threshold_history": after.threshold_history,
    }


def test_a_value_set_by_hand_decides_at_the_next_start(single: Path, dataset: Path) -> None:
    image = dataset / "test" / "good" / "000.png"
    (score,) = scores_of(single, [image])
    for limit, verdict in ((float(np.nextafter(score, -np.inf)), "anomalous"), (float(score), "ok")):
        done("threshold", "set", single, "--image", repr(limit), "--reason", "a test")
        with package.load(single) as detector:
            assert detector(read_image(image)).verdict == verdict


def test_all_precisions_are_set_only_where_the_user_says_all(bundle: Path) -> None:
    words = ("threshold", "set", bundle, "--pixel", "2", "--reason", "a test")
    refused = flowedge(*words)
    assert refused.status == 2
    assert "scores differ by precision, and the bundle has fp32, fp16" in refused.stderr
    assert thresholds_of(bundle) == {"fp32": FITTED, "fp16": FITTED}
    done(*words, "--precision", "all")
    assert {own.pixel for own in thresholds_of(bundle).values()} == {Threshold(value=2.0, method="manual")}


def test_a_limit_of_log_nfa_is_set_everywhere_and_a_threshold_afterwards_decides_again(bundle: Path) -> None:
    done("threshold", "set", bundle, "--log-nfa", "-2", "--reason", "no images")
    tree = NfaThreshold(form="tree", log_nfa=-2.0)
    assert {own.nfa for own in thresholds_of(bundle).values()} == {tree}
    assert {own.image for own in thresholds_of(bundle).values()} == {FITTED.image}
    done("threshold", "set", bundle, "--image", "1", "--precision", "fp32", "--reason", "images now")
    assert {name: own.nfa for name, own in thresholds_of(bundle).items()} == {"fp32": None, "fp16": tree}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--image", "1"), "needs a reason, for whoever asks later: add --reason TEXT"),
        (("--image", "1", "--reason", " "), "needs a reason"),
        (("--reason", "x"), "nothing to set: give --image, --pixel or --log-nfa"),
        (("--image", "nan", "--reason", "x"), "image threshold must be a finite number, got nan"),
        (("--pixel", "-inf", "--reason", "x"), "pixel threshold must be a finite number, got -inf"),
        (("--image", "1e39", "--reason", "x"), "manifest.json cannot be written"),
        (("--image", "1", "--log-nfa", "0", "--reason", "x"), "Set one or the other"),
        (("--log-nfa", "0", "--form", "bush", "--reason", "x"), "--form is tree or block, got 'bush'"),
        (("--log-nfa", "0", "--form", "block", "--reason", "x"), "again with --nfa"),
        (("--image", "1", "--form", "tree", "--reason", "x"), "--form goes with --log-nfa"),
        (("--image", "1", "--precision", "int8-cpu", "--reason", "x"), "no int8-cpu graph. It has fp32"),
        (("--image", "1", "--reason", "x" * 1001), "at most 1000 characters, got 1001"),
    ],
)
def test_what_cannot_be_set_is_refused_and_the_bundle_stays(
    single: Path, words: tuple[str, ...], message: str
) -> None:
    before = (single / "manifest.json").read_bytes()
    refused = flowedge("threshold", "set", single, *words)
    assert refused.status == 2
    assert message in " ".join(refused.stderr.split())
    assert (single / "manifest.json").read_bytes() == before


def test_python_sets_a_threshold_and_needs_a_reason_too(single: Path) -> None:
    with pytest.raises(CalibrationError, match="needs a reason"):
        set_thresholds(single, NewThresholds(image=1.0), reason="")
    with pytest.raises(CalibrationError, match="no threshold is given"):
        NewThresholds()
    changed = set_thresholds(single, NewThresholds(image=1.0), reason="a test", by="ann")
    assert changed.manifest == open_bundle(single).manifest
    assert changed.manifest.threshold_history[0].command == "flowedge.calibration.set_thresholds"


def test_python_sets_a_number_of_numpy_and_refuses_what_is_no_number(single: Path) -> None:
    values = NewThresholds(image=np.float32(1.5), pixel=np.int64(2))  # type: ignore[arg-type]
    thresholds = set_thresholds(single, values, reason="measured").manifest.graph("fp32").thresholds
    assert thresholds.image == Threshold(value=1.5, method="manual")
    assert thresholds.pixel == Threshold(value=2.0, method="manual")
    wrong: Any
    for wrong in ("1.5", True, [1.5], float("nan")):
        with pytest.raises(CalibrationError, match="must be a finite number"):
            NewThresholds(image=wrong)


def test_two_processes_at_once_lose_no_entry(single: Path) -> None:
    count = 12
    script = (
        "import sys\nfrom flowedge.calibration import NewThresholds, set_thresholds\n"
        f"for n in range({count}):\n"
        "    set_thresholds(sys.argv[1], NewThresholds(image=float(n)), reason=str(n), by=sys.argv[2])"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(single), name]) for name in ("ann", "bob")
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    history = open_bundle(single).manifest.threshold_history
    for name in ("ann", "bob"):
        assert [entry.reason for entry in history if entry.by == name] == [str(n) for n in range(count)]
    assert history[0].changes[0].before == FITTED
    for older, newer in itertools.pairwise(history):
        assert older.changes[0].after == newer.changes[0].before, "each saw the other's change"
    assert not [path for path in single.parent.iterdir() if path.name.startswith(".flowedge")]


# --- fit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["cflow", "fastflow"])  # with score maxima and without
def test_a_fit_gives_the_thresholds_of_a_calibration_and_changes_nothing_else(
    family_bundle: Callable[[str], FamilyBundle], tmp_path: Path, family: str
) -> None:
    made = family_bundle(family).bundle
    graphs = tuple(graph for graph in made.manifest.graphs if graph.precision in ("fp32", "int8-cpu"))
    manifest = msgspec.structs.replace(made.manifest, graphs=graphs)
    start = clone_bundle(made, tmp_path / "b.flowedge", manifest=manifest)
    write_photographs(tmp_path / "good", 8)
    photographs = good_images(tmp_path / "good")
    request = ThresholdRequest(image=0.8, pixel=0.99)
    calibrated = calibrate_bundle(start, photographs, request=request, threads=1).bundle.manifest
    set_thresholds(start.path, NewThresholds(image=1.0, pixel=1.0), reason="a test", precision="all")
    fitted = fit_thresholds(start.path, tmp_path / "good", request, threads=1).bundle.manifest
    assert fitted.graphs == calibrated.graphs, "to the last bit, with score maxima and colours"
    assert fitted.frame_check == calibrated.frame_check is not None
    assert fitted.files == calibrated.files
    entry = fitted.threshold_history[-1]
    assert (entry.images, entry.images_sha256) == (8, hash_of_images(photographs))


def test_a_fit_of_one_precision_leaves_the_others(bundle: Path, dataset: Path) -> None:
    words = ("threshold", "fit", bundle, "--data", dataset, "--precision", "fp16", "--reason", "new lamp")
    finished = done(*words, "--threshold", "target-fpr", "--image-rate", "0.25", "--pixel-rate", "0.01")
    scores = scores_of(bundle, sorted((dataset / "train" / "good").iterdir()))
    own = thresholds_of(bundle)
    assert own["fp32"] == FITTED
    expected = float(np.sort(scores)[-3])
    assert own["fp16"].image == Threshold(value=expected, method="target-fpr", parameter=0.25, images=8)
    assert own["fp16"].pixel is not None
    assert own["fp16"].pixel.parameter == 0.01
    assert "fp16: image 1.5 (quantile 0.99, 240 images)" in finished.stdout
    assert open_bundle(bundle).manifest.threshold_history[-1].reason == "new lamp"


def test_a_fit_on_labelled_images_takes_the_best_f1(single: Path, dataset: Path) -> None:
    result = json.loads(
        done("threshold", "fit", single, "--data", dataset, "--threshold", "f1", "--json").stdout
    )
    tests = sorted((dataset / "test").rglob("*.png"))
    scores = scores_of(single, tests)
    good = np.array([path.parent.name == "good" for path in tests])
    value = result["graphs"][0]["thresholds"]["image"]["value"]
    assert value == scores[good].max(), "the classes are apart"
    assert result["images"] == result["change"]["images"] == len(tests)
    assert [point["name"] for point in result["fitted"][0]["operating_points"]] == [
        *("now", "no false alarm", "best F1")
    ]


def test_a_fit_on_scores_that_each_image_normalises_warns(tmp_path: Path, dataset: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "cflow.flowedge")
    graph = bundle.manifest.graphs[0]
    scoring = msgspec.structs.replace(graph.scoring, normalisation="per_image")
    graphs = (msgspec.structs.replace(graph, scoring=scoring),)
    manifest = msgspec.structs.replace(bundle.manifest, family="cflow", graphs=graphs)
    made = clone_bundle(bundle, tmp_path / "own.flowedge", manifest=manifest)
    fit = fit_thresholds(made.path, dataset, origin=ChangeOrigin(by="ann"))
    assert any("Run flowedge calibrate, which fits score maxima" in note for note in fit.graphs[0].notes)


# --- show and info --------------------------------------------------------------------------------------------


def test_show_explains_each_threshold_and_each_change(bundle: Path, dataset: Path) -> None:
    assert "no history" in done("threshold", "show", bundle).stdout
    done("threshold", "fit", bundle, "--data", dataset, "--by", "ann")
    done(
        "threshold",
        "set",
        bundle,
        "--image",
        "3",
        "--precision",
        "fp32",
        "--reason",
        "by hand",
        "--by",
        "bob",
    )
    done(
        "threshold",
        "set",
        bundle,
        "--log-nfa",
        "-1",
        "--precision",
        "fp16",
        "--reason",
        "a try",
        "--by",
        "eve",
    )
    shown = done("threshold", "show", bundle).stdout
    assert "3 (set by hand)" in shown
    assert "(quantile 0.99, 8 images)" in shown
    assert "tree log NFA < -1  the NFA" in shown
    assert "3 changes, the last" in shown
    assert "by eve with flowedge threshold set: a try" in shown
    history = done("threshold", "show", bundle, "--history").stdout
    for part in ("by ann with flowedge threshold fit on 8 images (sha256 ", "by bob", "by hand", "by eve"):
        assert part in history
    assert (
        "fp32: image 1.5 (quantile 0.99, 240 images), pixel 1.25 (quantile 0.9995, 240 images) → image"
        in history
    )
    data = json.loads(done("threshold", "show", bundle, "--json").stdout)
    assert [entry["by"] for entry in data["history"]] == ["ann", "bob", "eve"]
    assert [graph["precision"] for graph in data["graphs"]] == ["fp32", "fp16"]


def test_info_names_the_last_change(single: Path) -> None:
    assert "changes" not in done("info", single).stdout
    done("threshold", "set", single, "--image", "3", "--reason", "why not", "--by", "bob")
    assert "1 change, the last" in (text := done("info", single).stdout)
    assert "by bob with flowedge threshold set: why not" in text


def test_text_of_the_history_cannot_act_on_a_terminal(single: Path) -> None:
    done("threshold", "set", single, "--image", "3", "--reason", "\x1b[31mred\nline", "--by", "a\x07b")
    shown = done("threshold", "show", single, "--history").stdout
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert r"\x1b[31mred\nline" in shown


# --- the tables of calibrate and eval -------------------------------------------------------------------------


def test_calibrate_shows_what_its_thresholds_promise_and_warns_in_numbers(
    single: Path, dataset: Path
) -> None:
    finished = done("calibrate", single, "--data", dataset)
    low, high = stats.beta(1, 8).interval(0.95)
    row = next(line for line in finished.stdout.splitlines() if line.startswith("fp32       now"))
    assert f"0 of 8 {100 * low:.1f} to {100 * high:.1f} %" in " ".join(row.split())
    assert "These images were seen in the fit, so the interval is not that of a count" in finished.stdout
    assert "8 good images are too few for a quantile of 0.99: the image threshold is their largest value" in (
        finished.stderr
    )
    assert "may be up to 37 % (95 % confidence) instead of 1 %. Give at least 101." in finished.stderr
    assert "the pixels above the pixel threshold lie in only" in finished.stderr


def test_the_json_of_calibrate_has_the_table_its_commands_and_the_warnings(
    single: Path, dataset: Path
) -> None:
    record = json.loads(done("calibrate", single, "--data", dataset, "--json").stdout)
    (graph,) = record["graphs"]
    now, one = graph["operating_points"]
    assert now["threshold"] == graph["thresholds"]["image"]["value"]
    assert (now["command"], now["detections"]) == ("", None)
    assert f"--image {one['threshold']!r} --precision fp32" in one["command"]
    assert one["false_alarms"]["hits"] == 0
    assert any("too few for a quantile of 0.99" in note for note in graph["notes"])


def test_each_command_of_the_table_of_eval_gives_the_numbers_beside_it(single: Path, dataset: Path) -> None:
    done("calibrate", single, "--data", dataset, "--frame-check", "off")
    result = json.loads(done("eval", single, dataset, "--json").stdout)
    points = result["operating_points"]
    assert [point["name"] for point in points] == ["now", "no false alarm", "best F1"]
    table = done("eval", single, dataset).stdout
    for point in points[1:]:
        assert point["command"] in table
        program, *words = shlex.split(point["command"])
        assert program == "flowedge"
        done(*words)
        (now, *_) = json.loads(done("eval", single, dataset, "--json").stdout)["operating_points"]
        assert now["threshold"] == point["threshold"]
        for counted in ("false_alarms", "detections"):
            assert now[counted]["hits"] == point[counted]["hits"]
    reason = open_bundle(single).manifest.threshold_history[-1].reason
    assert reason == f"best F1 on 4 images of {dataset}"


def test_the_table_of_eval_counts_false_alarms_and_missed_defects_with_intervals(
    single: Path, dataset: Path
) -> None:
    done("threshold", "set", single, "--image", "1e6", "--reason", "nothing is above")
    table = done("eval", single, dataset).stdout
    row = next(line for line in table.splitlines() if line.startswith("fp32       now"))
    exact = stats.binomtest(0, 2).proportion_ci(0.95, method="exact")
    interval = f"0.0 to {100 * exact.high:.1f} %"
    assert f"0 of 2 {interval} 2 of 2 0.0 % {interval}" in " ".join(row.split())


def test_eval_offers_limits_of_log_nfa_where_they_decide(single: Path, dataset: Path) -> None:
    done("threshold", "set", single, "--log-nfa", "0", "--reason", "no images")
    result = json.loads(done("eval", single, dataset, "--json").stdout)
    now, *others = result["operating_points"]
    assert (now["threshold"], now["log_nfa"]) == (None, 0.0)
    (rule,) = (one for one in result["decisions"] if one["rule"] == "nfa-tree")
    assert now["false_alarms"]["rate"] == rule["false_alarm_rate"]
    for point in others:
        assert f"--log-nfa {point['log_nfa']!r}" in point["command"]
    assert "log NFA < 0" in done("eval", single, dataset).stdout


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("-2", "0.01 false alarms are"), ("0", "1 false alarm is"), ("400", "10^400 false alarms are")],
)
def test_calibrate_to_log_nfa_says_what_is_expected_and_that_no_image_has_checked_it(
    single: Path, limit: str, expected: str
) -> None:
    text = done("calibrate", single, "--threshold", "nfa", "--log-nfa", limit).stdout
    assert f": {expected} expected in an image of a good part" in text
    assert "No image has checked this" in text
    (entry,) = open_bundle(single).manifest.threshold_history
    assert (entry.command, entry.images) == ("flowedge calibrate", 0)


def test_python_gets_the_same_commands(single: Path, dataset: Path) -> None:
    package.calibrate(single, dataset, origin=ChangeOrigin(by="ann", reason="a new lamp"))
    with package.load(single) as detector:
        points = package.evaluate(detector, dataset).operating_points
    with pytest.raises(TypeError, match=r"a detector is evaluated, got PosixPath\. Give flowedge\.load"):
        package.evaluate(single, dataset)  # type: ignore[arg-type]
    assert points[1].command.startswith(f"flowedge threshold set {single} --image ")
    entry = open_bundle(single).manifest.threshold_history[-1]
    assert (entry.by, entry.reason) == ("ann", "a new lamp")


# --- names of options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("calibrate",), ("threshold", "fit")])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--image", "0.9"), "--image has another name now: write --image-quantile 0.9."),
        (("--pixel", "0.9"), "--pixel has another name now: write --pixel-quantile 0.9."),
        (("--threshold", "target-fpr", "--image", "0.1"), "write --image-rate 0.1."),
        (("--threshold", "target-fpr", "--pixel", "0.1"), "write --pixel-rate 0.1."),
        (("--threshold", "f1", "--image", "0.1"), "--threshold f1 takes no number for it. Leave it out."),
        (
            ("--image-rate", "0.1"),
            "--image-rate belongs to --threshold target-fpr, got --threshold quantile.",
        ),
        (
            ("--threshold", "target-fpr", "--pixel-quantile", "0.1"),
            "--pixel-quantile belongs to --threshold quantile, got --threshold target-fpr.",
        ),
        (("--image-quantile", "1.5"), "--image-quantile must lie between 0 and 1, got 1.5."),
    ],
)
def test_options_are_named_for_what_they_are_and_old_names_name_the_new(
    single: Path, dataset: Path, command: tuple[str, ...], words: tuple[str, ...], message: str
) -> None:
    before = (single / "manifest.json").read_bytes()
    refused = flowedge(*command, single, "--data", dataset, *words)
    assert refused.status == 2
    assert message in " ".join(refused.stderr.split())
    assert (single / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("option", ["--reference", "--no-reference"])
def test_the_old_names_of_the_score_maxima_are_refused_with_the_new(single: Path, option: str) -> None:
    refused = flowedge("calibrate", single, option)
    assert refused.status == 2
    assert "write --score-maxima or --no-score-maxima" in " ".join(refused.stderr.split())


def test_the_help_does_not_show_the_old_names() -> None:
    for command in (("calibrate",), ("threshold", "fit")):
        words = done(*command, "--help").stdout.split()
        assert "--image-quantile" in words
        assert not {"--image", "--pixel", "--reference", "--no-reference"} & set(words)


def test_a_bundle_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for words in (("show",), ("set", "--image", "1", "--reason", "x"), ("fit", "--data", str(tmp_path))):
        command, *options = words
        assert flowedge("threshold", command, tmp_path / "missing", *options).status == 2
    with pytest.raises(BundleError, match="no such folder"):
        fit_thresholds(tmp_path / "missing", tmp_path)


def test_the_first_table_of_eval_names_the_best_f1_where_the_bundle_has_no_threshold(
    tmp_path: Path, dataset: Path
) -> None:
    single = write_tiny_bundle(tmp_path / "bare.flowedge").path
    lines = [line.split() for line in done("eval", single, dataset).stdout.splitlines()]
    (row,) = (line for line in lines if line[:1] == ["threshold"])
    assert row[1:3] == ["best", "F1"]
    done("threshold", "set", single, "--log-nfa", "0", "--reason", "no images")
    shown = done("eval", single, dataset).stdout
    assert shown.splitlines()[0] == f"{single}, fp32, on {dataset}"
    assert "best F1 threshold" not in shown
    result = json.loads(done("eval", single, dataset, "--json").stdout)
    (rule,) = (one for one in result["decisions"] if one["rule"] == "nfa-tree")
    assert result["detection_rate"] == rule["detection_rate"]
    assert result["image_threshold"] is None


def test_a_fit_names_the_subfolders_whose_images_it_leaves_out(single: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "more")
    good = tmp_path / "more" / "train" / "good"
    (good / "night\nshift").mkdir()
    (good / ".hidden").mkdir()
    for command in (("calibrate",), ("threshold", "fit")):
        for data in (good, tmp_path / "more"):
            finished = done(*command, single, "--data", data)
            assert (
                f"left out, since subfolders of {good} are not searched: night\\nshift\n" in finished.stderr
            )
