"""A cache on the device, beside the bundles: compiled engines, and what makes the next start faster.

A compiled engine is found by everything that it depends on (`EngineFacts`): the graph, the library and its version, the
device and its driver, the batch sizes, the precision. One file holds these facts, the engine and its hash. This file
gets its name in one step, so that a reader finds a whole engine or none. Builders of the same engine wait for each
other on a lock that the kernel releases when a process dies. No bundle needs the cache to run. A file that is missing,
damaged or of another version is explained, and built again by the next ``flowedge build``.

`flowedge.runtime.device.cache_folder.PARTS` lists the folders of the cache. The file of an engine is
``engines/KEY.engine``, and its lock is ``engines/KEY.lock``.

The content of the folder is untrusted. Only plain files of a bounded size are read. A pipe, a device, a folder or a
link in the place of one counts as damaged, and nothing waits for it. Only the listed folders are read, so that a cache
in a folder of other things (``/`` in the worst case) neither walks nor clears those.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from flowedge.errors import EngineCacheError
from flowedge.progress import SILENT, Reports
from flowedge.runtime.device.cache_folder import PARTS, cache_folder, cache_size, why_no_cache
from flowedge.runtime.device.engine_file import (
    IGNORED_FACTS,
    DamagedError,
    EngineFacts,
    facts_in,
    header_bytes,
    read_engine,
)
from flowedge.runtime.device.plain_files import cannot_write, lock_file, plain_file

_LOG: Final = logging.getLogger(__name__)

_ENGINES: Final = "engines"
_LARGEST_EXTRA_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedFile:
    """One file of the cache.

    Attributes:
        path: The file.
        facts: The facts that an engine was built from. The value is None for other files and for a damaged header.
        size: The size in bytes.
        used: The time of the last use, in seconds since 1970.
    """

    path: Path
    facts: EngineFacts | None
    size: int
    used: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """An engine from the cache, or why there is none.

    Attributes:
        plan: The serialised engine. The value is None where no engine can be used.
        facts: The facts that the engine was built from, or those that were looked for.
        path: The file of the engine, or the place where it would be.
        reason: The reason why there is no engine. The reason is empty where there is an engine.
    """

    plan: bytes | None
    facts: EngineFacts
    path: Path
    reason: str


class DeviceCache:
    """A folder of engines, safe for several processes at once."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Keep the path of the cache folder, which is made when the first file is stored.

        Args:
            folder: The folder of the cache.
            limit: The largest size of the whole cache in bytes. Files that were not used for longest are deleted first.
        """
        self.folder = folder
        self.limit = limit

    @property
    def problem(self) -> str:
        """The reason why nothing can be stored in the folder. The reason is empty while none is known."""
        return why_no_cache(self.folder)

    def make_folder(self, name: str) -> Path:
        """Make one folder of the cache and return it.

        Args:
            name: One of ``PARTS``, or a folder below it.

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

    def find(
        self,
        facts: EngineFacts,
        *,
        ignoring: tuple[str, ...] = (),
        fits: Callable[[EngineFacts], bool] = lambda facts: True,
    ) -> Found:
        """Look for a whole engine of exactly these facts.

        Args:
            facts: The facts that it must have been built from.
            ignoring: The fields that may differ. Among the engines that fit, the one built or used last is taken.
            fits: A further condition on the facts of an engine, where fields may differ.
        """
        path = self._path(facts)
        candidates = [path]
        if ignoring:
            fitting = [
                entry
                for entry in self.files()
                if entry.facts is not None
                and _without(entry.facts, ignoring) == _without(facts, ignoring)
                and fits(entry.facts)
            ]
            candidates = [
                entry.path for entry in sorted(fitting, key=lambda entry: -entry.used)
            ] or candidates
        damages: list[str] = []
        for candidate in candidates:
            try:
                found, plan = read_engine(candidate)
            except FileNotFoundError:
                continue
            except DamagedError as damage:
                damages.append(f"{candidate} is damaged: {damage}")
                continue
            if found.key == candidate.stem:
                with contextlib.suppress(OSError):
                    os.utime(candidate)
                _LOG.info("the cache has %s", candidate)
                return Found(plan=plan, facts=found, path=candidate, reason="")
            damages.append(f"{candidate} holds another engine than the one of its name")
        # A field that may differ, within a condition, is a reason where the condition is not met.
        never_a_reason = tuple(name for name in ignoring if name in IGNORED_FACTS)
        reason = "; ".join(damages) or self._why_none(facts, never_a_reason)
        _LOG.info("the cache has no engine that fits: %s", reason)
        return Found(plan=None, facts=facts, path=path, reason=reason)

    def find_or_build(
        self, facts: EngineFacts, build: Callable[[], bytes], *, reports: Reports = SILENT
    ) -> tuple[Found, bool]:
        """Take an engine from the cache, or build and store it. Only one of several processes builds.

        Args:
            facts: The facts that the engine depends on.
            build: A function that gives the serialised engine.
            reports: Told why the engine is built, and when another process is waited for.

        Returns:
            The engine, and True where it was built just now.

        Raises:
            EngineCacheError: The folder cannot be written. Nothing is left behind.
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
        """Write an engine, whole or not at all. Old files are deleted where the cache is over its limit.

        Raises:
            EngineCacheError: The folder cannot be written. Nothing is left behind.
        """
        path = self._path(facts)
        self._write(path, header_bytes(facts, plan), plan)
        self._make_room(keep=path)
        return path

    @contextlib.contextmanager
    def locked(self, facts: EngineFacts, *, reports: Reports = SILENT) -> Iterator[None]:
        """Hold the lock of one engine, and delete the files that a killed builder left behind.

        Raises:
            EngineCacheError: The folder cannot be written.
        """
        path = self._path(facts).with_suffix(".lock")
        self.make_folder(_ENGINES)
        with lock_file(path, reports):
            for left in path.parent.glob(f".{facts.key}.*"):
                left.unlink(missing_ok=True)
            yield

    def touch(self, folder: Path) -> None:
        """Set the time of the last use of the files in a folder."""
        for file in folder.glob("*"):
            with contextlib.suppress(OSError):
                os.utime(file)

    def drop(self, path: Path) -> None:
        """Delete an engine that the library refuses."""
        with contextlib.suppress(OSError):
            path.unlink()

    def read_extra(self, name: str) -> bytes:
        """Read a stored file by its name, such as ``timing/10.3.cache``. Without a plain file the answer is empty."""
        try:
            with plain_file(self.folder / name) as file:
                size = os.fstat(file.fileno()).st_size
                _LOG.debug("the cache has %s", name)
                return file.read(size) if size <= _LARGEST_EXTRA_BYTES else b""
        except OSError:
            _LOG.debug("the cache has no %s", name)
            return b""

    def write_extra(self, name: str, content: bytes) -> None:
        """Store a file that only saves time. An error of writing is ignored."""
        with contextlib.suppress(EngineCacheError):
            self._write(self.folder / name, content)
            self._make_room(keep=self.folder / name)

    def files(self) -> list[CachedFile]:
        """List all files of the cache but locks, in the order of their paths."""
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
                facts = facts_in(path) if path.suffix == ".engine" and path.parent.name == _ENGINES else None
                found.append(CachedFile(path=path, facts=facts, size=status.st_size, used=status.st_mtime))
        return found

    def clear(self) -> int:
        """Delete all files of the cache, and return their size in bytes.

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
                f"there is no device cache: {self.problem}. Name a folder with FLOWEDGE_CACHE_DIR."
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
        """Explain why there is no engine, by the facts in which the most similar engine of the graph differs."""
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
    """Give the user's cache, by ``FLOWEDGE_CACHE_DIR`` and ``FLOWEDGE_CACHE_SIZE``, else XDG's folder and 20 GB.

    Raises:
        EngineCacheError: ``FLOWEDGE_CACHE_SIZE`` is not a size.
    """
    return DeviceCache(cache_folder(), cache_size())


def _without(facts: EngineFacts, ignored: tuple[str, ...]) -> dict[str, object]:
    return {name: value for name, value in msgspec.structs.asdict(facts).items() if name not in ignored}
