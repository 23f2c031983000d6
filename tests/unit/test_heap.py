"""A station takes all of its memory from one heap, since the gaps of several heaps make it grow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.station_files import write_station

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the heaps are those of glibc")

_THREADS = """
import threading
gate = threading.Barrier(5)
def take():
    gate.wait()
    keep = bytearray(100_000)
    gate.wait()
threads = [threading.Thread(target=take) for _ in range(4)]
[thread.start() for thread in threads]
gate.wait()
gate.wait()
[thread.join() for thread in threads]
"""
_STATION = """
import sys
from flowedge.cli import main
sys.argv = ["flowedge", "station", "run", sys.argv[2], "--until-end"]
main()
"""


def heaps_of(program: str, folder: Path, *arguments: str) -> int:
    """Run a program and return the number of heaps that glibc has made for it."""
    told = folder / "heaps.xml"
    count = f"""
import atexit, ctypes
def tell():
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    file = ctypes.c_void_p(libc.fopen({str(told).encode()!r}, b"w"))
    libc.malloc_info(0, file)
    libc.fclose(file)
atexit.register(tell)
"""
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    done = subprocess.run(
        [sys.executable, "-c", count + program, "-", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return told.read_text().count("<heap ")


@pytest.fixture(scope="module", autouse=True)
def glibc() -> None:
    if os.confstr("CS_GNU_LIBC_VERSION") is None:
        pytest.skip("the C library is not glibc")


def test_threads_have_heaps_of_their_own_unless_they_share_one(tmp_path: Path) -> None:
    assert heaps_of(_THREADS, tmp_path) > 1
    shared = "from flowedge.runtime.device.heap import share_one_heap\nshare_one_heap()\n"
    assert heaps_of(shared + _THREADS, tmp_path) == 1


def test_a_station_has_one_heap(tmp_path: Path) -> None:
    file = write_station(tmp_path, photos=3)
    assert heaps_of(_STATION, tmp_path, str(file)) == 1
