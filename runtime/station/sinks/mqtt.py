"""Publish records to an MQTT broker with QoS 1.

The journal is the queue. Nothing waits in the client: what the broker has not acknowledged when a connection ends is
published again from the journal over the next one.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from flowedge.runtime.settings import secret_of
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.sinks import RefusedError, SinkError, StationLink
from flowedge.runtime.station.sinks.payload import payload_of
from flowedge.runtime.station.sinks.settings import MqttSettings
from flowedge.runtime.tls import client_context, tls_words

_UNACKNOWLEDGED: Final = 20  # what mosquitto takes from a client by default
_GOODBYE_S: Final = 2.0
# The reasons of MQTT 5 that are about the message, and not about the client or the broker.
_REFUSALS: Final = {0x95: "the message is too large", 0x99: "the payload is not of the broker's format"}


class MqttSink:
    """A connection to a broker. The broker publishes the last will ``offline`` where the station dies."""

    def __init__(
        self,
        settings: MqttSettings,
        link: StationLink,
        *,
        password: str | None,
        context: ssl.SSLContext | None,
    ) -> None:
        """Name the broker and the topics. The connection begins with `open`."""
        self._settings, self._link, self.name = settings, link, settings.cursor
        self._password, self._context = password, context
        station = re.sub(r"[/+#\x00-\x20\x7f]", "_", link.station)
        self._topic = settings.topic or f"flowedge/{station}"
        # Two sinks of one broker would end each other's connection for ever if they had one id.
        own = f"-{settings.name}" if settings.name else ""
        self._client_id = settings.client_id or f"flowedge-{station}{own}"
        self._broker = f"the broker {settings.host}:{_port_of(settings)}"
        self._client: paho.Client | None = None
        self._changed = threading.Condition()
        self._answer: Any = None
        self._lost = ""
        self._acknowledged: dict[int, Any] = {}
        self._limits = (_UNACKNOWLEDGED, 0)
        self._state, self._beats = "", 0

    def open(self) -> None:
        """Connect, and publish the state ``online``."""
        if self._client is not None and not self._lost:
            return
        self.connect(self._client_id, has_will=True)
        self._publish([("state", self._state_now().encode())], retain=True)
        self._state = self._state_now()

    def connect(self, client_id: str, *, has_will: bool) -> None:
        """Connect without publishing anything.

        Args:
            client_id: The client's id.
            has_will: True to leave the last will with the broker.

        Raises:
            SinkError: The broker cannot be reached or refuses the client.
        """
        self.disconnect()
        settings = self._settings
        version_5 = settings.version == "5"
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=paho.MQTTv5 if version_5 else paho.MQTTv311,
            clean_session=None if version_5 else True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = settings.timeout_s
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_publish, client.on_socket_open = self._on_publish, _send_at_once
        if settings.username is not None:
            client.username_pw_set(settings.username, self._password)
        if self._context is not None:
            client.tls_set_context(self._context)
        if has_will:
            client.will_set(f"{self._topic}/state", "offline", qos=1, retain=True)
        self._answer, self._lost, self._acknowledged = None, "", {}
        self._client = client
        try:
            client.connect(
                settings.host,
                _port_of(settings),
                keepalive=settings.keepalive_s,
                clean_start=True if version_5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            )
        except (OSError, ValueError) as error:
            self.disconnect()
            raise SinkError(f"{self._broker} cannot be reached: {tls_words(error)}.") from error
        client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._answer is not None or self._lost, settings.timeout_s)
            answer, lost = self._answer, self._lost
        if answer is None or answer.is_failure:
            self.disconnect()
            why = (
                f"refuses the station: {answer}" if answer is not None else f"gives no answer {lost}".rstrip()
            )
            raise SinkError(f"{self._broker} {why}. Check the name, the password and the version.")

    def deliver(self, records: Sequence[Record]) -> None:
        """Publish each record on the topic ``record``, and wait for every acknowledgement."""
        self._publish([("record", payload_of(record)) for record in records])

    def event(self, event: Event) -> None:
        """Publish an event on the topic ``event``, and wait for the acknowledgement."""
        self._publish([("event", payload_of(event))])

    def beat(self) -> None:
        """Publish a count on the topic ``heartbeat``, and the state ``stalled`` while a stage hangs."""
        if self._client is None or self._lost:
            raise SinkError(f"the connection to {self._broker} is lost {self._lost}".rstrip() + ".")
        if (state := self._state_now()) != self._state:
            self._publish([("state", state.encode())], retain=True)
            self._state = state
        if state == "online":
            self._beats += 1
            self._client.publish(f"{self._topic}/heartbeat", str(self._beats), qos=0)

    def close(self) -> None:
        """Publish the state ``offline`` and disconnect."""
        if self._client is not None and not self._lost:
            with contextlib.suppress(SinkError):
                self._publish([("state", b"offline")], retain=True, timeout_s=_GOODBYE_S)
        self.disconnect()

    def _publish(
        self, messages: Sequence[tuple[str, bytes]], *, retain: bool = False, timeout_s: float | None = None
    ) -> None:
        """Publish messages with QoS 1, a few at a time, and wait until the broker has acknowledged them."""
        window, _ = self._limits
        for start in range(0, len(messages), window):
            try:
                self._publish_some(messages[start : start + window], retain, timeout_s)
            except SinkError as error:
                error.delivered += start
                raise

    def _publish_some(
        self, messages: Sequence[tuple[str, bytes]], retain: bool, timeout_s: float | None
    ) -> None:
        client = self._client
        if client is None:
            raise SinkError(f"{self._broker} is not connected.")
        _, most_bytes = self._limits
        too_large = ""
        with self._changed:
            self._acknowledged = {}
        numbers: list[int] = []
        for topic, payload in messages:
            # A broker closes the connection for a message that is larger than it has said.
            if most_bytes and len(payload) + len(self._topic) + 64 > most_bytes:
                too_large = f"the message has {len(payload)} bytes, and {self._broker} takes {most_bytes}."
                break
            sent = client.publish(f"{self._topic}/{topic}", payload, qos=1, retain=retain)
            if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                break
            numbers.append(sent.mid)
        until = time.monotonic() + (timeout_s or self._settings.timeout_s)
        with self._changed:
            while not self._lost and (left := until - time.monotonic()) > 0:
                if all(number in self._acknowledged for number in numbers):
                    break
                self._changed.wait(left)
            answers = [self._acknowledged.get(number) for number in numbers]
        for place, answer in enumerate(answers):
            if answer is None:
                why = self._lost or f"not acknowledged within {self._settings.timeout_s:g} s"
                self.disconnect()
                raise SinkError(f"{self._broker} has not all messages: {why}.", delivered=place)
            if answer.is_failure:
                if answer.value in _REFUSALS:
                    raise RefusedError(f"{_REFUSALS[answer.value]}.", delivered=place)
                raise SinkError(f"{self._broker} refuses messages: {answer}.", delivered=place)
        if too_large:
            raise RefusedError(too_large, delivered=len(numbers))
        if len(numbers) < len(messages):
            self.disconnect()
            raise SinkError(f"the connection to {self._broker} is lost.", delivered=len(numbers))

    def _state_now(self) -> str:
        return "online" if self._link.alive() else "stalled"

    def disconnect(self) -> None:
        """End the connection, and forget all that was not acknowledged."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    def _on_connect(self, client: Any, _data: Any, _flags: Any, answer: Any, properties: Any) -> None:
        window = getattr(properties, "ReceiveMaximum", _UNACKNOWLEDGED)
        with self._changed:
            if client is self._client:
                self._limits = (
                    min(window, _UNACKNOWLEDGED),
                    getattr(properties, "MaximumPacketSize", 0),
                )
                self._answer = answer
                self._changed.notify_all()

    def _on_disconnect(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        with self._changed:
            if client is self._client:
                self._lost = f"({reason})"
                self._changed.notify_all()

    def _on_publish(self, client: Any, _data: Any, number: int, reason: Any, _properties: Any) -> None:
        # A broker may hold back its next acknowledgement until this one is confirmed, which takes 40 ms by default.
        if (connection := client.socket()) is not None:
            with contextlib.suppress(OSError):  # The connection may just have ended.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        with self._changed:
            if client is self._client:
                self._acknowledged[number] = reason
                self._changed.notify_all()


def make(settings: MqttSettings, link: StationLink) -> MqttSink:
    """Make the sink of its settings.

    Raises:
        SettingsError: The password or a certificate cannot be read.
    """
    context = None
    if settings.tls:
        context = client_context(settings.ca_file, settings.cert_file, settings.key_file)
    password = secret_of(settings.password_env, settings.password_file)
    return MqttSink(settings, link, password=password, context=context)


def probe(settings: MqttSettings, link: StationLink) -> str:
    """Connect under another client id, so that a running station keeps its connection."""
    sink = make(settings, link)
    try:
        sink.connect(
            f"{settings.client_id or 'flowedge'}-check-{time.monotonic_ns() % 10**8}", has_will=False
        )
    finally:
        sink.disconnect()
    how = "over TLS" if settings.tls else "without encryption"
    return f"the broker {settings.host}:{_port_of(settings)} takes the station {how}, by MQTT {settings.version}."


def _send_at_once(_client: Any, _data: Any, connection: Any) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _port_of(settings: MqttSettings) -> int:
    return settings.port or (8883 if settings.tls else 1883)
