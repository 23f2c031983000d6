"""Define the settings of a server: the file that ``flowedge serve --config`` names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from flowedge.runtime.settings import Settings

ModelName: TypeAlias = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A(?!stats\Z)[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z",
        extra={"allowed": "a name of letters, digits, points, hyphens and underscores, other than stats"},
    ),
]
"""The name of a model in an address."""


class ServerSettings(Settings, frozen=True, kw_only=True):
    """The address of the server, and who may use it.

    Attributes:
        host: The address that the server listens on. With an address other than ``127.0.0.1`` other computers reach
            the server, which then needs a key.
        port: The TCP port. With 0 the system chooses a free one.
        hosts: Further names of this computer, by which clients without a key may reach the server. Numeric addresses,
            ``localhost`` and the computer's own name are always allowed.
        key_env: The environment variable with the key that clients send.
        key_file: The file of the keys that clients send, one on each line, instead of ``key_env``.
        without_key: True allows an address that other computers reach without a key.
        model_control: True lets clients load and unload the models that are known here.
        tls_certificate: The file of the certificate chain, PEM. With it the server speaks HTTPS.
        tls_key: The file of the certificate's private key, PEM.
        require_signature: A file or a folder of public keys, one of which must have signed each bundle and pack.
    """

    host: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8000
    hosts: Annotated[tuple[str, ...], msgspec.Meta(max_length=50)] = ()
    key_env: str | None = None
    key_file: Path | None = None
    without_key: bool = False
    model_control: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    require_signature: Path | None = None


class BatchSettings(Settings, frozen=True, kw_only=True):
    """The batches that requests are gathered into.

    Attributes:
        largest: The most frames in one run of the engine. Without a number it is 1 on a CPU, where a frame takes as
            long in a batch as alone, and 8 on another device.
        delay_ms: The longest time in ms that a frame waits for others while the engine is free.
        workers: The number of batches of a model that are worked on at once. Without a number it is that of the
            inferences which the cores have room for, and 2 on another device than the CPU.
    """

    largest: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    delay_ms: Annotated[float, msgspec.Meta(ge=0, le=10000)] = 2.0
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None


class LimitSettings(Settings, frozen=True, kw_only=True):
    """The limits of requests and connections.

    Attributes:
        queue: The most frames that wait for one model. A request beyond it is refused with 429.
        deadline_ms: The time in ms in which a request is answered. A request may name a shorter one. A request that is
            late is answered with 504 and is not computed.
        connections: The most connections at once. Beyond it the one that has been idle longest is closed.
        body_mb: The most megabytes of a body, also after decompression.
        memory_mb: The most megabytes of all bodies and answers at once. A request beyond it is refused with 429.
        megapixels: The most million pixels of one frame.
        header_s: The time in seconds in which the headers of a request must have come.
        body_s: The time in seconds in which the body of a request must have come.
        idle_s: The time in seconds after which a connection without a request is closed.
        answer_s: The time in seconds in which a client must have taken its answer.
        drain_s: The time in seconds that requests have left when the server is stopped.
        drain_delay_s: The time in seconds for which a server that is stopped still accepts requests and is not ready,
            so that a load balancer notices first.
        stuck_s: The time in seconds after which a run of an engine that does not end makes the server not ready.
    """

    queue: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 64
    deadline_ms: Annotated[float, msgspec.Meta(ge=1, le=3_600_000)] = 10_000.0
    connections: Annotated[int, msgspec.Meta(ge=4, le=10_000)] = 256
    body_mb: Annotated[float, msgspec.Meta(gt=0, le=1024)] = 64.0
    memory_mb: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 1024.0
    megapixels: Annotated[float, msgspec.Meta(gt=0, le=100)] = 25.0
    header_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0
    body_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 30.0
    idle_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 30
    answer_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 30.0
    drain_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 20.0
    drain_delay_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 0.0
    stuck_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0


class TraceSettings(Settings, frozen=True, kw_only=True):
    """Where traces of requests are sent.

    Attributes:
        endpoint: The address of an OpenTelemetry collector, such as ``http://localhost:4318/v1/traces``.
        service: The name of this service in traces.
        share: The share of requests that are traced, 0 to 1. A request that a traced client sends follows its client.
    """

    endpoint: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    service: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] = "flowedge"
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0


class ModelSettings(Settings, frozen=True, kw_only=True):
    """One model that is served.

    Attributes:
        bundle: The folder of a bundle, of a pack, or of one product in a pack.
        name: The name in addresses. Without a name it is that of the folder without its ending.
        engine: The engine that computes. Without a name, the first that opens on this machine is taken.
        precision: The precision of the graph.
        threads: The number of CPU threads of one inference. Without a number it is 1 on a small processor, since
            several inferences on one core each take less time than one after the other on all cores.
        min_region_px: The number of pixels below which a region is not listed.
    """

    bundle: Path
    name: ModelName | None = None
    engine: str | None = None
    precision: str = "fp32"
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    min_region_px: Annotated[int, msgspec.Meta(ge=1)] = 1


class ServeSettings(Settings, frozen=True, kw_only=True):
    """The whole file of a server.

    Attributes:
        server: The address, and who may use it.
        batch: The batches.
        limits: The limits.
        traces: Where traces are sent. Without the table there are none.
        models: The models that are loaded at the start.
        folder: A folder of bundles and packs. Its models are known here, and are loaded when a client asks for it.
    """

    server: ServerSettings = ServerSettings()
    batch: BatchSettings = BatchSettings()
    limits: LimitSettings = LimitSettings()
    traces: TraceSettings | None = None
    models: Annotated[tuple[ModelSettings, ...], msgspec.Meta(max_length=1000)] = ()
    folder: Path | None = None
