"""Show the newest result to OPC UA clients, and tell each result by an event.

The station is the server. `flowedge.runtime.station.sinks.opcua_nodes` has the nodes.
"""

from __future__ import annotations

import contextlib
import gc
import hmac
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from asyncua import ua
from asyncua.common.callback import CallbackType
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.server import Server
from asyncua.server.user_managers import UserManager
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.object_ids import ObjectIds
from cryptography import x509

from flowedge.clock import utc_moment
from flowedge.errors import SettingsError
from flowedge.runtime.settings import secret_of
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.sinks import SinkError, StationLink
from flowedge.runtime.station.sinks.controllers import Acknowledgement, Shown
from flowedge.runtime.station.sinks.loop_thread import LoopThread, check_address
from flowedge.runtime.station.sinks.opcua_nodes import NAMESPACE, RESULT, RESULT_READY, number_of, values_of
from flowedge.runtime.station.sinks.settings import OpcUaSettings
from flowedge.text import printable
from flowedge.version import __version__

_START_S: Final = 120.0  # the standard's own nodes take seconds to build on a slow device
_STOP_S: Final = 10.0
_MOST_MESSAGE_BYTES: Final = 1 << 20
_MOST_SUBSCRIPTIONS: Final = 100
_ACTIVATION_S: Final = 10.0
_LONGEST_PART: Final = 1000
_PEM: Final = b"-----BEGIN"
_NodeId: Any = ua.NodeId  # asyncua's types are those of the wire, and its values are Python's
_SECURE: Final = [
    ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt,
    ua.SecurityPolicyType.Aes128Sha256RsaOaep_SignAndEncrypt,
    ua.SecurityPolicyType.Aes256Sha256RsaPss_SignAndEncrypt,
]


class OpcUaSink:
    """A server with one vision system, whose variables show the newest result."""

    def __init__(self, settings: OpcUaSettings, link: StationLink, *, password: str | None) -> None:
        """Name the address. The server begins to listen in `open`."""
        self._settings, self._link, self.name = settings, link, settings.cursor
        self._password = password
        self._thread: LoopThread | None = None
        self._server: _StationServer | None = None
        self._shown: Shown | None = None
        self._acknowledgement, self._heartbeat, self._beat_at = Acknowledgement(), 0, 0.0

    def open(self) -> None:
        """Build the nodes and listen, which takes some seconds."""
        if self._thread is not None:
            return
        check_address(self._settings.host, self._settings.port)
        # asyncua warns of every client that makes a mistake, and of every endpoint without encryption.
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)
        self._thread = LoopThread(f"opcua {self.name}")
        server = _StationServer(self._settings, self._link, self._password, self._acknowledgement)
        try:
            self._thread.call(server.start(), _START_S)
        except Exception as error:
            self._stop()
            raise SinkError(
                f"the OPC UA server cannot start on {self._settings.host}:{self._settings.port}: {error}."
            ) from error
        self._server = server
        self.beat()

    def deliver(self, records: Sequence[Record]) -> None:
        """Show one result after the other. With the handshake, each stays until a client has acknowledged it."""
        for place, record in enumerate(records):
            # A long backlog must not stop the heartbeat.
            if time.monotonic() - self._beat_at >= self._settings.heartbeat_s:
                self.beat()
            # A record that still waits for its acknowledgement keeps its place.
            if self._shown is None or self._shown.record.id != record.id:
                self._acknowledgement.set(0)
                self._shown = Shown(record, self._link, self._settings.stale_after_s)
                thread, server = self._opened()
                thread.call(server.show(values_of(self._shown)))
            if self._settings.handshake and not self._acknowledgement.wait(
                number_of(self._shown), self._settings.ack_timeout_s, self._settings.heartbeat_s, self.beat
            ):
                raise SinkError(
                    f"no OPC UA client has acknowledged record {record.number} within "
                    f"{self._settings.ack_timeout_s:g} s.",
                    delivered=place,
                )

    def event(self, event: Event) -> None:
        """Do nothing, since a controller has no use for words."""

    def beat(self) -> None:
        """Count the heartbeat on, and take back a result that has grown old. A hanging stage stops the heartbeat."""
        if self._thread is None:
            return
        self._beat_at = time.monotonic()
        is_alive = self._link.alive()
        if is_alive:
            self._heartbeat = (self._heartbeat + 1) % (1 << 32)
        thread, server = self._opened()
        values: dict[str, Any] = {"Heartbeat": self._heartbeat}
        if self._shown is not None:
            values |= {"IsOk": self._shown.is_ok, "IsStale": self._shown.is_stale}
        thread.call(server.update(values, "Operational" if is_alive else "Error"))

    def close(self) -> None:
        """Tell that the system halts, stop listening and disconnect all clients."""
        if self._thread is not None and self._server is not None:
            with contextlib.suppress(Exception):
                self._thread.call(self._server.stop(), _STOP_S)
        self._stop()

    def _opened(self) -> tuple[LoopThread, _StationServer]:
        if self._thread is None or self._server is None:
            raise SinkError("the OPC UA server is not open.")
        return self._thread, self._server

    def _stop(self) -> None:
        if self._thread is not None:
            self._thread.stop()
        self._thread = self._server = self._shown = None


class _StationServer:
    """The server and its nodes. All of it runs in the thread of the event loop."""

    def __init__(
        self,
        settings: OpcUaSettings,
        link: StationLink,
        password: str | None,
        acknowledgement: Acknowledgement,
    ) -> None:
        self._settings, self._link = settings, link
        self._acknowledgement = acknowledgement
        self._server = Server(user_manager=_Users(settings.username, password))
        self._nodes: dict[str, tuple[ua.NodeId, ua.VariantType]] = {}
        self._written: dict[str, Any] = {}
        self._ready_event: Any = None
        self._state = ""

    async def start(self) -> None:
        """Build the nodes and listen."""
        server, settings = self._server, self._settings
        with _no_collection():
            await server.init()
        self._limit()
        server.set_endpoint(f"opc.tcp://{settings.host}:{settings.port}/flowedge/")
        server.set_server_name(f"FlowEdge {self._link.station}")
        await server.set_application_uri(_application_uri(settings.certificate, self._link.station))
        server.application_type = ua.ApplicationType.Server
        await server.set_build_info(
            "urn:flowedge",
            "FlowEdge",
            "FlowEdge station",
            __version__,
            __version__,
            utc_moment(),
        )
        if settings.certificate is None or settings.private_key is None:
            server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        else:
            server.set_security_policy(_SECURE)
            for load, file in (
                (server.load_certificate, settings.certificate),
                (server.load_private_key, settings.private_key),
            ):
                content = file.read_bytes()
                await load(content, format="pem" if _PEM in content else "der")
        tokens = ua.AnonymousIdentityToken if settings.username is None else ua.UserNameIdentityToken
        server.set_identity_tokens([tokens])
        await self._build()
        server.subscribe_server_callback(CallbackType.PostWrite, self._on_write)
        await server.start()

    async def stop(self) -> None:
        """Tell that the system halts, and stop."""
        await self.update({}, "Halted")
        await self._server.stop()

    async def show(self, values: dict[str, Any]) -> None:
        """Write the variables of a result, and tell it by an event."""
        await self._write(values)
        for name, value in values.items():
            setattr(self._ready_event.event, name, value)
        await self._ready_event.trigger(message=f"{values['Signal']}: record {values['RecordNumber']}")

    async def update(self, values: dict[str, Any], state: str) -> None:
        """Write some variables and the state."""
        await self._write(values)
        if state != self._state:
            self._state = state
            await self._write({"CurrentState": ua.LocalizedText(state)})

    async def _write(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            # Each write of the server costs a fifth of a millisecond, and most values stay.
            if name in self._written and self._written[name] == value:
                continue
            node, kind = self._nodes[name]
            await self._server.write_attribute_value(node, ua.DataValue(ua.Variant(value, kind)))
            self._written[name] = value

    async def _build(self) -> None:
        index = await self._server.register_namespace(NAMESPACE)
        system = await self._server.nodes.objects.add_object(
            _id(index, "VisionSystem"), _name(index, "VisionSystem")
        )
        state = await system.add_object(_id(index, "VisionStateMachine"), _name(index, "VisionStateMachine"))
        management = await system.add_object(_id(index, "ResultManagement"), _name(index, "ResultManagement"))
        results = await management.add_folder(_id(index, "Results"), _name(index, "Results"))
        newest = await results.add_object(_id(index, "Result"), _name(index, "Result"))
        for parent, name, kind in (
            (system, "StationName", ua.VariantType.String),
            (system, "Heartbeat", ua.VariantType.UInt32),
            (state, "CurrentState", ua.VariantType.LocalizedText),
            (management, "AcknowledgedNumber", ua.VariantType.UInt32),
            *((newest, name, kind) for name, kind in RESULT.items()),
        ):
            variable = await parent.add_variable(
                _id(index, name), _name(index, name), ua.get_default_value(kind), kind
            )
            self._nodes[name] = variable.nodeid, kind
            if name == "AcknowledgedNumber":
                await variable.set_writable()
        await self._write({"StationName": self._link.station})
        if self._link.trigger is not None:
            await system.add_method(
                _id(index, "Trigger"), _name(index, "Trigger"), self._on_trigger, [ua.VariantType.String], []
            )
        # The library's own call gives an event type a number as its id, and clients know the type by its name.
        kind = await self._server.get_node(ObjectIds.BaseEventType).add_object_type(
            _id(index, RESULT_READY), _name(index, RESULT_READY)
        )
        for name, variant in RESULT.items():
            await kind.add_property(index, name, ua.get_default_value(variant), varianttype=variant)
        self._ready_event = await self._server.get_event_generator(kind, system.nodeid)
        self._ready_event.event.Severity = 500

    def _limit(self) -> None:
        inner = self._server.iserver
        inner.allow_remote_admin = False
        inner.max_connections = self._settings.connections
        inner.max_subscriptions = _MOST_SUBSCRIPTIONS
        inner.max_pending_activation_seconds = _ACTIVATION_S
        self._server.limits.max_message_size = _MOST_MESSAGE_BYTES
        self._server.limits.max_chunk_count = _MOST_MESSAGE_BYTES // self._server.limits.max_recv_buffer + 1

    async def _on_write(self, event: Any, _service: Any) -> None:
        """Take over an acknowledgement. The library has refused what is no number of 32 bits."""
        for written in event.request_params.NodesToWrite if event.is_external else ():
            if written.NodeId == self._nodes["AcknowledgedNumber"][0]:
                stored = self._server.iserver.aspace.read_attribute_value(written.NodeId, AttributeIds.Value)
                self._acknowledgement.set(stored.Value.Value or 0 if stored.Value is not None else 0)

    async def _on_trigger(self, _parent: ua.NodeId, part: ua.Variant) -> list[ua.Variant]:
        text = str(part.Value or "")[:_LONGEST_PART]
        if self._link.trigger is not None:
            self._link.trigger(printable(text).strip() or None)
        return []


class _Users(UserManager):
    """The one user of a server, or anonymous clients. Nobody may change the nodes."""

    def __init__(self, username: str | None, password: str | None) -> None:
        self._username, self._password = username, password

    def get_user(
        self, iserver: Any, username: str | None = None, password: str | None = None, certificate: Any = None
    ) -> User | None:
        del iserver, certificate  # the name and the password decide
        if self._username is not None:
            given, wanted = f"{username}\0{password}", f"{self._username}\0{self._password}"
            if not hmac.compare_digest(given.encode(), wanted.encode()):
                return None
        return User(role=UserRole.User)


def make(settings: OpcUaSettings, link: StationLink) -> OpcUaSink:
    """Make the sink of its settings.

    Raises:
        SettingsError: The password, the certificate or its key cannot be read.
    """
    _application_uri(settings.certificate, link.station)
    return OpcUaSink(settings, link, password=secret_of(settings.password_env, settings.password_file))


def probe(settings: OpcUaSettings, link: StationLink) -> str:
    """Look whether the server can listen, and leave the port free."""
    make(settings, link)
    check_address(settings.host, settings.port)
    how = "without encryption" if settings.certificate is None else "with encryption"
    return f"the OPC UA server can listen on {settings.host}:{settings.port}, {how}."


def _application_uri(certificate: Path | None, station: str) -> str:
    """Return the URI of the certificate, which clients compare with the server's, or one made of the station's name."""
    if certificate is None:
        return f"{NAMESPACE}:{station}"
    try:
        content = certificate.read_bytes()
        load = x509.load_pem_x509_certificate if _PEM in content else x509.load_der_x509_certificate
        names = load(content).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri, *_) = names.get_values_for_type(x509.UniformResourceIdentifier)
    except OSError as error:
        raise SettingsError(f"{certificate} cannot be read: {error.strerror}.") from error
    except (ValueError, x509.ExtensionNotFound) as error:
        raise SettingsError(
            f"{certificate} is no certificate with an application URI in its alternative names (URI:urn:...), "
            "which OPC UA clients ask for."
        ) from error
    return uri


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the garbage collector, which takes half the time while the standard's thousands of nodes are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _id(index: int, name: str) -> ua.NodeId:
    made: ua.NodeId = _NodeId(name, index)
    return made


def _name(index: int, name: str) -> ua.QualifiedName:
    return ua.QualifiedName(name, index)
