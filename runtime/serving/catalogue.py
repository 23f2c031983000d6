"""Answer the requests about models: what they are, what they did, and whether they are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from flowedge.runtime.serving.exchange import Exchange
from flowedge.runtime.serving.messages import Answer, json_answer
from flowedge.runtime.serving.refusal import RequestError
from flowedge.runtime.serving.repository import Repository
from flowedge.runtime.serving.settings import ServeSettings
from flowedge.runtime.serving.tensors import config_of, metadata_of


class Catalogue:
    """The requests about the models of one server."""

    def __init__(
        self, settings: ServeSettings, repository: Repository, is_draining: Callable[[], bool]
    ) -> None:
        """Take the models.

        Args:
            settings: The settings.
            repository: The models.
            is_draining: Tells that the server is being stopped.
        """
        self._settings, self._repository = settings, repository
        self._is_draining = is_draining

    async def model_ready(self, exchange: Exchange, names: Mapping[str, str]) -> Answer:
        """Tell by the status that a model can answer."""
        self._repository.ready(names["model"], names.get("version"))
        return Answer(headers={"Content-Type": "text/plain"}, status=503 if self._is_draining() else 200)

    async def model_metadata(self, exchange: Exchange, names: Mapping[str, str]) -> Answer:
        """Describe the tensors of a model."""
        entry, batcher = self._repository.ready(names["model"], names.get("version"))
        return json_answer(metadata_of(entry.name, batcher.model))

    async def model_config(self, exchange: Exchange, names: Mapping[str, str]) -> Answer:
        """Describe the batches of a model."""
        entry, batcher = self._repository.ready(names["model"], names.get("version"))
        return json_answer(config_of(entry.name, batcher.model, self._settings.batch))

    async def statistics(self, exchange: Exchange, names: Mapping[str, str]) -> Answer:
        """Tell the statistics of one model, or of all that are loaded."""
        if "model" in names:
            entries = [self._repository.ready(names["model"], names.get("version"))[0]]
        else:
            entries = [one for one in self._repository.entries.values() if one.batcher is not None]
        return json_answer({"model_stats": [one.counts.statistics(one.name) for one in entries]})

    async def index(self, exchange: Exchange, names: Mapping[str, str]) -> Answer:
        """List the models."""
        wanted = await _json_body(exchange)
        return json_answer(self._repository.index(only_ready=wanted.get("ready") is True))

    async def load(self, exchange: Exchange, names: Mapping[str, str]) -> Answer:
        """Load a model that is known here."""
        self._check_control()
        wanted = await _json_body(exchange)
        parameters = wanted.get("parameters")
        if parameters:
            raise RequestError(
                "a model is loaded as the operator of the server has named it. Parameters, such as a configuration or "
                "files, are refused."
            )
        await self._repository.load(names["model"])
        return Answer(headers={"Content-Type": "application/json"})

    async def unload(self, exchange: Exchange, names: Mapping[str, str]) -> Answer:
        """Unload a model, after it has answered what waits for it."""
        self._check_control()
        await _json_body(exchange)
        await self._repository.unload(names["model"])
        return Answer(headers={"Content-Type": "application/json"})

    def _check_control(self) -> None:
        if not self._settings.server.model_control:
            raise RequestError(
                "clients must not load or unload models here. The operator of the server allows it by --model-control."
            )


async def _json_body(exchange: Exchange) -> dict[str, Any]:
    """Read a body that is empty or a JSON object."""
    body = await exchange.body()
    if not body:
        return {}
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"failed to parse the request JSON buffer: {error}") from error
