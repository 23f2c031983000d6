"""The device cache returns what was stored, serves several processes, and keeps to its size."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import msgspec
import pytest

from flowedge.errors import EngineCacheError
from flowedge.runtime.device.device_cache import DeviceCache, device_cache
from flowedge.runtime.device.engine_file import graph_hash
from support.command_line import flowedge
from support.engine_facts import facts
from support.recorded_reports import RecordedReports
from support.tiny_bundle import write_tiny_bundle

# Python 3.12 warns of a fork beside the threads that other tests of the process left behind.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

PLAN = bytes(range(256)) * 40
# A forked child would hold the locks of threads that other tests left behind, and may wait for them for ever.
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def cache(tmp_path: Path) -> DeviceCache:
    return DeviceCache(tmp_path / "cache", limit=1 << 20)


def everything(cache: DeviceCache) -> list[str]:
    return sorted(path.name for path in cache.folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def silent(_: str) -> None:
    """Ignore the notes of the cache."""


def never() -> bytes:
    raise AssertionError("it was built")


def test_what_is_stored_is_found_and_not_built_again(cache: DeviceCache) -> None:
    assert cache.find(facts()).plan is None
    first, was_built = cache.find_or_build(facts(), lambda: PLAN)
    assert (first.plan, was_built) == (PLAN, True)
    again, was_built = cache.find_or_build(facts(), never)
    assert (again.plan, again.facts, was_built) == (PLAN, facts(), False)
    assert everything(cache) == [f"{facts().key}.engine"]


@pytest.mark.parametrize(
    "change",
    [
        {"version": "10.7.0"},
        {"graph": "1" * 64},
        {"engine": "tensorrt-rtx"},
        {"precision": "fp32"},
        {"device": "A2000"},
        {"capability": "8.6"},
        {"driver": "13.0"},
        {"batches": (1, 1, 4)},
        {"options": ("dla",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_engine_of_anything_else_is_not_taken(cache: DeviceCache, change: dict[str, object]) -> None:
    cache.store(facts(), PLAN)
    assert cache.find(facts(**change)).plan is None


def test_an_engine_of_another_version_is_explained_and_both_stay(cache: DeviceCache) -> None:
    cache.store(facts(), PLAN)
    reports = RecordedReports()
    cache.find_or_build(facts(version="10.7.0"), lambda: b"new", reports=reports)
    assert reports.notes == [
        "building: the cache has an engine of this graph, but with version 10.3.0 instead of 10.7.0"
    ]
    assert cache.find(facts()).plan == PLAN
    assert cache.find(facts(version="10.7.0")).plan == b"new"


def test_any_batches_takes_the_one_used_last(cache: DeviceCache) -> None:
    for number, largest in enumerate((2, 8, 4)):
        path = cache.store(facts(batches=(1, 1, largest)), bytes([largest]))
        os.utime(path, (number, number))
    assert cache.find(facts(), ignoring=("batches",)).plan == b"\4"
    assert cache.find(facts(version="9"), ignoring=("batches",)).plan is None


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (-1, "bytes of 10240"),
        (60, "header cannot be read"),
        (3, "does not begin as an engine"),
        (0, "does not begin"),
    ],
)
def test_a_truncated_engine_is_explained_and_built_again(cache: DeviceCache, keep: int, reason: str) -> None:
    path = cache.store(facts(), PLAN)
    path.write_bytes(path.read_bytes()[:keep])
    assert reason in cache.find(facts()).reason
    reports = RecordedReports()
    found, was_built = cache.find_or_build(facts(), lambda: PLAN, reports=reports)
    assert was_built
    assert "is damaged" in reports.notes[0]
    assert found.plan == cache.find(facts()).plan == PLAN


def test_a_changed_byte_is_noticed(cache: DeviceCache) -> None:
    path = cache.store(facts(), PLAN)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "not those that were written" in cache.find(facts()).reason


def test_an_engine_under_anothers_name_is_not_taken(cache: DeviceCache) -> None:
    cache.store(facts(), PLAN).rename(cache.folder / "engines" / f"{facts(driver='13.0').key}.engine")
    assert "another engine" in cache.find(facts(driver="13.0")).reason


# Several processes


def race(cache: DeviceCache, start: Barrier, builds: Path) -> None:
    def build() -> bytes:
        (builds / str(os.getpid())).touch()
        time.sleep(0.2)
        return PLAN

    start.wait()
    found, _ = cache.find_or_build(facts(), build)
    os._exit(0 if found.plan == PLAN else 1)


def test_of_two_builders_one_builds_and_both_have_the_engine(cache: DeviceCache, tmp_path: Path) -> None:
    (tmp_path / "builds").mkdir()
    start = SPAWN.Barrier(2)
    racers = [SPAWN.Process(target=race, args=(cache, start, tmp_path / "builds")) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(20)
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert len(list((tmp_path / "builds").iterdir())) == 1


def build_slowly(cache: DeviceCache, begun: Event) -> None:
    def build() -> bytes:
        # In the middle of a write, a part of the engine is on the disk, without its name.
        (cache.folder / "engines" / f".{facts().key}.half").write_bytes(PLAN[:100])
        begun.set()
        time.sleep(60)
        return PLAN

    cache.find_or_build(facts(), build)


def test_a_builder_that_is_killed_leaves_nothing_that_counts(cache: DeviceCache) -> None:
    begun = SPAWN.Event()
    builder = SPAWN.Process(target=build_slowly, args=(cache, begun))
    builder.start()
    assert begun.wait(20)
    assert builder.pid is not None
    os.kill(builder.pid, signal.SIGKILL)
    builder.join(20)
    assert cache.find(facts()).plan is None
    found, was_built = cache.find_or_build(facts(), lambda: PLAN)  # the lock died with its holder
    assert was_built
    assert everything(cache) == [found.path.name]


def test_who_waits_for_another_builder_says_so(cache: DeviceCache) -> None:
    begun = SPAWN.Event()
    builder = SPAWN.Process(target=build_slowly, args=(cache, begun))
    builder.start()
    assert begun.wait(20)

    class EndTheOther(RecordedReports):
        def note(self, text: str) -> None:
            super().note(text)
            if builder.is_alive():
                builder.kill()

    reports = EndTheOther()
    cache.find_or_build(facts(), lambda: PLAN, reports=reports)
    builder.join(20)
    assert "waiting for another process" in reports.notes[0]


# No room


def store_with_a_file_limit(cache: DeviceCache, refused: Event) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.dont_write_bytecode = True  # Python would keep compiled modules that the limit cut
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        cache.store(facts(), PLAN)
    except EngineCacheError:
        refused.set()
    os._exit(0)


def test_a_write_that_the_system_stops_half_way_leaves_the_old_cache(cache: DeviceCache) -> None:
    old = cache.store(facts(version="9"), PLAN)
    refused = SPAWN.Event()
    writer = SPAWN.Process(target=store_with_a_file_limit, args=(cache, refused))
    writer.start()
    writer.join(20)
    assert refused.is_set()
    assert everything(cache) == [old.name]
    assert cache.find(facts(version="9")).plan == PLAN


FULL_DISK = """
mount -t tmpfs -o size=64k none "$1" || exit 77
exec "$2" - "$1"
"""
ON_A_FULL_DISK = """
import sys
from pathlib import Path
from flowedge.errors import EngineCacheError
from flowedge.runtime.device.device_cache import DeviceCache
sys.path.insert(0, {tests!r})
from unit.test_device_cache import everything, facts
cache = DeviceCache(Path(sys.argv[1]) / "cache", limit=1 << 30)
cache.store(facts(version="9"), b"small")
before = everything(cache)
try:
    cache.store(facts(), b"x" * 200_000)
except EngineCacheError as error:
    assert "No space left" in str(error) and "flowedge cache clear" in str(error), error
else:
    raise AssertionError("the disk was not full")
assert everything(cache) == before
assert cache.find(facts(version="9")).plan == b"small"
"""


def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    script = ON_A_FULL_DISK.format(tests=str(Path(__file__).resolve().parents[1]))
    done = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            FULL_DISK,
            "-",
            str(tmp_path),
            sys.executable,
        ],
        input=script,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"this system lets no user mount a small disk: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


def test_the_engine_that_was_not_used_for_longest_makes_room(cache: DeviceCache) -> None:
    cache.limit = 3 * len(PLAN)
    for number, version in enumerate(("1", "2")):
        path = cache.store(facts(version=version), PLAN)
        os.utime(path, (number, number))
    cache.find(facts(version="1"))
    cache.store(facts(version="3"), PLAN)
    assert [cache.find(facts(version=v)).plan is not None for v in ("1", "2", "3")] == [True, False, True]


def test_an_engine_larger_than_the_limit_is_kept_alone(cache: DeviceCache) -> None:
    cache.limit = 10
    cache.store(facts(version="1"), PLAN)
    path = cache.store(facts(), PLAN)
    assert everything(cache) == [path.name]


def test_what_only_saves_time_is_kept_where_it_can_be(cache: DeviceCache) -> None:
    assert cache.read_extra("timing/a.cache") == b""
    cache.write_extra("timing/a.cache", b"times")
    assert cache.read_extra("timing/a.cache") == b"times"
    (cache.folder / "kernels").write_bytes(b"in the way")
    cache.write_extra("kernels/b.cache", b"lost")
    assert cache.read_extra("kernels/b.cache") == b""


# Where it is, and the commands


def test_the_environment_says_where_and_how_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWEDGE_CACHE_DIR", raising=False)
    monkeypatch.delenv("FLOWEDGE_CACHE_SIZE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (device_cache().folder, device_cache().limit) == (tmp_path / "flowedge", 20 << 30)
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("FLOWEDGE_CACHE_SIZE", "500m")
    assert (device_cache().folder, device_cache().limit) == (tmp_path / "own", 500 << 20)


@pytest.mark.parametrize("text", ["much", "-1", "1.5G", "3X"])
def test_a_size_that_is_none_is_refused_by_its_value(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWEDGE_CACHE_SIZE", text)
    with pytest.raises(EngineCacheError, match=f"500M or 20G, got '{text}'"):
        device_cache()


def test_list_and_clear(cache: DeviceCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(cache.folder))
    cache.store(facts(), PLAN)
    cache.write_extra("timing/a.cache", b"times")
    listed = msgspec.json.decode(flowedge("cache", "list", "--json").stdout)
    (engine, timing) = listed["files"]
    assert (engine["facts"]["device"], engine["facts"]["batches"]) == ("Orin", [1, 1, 8])
    assert (timing["facts"], timing["size"]) == (None, 5)
    assert "Orin" in flowedge("cache", "list").stdout
    assert flowedge("cache", "clear").status == 0
    assert everything(cache) == []
    assert flowedge("cache", "clear").status == 0


def test_a_graphs_hash_covers_the_weights_beside_it(tmp_path: Path) -> None:
    one = write_tiny_bundle(tmp_path / "a", precisions=("fp32", "fp16"))
    assert graph_hash(one, "fp32") == graph_hash(write_tiny_bundle(tmp_path / "b"), "fp32")
    assert graph_hash(one, "fp32") != graph_hash(one, "fp16")
    other = write_tiny_bundle(tmp_path / "c", seed=1)
    assert graph_hash(one, "fp32") != graph_hash(other, "fp32")
