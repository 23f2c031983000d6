"""Keep the models that a server knows, load and unload them.

A name in a request is only compared with the names that are known. It never becomes a part of a path.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

from flowedge.errors import FlowEdgeError, SettingsError
from flowedge.runtime.serving.batching import Batcher
from flowedge.runtime.serving.counting import ModelCounts
from flowedge.runtime.serving.loaded import LoadedModel
from flowedge.runtime.serving.refusal import RequestError
from flowedge.runtime.serving.settings import ModelSettings, ServeSettings
from flowedge.text import printable, shown

_LOG: Final = logging.getLogger(__name__)
_UNLOADED: Final = "unloaded"
_ENDINGS: Final = (".flowedge", ".flowedgepack")
_NAME: Final = re.compile(
    r"(?!stats\Z)[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
)  # /v2/models/stats is of all models


class Entry:
    """One model that is known.

    Attributes:
        name: The name in addresses.
        settings: The bundle, and how it is opened.
        batcher: The queue and the threads. The value is None where the model is not loaded.
        state: ``READY``, ``LOADING``, ``UNLOADING`` or ``UNAVAILABLE``, or an empty text before the first load.
        reason: The reason of the state.
        counts: The counts since the server started.
    """

    def __init__(self, name: str, settings: ModelSettings) -> None:
        self.name, self.settings = name, settings
        self.batcher: Batcher | None = None
        self.state = self.reason = ""
        self.counts = ModelCounts()
        self.turn = asyncio.Lock()


class Repository:
    """The models of one server. Its methods run in the loop of the server, unless they tell otherwise."""

    def __init__(self, settings: ServeSettings) -> None:
        """Find the names of the models. `load_all` loads them.

        Args:
            settings: The settings.

        Raises:
            SettingsError: Two models have one name, a name cannot be one, or the folder cannot be listed.
        """
        self._settings = settings
        self._entries: dict[str, Entry] = {}
        for model in settings.models:
            name = model.name or name_of(model.bundle)
            if name in self._entries:
                raise SettingsError(
                    f"two models have the name {name}: {self._entries[name].settings.bundle} and {model.bundle}. Name "
                    "them in a file for --config, by the key name of [[models]]."
                )
            self._entries[name] = Entry(name, model)
        self._named = frozenset(self._entries)
        self._look()
        if not self._entries:
            raise SettingsError(
                f"there is no model to serve{'' if settings.folder is None else f' in {settings.folder}'}. Name "
                "bundles or packs."
            )

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The models that are known, by name."""
        return self._entries

    @property
    def is_ready(self) -> bool:
        """True where all models that were named at the start can answer, and no engine is stuck.

        A model that a client has unloaded is not missed.
        """
        named = [self._entries[name] for name in self._named]
        if any(entry.batcher is None and entry.reason != _UNLOADED for entry in named):
            return False
        loaded = [entry.batcher for entry in self._entries.values() if entry.batcher is not None]
        return all(batcher.longest_run_s < self._settings.limits.stuck_s for batcher in loaded)

    def known(self, name: str, version: str | None = None) -> Entry:
        """Return a model that is known.

        Raises:
            RequestError: There is no such model or version.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise RequestError(f"unknown model {shown(name)}.", HTTPStatus.NOT_FOUND, reason="unknown_model")
        if version not in (None, "", "1"):
            raise RequestError(
                f"the model {name} has the version 1, and not {shown(version)}.",
                HTTPStatus.NOT_FOUND,
                reason="unknown_model",
            )
        return entry

    def ready(self, name: str, version: str | None = None) -> tuple[Entry, Batcher]:
        """Return a model that can answer, and its batcher.

        Raises:
            RequestError: There is no such model, or it is not loaded.
        """
        entry = self.known(name, version)
        if entry.batcher is None:
            raise RequestError(
                f"the model {name} is not loaded{f': {entry.reason}' if entry.reason else ''}.",
                HTTPStatus.NOT_FOUND,
                reason="not_loaded",
            )
        return entry, entry.batcher

    def index(self, *, only_ready: bool) -> list[dict[str, str]]:
        """List the models. A model that was never loaded has a name only."""
        self._look()
        return [
            {"name": entry.name}
            if not entry.state
            else {"name": entry.name, "version": "1", "state": entry.state, "reason": entry.reason}
            for entry in self._entries.values()
            if not only_ready or entry.batcher is not None
        ]

    async def load_all(self) -> None:
        """Load the models that were named at the start.

        Raises:
            FlowEdgeError: A model cannot be loaded.
        """
        for name in self._entries:
            if name in self._named:
                await self._load(self._entries[name])

    async def load(self, name: str) -> None:
        """Load a model, or load it again. The loaded one answers until the new one is ready.

        Raises:
            RequestError: There is no such model, or it cannot be loaded. A loaded one then stays.
        """
        self._look()
        entry = self.known(name)
        try:
            await self._load(entry)
        except (FlowEdgeError, ValueError, OSError) as error:
            # The path of the bundle is nothing for a client, so the whole message is in the log alone.
            _LOG.warning("the model %s cannot be loaded: %s", name, printable(str(error)))
            raise RequestError(
                f"failed to load the model {name}: {type(error).__name__}. The log of the server has the reason."
            ) from error

    async def unload(self, name: str) -> None:
        """Answer what waits for a model, and free it.

        Raises:
            RequestError: There is no such model.
        """
        entry = self.known(name)
        async with entry.turn:
            batcher, entry.batcher = entry.batcher, None
            if batcher is None:
                return
            entry.state, entry.reason = "UNLOADING", ""
            await asyncio.to_thread(batcher.close)
            entry.state, entry.reason = "UNAVAILABLE", _UNLOADED

    async def close(self) -> None:
        """Unload all models."""
        for name in list(self._entries):
            await self.unload(name)

    async def _load(self, entry: Entry) -> None:
        settings = self._settings
        async with entry.turn:
            before = entry.batcher
            if before is None:
                entry.state, entry.reason = "LOADING", ""
            try:
                model = await asyncio.to_thread(
                    LoadedModel, entry.settings, settings.server.require_signature
                )
            except BaseException as error:
                if before is None:
                    entry.state, entry.reason = "UNAVAILABLE", type(error).__name__
                raise
            entry.batcher = Batcher(model, settings.batch, settings.limits, entry.counts)
            entry.state, entry.reason = "READY", ""
            if before is not None:
                await asyncio.to_thread(before.close)

    def _look(self) -> None:
        """Look for new models in the folder of models."""
        folder = self._settings.folder
        if folder is None:
            return
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            if not self._entries:
                raise SettingsError(
                    f"{folder} cannot be listed: {error.strerror}. Name a folder of bundles."
                ) from error
            return
        for found in names:
            stem, ending = os.path.splitext(found)
            if ending in _ENDINGS and _NAME.fullmatch(stem) and stem not in self._entries:
                self._entries[stem] = Entry(stem, ModelSettings(bundle=folder / found))


def name_of(path: Path) -> str:
    """Return the name of a model after its folder, without the ending.

    Raises:
        SettingsError: The name of the folder has other characters than a name of a model.
    """
    name = path.absolute().name
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"{printable(str(path))} gives no name of a model, which has letters, digits, points, hyphens and "
            "underscores. Name it in a file for --config, by the key name of [[models]]."
        )
    return name
