"""Commands work without a cache folder where they can, and otherwise say that they need one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowedge.errors import EngineCacheError
from flowedge.runtime.device.cache_folder import NOWHERE, cache_folder
from flowedge.runtime.device.device_cache import DeviceCache, device_cache
from support.command_line import flowedge
from support.engine_facts import facts

NO_USER = 12345  # a number without an entry in the list of users, as of `docker run --user 12345`
AS_NO_USER = f"""
import os, sys
for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "FLOWEDGE_CACHE_DIR"):
    os.environ.pop(name, None)
os.setresuid({NO_USER}, -1, -1)  # the user alone: the folders of this Python may be another's
sys.argv = ["flowedge", *sys.argv[1:]]
from flowedge.cli import main
main()
"""


@pytest.fixture
def somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set an environment that names no cache folder."""
    for name in ("FLOWEDGE_CACHE_DIR", "FLOWEDGE_CACHE_SIZE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def as_no_user(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if os.geteuid() != 0:
        pytest.skip("another user's number is only root's to take")
    command = [sys.executable, "-c", AS_NO_USER, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_number_without_a_user_and_a_home_is_told_that_there_is_no_cache() -> None:
    assert "no home folder" in json.loads(as_no_user("doctor", "--json").stdout)["machine"]["engine_cache"]
    listed = as_no_user("cache", "list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert str(NO_USER) in listed.stdout
    cleared = as_no_user("cache", "clear")
    assert cleared.returncode == 2
    assert "FLOWEDGE_CACHE_DIR" in cleared.stderr


@pytest.mark.parametrize("home", ["", "/no/such/home", "relative", "/dev/null"])
def test_a_home_that_is_none_gives_no_cache_and_is_not_made(
    home: str, somewhere: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(os, "getuid", lambda: NO_USER)
    assert cache_folder() == NOWHERE
    cache = device_cache()
    assert "no home folder" in cache.problem
    cache.write_extra("ranges/1", b"kept?")
    assert (cache.read_extra("ranges/1"), cache.files()) == (b"", [])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EngineCacheError, match="FLOWEDGE_CACHE_DIR"):
        cache.find_or_build(facts(), lambda: b"an engine")


def test_the_users_list_is_asked_where_home_is_not_set(
    somewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwd = pytest.importorskip("pwd")
    monkeypatch.delenv("HOME", raising=False)
    assert cache_folder() == Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache/flowedge"


def test_auto_measures_without_remembering(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("FLOWEDGE_CACHE_SIZE", "0")
    (tmp_path / "file").write_text("no folder")
    import flowedge as package

    with package.load(small_bundle, engine="onnxruntime-cpu", precision="auto", threads=1) as detector:
        assert detector.precision == "fp32"
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_cache_of_no_size_keeps_what_is_needed_and_nothing_else(tmp_path: Path) -> None:
    cache = DeviceCache(tmp_path / "cache", limit=0)
    cache.write_extra("ranges/1", b"one")
    cache.write_extra("ranges/2", b"two")
    found, _ = cache.find_or_build(facts(), lambda: b"an engine")
    assert found.path.is_file(), "the engine that was asked for"
    assert [entry.path for entry in cache.files()] == [found.path]


def test_a_folder_of_other_files_is_not_walked_not_written_and_not_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino").mkdir()
    for mine in (tmp_path / "thesis.tex", tmp_path / "openvino/build.log"):
        mine.write_text("mine")
    cache = DeviceCache(tmp_path, limit=0)
    assert cache.files() == []
    cache.write_extra("ranges/1", b"one")
    with pytest.raises(EngineCacheError, match=r"thesis\.tex"):
        cache.find_or_build(facts(), lambda: b"an engine")
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path))
    assert flowedge("cache", "clear").status == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["build.log", "openvino", "thesis.tex"]


def test_the_root_of_the_disk_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", "/")
    done = flowedge("cache", "list", "--json")
    assert json.loads(done.stdout)["files"] == []
    assert "holds other files" in json.loads(done.stdout)["problem"]


def test_a_volume_of_its_own_is_a_cache(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    cache = DeviceCache(tmp_path, limit=1000)
    cache.write_extra("ranges/1", b"one")
    assert cache.read_extra("ranges/1") == b"one"
