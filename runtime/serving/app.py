"""Answer the requests of the Open Inference Protocol and the plain requests: one ASGI application."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple, TypeAlias

from flowedge.runtime.exposition import CONTENT_TYPE, start_time
from flowedge.runtime.http_guard import allowed_names, is_same_origin, knows_host
from flowedge.runtime.serving.catalogue import Catalogue
from flowedge.runtime.serving.exchange import ClientGoneError, Exchange, Memory, Receive, Send
from flowedge.runtime.serving.judging import Judging
from flowedge.runtime.serving.keys import Keys
from flowedge.runtime.serving.messages import Answer, error_answer, json_answer
from flowedge.runtime.serving.metrics import metrics_of
from flowedge.runtime.serving.refusal import RequestError
from flowedge.runtime.serving.repository import Repository
from flowedge.runtime.serving.settings import ServeSettings
from flowedge.runtime.serving.traces import Traces
from flowedge.text import shown
from flowedge.version import __version__

_LOG: Final = logging.getLogger(__name__)
_EXTENSIONS: Final = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
_OTHER_EXTENSIONS: Final = "trace|logging|systemsharedmemory|cudasharedmemory"
_INSPECT: Final = "/v1/inspect"
_MODEL: Final = "/v2/models/{model}"
_HEALTH: Final = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
_CLIENT_GONE: Final = 499  # the number that nginx made usual

_Handler: TypeAlias = Callable[[Exchange, Mapping[str, str]], Awaitable[Answer]]


class _Route(NamedTuple):
    """One kind of address: its method, its pattern, its name in counters and traces, and what answers it."""

    method: str
    pattern: re.Pattern[str]
    name: str
    handler: _Handler


class Site:
    """The application of one server.

    Attributes:
        models: The models.
        is_draining: True once the server is being stopped.
        connections: Gives the number of open connections.
    """

    def __init__(
        self, settings: ServeSettings, repository: Repository, keys: Keys, traces: Traces | None
    ) -> None:
        """Take the parts of the server.

        Args:
            settings: The settings.
            repository: The models.
            keys: The keys of clients.
            traces: The traces, where some are wanted.
        """
        self.is_draining = False
        self.connections: Callable[[], int] = lambda: 0
        self.models = repository
        self._keys, self._traces = keys, traces
        self._limits = settings.limits
        self._names = allowed_names(settings.server.host, settings.server.hosts)
        self._memory = Memory(int(settings.limits.memory_mb * 1e6))
        self._answers: Counter[tuple[str, int]] = Counter()
        self._started = start_time()
        self._judging = Judging(repository, settings.limits)
        self._routes = self._all_routes(Catalogue(settings, repository, lambda: self.is_draining))

    def _all_routes(self, models: Catalogue) -> tuple[_Route, ...]:
        judging = self._judging
        repository = "/v2/repository/models/{model}"
        return (
            _route("GET", "/healthz", self._live),
            _route("GET", "/readyz", self._ready),
            _route("GET", "/metrics", self._metrics),
            _route("POST", _INSPECT, judging.inspect),
            _route("GET", "/v2", self._metadata),
            _route("GET", "/v2/health/live", self._live),
            _route("GET", "/v2/health/ready", self._ready),
            _route("GET", "/v2/models/stats", models.statistics),
            *_of_model("GET", "", models.model_metadata),
            *_of_model("GET", "/ready", models.model_ready),
            *_of_model("GET", "/config", models.model_config),
            *_of_model("GET", "/stats", models.statistics),
            *_of_model("POST", "/infer", judging.infer),
            _route("POST", "/v2/repository/index", models.index),
            _route("POST", f"{repository}/load", models.load),
            _route("POST", f"{repository}/unload", models.unload),
            _Route(
                "",
                re.compile(rf"/v2/(?:models/[^/]+/)?(?P<extension>{_OTHER_EXTENSIONS})(?:/.*)?"),
                "/v2/{extension}",
                self._unsupported,
            ),
        )

    @property
    def is_ready(self) -> bool:
        """True where the server accepts requests."""
        return not self.is_draining and self.models.is_ready

    def close(self) -> None:
        """End the threads, and send what is left of traces."""
        self._judging.close()
        if self._traces is not None:
            self._traces.close()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, self._limits, self._memory)
        route, handler, names = self._found(exchange)
        if self._traces is not None and exchange.path not in _HEALTH:
            exchange.span = self._traces.begin(exchange.method, route, exchange.headers)
        status = _CLIENT_GONE
        try:
            answer = await self._answered(exchange, handler, names)
            status = answer.status
            await exchange.answer(answer)
        except ClientGoneError:
            pass  # nobody reads an answer
        finally:
            exchange.free()
            self._answers[route, status] += 1
            exchange.span.end(status, names)

    def _found(self, exchange: Exchange) -> tuple[str, _Handler, Mapping[str, str]]:
        """Find the name of a request's route, its handler and the names in its path."""
        method = "GET" if exchange.method == "HEAD" else exchange.method
        is_known = False
        for route in self._routes:
            if found := route.pattern.fullmatch(exchange.path):
                if route.method in ("", method):
                    names = {key: value for key, value in found.groupdict().items() if value is not None}
                    return route.name, route.handler, names
                is_known = True
        return ("wrong method", _wrong_method, {}) if is_known else ("unknown", _not_found, {})

    async def _answered(self, exchange: Exchange, handler: _Handler, names: Mapping[str, str]) -> Answer:
        try:
            self._check_sender(exchange)
            return await handler(exchange, names)
        except RequestError as error:
            refused = error
        except (ClientGoneError, asyncio.CancelledError):
            raise
        except Exception:
            _LOG.exception("a request has failed")
            refused = RequestError(
                "the request has failed inside the server, whose log has the reason.",
                HTTPStatus.INTERNAL_SERVER_ERROR,
            )
        # A program that reads the verdict alone must not take a failure for a good part.
        return error_answer(refused, {"verdict": "not_inspected"} if exchange.path == _INSPECT else None)

    def _check_sender(self, exchange: Exchange) -> None:
        """Check that a client may use the server.

        Raises:
            RequestError: There are too many connections, the key is missing or wrong, or a page of another site sends
                the request.
        """
        headers = exchange.headers
        if self.connections() > self._limits.connections:
            raise RequestError(
                f"there are more than {self._limits.connections} connections. Try again later.",
                HTTPStatus.SERVICE_UNAVAILABLE,
                reason="connections",
                retry_after_s=1,
            )
        host = headers.get("host", "")
        # With a key, no page of another site can send a request that counts.
        if not self._keys and not knows_host(host, self._names):
            raise RequestError(
                "this name of the server is not known to it. Use its numeric address, or add the name to hosts in the "
                "table [server] of its file.",
                HTTPStatus.MISDIRECTED_REQUEST,
                reason="host",
            )
        if not is_same_origin(headers, host):
            raise RequestError(
                "a request must not come from a page of another site.", HTTPStatus.FORBIDDEN, reason="origin"
            )
        if exchange.path not in _HEALTH and not self._keys.allow(headers):
            raise RequestError(
                "the key is missing or wrong. Send it as the header Authorization: Bearer KEY, or as X-API-Key: KEY.",
                HTTPStatus.UNAUTHORIZED,
                reason="key",
            )

    async def _live(self, exchange: Exchange, names: Mapping[str, str]) -> Answer:
        """Tell that the loop of the server answers."""
        return Answer(headers={"Content-Type": "text/plain"})

    async def _ready(self, exchange: Exchange, names: Mapping[str, str]) -> Answer:
        """Tell by the status that the server accepts requests."""
        return Answer(headers={"Content-Type": "text/plain"}, status=200 if self.is_ready else 503)

    async def _metadata(self, exchange: Exchange, names: Mapping[str, str]) -> Answer:
        """Describe the server."""
        return json_answer({"name": "flowedge", "version": __version__, "extensions": _EXTENSIONS})

    async def _unsupported(self, exchange: Exchange, names: Mapping[str, str]) -> Answer:
        """Refuse an extension of the protocol that this server does not have."""
        raise RequestError(
            f"this server does not have the extension {names['extension']}. It has: {', '.join(_EXTENSIONS)}."
        )

    async def _metrics(self, exchange: Exchange, names: Mapping[str, str]) -> Answer:
        """Write the numbers of the server."""
        text = metrics_of(
            self.models.entries,
            self._answers,
            connections=self.connections(),
            held_bytes=self._memory.held,
            is_ready=self.is_ready,
            started=self._started,
        )
        return Answer(parts=(text.encode(),), headers={"Content-Type": CONTENT_TYPE})


def _route(method: str, name: str, handler: _Handler) -> _Route:
    """Make the route of an address, in whose name the braces stand for one part of the path."""
    return _Route(method, re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", name)), name, handler)


def _of_model(method: str, end: str, handler: _Handler) -> tuple[_Route, _Route]:
    """Make the two routes of a model's address, without and with a version."""
    versioned = f"{_MODEL}/versions/{{version}}{end}"
    return _route(method, f"{_MODEL}{end}", handler), _route(method, versioned, handler)


async def _not_found(exchange: Exchange, names: Mapping[str, str]) -> Answer:
    raise RequestError(
        f"there is nothing at the address {shown(exchange.path)}. Send a picture to {_INSPECT} by POST. The "
        "Open Inference Protocol begins at /v2, and the numbers are at /metrics.",
        HTTPStatus.NOT_FOUND,
    )


async def _wrong_method(exchange: Exchange, names: Mapping[str, str]) -> Answer:
    raise RequestError(
        f"the address {shown(exchange.path)} does not take {shown(exchange.method)}.",
        HTTPStatus.METHOD_NOT_ALLOWED,
    )
