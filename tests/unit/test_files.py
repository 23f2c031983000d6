"""A path that a user names is opened only where it is a regular file."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flowedge import load
from flowedge.files import open_regular_file, utf8_name
from support.tiny_bundle import write_tiny_bundle


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))  # a socket's name may have about 100 bytes


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "named pipe"),
        (os.mkdir, "folder"),
        (_socket, "socket"),
        (lambda path: path.symlink_to("/dev/zero"), "device"),
    ],
    ids=["pipe", "folder", "socket", "device"],
)
def test_what_is_no_file_is_refused_at_once_by_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.ckpt"
    make(path)
    found: list[OSError] = []

    def opens() -> None:
        try:
            open_regular_file(path)
        except OSError as error:
            found.append(error)

    # A daemon, so that an opening that waits fails this test and does not hang the run.
    thread = threading.Thread(target=opens, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert found
    assert kind in str(found[0].strerror)
    assert isinstance(found[0], IsADirectoryError) == (kind == "folder")


def test_a_link_is_followed_only_where_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    link = tmp_path / "link"
    link.symlink_to("file")
    with open_regular_file(link) as file:
        assert file.read() == b"content"
    with pytest.raises(OSError, match="symbolic link"):
        open_regular_file(link, follow_links=False)


def test_a_missing_file_and_a_dangling_link_are_not_found(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("missing", "dangling"):
        with pytest.raises(FileNotFoundError):
            open_regular_file(tmp_path / name)


def test_a_file_whose_name_is_not_utf8_is_opened(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xffd.ckpt"))
    path.write_bytes(b"content")
    with open_regular_file(path) as file:
        assert file.read() == b"content"


def test_a_file_in_a_folder_whose_name_is_not_utf8_has_a_name_that_is(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xffd"))
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"content")
    with utf8_name(folder / "model.onnx") as name:
        assert Path(name.encode("utf-8").decode()).read_bytes() == b"content"
    with utf8_name(tmp_path / "plain") as name:
        assert name == str(tmp_path / "plain")


def test_a_bundle_in_a_folder_whose_name_is_not_utf8_runs(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xffd"))
    folder.mkdir()
    write_tiny_bundle(folder / "tiny")
    with load(folder / "tiny", engine="onnxruntime-cpu") as detector:
        assert detector.engine.name == "onnxruntime-cpu"
