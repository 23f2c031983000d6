"""A bundle is replaced also where its folder cannot be renamed, and drafts of killed processes are removed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import flowedge.drafts
import flowedge.replacing
from flowedge.bundle import Bundle, folder_for_next_version, open_bundle, replace_in_bundle, write_bundle
from flowedge.drafts import PREFIX, draft_folder, remove_own_drafts
from flowedge.errors import BundleError
from flowedge.files import write_whole_file
from flowedge.replacing import folder_for_draft, put_at_free_place
from support.command_line import flowedge as flowedge_command
from support.tiny_bundle import tiny_manifest

FILES: dict[str, Path | bytes] = {"model.onnx": b"old", "selftest/0.png": b"pixels"}


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    """Write a small bundle in a folder that other users can reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "line").mkdir()
        yield write_bundle(Path(folder) / "line" / "bottle.flowedge", tiny_manifest(), FILES)


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[Path]:
    """Mount something on a folder, where this user may mount."""
    done = subprocess.run(["mount", *options, str(place)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("mounting needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def as_nobody(work: Callable[[], str]) -> str:
    """Let a child process do something as a user without root's permissions, and return its answer."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            answer = work()
        except BaseException as error:
            answer = repr(error)
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def own(folder: Path, mode: int) -> None:
    """Give a folder with all that is in it to nobody, and then the folder itself a mode."""
    for place in [folder, *folder.rglob("*")]:
        os.chown(place, 65534, 65534)
    folder.chmod(mode)


def hidden(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


def replace(place: Path) -> str:
    """Replace files of a bundle, and return how far the replacement came."""
    said = ""
    try:
        bundle = open_bundle(place)
        with folder_for_next_version(place):
            said = "may begin"
        replace_in_bundle(bundle, files={"model.onnx": b"new", "calibration.json": b"{}"})
    except BundleError as error:
        said += str(error)
    return said


def test_a_bundle_is_replaced_where_its_parent_cannot_be_written(bundle: Bundle) -> None:
    own(bundle.path, 0o755)
    assert as_nobody(lambda: replace(bundle.path)) == "may begin"
    opened = open_bundle(bundle.path)
    assert opened.read("model.onnx") == b"new"
    assert opened.read("selftest/0.png") == b"pixels"
    assert hidden(bundle.path) == hidden(bundle.path.parent) == []


def test_a_bundle_of_somebody_else_in_a_sticky_folder_is_replaced_inside(bundle: Bundle) -> None:
    bundle.path.parent.chmod(0o1777)
    bundle.path.chmod(0o777)
    assert as_nobody(lambda: replace(bundle.path)) == "may begin"
    assert open_bundle(bundle.path).read("model.onnx") == b"new"
    assert hidden(bundle.path) == hidden(bundle.path.parent) == []


@pytest.mark.parametrize("parent", [0o755, 0o777])
def test_a_read_only_bundle_is_refused_before_the_work(bundle: Bundle, parent: int) -> None:
    bundle.path.parent.chmod(parent)
    said = as_nobody(lambda: replace(bundle.path))
    assert "may begin" not in said
    assert f"{bundle.path} cannot be replaced" in said
    assert open_bundle(bundle.path) == bundle


def test_a_bundle_on_a_read_only_file_system_is_refused_before_the_work(bundle: Bundle) -> None:
    with mounted(bundle.path.parent, "--bind", str(bundle.path.parent)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(bundle.path.parent)], check=True)
        with pytest.raises(BundleError, match="read-only"), folder_for_next_version(bundle.path):
            pytest.fail("the work must not begin")


def test_calibrate_refuses_a_read_only_bundle_before_it_reads_an_image(
    bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with mounted(bundle.path.parent, "--bind", str(bundle.path.parent)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(bundle.path.parent)], check=True)
        done = flowedge_command("calibrate", bundle.path, "--data", tmp_path)
    assert done.status == 2
    assert f"{bundle.path} cannot be replaced" in done.stderr
    assert "broken.png" not in done.stderr


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_a_bundle_that_is_a_mount_point_is_replaced_inside(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "a place"  # the kernel lists its space as \040
    place.mkdir()
    options = ("-t", "tmpfs", "tmpfs") if kind == "tmpfs" else ("--bind", str(bundle.path))
    with mounted(place, *options):
        if kind == "tmpfs":
            shutil.copytree(bundle.path, place, dirs_exist_ok=True)
        assert folder_for_draft(place) == place
        new = replace_in_bundle(open_bundle(place), files={"model.onnx": b"new", "more/file": b"x"})
        assert open_bundle(place).manifest == new.manifest
        assert hidden(place) == hidden(tmp_path) == []
        over = write_bundle(place, tiny_manifest(), {"model.onnx": b"newer"}, overwrite=True)
        assert open_bundle(place) == over
        assert not (place / "calibration.json").exists()


def test_a_full_mount_point_is_named_and_not_the_folder_it_is_in(bundle: Bundle, tmp_path: Path) -> None:
    place = tmp_path / "full"
    place.mkdir()
    with mounted(place, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        shutil.copytree(bundle.path, place, dirs_exist_ok=True)
        with pytest.raises(BundleError, match=f"Check that {place} is a folder"):
            replace_in_bundle(open_bundle(place), files={"model.onnx": bytes(2 << 20)})
        assert hidden(place) == []


def test_a_bundle_with_a_mount_point_in_it_is_refused_before_the_work(bundle: Bundle) -> None:
    with (
        mounted(bundle.path / "selftest", "--bind", str(bundle.path / "selftest")),
        pytest.raises(BundleError, match="selftest in it is a mount point"),
        folder_for_next_version(bundle.path),
    ):
        pytest.fail("the work must not begin")


# A replacement that was cut off, found in a bundle


def committed(bundle: Bundle, tmp_path: Path) -> Path:
    """Put a new version into the bundle as a process leaves it that dies at the moment of the replacement."""
    new = write_bundle(tmp_path / "new", tiny_manifest(), {**FILES, "model.onnx": b"new"})
    shutil.rmtree(new.path / "selftest")
    new.path.rename(bundle.path / ".flowedge-commit")
    return bundle.path / ".flowedge-commit"


def test_the_next_opening_finishes_a_replacement(bundle: Bundle, tmp_path: Path) -> None:
    committed(bundle, tmp_path)
    assert open_bundle(bundle.path).read("model.onnx") == b"new"
    assert hidden(bundle.path) == []


def test_who_may_not_write_is_told_who_can_finish_a_replacement(bundle: Bundle, tmp_path: Path) -> None:
    commit = committed(bundle, tmp_path)
    assert "interrupted" in as_nobody(lambda: replace(bundle.path))
    assert commit.exists()


def test_a_replacement_that_would_not_be_whole_is_not_finished(bundle: Bundle, tmp_path: Path) -> None:
    commit = committed(bundle, tmp_path)
    (commit / "model.onnx").write_bytes(b"n?w")
    with pytest.raises(BundleError, match=r"model\.onnx is not the file that was written"):
        open_bundle(bundle.path)
    assert (bundle.path / "model.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("link", ["selftest", ".flowedge-commit"])
def test_nothing_is_moved_through_a_link(bundle: Bundle, tmp_path: Path, link: str) -> None:
    """A bundle from elsewhere may hold a prepared replacement, which must not write outside the folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    new = write_bundle(tmp_path / "new", tiny_manifest(), {**FILES, "selftest/0.png": b"evil!!"})
    new.path.rename(bundle.path / ".flowedge-commit")
    shutil.rmtree(bundle.path / "selftest")
    if link == "selftest":
        (bundle.path / "selftest").symlink_to(elsewhere)
    else:
        (bundle.path / link).rename(elsewhere / "commit")
        (bundle.path / link).symlink_to(elsewhere / "commit")
    before = sorted(elsewhere.rglob("*"))
    with pytest.raises(BundleError, match="symbolic link"):
        open_bundle(bundle.path)
    assert sorted(elsewhere.rglob("*")) == before


def test_a_reader_during_replacements_sees_whole_versions(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that is still being written is refused for its hashes, and not taken for an interrupted one."""

    def refuse(one: Path, other: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(flowedge.replacing, "_exchange", refuse)
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            written = bundle
            for number in range(30):
                files: dict[str, Path | bytes] = {
                    "model.onnx": b"%d" % number,
                    "selftest/0.png": b"%d" % number,
                }
                written = replace_in_bundle(written, files=files)
            status = 0
        os._exit(status)
    seen = 0
    refused: list[str] = []
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        try:
            opened = open_bundle(bundle.path)
            assert opened.read("model.onnx") in (b"old", opened.read("selftest/0.png"))
            seen += 1
        except BundleError as error:
            refused.append(str(error))
    assert ended == (child, 0)
    assert [reason for reason in refused if "manifest lists" not in reason] == []
    assert open_bundle(bundle.path).read("model.onnx") == b"29"
    assert seen


# Drafts


def killed_in_a_draft(parent: Path) -> Path:
    """Let a process be killed while it has a draft, and return the draft."""
    child = os.fork()
    if child == 0:
        with draft_folder(parent) as draft:
            (draft / "model.onnx").write_bytes(b"large")
            os._exit(9)
    os.waitpid(child, 0)
    (left,) = parent.glob(f"{PREFIX}*")
    return left


def test_the_draft_of_a_killed_process_is_removed_by_the_next_one(tmp_path: Path) -> None:
    left = killed_in_a_draft(tmp_path)
    with draft_folder(tmp_path) as draft:
        assert os.listdir(tmp_path) == [draft.name]
        assert draft != left
    assert os.listdir(tmp_path) == []


def test_the_draft_of_a_living_process_stays(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        with draft_folder(tmp_path):
            os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        while not (theirs := list(tmp_path.glob(f"{PREFIX}*/lock"))):
            pass
        with draft_folder(tmp_path):
            assert theirs[0].exists()
    finally:
        os.close(writing)
        os.waitpid(child, 0)
    assert os.listdir(tmp_path) == []


def test_two_drafts_of_one_process_leave_each_other_alone(tmp_path: Path) -> None:
    with draft_folder(tmp_path) as one:
        with draft_folder(tmp_path) as other:
            assert one.exists()
            assert other.exists()
        assert one.exists()


def test_the_draft_of_another_machine_is_never_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = killed_in_a_draft(tmp_path)
    monkeypatch.setattr(flowedge.drafts, "_marks", lambda: ("0" * 8, "1" * 8))
    with draft_folder(tmp_path):
        assert left.exists()


def test_a_draft_from_before_a_restart_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = killed_in_a_draft(tmp_path)
    machine = left.name.removeprefix(PREFIX).split("-")[1]
    monkeypatch.setattr(flowedge.drafts, "_marks", lambda: ("0" * 8, machine))
    with draft_folder(tmp_path):
        assert not left.exists()


def test_what_only_looks_like_a_draft_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "dear").mkdir()
    (tmp_path / "dear" / "file").write_bytes(b"dear")
    with draft_folder(tmp_path) as draft:
        name = draft.name
    (tmp_path / f"{name}1").symlink_to("dear")
    (tmp_path / f"{name}2").write_bytes(b"dear")
    (tmp_path / f"{PREFIX}mine").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with draft_folder(tmp_path):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_process_removes_its_drafts_at_the_end(tmp_path: Path) -> None:
    draft = draft_folder(tmp_path)
    draft.__enter__()
    assert len(os.listdir(tmp_path)) == 1
    remove_own_drafts()
    assert os.listdir(tmp_path) == []


def test_the_one_who_comes_second_to_a_place_is_told_so(bundle: Bundle, tmp_path: Path) -> None:
    late = write_bundle(tmp_path / "late", tiny_manifest(), FILES)
    with pytest.raises(BundleError, match="written by another process in the meantime"):
        put_at_free_place(late.path, bundle.path)
    assert open_bundle(bundle.path) == bundle
    assert json.loads((late.path / "manifest.json").read_bytes())


@pytest.mark.parametrize("way", ["exchange", "two steps", "inside"])
def test_a_file_that_somebody_put_into_a_bundle_stays(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The folder is exchanged as a whole, so a note of the user must come along, also beside a file of FlowEdge."""
    if way == "two steps":
        monkeypatch.setattr(flowedge.replacing, "_CANNOT_EXCHANGE", {errno.ENOENT, errno.EXDEV, errno.EINVAL})
        monkeypatch.setattr(
            flowedge.replacing,
            "_exchange",
            lambda one, other: (_ for _ in ()).throw(OSError(errno.EINVAL, "no")),
        )
    if way == "inside":
        monkeypatch.setattr(flowedge.replacing, "_may_rename", lambda place: False)
    (bundle.path / "README.txt").write_text("camera 3")
    (bundle.path / "selftest" / "note.txt").write_text("keep")
    (bundle.path / "photos").mkdir()
    (bundle.path / "photos" / "one.png").write_bytes(b"pixels")
    (bundle.path / "latest").symlink_to(tmp_path, target_is_directory=True)
    replaced = replace_in_bundle(bundle, files={"model.onnx": b"new"})
    assert replaced.read("model.onnx") == b"new"
    assert (bundle.path / "README.txt").read_text() == "camera 3"
    assert (bundle.path / "selftest" / "note.txt").read_text() == "keep"
    assert (bundle.path / "photos" / "one.png").read_bytes() == b"pixels"
    assert os.readlink(bundle.path / "latest") == str(tmp_path)
    assert open_bundle(bundle.path).manifest == replaced.manifest


def test_an_old_file_of_flowedge_does_not_come_along(bundle: Bundle) -> None:
    manifest = tiny_manifest()
    (bundle.path / "note.txt").write_text("keep")
    write_bundle(bundle.path, manifest, {"model.onnx": b"new"}, overwrite=True)
    assert sorted(path.name for path in bundle.path.iterdir() if path.is_file()) == [
        "manifest.json", "model.onnx", "note.txt",
    ]  # fmt: skip
    assert not (bundle.path / "selftest").exists()


def test_a_bundle_of_the_longest_name_is_written_and_replaced(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / ("n" * 255), tiny_manifest(), FILES)
    assert replace_in_bundle(bundle, files={"model.onnx": b"new"}) == open_bundle(bundle.path)


# Files that a user names


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "report.json"
    place.write_bytes(b"old")
    link = tmp_path / "latest"
    link.symlink_to(place.name)
    write_whole_file(link, b"new")
    assert link.is_symlink()
    assert place.read_bytes() == b"new"

    def interrupt(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole_file(place, b"newer")
    assert sorted(os.listdir(tmp_path)) == ["latest", "report.json"]
    assert place.read_bytes() == b"new"


def test_a_pipe_and_a_device_are_written_to_and_stay(tmp_path: Path) -> None:
    write_whole_file(Path("/dev/null"), b"x")
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole_file(tmp_path / "pipe", b"x")
    assert os.read(reader, 10) == b"x"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
