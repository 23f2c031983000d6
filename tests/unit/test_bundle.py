"""A bundle opens only when every byte fits its hash, and is never half-written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

import flowedge.replacing
from flowedge.bundle import Bundle, open_bundle, replace_in_bundle, write_bundle
from flowedge.errors import BundleError
from flowedge.manifest import Manifest
from support.edited_manifest import edit_manifest
from support.tiny_bundle import tiny_manifest

FILES: dict[str, Path | bytes] = {"model.onnx": b"a graph", "selftest/0.png": b"pixels", "empty": b""}
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Write a bundle of three small files, one of them in a folder and one of them empty."""
    return write_bundle(tmp_path / "bottle.flowedge", tiny_manifest(), FILES)


def leftovers(folder: Path, *names: str) -> list[str]:
    return sorted(set(os.listdir(folder)) - set(names))


def test_what_was_written_is_what_is_read(bundle: Bundle) -> None:
    again = open_bundle(bundle.path)
    assert again == bundle
    assert {stored.path: again.read(stored.path) for stored in again.manifest.files} == FILES
    assert again.graph_path("fp32").read_bytes() == b"a graph"


def test_the_manifest_lists_the_size_and_sha256_of_every_file(bundle: Bundle) -> None:
    listed = json.loads((bundle.path / "manifest.json").read_bytes())["files"]
    assert listed == [
        {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in sorted(FILES.items())
        if isinstance(content, bytes)
    ]


def test_a_file_is_copied_from_its_path(tmp_path: Path) -> None:
    source = tmp_path / "source.onnx"
    source.write_bytes(os.urandom(3_000_000))
    bundle = write_bundle(tmp_path / "b", tiny_manifest(), {"model.onnx": source})
    assert bundle.graph_path("fp32").read_bytes() == source.read_bytes()
    assert leftovers(tmp_path, "b", "source.onnx") == []


def test_other_users_may_read_a_bundle_as_the_umask_says(bundle: Bundle) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert bundle.path.stat().st_mode & 0o777 == 0o777 & ~umask
    assert (bundle.path / "model.onnx").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_folder_of_any_name_and_a_link_to_a_bundle_are_accepted(bundle: Bundle, tmp_path: Path) -> None:
    bundle.path.rename(tmp_path / "v2")
    (tmp_path / "current").symlink_to("v2")
    assert open_bundle(str(tmp_path / "current")).manifest == bundle.manifest


def test_a_file_that_is_not_listed_is_left_alone_and_cannot_be_read(bundle: Bundle) -> None:
    (bundle.path / ".DS_Store").write_bytes(b"?")
    with pytest.raises(BundleError, match=r"no file '\.DS_Store'"):
        open_bundle(bundle.path).read(".DS_Store")


def test_a_precision_that_is_not_there_is_named(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no int8 graph"):
        bundle.graph_path("int8")


# Bundles that are refused on opening


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.onnx", 3)


def grow(folder: Path) -> None:
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"x")


def flip_a_bit(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"a grapi")


def remove(folder: Path) -> None:
    (folder / "selftest" / "0.png").unlink()


def make_a_folder_of_it(folder: Path) -> None:
    (folder / "empty").unlink()
    (folder / "empty").mkdir()


def make_a_pipe_of_it(folder: Path) -> None:
    (folder / "empty").unlink()
    os.mkfifo(folder / "empty")


def link_a_file(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent / "elsewhere.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere.onnx")


def link_a_folder(folder: Path) -> None:
    (folder / "selftest").rename(folder.parent / "elsewhere")
    (folder / "selftest").symlink_to("../elsewhere")


def link_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").rename(folder.parent / "elsewhere.json")
    (folder / "manifest.json").symlink_to("../elsewhere.json")


def remove_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def cut_the_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 100)


def swell_the_manifest(folder: Path) -> None:
    with (folder / "manifest.json").open("ab") as file:
        file.truncate((4 << 20) + 1)


def nest_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b'{"schema": 2, "x":' + b"[" * 100_000)


def be_from_the_future(folder: Path) -> None:
    edit_manifest(folder, lambda content: content.update(schema=99))


def list_a_file_twice(folder: Path) -> None:
    edit_manifest(folder, lambda content: content["files"].append(content["files"][0]))


def list_names_that_clash_where_capitals_do_not_count(folder: Path) -> None:
    edit_manifest(folder, lambda content: content["files"].append({**content["files"][0], "path": "EMPTY"}))


def list_the_manifest_itself(folder: Path) -> None:
    edit_manifest(folder, lambda content: content["files"][0].update(path="manifest.json"))


def leave_out_the_graph(folder: Path) -> None:
    edit_manifest(folder, lambda content: content["files"].pop(1))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, r"model\.onnx has 3 bytes, and the manifest lists 7"),
        (grow, r"model\.onnx has 8 bytes, and the manifest lists 7"),
        (flip_a_bit, r"model\.onnx is not the file that was written: its SHA-256 is [0-9a-f]{64}"),
        (remove, r"selftest/0\.png cannot be read: No such file"),
        (make_a_folder_of_it, r"empty cannot be read: it is a folder"),
        (make_a_pipe_of_it, r"empty cannot be read: it is a named pipe"),
        (link_a_file, r"model\.onnx is a symbolic link"),
        (link_a_folder, r"selftest is a symbolic link"),
        (link_the_manifest, r"manifest\.json is a symbolic link"),
        (remove_the_manifest, r"is a folder, and no bundle: it has no manifest\.json"),
        (cut_the_manifest, r"manifest\.json is not a FlowEdge manifest"),
        (swell_the_manifest, r"manifest\.json is larger than 4194304 bytes"),
        (nest_the_manifest, r"manifest\.json is nested too deeply"),
        (be_from_the_future, r"schema 99.*Install a newer FlowEdge"),
        (list_a_file_twice, r"'empty' is in the bundle twice"),
        (list_names_that_clash_where_capitals_do_not_count, r"'EMPTY' is in the bundle twice"),
        (list_the_manifest_itself, r"'manifest\.json' is in the bundle twice"),
        (leave_out_the_graph, r"the fp32 graph 'model\.onnx' is not among the bundle's files"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_damaged_bundle_is_refused_with_the_reason(
    bundle: Bundle, damage: Callable[[Path], None], reason: str
) -> None:
    damage(bundle.path)
    with pytest.raises(BundleError, match=reason) as caught:
        open_bundle(bundle.path)
    assert str(bundle.path) in str(caught.value)


ESCAPES = [
    "/etc/passwd",
    "../secret",
    "a/../../secret",
    "a/./b",
    "..",
    ".",
    "a//b",
    "a/",
    "..\\secret",
    "C:\\secret",
    "C:secret",
    "a\x00b",
    "a\nb",
    "\ufb01le",  # a ligature that some file systems fold to "file"
    ".hidden",
    "~root",
    "a b",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_a_path_that_could_leave_the_folder_is_refused_on_open(bundle: Bundle, path: str) -> None:
    edit_manifest(bundle.path, lambda content: content["files"][0].update(path=path))
    with pytest.raises(BundleError, match=re.escape(f"{path!r} is not a path that a bundle may hold")):
        open_bundle(bundle.path)


@pytest.mark.parametrize("path", [*ESCAPES, ""])
def test_a_path_that_could_leave_the_folder_is_not_written(tmp_path: Path, path: str) -> None:
    with pytest.raises(BundleError, match="is not a path that a bundle may hold"):
        write_bundle(tmp_path / "b", tiny_manifest(), {**FILES, path: b"x"})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("files", [{"manifest.json": b""}, {"a": b"", "A": b""}, {}])
def test_a_bundle_that_could_not_be_opened_is_not_written(
    tmp_path: Path, files: dict[str, Path | bytes]
) -> None:
    with pytest.raises(BundleError):
        write_bundle(tmp_path / "b", tiny_manifest(), files)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"nothing is not a bundle: no such folder\. .* flowedge export CKPT -o \S*/nothing$"),
        ("x" * 300, r"is not a bundle: no such folder"),
        (
            "my model.ckpt",
            r"is a checkpoint, and no bundle\. .*: flowedge export '\S*/my model\.ckpt' -o '\S*/my model\.flowedge'$",
        ),
        ("a.pth", r"is a checkpoint, and no bundle"),
        ("a.pt", r"is a checkpoint, and no bundle"),
        ("a.onnx", r"is an ONNX file, and no bundle\. .*: flowedge export CKPT -o \S*/a\.flowedge$"),
        ("photo.png", r"photo\.png is a file, and a bundle is a folder"),
        ("b/model.onnx", r"is a file of the bundle \S*/b\. Name the bundle"),
        ("b/manifest.json", r"is a file of the bundle \S*/b\. Name the bundle"),
        (
            "empty",
            r"empty is a folder, and no bundle: it has no manifest\.json\. Name the folder that flowedge",
        ),
        (".", r"is a folder, and no bundle: .* Did you mean \S*/b\?"),
    ],
)
def test_what_is_no_bundle_is_refused_with_the_next_step(tmp_path: Path, name: str, message: str) -> None:
    write_bundle(tmp_path / "b", tiny_manifest(), {"model.onnx": b"graph"})
    (tmp_path / "empty").mkdir()
    for file in ("my model.ckpt", "a.pth", "a.pt", "a.onnx", "photo.png"):
        (tmp_path / file).write_bytes(b"content")
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path / name)


def test_a_file_that_changed_after_the_opening_is_not_read(bundle: Bundle) -> None:
    flip_a_bit(bundle.path)
    with pytest.raises(BundleError, match="SHA-256"):
        bundle.read("model.onnx")


# Bundles that are refused on writing, which leaves nothing behind


def test_an_existing_target_is_not_overwritten_unless_asked(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"exists already.*choose another name"):
        write_bundle(bundle.path, tiny_manifest(), {"model.onnx": b"new"})
    assert open_bundle(bundle.path) == bundle
    written = write_bundle(bundle.path, tiny_manifest(), {"model.onnx": b"new"}, overwrite=True)
    assert open_bundle(bundle.path) == written
    assert leftovers(bundle.path, "manifest.json") == ["model.onnx"]
    assert leftovers(bundle.path.parent, bundle.path.name) == []


def test_a_folder_that_is_not_a_bundle_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "only.jpg").write_bytes(b"dear")
    (tmp_path / "file").write_bytes(b"dear")
    for name in ("photographs", "file"):
        with pytest.raises(BundleError, match="exists and is not a bundle"):
            write_bundle(tmp_path / name, tiny_manifest(), FILES, overwrite=True)
    assert (tmp_path / "photographs" / "only.jpg").read_bytes() == b"dear"


def test_a_missing_parent_or_source_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"No such file or directory.*no/such is a folder"):
        write_bundle(tmp_path / "no" / "such" / "b", tiny_manifest(), FILES)
    with pytest.raises(BundleError, match=r"No such file or directory.*gone\.onnx"):
        write_bundle(tmp_path / "b", tiny_manifest(), {"model.onnx": tmp_path / "gone.onnx"})
    assert os.listdir(tmp_path) == []


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """Mount a new memory disk, or skip the test where this user may not mount one."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if (
        shutil.which("mount") is None
        or subprocess.run(command, capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=64k") as disk:
        with pytest.raises(BundleError, match=r"No space left on device.*enough space"):
            write_bundle(disk / "b", tiny_manifest(), {"model.onnx": bytes(1_000_000)})
        assert os.listdir(disk) == []


def test_a_full_disk_leaves_the_old_version_when_replacing(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=256k") as disk:
        bundle = write_bundle(disk / "b", tiny_manifest(), FILES)
        with pytest.raises(BundleError, match="No space left on device"):
            replace_in_bundle(bundle, files={"model.onnx": bytes(1_000_000)})
        assert open_bundle(disk / "b") == bundle
        assert os.listdir(disk) == ["b"]


def test_a_read_only_disk_is_one_clear_error(tmp_path: Path) -> None:
    with (
        mounted(tmp_path / "locked", "ro") as disk,
        pytest.raises(BundleError, match="Read-only file system"),
    ):
        write_bundle(disk / "b", tiny_manifest(), FILES)


def run_script(script: str, *arguments: str) -> str:
    """Run a script in a process of its own, with the library and ``tests`` on its path."""
    script = f"import sys; sys.path[:0] = {[str(TESTS.parent), str(TESTS)]!r}\n{script}"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_a_file_size_limit_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    script = """
import resource
from pathlib import Path
from flowedge.bundle import write_bundle
from flowedge.errors import BundleError
from support.tiny_bundle import tiny_manifest
sys.dont_write_bytecode = True  # Python would keep compiled modules that the limit cut
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_bundle(Path(sys.argv[1]), tiny_manifest(), {"model.onnx": bytes(100_000)})
except BundleError as error:
    print(error)
"""
    assert "File too large" in run_script(script, str(tmp_path / "b"))
    assert os.listdir(tmp_path) == []


# Replacing


def test_replacing_changes_the_named_files_and_keeps_the_others(bundle: Bundle) -> None:
    inode = (bundle.path / "selftest/0.png").stat().st_ino
    manifest = msgspec.structs.replace(bundle.manifest, licence_note="research only")
    new = replace_in_bundle(
        bundle, manifest=manifest, files={"model.onnx": b"new", "calibration.json": b"{}"}
    )
    assert open_bundle(bundle.path) == new
    assert new.manifest.licence_note == "research only"
    assert {stored.path: new.read(stored.path) for stored in new.manifest.files} == {
        **FILES,
        "model.onnx": b"new",
        "calibration.json": b"{}",
    }
    assert (bundle.path / "selftest/0.png").stat().st_ino == inode
    assert leftovers(bundle.path.parent, bundle.path.name) == []


def test_replacing_through_a_link_changes_what_it_points_to(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle.path.name)
    new = replace_in_bundle(open_bundle(tmp_path / "current"), files={"model.onnx": b"new"})
    assert (tmp_path / "current").is_symlink()
    assert open_bundle(bundle.path).manifest == new.manifest


def test_a_version_that_somebody_else_replaced_is_not_replaced_again(bundle: Bundle) -> None:
    newer = replace_in_bundle(
        bundle, manifest=msgspec.structs.replace(bundle.manifest, licence_note="theirs")
    )
    with pytest.raises(BundleError, match="changed since it was opened"):
        replace_in_bundle(bundle, files={"model.onnx": b"mine"})
    assert open_bundle(bundle.path) == newer


def test_a_kept_file_that_was_damaged_is_not_carried_into_the_new_version(bundle: Bundle) -> None:
    (bundle.path / "selftest/0.png").write_bytes(b"PIXELS")
    with pytest.raises(BundleError, match=r"selftest/0\.png is not the file that was written"):
        replace_in_bundle(bundle, files={"model.onnx": b"new"})
    assert leftovers(bundle.path.parent, bundle.path.name) == []


def refuse_to_exchange(one: Path, other: Path) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def test_two_renames_do_where_the_file_system_cannot_exchange(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flowedge.replacing, "_exchange", refuse_to_exchange)
    new = replace_in_bundle(bundle, files={"model.onnx": b"new"})
    assert open_bundle(bundle.path) == new
    assert leftovers(bundle.path.parent, bundle.path.name) == []


def test_files_are_copied_where_the_file_system_has_no_hard_links(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    new = replace_in_bundle(bundle, files={"model.onnx": b"new"})
    assert open_bundle(bundle.path) == new


CRASHES = """
# Each child process dies at its own event of the replacement; one at last survives.
import os
from pathlib import Path
import flowedge.replacing
from flowedge.bundle import folder_for_next_version, open_bundle, write_bundle
from support.tiny_bundle import tiny_manifest

target, code = Path(sys.argv[1]), int(sys.argv[2])
os.fsync = lambda descriptor: None  # what a process wrote outlives it without
if code:
    def refuse(one, other):
        raise OSError(code, "refused")
    flowedge.replacing._exchange = refuse
files = {"model.onnx": b"old", "other": b"kept", "inner/file": b"old", "dropped": b"old"}
old = write_bundle(target, tiny_manifest(), files)
seen = {"old": 0, "new": 0}
for last_event in range(1000):
    child = os.fork()
    if child == 0:
        left = [last_event]
        def die(event, arguments):
            if event.startswith(("os.", "open", "shutil.", "ctypes.", "fcntl.")):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
        sys.addaudithook(die)
        new_files = {"model.onnx": b"new", "other": b"kept", "inner/file": b"new", "added/file": b"new"}
        write_bundle(target, old.manifest, new_files, overwrite=True)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    opened = open_bundle(target)
    version = opened.read("model.onnx").decode()
    assert opened.read("inner/file").decode() == version
    assert ("dropped" in os.listdir(target)) == (version == "old")
    seen[version] += 1
    with folder_for_next_version(target):  # the next command there removes what was left
        pass
    assert os.listdir(target.parent) == [target.name]
    assert not [name for name in os.listdir(target) if name.startswith(".")]
    if status == 0:
        break
    if version == "new":
        old = write_bundle(target, old.manifest, files, overwrite=True)
print(status, version, seen["old"] > 10, seen["new"] > 5)
"""


@pytest.mark.parametrize(
    "code",
    [0, errno.EINVAL, errno.EXDEV],
    ids=["exchanged", "renamed twice", "replaced inside"],
)
def test_a_crash_at_any_point_leaves_the_old_or_the_new_version_whole(code: int) -> None:
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a hundred versions are written
    with tempfile.TemporaryDirectory(dir=in_memory) as folder:
        assert run_script(CRASHES, f"{folder}/b", str(code)) == "0 new True True\n"


def test_the_bundle_is_there_at_every_moment_of_a_replacement(bundle: Bundle) -> None:
    missing = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal missing
        while not done.is_set():
            missing += not os.path.exists(bundle.path / "manifest.json")

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(20):
        bundle = replace_in_bundle(bundle, files={"model.onnx": str(number).encode()})
    done.set()
    watcher.join()
    assert missing == 0


def test_the_given_manifest_need_not_know_the_files(tmp_path: Path) -> None:
    manifest: Manifest = tiny_manifest()
    assert manifest.files == ()
    assert len(write_bundle(tmp_path / "b", manifest, FILES).manifest.files) == len(FILES)
