"""Run a server in a thread of its own, and stop it in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from types import TracebackType
from typing import Any, Final

import uvicorn

from flowedge.errors import FlowEdgeError, SettingsError
from flowedge.runtime.http_address import check_certificate, is_local, listen, url_of
from flowedge.runtime.serving.app import Site
from flowedge.runtime.serving.keys import keys_of
from flowedge.runtime.serving.protocol import protocol_with
from flowedge.runtime.serving.repository import Repository
from flowedge.runtime.serving.settings import ServeSettings
from flowedge.runtime.serving.traces import Traces

_LOG: Final = logging.getLogger(__name__)
_START_S: Final = 20.0


class ModelServer:
    """A server of bundles and packs.

    Attributes:
        url: The address for a program on this computer.
        warning: The note for a person about the address. The text is empty where all is well.

    Examples:
        >>> from flowedge.runtime.serving.server import ModelServer
        >>> from flowedge.runtime.serving.settings import ModelSettings, ServeSettings
        >>> settings = ServeSettings(models=(ModelSettings(bundle="bottle.flowedge"),))
        >>> with ModelServer(settings) as server:  # doctest: +SKIP
        ...     server.wait()
    """

    def __init__(self, settings: ServeSettings) -> None:
        """Check the settings and take the address. The server answers after `start`.

        Args:
            settings: The settings.

        Raises:
            SettingsError: A key, a certificate or a model is not named correctly, or the address can be reached by
                other computers and there is no key.
            FlowEdgeError: The address cannot be listened on.
        """
        server = settings.server
        keys = keys_of(server)
        has_tls = check_certificate(server.tls_certificate, server.tls_key, table="[server]")
        self.warning = ""
        if not is_local(server.host):
            if not keys and not server.without_key:
                raise SettingsError(
                    f"the address {server.host} can be reached by other computers, and there is no key. Name one by "
                    "--key-env or --key-file, or allow everybody by --without-key."
                )
            if not keys:
                self.warning = (
                    f"every computer that reaches {server.host} can use this server, since it has no key"
                )
            elif not has_tls:
                self.warning = (
                    f"the server listens on {server.host} without TLS, so keys cross the network in plain text. Set "
                    "tls_certificate and tls_key, or put a proxy with TLS in front of it"
                )
        self._settings = settings
        self._repository = Repository(settings)
        traces = None if settings.traces is None else Traces(settings.traces)
        self.site = Site(settings, self._repository, keys, traces)
        self._socket = listen(server.host, server.port, owner="the server", table="the table [server]")
        self.url = url_of(server.host, self.port, has_tls=has_tls)
        config = uvicorn.Config(
            self.site,
            http=protocol_with(settings.limits),
            ws="none",
            loop="auto",  # uvloop where it is installed
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=settings.limits.idle_s,
            timeout_graceful_shutdown=max(1, round(settings.limits.drain_s)),
            ssl_certfile=server.tls_certificate,
            ssl_keyfile=server.tls_key,
        )
        self._server = _Server(config, self.site, self._repository)
        self.site.connections = lambda: len(self._server.server_state.connections)
        self._thread = threading.Thread(target=self._serve, name="serve", daemon=True)
        self._problem: BaseException | None = None

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return int(self._socket.getsockname()[1])

    @property
    def model_names(self) -> list[str]:
        """The names of the models that are loaded."""
        return [name for name, entry in self._repository.entries.items() if entry.batcher is not None]

    def start(self) -> None:
        """Start to answer, and load the models. The server is ready afterwards.

        Raises:
            FlowEdgeError: A model cannot be loaded, or the server does not start.
        """
        self._thread.start()
        if not self._server.is_running.wait(_START_S) or self._server.loop is None:
            self.stop()
            raise FlowEdgeError(f"the server does not start on {self.url}: {self._problem}.")
        loading = asyncio.run_coroutine_threadsafe(self._repository.load_all(), self._server.loop)
        try:
            loading.result()
        except BaseException:
            loading.cancel()
            self.stop()
            self.wait()
            raise

    def stop(self) -> None:
        """Ask the server to stop: it is not ready, answers the requests that it has, and ends. This returns at once."""
        loop = self._server.loop
        if loop is None:
            self._server.should_exit = True
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(self._drain, loop)

    def wait(self) -> None:
        """Wait until the server has ended.

        Raises:
            FlowEdgeError: The server ended by a failure.
        """
        self._thread.join()
        self._socket.close()
        if self._problem is not None:
            raise FlowEdgeError(f"the server has failed: {self._problem}.") from self._problem

    def __enter__(self) -> ModelServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.wait()

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.site.is_draining:
            return
        self.site.is_draining = True
        loop.call_later(self._settings.limits.drain_delay_s, self._exit)

    def _exit(self) -> None:
        self._server.should_exit = True

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except BaseException as error:
            _LOG.exception("the server has failed")
            self._problem = error
        finally:
            self._server.is_running.set()


class _Server(uvicorn.Server):
    """The server of uvicorn, which frees the models after its last answer."""

    def __init__(self, config: uvicorn.Config, site: Site, repository: Repository) -> None:
        super().__init__(config)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.is_running = threading.Event()
        self._site, self._repository = site, repository

    async def startup(self, sockets: Any = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.is_running.set()

    async def shutdown(self, sockets: Any = None) -> None:
        """Answer what is left, and free the models."""
        await super().shutdown(sockets)
        await self._repository.close()
        self._site.close()
