"""An export takes names as long as the system allows, and keeps files that another process wrote meanwhile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from flowedge.bundle import open_bundle, write_bundle
from flowedge.drafts import PREFIX
from flowedge.errors import BundleError, CheckpointError
from flowedge.export.pipeline import ExportOptions, export_bundle
from flowedge.manifest_json import json_from_manifest, manifest_from_json
from flowedge.targets import check_bundle_target, default_target
from flowedge.text import printable
from support.command_line import flowedge
from support.recorded_reports import RecordedReports
from support.tiny_bundle import tiny_manifest


def test_a_checkpoint_of_the_longest_name_is_exported(small_checkpoint: Path, tmp_path: Path) -> None:
    name = b"\xff" + "é".encode() * 120 + b"n" * 9 + b".ckpt"
    assert len(name) == 255
    shutil.copy(os.fsencode(small_checkpoint), os.fsencode(tmp_path) + b"/" + name)
    done = flowedge("export", os.fsdecode(name), cwd=tmp_path)
    assert done.status == 0, done.stderr
    (made,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert made.name.endswith(".flowedge")
    assert open_bundle(made).manifest.source.file == "\\udcff" + "é" * 120 + "n" * 9 + ".ckpt"


@pytest.mark.parametrize("stem", ["n", "n" * 250, "é" * 125, "\udcff" * 249, "日" * 83])
def test_the_default_place_has_a_name_that_a_folder_can_have(stem: str, tmp_path: Path) -> None:
    target = tmp_path / default_target(Path(f"{stem}.ckpt"))
    check_bundle_target(target, force=False)
    target.mkdir()
    assert target.name.startswith(stem[:50])


def test_python_names_checkpoint_and_place_with_texts(small_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        export_bundle("absent.ckpt", str(tmp_path / "a.flowedge"), ExportOptions())
    made = export_bundle(str(small_checkpoint), str(tmp_path / "b.flowedge"), ExportOptions())
    assert made.bundle.path == tmp_path / "b.flowedge"


def test_a_place_whose_name_is_too_long_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="File name too long"):
        export_bundle(tmp_path / "no.ckpt", tmp_path / ("n" * 300), ExportOptions())


def test_a_place_that_another_process_took_meanwhile_is_left_as_it_is(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "bottle.flowedge"

    class BeOvertaken(RecordedReports):
        def step(self, name: str, total: int | None = None) -> None:
            assert [one.startswith(PREFIX) for one in os.listdir(tmp_path) if one != target.name] == [True]
            if name == "lowering":
                write_bundle(target, tiny_manifest(), {"model.onnx": b"theirs"})

    with pytest.raises(BundleError, match="written by another process"):
        export_bundle(small_checkpoint, target, ExportOptions(), reports=BeOvertaken())
    assert open_bundle(target).read("model.onnx") == b"theirs"
    assert os.listdir(tmp_path) == [target.name]


@pytest.mark.parametrize("character", ["\udcff", "\x01", "\x1b", "é", "\u200b", "\U000e0001", "n"])
def test_any_name_that_a_file_can_have_can_be_recorded(character: str) -> None:
    longest = character * (255 // len(os.fsencode(character)))
    source = msgspec.structs.replace(tiny_manifest().source, file=printable(longest))
    manifest = msgspec.structs.replace(tiny_manifest(), source=source)
    assert manifest_from_json(json_from_manifest(manifest)) == manifest
