"""Define the settings of the sinks, the tables ``[[sinks]]`` of ``station.toml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeAlias
from urllib.parse import urlsplit

from msgspec import Meta

from flowedge.runtime.settings import Settings

SinkName: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z0-9_.-]{1,64}\Z",
        extra={"allowed": "1 to 64 letters, digits, dots, dashes and underscores"},
    ),
]
Host: TypeAlias = Annotated[str, Meta(min_length=1, max_length=255)]
Port: TypeAlias = Annotated[int, Meta(ge=1, le=65535)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0.1, le=300)]
Topic: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"\A[^#+\x00-\x1f]{1,200}\Z",
        extra={"allowed": "a topic of 1 to 200 characters without the wildcards # and +"},
    ),
]

Url: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"\Ahttps?://[!-~]{1,2000}\Z",
        extra={"allowed": "an address that begins with http:// or https:// and has no spaces"},
    ),
]


class AnySink(Settings, frozen=True, kw_only=True):
    """The keys that every sink has.

    Attributes:
        name: The sink's name, by which the journal keeps what was delivered. The default is the kind. Two sinks of
            one kind need two names. A sink with a new name is a new sink.
        events: True to deliver the station's events too, such as a lost camera.
        begin: The first record that a new sink gets, ``now`` for the next one and ``oldest`` for the whole journal.
        heartbeat_s: The time in seconds between two signs of life.
        retry_max_s: The longest pause in seconds between two attempts to reach a receiver that is down.
    """

    kind: ClassVar[str]

    name: SinkName | None = None
    events: bool = True
    begin: Literal["now", "oldest"] = "now"
    heartbeat_s: Annotated[float, Meta(ge=0.1, le=60)] = 1.0
    retry_max_s: Annotated[float, Meta(ge=0.1, le=3600)] = 30.0

    @property
    def cursor(self) -> str:
        """The sink's name in the journal and in events."""
        return self.name or self.kind


class JsonLinesSettings(AnySink, frozen=True, kw_only=True, tag_field="kind", tag="jsonl"):
    """A file with one line of JSON for each record.

    Attributes:
        events: True to write the station's events too, as lines with the key ``kind``.
        path: The file, or ``-`` for the standard output.
        rotate_mib: The size in MiB after which a new file begins. A size of 0 never begins a new one.
        keep: The number of full files that are kept. The oldest is deleted. A number of 0 keeps all.
        fsync: The moment when the lines are forced to the disk, ``always`` before the journal counts them as
            delivered, or ``never`` to leave that to the operating system.
    """

    kind: ClassVar[str] = "jsonl"

    events: bool = False
    path: Path
    rotate_mib: Annotated[float, Meta(ge=0, le=65536)] = 64.0
    keep: Annotated[int, Meta(ge=0, le=100000)] = 16
    fsync: Literal["always", "never"] = "always"


class MqttSettings(AnySink, frozen=True, kw_only=True, tag_field="kind", tag="mqtt"):
    """A broker that gets each record as a message of QoS 1.

    Attributes:
        host: The broker's name or address.
        port: The broker's port. The default is 8883 with TLS and 1883 without.
        topic: The beginning of all topics. The default is ``flowedge/`` and the station's name.
        client_id: The client's id, which no other client of the broker may have. The default is ``flowedge-`` and the
            station's name, followed by the sink's name where it has one.
        version: The version of the protocol. Only version 5 tells when the broker refuses a message.
        tls: True to encrypt, and to check the broker's certificate and name.
        ca_file: The certificates to trust in place of the system's.
        cert_file: The station's own certificate, for a broker that asks for one.
        key_file: The private key of ``cert_file``.
        username: The user's name, for a broker that asks for one.
        password_env: The environment variable with the password.
        password_file: The file with the password.
        keepalive_s: The time in seconds after which the broker takes a silent station for dead.
        timeout_s: The longest time in seconds until the broker has acknowledged what was sent.
    """

    kind: ClassVar[str] = "mqtt"

    host: Host = "localhost"
    port: Port | None = None
    topic: Topic | None = None
    client_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    version: Literal["3.1.1", "5"] = "5"
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    username: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    password_env: str | None = None
    password_file: Path | None = None
    keepalive_s: Annotated[int, Meta(ge=2, le=3600)] = 10
    timeout_s: Seconds = 10.0

    def __post_init__(self) -> None:
        """Check the keys that depend on one another."""
        _one_or_none(self.password_env, self.password_file, "password_env", "password_file")
        _need(self.username, self.password_env or self.password_file, "username", "a password")
        _both_or_none(self.cert_file, self.key_file, "cert_file", "key_file")
        _need(self.tls, self.ca_file or self.cert_file, "tls = true", "ca_file or cert_file")


class ModbusSettings(AnySink, frozen=True, kw_only=True, tag_field="kind", tag="modbus"):
    """A Modbus TCP server that a PLC reads.

    Attributes:
        host: The address to listen on. ``0.0.0.0`` is every address of the device.
        port: The port to listen on. The protocol's own port 502 needs a privilege.
        unit: The unit id that is answered. The number 0 answers every unit id.
        handshake: True to hold the next verdict until the PLC has acknowledged this one.
        ack_timeout_s: The time in seconds without an acknowledgement after which the sink counts as down.
        stale_after_s: The age in seconds from which a verdict is shown as NOK, whatever it was.
        connections: The most clients at a time.
        requests_per_s: The most requests per second of one client. A faster client is disconnected.
        idle_s: The time in seconds after which a silent client is disconnected.
    """

    kind: ClassVar[str] = "modbus"

    host: Host = "127.0.0.1"
    port: Port = 1502
    unit: Annotated[int, Meta(ge=0, le=247)] = 0
    handshake: bool = False
    ack_timeout_s: Seconds = 5.0
    stale_after_s: Annotated[float, Meta(ge=0.01, le=86400)] = 10.0
    connections: Annotated[int, Meta(ge=1, le=64)] = 8
    requests_per_s: Annotated[int, Meta(ge=10, le=10000)] = 500
    idle_s: Annotated[float, Meta(ge=0.1, le=3600)] = 60.0


class OpcUaSettings(AnySink, frozen=True, kw_only=True, tag_field="kind", tag="opcua"):
    """An OPC UA server with the newest result and an event for each result.

    Attributes:
        host: The address to listen on. ``0.0.0.0`` is every address of the device.
        port: The port to listen on.
        certificate: The server's certificate in DER or PEM. With it, every client must sign and encrypt.
        private_key: The private key of ``certificate``.
        username: The only user's name. Without it, clients are anonymous. A name needs ``certificate``.
        password_env: The environment variable with the user's password.
        password_file: The file with the user's password.
        handshake: True to hold the next verdict until a client has acknowledged this one.
        ack_timeout_s: The time in seconds without an acknowledgement after which the sink counts as down.
        stale_after_s: The age in seconds from which a verdict is shown as NOK, whatever it was.
        connections: The most clients at a time.
    """

    kind: ClassVar[str] = "opcua"

    host: Host = "127.0.0.1"
    port: Port = 4840
    certificate: Path | None = None
    private_key: Path | None = None
    username: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    password_env: str | None = None
    password_file: Path | None = None
    handshake: bool = False
    ack_timeout_s: Seconds = 5.0
    stale_after_s: Annotated[float, Meta(ge=0.01, le=86400)] = 10.0
    connections: Annotated[int, Meta(ge=1, le=64)] = 8

    def __post_init__(self) -> None:
        """Check the keys that depend on one another."""
        _one_or_none(self.password_env, self.password_file, "password_env", "password_file")
        _both_or_none(self.certificate, self.private_key, "certificate", "private_key")
        _both_or_none(self.username, self.password_env or self.password_file, "username", "a password")
        # A name and a password without encryption could be read and used by anybody in the network.
        _need(self.certificate, self.username, "certificate", "username")


class WebhookSettings(AnySink, frozen=True, kw_only=True, tag_field="kind", tag="webhook"):
    """A server that gets each record by an HTTP POST.

    Attributes:
        url: The address, ``https://`` or ``http://``. A redirect is not followed.
        secret_env: The environment variable with the secret that signs each message.
        secret_file: The file with the secret that signs each message.
        token_env: The environment variable with a token that is sent as ``Authorization: Bearer``.
        token_file: The file with a token that is sent as ``Authorization: Bearer``.
        ca_file: The certificates to trust in place of the system's.
        timeout_s: The longest time in seconds of one request.
    """

    kind: ClassVar[str] = "webhook"

    url: Url
    secret_env: str | None = None
    secret_file: Path | None = None
    token_env: str | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    timeout_s: Seconds = 10.0

    def __post_init__(self) -> None:
        """Check the address, and the keys that depend on one another.

        Raises:
            ValueError: The address has no host or has parts that no message can carry.
        """
        _one_or_none(self.secret_env, self.secret_file, "secret_env", "secret_file")
        _one_or_none(self.token_env, self.token_file, "token_env", "token_file")
        parts = urlsplit(self.url)  # raises a ValueError for a wrong port
        if not parts.hostname or parts.port == 0:
            raise ValueError("url needs a host")
        if parts.username or parts.password or parts.fragment:
            raise ValueError(
                "url may have no user, no password and no fragment. A token has a key of its own"
            )
        is_private = parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")
        _need(is_private, self.token_env or self.token_file, "https or localhost", "a token")
        _need(parts.scheme == "https", self.ca_file, "https", "ca_file")


SinkSettings: TypeAlias = JsonLinesSettings | MqttSettings | ModbusSettings | OpcUaSettings | WebhookSettings
"""The settings of one sink, told apart by the key ``kind``."""


def _need(needed: object, wanted: object, needed_name: str, wanted_name: str) -> None:
    if wanted and not needed:
        raise ValueError(f"{wanted_name} needs {needed_name}")


def _one_or_none(first: object, second: object, first_name: str, second_name: str) -> None:
    if first and second:
        raise ValueError(f"only one of {first_name} and {second_name} is allowed")


def _both_or_none(first: object, second: object, first_name: str, second_name: str) -> None:
    _need(first, second, first_name, second_name)
    _need(second, first, second_name, first_name)
