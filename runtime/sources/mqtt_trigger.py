"""Take the ids of parts from the messages of an MQTT broker."""

from __future__ import annotations

import threading
from typing import Any, Final, cast

import msgspec

from flowedge.packages import explain_missing
from flowedge.runtime.settings import secret_of
from flowedge.runtime.sources.events import SourceEvent
from flowedge.runtime.sources.opening import Opening
from flowedge.runtime.sources.settings import MqttTrigger, TriggerSettings
from flowedge.runtime.sources.triggers import LONGEST_PART, Listener, Take
from flowedge.runtime.tls import client_context

_MOST_BYTES: Final = 10 * LONGEST_PART
_MOST_PAUSE_S: Final = 30


class _Message(msgspec.Struct):
    """The part of a JSON message that counts. Other keys are ignored."""

    part: str


def listen(settings: TriggerSettings, take: Take, opening: Opening) -> Listener:
    """Connect to a broker. A broker that does not answer is waited for.

    Raises:
        SettingsError: The password that the settings name is not there, or the certificates cannot be read.
        MissingPackageError: The package paho-mqtt is not installed.
    """
    return _Subscriber(cast(MqttTrigger, settings), take, opening)


class _Subscriber:
    """A client that subscribes to the topic of the messages, again after each lost connection.

    Messages that the broker has kept from before the connection began are ignored, since their parts have passed.
    """

    def __init__(self, settings: MqttTrigger, take: Take, opening: Opening) -> None:
        with explain_missing("station"):
            import paho.mqtt.client as paho
            from paho.mqtt.enums import CallbackAPIVersion
        self._settings = settings
        self._take = take
        self._opening = opening
        self._lock = threading.Lock()
        self._is_lost = self._closed = False
        self._client: Any = paho.Client(CallbackAPIVersion.VERSION2)
        password = secret_of(settings.password_env, settings.password_file)
        if settings.username is not None:
            self._client.username_pw_set(settings.username, password)
        if settings.tls:
            self._client.tls_set_context(client_context(settings.ca_file))
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = lambda *_: self._lost("it cannot be reached")
        self._client.on_disconnect = lambda _client, _data, _flags, code, _more: self._lost(str(code))
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, _MOST_PAUSE_S)
        self._client.connect_async(settings.host, settings.port, keepalive=20)
        self._client.loop_start()

    def close(self) -> None:
        self._closed = True
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: Any, _data: object, _flags: object, code: Any, _more: object) -> None:
        if code.is_failure:
            self._lost(f"it refuses the station: {code}")
            return
        client.subscribe(self._settings.topic, qos=1)
        with self._lock:
            was_lost, self._is_lost = self._is_lost, False
        if was_lost:
            self._opening.tell(SourceEvent(kind="trigger_back", text=f"{self._broker} is back"))

    def _lost(self, reason: str) -> None:
        with self._lock:
            if self._is_lost or self._closed:
                return
            self._is_lost = True
        self._opening.tell(SourceEvent(kind="trigger_lost", text=f"{self._broker} is lost: {reason}"))

    def _on_message(self, _client: object, _data: object, message: Any) -> None:
        if message.retain:
            return
        payload: bytes = message.payload[: _MOST_BYTES + 1]
        if payload.lstrip()[:1] == b"{":
            try:
                self._take(msgspec.json.decode(payload, type=_Message).part)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self._take(b"")
            return
        self._take(payload)

    @property
    def _broker(self) -> str:
        return f"the MQTT broker {self._settings.host}:{self._settings.port} of the trigger"
