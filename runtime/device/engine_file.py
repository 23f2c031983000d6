"""Write and read the file of a compiled engine: its facts, its hash and its bytes. The content is untrusted."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from flowedge.bundle import Bundle
from flowedge.runtime.device.plain_files import plain_file

_MARK: Final = b"FlowEdge engine"
_MAGIC: Final = _MARK + b" 1\n"
_LONGEST_HEADER_BYTES: Final = 1 << 16
_LARGEST_ENGINE_BYTES: Final = 16 << 30


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a compiled engine depends on.

    Attributes:
        engine: The engine's name in ``ENGINES``.
        version: The version of the engine's library.
        graph: The sha256 of the graph's file and of its weights beside it.
        precision: The precision of the graph.
        device: The name of the device. The name is empty where an engine fits several devices.
        capability: The compute capability of the device, or those that the engine was built for.
        driver: The CUDA version of the driver. The version is empty where an engine does not depend on the driver.
        batches: The smallest, usual and largest number of images of a run.
        options: The other options of the builder.
    """

    engine: str
    version: str
    graph: str
    precision: str
    device: str
    capability: str
    driver: str
    batches: tuple[int, int, int]
    options: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name of the engine's file: 32 hexadecimal digits."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:32]


IGNORED_FACTS: Final = ("batches", "options")
"""The fields of `EngineFacts` that loading an engine does not compare, since its caller has no wish about them."""


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    facts: EngineFacts
    size: int
    sha256: str


def graph_hash(bundle: Bundle, precision: str) -> str:
    """Compute one hash of a graph's file and of the weights beside it, from the hashes that the manifest lists."""
    name = bundle.manifest.graph(precision).file
    parts = [
        f"{stored.path} {stored.sha256}" for stored in bundle.manifest.files if stored.path.startswith(name)
    ]
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def header_bytes(facts: EngineFacts, plan: bytes) -> bytes:
    """Give the bytes that precede an engine in its file: the facts, the size and the hash."""
    header = msgspec.json.encode(
        _Header(facts=facts, size=len(plan), sha256=hashlib.sha256(plan).hexdigest())
    )
    return _MAGIC + len(header).to_bytes(8, "little") + header


class DamagedError(Exception):
    """The file of an engine is damaged. The message is a clause that tells how."""


def read_engine(path: Path) -> tuple[EngineFacts, bytes]:
    """Read an engine and the facts that it was built from.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedError: The file is not whole, or it is no engine of this version of FlowEdge.
    """
    try:
        with plain_file(path) as file:
            header = _header(file)
            size = os.fstat(file.fileno()).st_size - file.tell()
            if size != header.size or size > _LARGEST_ENGINE_BYTES:  # which nothing is allocated for
                raise DamagedError(f"it has {size} bytes of {header.size}")
            plan = file.read(size)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"it cannot be read ({error.strerror})") from error
    if len(plan) != header.size:
        raise DamagedError(f"it has {len(plan)} bytes of {header.size}")
    if hashlib.sha256(plan).hexdigest() != header.sha256:
        raise DamagedError("its bytes are not those that were written")
    return header.facts, plan


def is_engine_file(path: Path) -> bool:
    """Return True where a file begins as an engine that FlowEdge has stored, in whatever version.

    Raises:
        OSError: The file cannot be read.
    """
    with plain_file(path) as file:
        return file.read(len(_MARK)) == _MARK


def facts_in(path: Path) -> EngineFacts | None:
    """Read only the facts of an engine. The value is None where the file is damaged or no engine."""
    try:
        with plain_file(path) as file:
            return _header(file).facts
    except (OSError, DamagedError):
        return None


def _header(file: BinaryIO) -> _Header:
    start = file.read(len(_MAGIC) + 8)
    size = int.from_bytes(start[len(_MAGIC) :], "little")
    if not start.startswith(_MAGIC) or size > _LONGEST_HEADER_BYTES:
        raise DamagedError("it does not begin as an engine of this version of FlowEdge")
    try:
        return msgspec.json.decode(file.read(size), type=_Header)
    except msgspec.DecodeError as error:
        raise DamagedError(f"its header cannot be read ({error})") from error
