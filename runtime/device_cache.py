"""The engines compiled for this machine: a cache beside the bundles, never a part of one.

An engine is found by everything that it depends on (``EngineFacts``): the graph, the library and its version, the
device and its driver, the batch sizes, the precision. One file holds those facts, the engine and its hash, and gets its
name in one step, so that a reader finds a whole engine or none. Builders of the same engine wait for each other on a
lock that the kernel releases when a process dies. Nothing here is needed to run a bundle: whatever is missing, damaged
or of another version is explained, and built again where that is asked for.

    FOLDER/engines/KEY.engine      the engines; KEY.lock beside them
    FOLDER/timing, FOLDER/kernels  what makes the next build or start faster
    FOLDER/onnxruntime-tensorrt    what ONNX Runtime keeps itself
    FOLDER/openvino                what OpenVINO keeps itself
    FOLDER/ranges, FOLDER/precision  what was once found on images, and which precision was fastest
    FOLDER/proofs                  which graphs passed their self-test here

What the folder holds is untrusted. Only plain files of a bounded size are read: a pipe, a device, a folder or a link in
the place of one counts as damaged, and is never waited for. Only the folders above are looked into: a cache in a folder
of other things (``/`` in the worst case) neither walks nor clears those.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from flowedge.bundle import Bundle
from flowedge.errors import EngineCacheError
from flowedge.progress import SILENT, Reports
from flowedge.runtime.cache_folder import PARTS, cache_folder, cache_size, why_no_cache

_MAGIC: Final = b"FlowEdge engine 1\n"
_LONGEST_HEADER_BYTES: Final = 1 << 16
_ENGINES: Final = "engines"
_LARGEST_EXTRA_BYTES: Final = 256 << 20
_LARGEST_ENGINE_BYTES: Final = 16 << 30


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that an engine depends on.

    Attributes:
        engine: Its name in ``ENGINES``.
        version: Of its library.
        graph: The sha256 of the graph's file and of its weights beside it.
        precision: Which graph of the bundle it is.
        device: The device's name; empty where an engine fits several.
        capability: Its compute capability, or those that the engine was built for.
        driver: The CUDA version of the driver; empty where an engine does not depend on it.
        batches: The smallest, usual and largest number of images of a run.
        options: What else was asked of the builder.
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
"""The fields of `EngineFacts` that loading an engine does not compare: its caller has no wish about them."""


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    facts: EngineFacts
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedFile:
    """One file of the cache.

    Attributes:
        path: Where it is.
        facts: What it was built from; None where it is not an engine of ours or its header is damaged.
        size: In bytes.
        used: When it was last used, in seconds since 1970.
    """

    path: Path
    facts: EngineFacts | None
    size: int
    used: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """An engine from the cache, or why there is none.

    Attributes:
        plan: The serialised engine, None where there is none that can be used.
        facts: What it was built from; what was asked for where there is none.
        path: Its file, or where it would be.
        reason: Why there is none, empty where there is one.
    """

    plan: bytes | None
    facts: EngineFacts
    path: Path
    reason: str


class DeviceCache:
    """A folder of engines, safe for several processes at once."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Use a folder; it is made when something is stored.

        Args:
            folder: Where.
            limit: How large all of it may become, in bytes; what was not used for longest goes first.
        """
        self.folder = folder
        self.limit = limit

    @property
    def problem(self) -> str:
        """Why nothing can be kept in the folder, empty where there is no reason known yet."""
        return why_no_cache(self.folder)

    def make_folder(self, name: str) -> Path:
        """Make one folder of the cache and return it.

        Args:
            name: One of ``PARTS``, and folders below it.

        Raises:
            EngineCacheError: There is no cache, or the folder cannot be made.
        """
        folder = self.folder / name
        self._check()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        return folder

    def find(self, facts: EngineFacts, *, ignoring: tuple[str, ...] = ()) -> Found:
        """Look for an engine, whole and of exactly these facts.

        Args:
            facts: What it must have been built from.
            ignoring: Fields that may differ: of the engines that fit, the one built or used last is taken.
        """
        path = self._path(facts)
        candidates = [path]
        if ignoring:
            fitting = [
                entry
                for entry in self.files()
                if entry.facts is not None and _without(entry.facts, ignoring) == _without(facts, ignoring)
            ]
            candidates = [
                entry.path for entry in sorted(fitting, key=lambda entry: -entry.used)
            ] or candidates
        damages: list[str] = []
        for candidate in candidates:
            try:
                found, plan = _read(candidate)
            except FileNotFoundError:
                continue
            except _DamagedError as damage:
                damages.append(f"{candidate} is damaged: {damage}")
                continue
            if found.key == candidate.stem:
                with contextlib.suppress(OSError):
                    os.utime(candidate)
                return Found(plan=plan, facts=found, path=candidate, reason="")
            damages.append(f"{candidate} holds another engine than its name says")
        return Found(
            plan=None, facts=facts, path=path, reason="; ".join(damages) or self._why_none(facts, ignoring)
        )

    def find_or_build(
        self, facts: EngineFacts, build: Callable[[], bytes], *, reports: Reports = SILENT
    ) -> tuple[Found, bool]:
        """Take an engine from the cache, or build and store it; of several processes, one builds.

        Args:
            facts: What it depends on.
            build: Gives the serialised engine.
            reports: Told why it is built, and when another process is waited for.

        Returns:
            The engine, and whether it was built just now.

        Raises:
            EngineCacheError: The folder cannot be written; nothing is left behind.
        """
        found = self.find(facts)
        if found.plan is not None:
            return found, False
        with self.locked(facts, reports=reports):
            found = self.find(facts)
            if found.plan is not None:
                return found, False
            reports.note(f"building: {found.reason}")
            plan = build()
            path = self.store(facts, plan)
        return Found(plan=plan, facts=facts, path=path, reason=""), True

    def store(self, facts: EngineFacts, plan: bytes) -> Path:
        """Write an engine, whole or not at all, and make room where the cache is over its limit.

        Raises:
            EngineCacheError: The folder cannot be written; nothing is left behind.
        """
        path = self._path(facts)
        digest = hashlib.sha256(plan).hexdigest()
        header = msgspec.json.encode(_Header(facts=facts, size=len(plan), sha256=digest))
        self._write(path, _MAGIC + len(header).to_bytes(8, "little") + header, plan)
        self._make_room(keep=path)
        return path

    @contextlib.contextmanager
    def locked(self, facts: EngineFacts, *, reports: Reports = SILENT) -> Iterator[None]:
        """Hold the lock of one engine; clears up what a builder that was killed left behind.

        Raises:
            EngineCacheError: The folder cannot be written.
        """
        path = self._path(facts).with_suffix(".lock")
        self.make_folder(_ENGINES)
        with _lock_file(path, reports):
            for left in path.parent.glob(f".{facts.key}.*"):
                left.unlink(missing_ok=True)
            yield

    def touch(self, folder: Path) -> None:
        """Note that the files of a folder are used."""
        for file in folder.glob("*"):
            with contextlib.suppress(OSError):
                os.utime(file)

    def drop(self, path: Path) -> None:
        """Delete an engine that the library refuses."""
        with contextlib.suppress(OSError):
            path.unlink()

    def read_extra(self, name: str) -> bytes:
        """Read what was kept under a name, such as ``timing/10.3.cache``. Without a plain file it is empty."""
        try:
            with _plain_file(self.folder / name) as file:
                size = os.fstat(file.fileno()).st_size
                return file.read(size) if size <= _LARGEST_EXTRA_BYTES else b""
        except OSError:
            return b""

    def write_extra(self, name: str, content: bytes) -> None:
        """Keep something that only saves time: where it cannot be written, it is not kept."""
        with contextlib.suppress(EngineCacheError):
            self._write(self.folder / name, content)
            self._make_room(keep=self.folder / name)

    def files(self) -> list[CachedFile]:
        """Everything in the cache but locks, in the order of paths."""
        found: list[CachedFile] = []
        if self.problem:
            return found
        paths = [
            Path(folder, name)
            for part in PARTS
            if not (self.folder / part).is_symlink()
            for folder, _, names in os.walk(self.folder / part)
            for name in names
        ]
        for path in sorted(paths):
            if path.suffix == ".lock" or path.name.startswith("."):
                continue
            with contextlib.suppress(OSError):  # another process cleared it, or it may not be looked at
                status = path.lstat()
                if not stat.S_ISREG(status.st_mode):
                    continue
                facts = _facts(path) if path.suffix == ".engine" and path.parent.name == _ENGINES else None
                found.append(CachedFile(path=path, facts=facts, size=status.st_size, used=status.st_mtime))
        return found

    def clear(self) -> int:
        """Delete everything in the cache, and return how many bytes that were.

        Raises:
            EngineCacheError: There is no cache, or something cannot be deleted.
        """
        self._check()
        size = sum(entry.size for entry in self.files())
        for part in PARTS:
            try:
                if (self.folder / part).is_symlink() or not (self.folder / part).is_dir():
                    (self.folder / part).unlink()
                else:
                    shutil.rmtree(self.folder / part)
            except (FileNotFoundError, NotADirectoryError):  # or the cache's own folder is a file
                continue
            except OSError as error:
                raise EngineCacheError(
                    f"{error.filename or self.folder} cannot be deleted: {error.strerror}. Check its permissions."
                ) from error
        return size

    def _check(self) -> None:
        if self.problem:
            raise EngineCacheError(
                f"there is no engine cache: {self.problem}. Name a folder with FLOWEDGE_CACHE_DIR."
            )

    def _path(self, facts: EngineFacts) -> Path:
        return self.folder / _ENGINES / f"{facts.key}.engine"

    def _write(self, path: Path, *parts: bytes) -> None:
        temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}")
        self.make_folder(str(path.parent.relative_to(self.folder)))
        try:
            try:
                with temporary.open("xb") as file:
                    for part in parts:
                        file.write(part)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error

    def _make_room(self, keep: Path) -> None:
        entries = sorted(self.files(), key=lambda entry: entry.used)
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total <= self.limit:
                return
            if entry.path != keep:
                with contextlib.suppress(OSError):
                    entry.path.unlink()
                    total -= entry.size

    def _why_none(self, facts: EngineFacts, ignoring: tuple[str, ...]) -> str:
        """The nearest engine of the same graph, and in what it differs."""
        wanted = msgspec.structs.asdict(facts)
        nearest: list[str] = []
        for entry in self.files():
            if entry.facts is None or (entry.facts.graph, entry.facts.engine) != (facts.graph, facts.engine):
                continue
            found = msgspec.structs.asdict(entry.facts)
            differing = [
                f"{name} {found[name] or 'none'} instead of {wanted[name] or 'none'}"
                for name in wanted
                if name not in ignoring and found[name] != wanted[name]
            ]
            if not nearest or len(differing) < len(nearest):
                nearest = differing
        if nearest:
            return f"the cache has an engine of this graph, but with {', '.join(nearest)}"
        return f"the cache {self.folder} has no {facts.engine} engine of this graph"


def device_cache() -> DeviceCache:
    """The user's cache: ``FLOWEDGE_CACHE_DIR`` and ``FLOWEDGE_CACHE_SIZE``, else XDG's folder and 20 GB.

    Raises:
        EngineCacheError: ``FLOWEDGE_CACHE_SIZE`` is not a size.
    """
    return DeviceCache(cache_folder(), cache_size())


def graph_hash(bundle: Bundle, precision: str) -> str:
    """One hash of a graph's file and of the weights beside it, from the hashes that the manifest lists."""
    name = bundle.manifest.graph(precision).file
    parts = [
        f"{stored.path} {stored.sha256}" for stored in bundle.manifest.files if stored.path.startswith(name)
    ]
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


class _DamagedError(Exception):
    """What is wrong with an engine's file."""


def _read(path: Path) -> tuple[EngineFacts, bytes]:
    try:
        with _plain_file(path) as file:
            header = _header(file)
            size = os.fstat(file.fileno()).st_size - file.tell()
            if size != header.size or size > _LARGEST_ENGINE_BYTES:  # which nothing is allocated for
                raise _DamagedError(f"it has {size} bytes of {header.size}")
            plan = file.read(size)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _DamagedError(f"it cannot be read ({error.strerror})") from error
    if len(plan) != header.size:
        raise _DamagedError(f"it has {len(plan)} bytes of {header.size}")
    if hashlib.sha256(plan).hexdigest() != header.sha256:
        raise _DamagedError("its bytes are not those that were written")
    return header.facts, plan


def _facts(path: Path) -> EngineFacts | None:
    try:
        with _plain_file(path) as file:
            return _header(file).facts
    except (OSError, _DamagedError):
        return None


def _plain_file(path: Path) -> BinaryIO:
    """Open a file for reading that is a plain one, without waiting for anything.

    Raises:
        OSError: It is not there, cannot be read, or is a link, a pipe, a device or a folder.
    """
    return os.fdopen(_opened(path, os.O_RDONLY), "rb")


def _opened(path: Path, flags: int) -> int:
    """Open a plain file, and neither follow a link nor wait for a pipe or a device.

    Raises:
        OSError: It cannot be opened, or is no plain file.
    """
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, "it is no plain file", str(path))


@contextlib.contextmanager
def _lock_file(path: Path, reports: Reports) -> Iterator[None]:
    """Hold a lock that the kernel releases with the process, and delete its file at the end.

    Whoever waited for a file that was deleted meanwhile tries again with the new one.

    Raises:
        EngineCacheError: The file cannot be made, or something else has its name.
    """
    handle = -1
    try:
        while handle < 0:
            handle = _opened(path, os.O_RDWR | os.O_CREAT)
            _lock(handle, reports)
            if not _is_still(path, handle):
                os.close(handle)
                handle = -1
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _lock(handle: int, reports: Reports) -> None:
    """Wait for the lock of an open file, which is closed where that is interrupted."""
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reports.note("waiting for another process that builds this engine")
            fcntl.flock(handle, fcntl.LOCK_EX)
    except BaseException:
        os.close(handle)
        raise


def _is_still(path: Path, handle: int) -> bool:
    """Tell whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _header(file: BinaryIO) -> _Header:
    start = file.read(len(_MAGIC) + 8)
    size = int.from_bytes(start[len(_MAGIC) :], "little")
    if not start.startswith(_MAGIC) or size > _LONGEST_HEADER_BYTES:
        raise _DamagedError("it does not begin as an engine of this version of FlowEdge")
    try:
        return msgspec.json.decode(file.read(size), type=_Header)
    except msgspec.DecodeError as error:
        raise _DamagedError(f"its header cannot be read ({error})") from error


def _without(facts: EngineFacts, ignored: tuple[str, ...]) -> dict[str, object]:
    return {name: value for name, value in msgspec.structs.asdict(facts).items() if name not in ignored}


def cannot_write(path: Path, error: OSError) -> EngineCacheError:
    """The error of a write that the system refused."""
    return EngineCacheError(
        f"the engine cache cannot write {path}: {error.strerror}. Make room (flowedge cache clear), or name another "
        "folder with FLOWEDGE_CACHE_DIR."
    )
