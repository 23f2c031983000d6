"""The history of thresholds: every change leaves who, when, why and from what to what in the bundle."""

from __future__ import annotations

import getpass
import itertools
import socket
from pathlib import Path

import msgspec
import pytest

from flowedge.bundle import Bundle, open_bundle
from flowedge.calibration import ThresholdRequest, calibrate_bundle
from flowedge.calibration.calibrate import decide_by_nfa
from flowedge.calibration.calibration_images import hash_of_images
from flowedge.calibration.threshold_history import ChangeOrigin, with_history
from flowedge.errors import CalibrationError
from flowedge.manifest import Manifest, NfaThreshold, Threshold, Thresholds
from flowedge.manifest_json import json_from_manifest, manifest_from_json
from flowedge.manifest_thresholds import HISTORY_LENGTH
from support.block_graph import write_photographs
from support.tiny_bundle import tiny_manifest, write_tiny_bundle

pytestmark = pytest.mark.usefixtures("without_proof")

ANN = ChangeOrigin(command="a test", by="ann@line-3", reason="a new lamp")


def at(value: float) -> Thresholds:
    return Thresholds(image=Threshold(value=value, method="manual"))


def with_thresholds(manifest: Manifest, *thresholds: Thresholds) -> Manifest:
    graphs = (
        msgspec.structs.replace(graph, thresholds=own)
        for graph, own in zip(manifest.graphs, thresholds, strict=True)
    )
    return msgspec.structs.replace(manifest, graphs=tuple(graphs))


def test_an_entry_keeps_author_reason_and_both_values_of_the_graphs_that_changed() -> None:
    before = with_thresholds(tiny_manifest(precisions=("fp32", "fp16")), at(1.0), at(2.0))
    after = with_history(
        before, with_thresholds(before, at(1.0), at(2.5)), ANN, images=3, images_sha256="a" * 64
    )
    (entry,) = after.threshold_history
    assert (entry.by, entry.command, entry.reason) == ("ann@line-3", "a test", "a new lamp")
    assert (entry.images, entry.images_sha256, entry.merged) == (3, "a" * 64, 1)
    assert [(change.precision, change.before, change.after) for change in entry.changes] == [
        ("fp16", at(2.0), at(2.5))
    ]


def test_a_fit_that_gives_the_old_values_is_in_the_history_and_no_change_is_not() -> None:
    before = with_thresholds(tiny_manifest(), at(1.0))
    assert with_history(before, before, ANN) == before
    (entry,) = with_history(before, before, ANN, chosen=["fp32"]).threshold_history
    assert entry.changes[0].before == entry.changes[0].after == at(1.0)


def test_a_graph_that_is_new_has_no_old_values() -> None:
    before = tiny_manifest()
    after = with_thresholds(tiny_manifest(precisions=("fp32", "fp16")), Thresholds(), at(2.0))
    (entry,) = with_history(before, after, ANN).threshold_history
    assert [(change.precision, change.before) for change in entry.changes] == [("fp16", None)]


def test_a_full_history_merges_its_oldest_entries_and_keeps_the_first_and_the_last_values() -> None:
    manifest = with_thresholds(tiny_manifest(), at(0.0))
    count = HISTORY_LENGTH + 7
    for number in range(1, count + 1):
        manifest = with_history(manifest, with_thresholds(manifest, at(float(number))), ANN)
    history = manifest.threshold_history
    assert len(history) == HISTORY_LENGTH
    assert [entry.merged for entry in history] == [8] + [1] * (HISTORY_LENGTH - 1)
    assert sum(entry.merged for entry in history) == count
    assert (history[0].changes[0].before, history[0].changes[0].after) == (at(0.0), at(8.0))
    for older, newer in itertools.pairwise(history):
        assert older.changes[0].after == newer.changes[0].before, "no change is missing"
    assert manifest_from_json(json_from_manifest(manifest)) == manifest


def test_entries_of_different_graphs_are_merged_into_one_with_all_of_them() -> None:
    manifest = with_thresholds(tiny_manifest(precisions=("fp32", "fp16")), at(0.0), at(0.0))
    for number in range(1, HISTORY_LENGTH + 2):
        values = (at(1.0), at(0.0)) if number == 1 else (at(1.0), at(float(number)))
        manifest = with_history(manifest, with_thresholds(manifest, *values), ANN)
    first = manifest.threshold_history[0]
    assert [(change.precision, change.before, change.after) for change in first.changes] == [
        ("fp32", at(0.0), at(1.0)),
        ("fp16", at(0.0), at(2.0)),
    ]


def test_the_author_is_the_user_on_this_host_unless_named() -> None:
    before = tiny_manifest()
    (entry,) = with_history(before, before, ChangeOrigin(), chosen=["fp32"]).threshold_history
    assert entry.by == f"{getpass.getuser()}@{socket.gethostname()}"


def test_a_user_without_a_name_is_known_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise OSError("no such user")

    monkeypatch.setattr(getpass, "getuser", nobody)
    before = tiny_manifest()
    (entry,) = with_history(before, before, ChangeOrigin(), chosen=["fp32"]).threshold_history
    assert entry.by.startswith("uid ")


def test_bytes_that_are_no_text_are_kept_escaped() -> None:
    before = tiny_manifest()
    origin = ChangeOrigin(by="ann", reason="a\udce4b")  # as Python gives the argument b"a\xe4b"
    after = with_history(before, before, origin, chosen=["fp32"])
    assert after.threshold_history[0].reason == r"a\udce4b"
    assert manifest_from_json(json_from_manifest(after)).threshold_history == after.threshold_history


@pytest.mark.parametrize(("by", "reason"), [("", ""), ("a" * 201, ""), (None, "a" * 1001)])
def test_a_text_that_does_not_fit_into_the_history_is_refused(by: str | None, reason: str) -> None:
    with pytest.raises(CalibrationError, match="characters, got"):
        ChangeOrigin(by=by, reason=reason)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny.flowedge", precisions=("fp32", "fp16"))


def test_a_calibration_and_the_limit_of_log_nfa_are_in_the_history_of_the_bundle(
    bundle: Bundle, tmp_path: Path
) -> None:
    photographs = write_photographs(tmp_path / "good", 3)
    first = calibrate_bundle(
        bundle, photographs, request=ThresholdRequest(image=0.5), origin=ANN, frame_rate=None
    ).bundle
    decide_by_nfa(first, NfaThreshold(form="tree"))
    manifest = open_bundle(bundle.path).manifest
    fit, nfa = manifest.threshold_history
    assert (fit.by, fit.images, fit.images_sha256) == ("ann@line-3", 3, hash_of_images(photographs))
    assert [change.precision for change in fit.changes] == ["fp32", "fp16"]
    assert [change.before for change in fit.changes] == [Thresholds(), Thresholds()]
    assert [change.after for change in fit.changes] == [change.before for change in nfa.changes]
    assert [change.after for change in nfa.changes] == [graph.thresholds for graph in manifest.graphs]
    assert (nfa.images, nfa.images_sha256) == (0, None)
