"""The content of the device cache is untrusted. No file there makes a command hang or end in a traceback."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

import flowedge
from flowedge.bundle import Bundle
from flowedge.errors import EngineCacheError, EngineUnavailableError
from flowedge.runtime.device.device_cache import DeviceCache, device_cache
from flowedge.runtime.engines import onnxrt
from flowedge.runtime.opening import auto
from flowedge.runtime.opening.auto import fastest_precision
from flowedge.runtime.opening.choice import Choice, Measured
from flowedge.runtime.opening.engine_contract import Opening
from flowedge.runtime.protocols import Engine
from support.command_line import flowedge as run_flowedge
from support.engine_facts import facts
from support.tiny_bundle import write_tiny_bundle

CPU = "onnxruntime-cpu"


@pytest.fixture(autouse=True)
def hang_guard() -> Iterator[None]:
    """End a test that waits for a pipe or a device with an error."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError("it waits for something in the cache")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeviceCache:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    return device_cache()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def a_huge_hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 36)


NO_FILES = [a_pipe, a_folder, a_link_to_a_device, a_link_to_nothing]


@pytest.mark.parametrize("put", [*NO_FILES, a_huge_hole])
def test_an_engine_that_is_no_plain_file_is_none(cache: DeviceCache, put: Callable[[Path], None]) -> None:
    path = cache.store(facts(), b"plan")
    path.unlink()
    put(path)
    assert cache.find(facts()).plan is None
    assert cache.find(facts(), ignoring=("batches",)).plan is None
    assert cache.files() == [] or put is a_huge_hole
    assert run_flowedge("cache", "list").status == 0
    assert run_flowedge("cache", "clear").status == 0
    assert not os.path.lexists(path)


@pytest.mark.parametrize("put", [*NO_FILES, a_huge_hole])
def test_what_is_kept_beside_engines_is_read_from_plain_files_alone(
    cache: DeviceCache, put: Callable[[Path], None]
) -> None:
    cache.write_extra("timing/x.cache", b"content")
    (cache.folder / "timing/x.cache").unlink()
    put(cache.folder / "timing/x.cache")
    assert cache.read_extra("timing/x.cache") == b""
    cache.write_extra("timing/x.cache", b"new")
    assert cache.read_extra("timing/x.cache") == (b"" if put is a_folder else b"new")


@pytest.mark.parametrize("put", NO_FILES)
def test_a_lock_that_is_no_plain_file_is_named(cache: DeviceCache, put: Callable[[Path], None]) -> None:
    lock = cache.store(facts(), b"plan").with_suffix(".lock")
    put(lock)
    with pytest.raises(EngineCacheError, match=lock.name), cache.locked(facts()):
        pass


def test_a_lock_leaves_no_file_behind(cache: DeviceCache) -> None:
    def refuse() -> bytes:
        raise EngineCacheError("such an option is refused")

    with pytest.raises(EngineCacheError, match="refused"):
        cache.find_or_build(facts(), refuse)
    cache.find_or_build(facts(), lambda: b"plan")
    assert [path.name for path in (cache.folder / "engines").iterdir()] == [f"{facts().key}.engine"]


def test_a_link_in_the_place_of_a_folder_leads_nowhere(
    cache: DeviceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWEDGE_CACHE_SIZE", "1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/part.png").write_bytes(b"not ours")
    cache.folder.mkdir()
    (cache.folder / "kernels").symlink_to(tmp_path / "elsewhere")
    device_cache().write_extra("timing/x.cache", b"content")  # and room is made for it
    assert [entry.path.name for entry in cache.files()] == ["x.cache"]
    cache.clear()
    assert (tmp_path / "elsewhere/part.png").exists()
    assert not os.path.lexists(cache.folder / "kernels")


# --- the remembered choice of auto


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Write a bundle of the tiny graph in two precisions."""
    return write_tiny_bundle(tmp_path / "tiny.flowedge", precisions=("fp32", "fp16"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "_WARM_UP_S", 0.0)
    monkeypatch.setattr(auto, "_MEASURED_S", 0.0)


def forged(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "precision": "fp32",
        "engine": CPU,
        "median_ms": 1.0,
        "problem": "",
    } | changes
    measured = Measured(
        engine=str(fields["engine"]),
        precision=str(fields["precision"]),
        median_ms=fields["median_ms"],  # type: ignore[arg-type]
        problem=str(fields["problem"]),
    )
    return msgspec.json.encode(
        Choice(precision=measured.precision, engine=measured.engine, measured=(measured,), not_built=())
    )


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "content",
    [
        forged(engine="abacus"),
        forged(engine="openvino"),  # another than was asked for
        forged(precision="fp8"),
        forged(precision="int8"),  # a graph that is gone, or never was
        forged(median_ms=None),
        forged(median_ms=-1.0),
        forged(problem="\x1b[2J"),
        forged().replace(b'"measured":[{', b'"measured":[],"was":[{'),
        b"[" * 100_000,
        b"",
    ],
)
def test_a_remembered_choice_that_cannot_be_is_measured_again(
    cache: DeviceCache, bundle: Bundle, content: bytes
) -> None:
    right = fastest_precision(bundle, CPU, threads=1)
    (record,) = (cache.folder / "precision").iterdir()
    record.write_bytes(content)
    choice = fastest_precision(bundle, CPU, threads=1)
    assert {(one.engine, one.precision) for one in choice.measured} == {(CPU, "fp32"), (CPU, "fp16")}
    assert len(choice.measured) == len(right.measured)
    record.write_bytes(content)
    with flowedge.load(bundle.path, engine=CPU, precision="auto", threads=1) as detect:
        assert (detect.engine.name, detect.precision) in {(CPU, "fp32"), (CPU, "fp16")}


@pytest.mark.usefixtures("quick")
def test_a_remembered_choice_that_does_not_open_any_more_is_measured_again(
    cache: DeviceCache, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest_precision(bundle, CPU, threads=1)
    (record,) = (cache.folder / "precision").iterdir()
    record.write_bytes(forged(precision="fp16"))
    load = onnxrt.load

    def no_fp16(opening: Opening) -> Engine:
        if opening.precision == "fp16":
            raise EngineUnavailableError("fp16 is gone")
        return load(opening)

    monkeypatch.setattr(onnxrt, "load", no_fp16)
    with flowedge.load(bundle.path, engine=CPU, precision="auto", threads=1) as detect:
        assert detect.precision == "fp32"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("size", ["0", "1"])
def test_auto_measures_where_nothing_can_be_remembered(
    cache: DeviceCache, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    monkeypatch.setenv("FLOWEDGE_CACHE_SIZE", size)
    with flowedge.load(bundle.path, engine=CPU, precision="auto", threads=1) as detect:
        assert detect.precision in ("fp32", "fp16")
    cache.folder.rename(cache.folder.with_name("was"))
    cache.folder.write_bytes(b"a file")
    with flowedge.load(bundle.path, engine=CPU, precision="auto", threads=1) as detect:
        assert detect.precision in ("fp32", "fp16")
