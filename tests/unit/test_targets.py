"""A target that exists is replaced on request alone, in one step, and only where FlowEdge wrote it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from flowedge.bundle import Bundle, clone_bundle, open_bundle
from flowedge.errors import BundleError, FlowEdgeError
from flowedge.manifest import Manifest
from flowedge.runtime.report.shell import page_of
from flowedge.targets import check_bundle_target, check_demo_target, check_file_target, put_bundle
from support.command_line import flowedge
from support.tiny_bundle import write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "old.flowedge")


@pytest.fixture
def draft(bundle: Bundle, tmp_path: Path) -> tuple[Path, Manifest]:
    """A new version with one file of the old one less."""
    made = clone_bundle(bundle, tmp_path / "draft", files={"model.onnx": b"new"})
    return made.path, made.manifest


def test_a_bundle_is_replaced_on_request_alone(bundle: Bundle, draft: tuple[Path, Manifest]) -> None:
    with pytest.raises(BundleError, match=r"exists already\. Replace it with --force"):
        check_bundle_target(bundle.path, force=False)
    check_bundle_target(bundle.path, force=True)
    put_bundle(draft[0], bundle.path, draft[1], force=True)
    assert open_bundle(bundle.path).read("model.onnx") == b"new"


def test_a_link_to_a_bundle_stays_a_link(
    bundle: Bundle, draft: tuple[Path, Manifest], tmp_path: Path
) -> None:
    link = tmp_path / "link.flowedge"
    link.symlink_to(bundle.path)
    check_bundle_target(link, force=True)
    put_bundle(draft[0], link, draft[1], force=True)
    assert link.is_symlink()
    assert open_bundle(bundle.path).read("model.onnx") == b"new"


@pytest.mark.parametrize("name", ["notes.txt", "sub/notes.txt", ".hidden"])
def test_a_file_of_somebody_else_in_a_bundle_is_never_deleted(bundle: Bundle, name: str) -> None:
    mine = bundle.path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(BundleError, match=name):
        check_bundle_target(bundle.path, force=True)
    assert mine.read_text() == "mine"


def test_a_folder_or_a_file_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "file").write_text("mine")
    for name in ("photos", "file"):
        with pytest.raises(BundleError, match="--force replaces only what FlowEdge wrote"):
            check_bundle_target(tmp_path / name, force=True)


def test_a_place_without_a_parent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a folder"):
        check_bundle_target(tmp_path / "missing" / "b.flowedge", force=True)
    with pytest.raises(FlowEdgeError, match="not a folder"):
        check_file_target(tmp_path / "missing" / "page.html", force=True)


def test_a_page_is_replaced_on_request_and_a_page_of_somebody_else_never(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    check_file_target(page, force=False)
    page.write_text(page_of("Title", []))
    with pytest.raises(FlowEdgeError, match=r"exists already\. Replace it with --force"):
        check_file_target(page, force=False)
    check_file_target(page, force=True)
    page.write_text("<html>my FlowEdge notes</html>")
    with pytest.raises(FlowEdgeError, match="not written by FlowEdge"):
        check_file_target(page, force=True)


def test_a_pipe_and_a_device_are_written_to_without_the_option(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    check_file_target(tmp_path / "pipe", force=False)
    check_file_target(Path("/dev/null"), force=False)
    with pytest.raises(FlowEdgeError, match="is a folder"):
        check_file_target(tmp_path, force=True)


def test_a_demo_is_replaced_on_request_alone(tmp_path: Path) -> None:
    check_demo_target(tmp_path, force=False)
    (tmp_path / ".flowedge-demo").touch()
    with pytest.raises(FlowEdgeError, match=r"earlier demo\. Replace it with --force"):
        check_demo_target(tmp_path, force=False)
    check_demo_target(tmp_path, force=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").touch()
    (tmp_path / ".flowedge-demo").write_text(
        "flowedge demo --force replaces these files.\nphotos\nphotos/1.png\n"
    )
    (tmp_path / "notes.txt").write_text("mine, and not in a folder that the demo clears")
    check_demo_target(tmp_path, force=True)
    (tmp_path / "photos" / "mine.png").touch()
    with pytest.raises(FlowEdgeError, match=r"no demo wrote, photos/mine\.png"):
        check_demo_target(tmp_path, force=True)


def test_export_replaces_a_bundle_with_force(
    small_checkpoint: Path, small_bundle: Path, tmp_path: Path
) -> None:
    target = tmp_path / "old.flowedge"
    shutil.copytree(write_tiny_bundle(tmp_path / "tiny.flowedge").path, target)
    before = open_bundle(target).manifest
    refused = flowedge("export", small_checkpoint, "-o", target)
    assert refused.status == 2
    assert "--force" in refused.stderr
    assert open_bundle(target).manifest == before
    done = flowedge("export", small_checkpoint, "-o", target, "--force")
    assert done.status == 0, done.stderr
    assert open_bundle(target).manifest.source == open_bundle(small_bundle).manifest.source
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.flowedge", "tiny.flowedge"]


def test_a_dash_is_no_file_but_for_csv(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for command in (
        ("run", bundle.path, tmp_path / "photos", "--html", "-"),
        ("eval", bundle.path, tmp_path / "photos", "--html", "-"),
        ("bench", bundle.path, "--markdown", "-"),
    ):
        refused = flowedge(*command, cwd=tmp_path)
        assert refused.status == 2
        assert "/dev/stdout for standard output" in refused.stderr
    assert not (tmp_path / "-").exists()


def test_two_options_never_write_one_file(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "here").symlink_to(tmp_path)
    for command in (
        ("run", bundle.path, tmp_path / "photos", "--csv", "a.out", "--html", "here/a.out"),
        ("bench", bundle.path, "--html", "a.out", "--markdown", "./a.out"),
    ):
        refused = flowedge(*command, cwd=tmp_path)
        assert refused.status == 2
        assert "two options name" in refused.stderr
    assert not (tmp_path / "a.out").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "file/below/it"])
def test_a_file_is_no_folder_for_pictures(bundle: Bundle, tmp_path: Path, place: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "file").write_text("mine")
    refused = flowedge("run", bundle.path, tmp_path / "photos", "--out", place, cwd=tmp_path)
    assert refused.status == 2
    assert f"{place} cannot be a folder: file is a file. Name another --out." in refused.stderr
    assert (tmp_path / "file").read_text() == "mine"
