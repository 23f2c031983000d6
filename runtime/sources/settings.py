"""Define the settings of a source of frames and of its trigger, as the site's file gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec

from flowedge.runtime.settings import Settings
from flowedge.source_addresses import kind_of

Channels: TypeAlias = Literal[
    "", "rgb", "bgr", "gray", "bayer_rggb", "bayer_bggr", "bayer_grbg", "bayer_gbrg"
]
"""The channels of a source's frames. A Bayer pattern is named by its first four pixels, row by row."""

Option: TypeAlias = str | int | float | bool
"""The value of an option of the library that opens a source."""


class AnyTrigger(Settings, frozen=True, kw_only=True):
    """The keys that every kind of trigger has.

    Attributes:
        delay_s: The time from a message until its part is before the camera, in seconds. Earlier frames do not count.
        wait_s: The time that the part then waits for its frame, in seconds. After it there is no frame of the part.
        queue: The number of parts that wait at once. A further message is refused.
        per_second: The most messages in a second. A further message is refused.
        untriggered: The treatment of a frame for which no part waits: ``inspect`` it without a part, or ``skip`` it.
        fires: True lets each message fire the software trigger of a GenICam camera.
    """

    delay_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0
    wait_s: Annotated[float, msgspec.Meta(ge=0.01, le=3600)] = 2.0
    queue: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 16
    per_second: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    untriggered: Literal["inspect", "skip"] = "inspect"
    fires: bool = False


class SoftwareTrigger(AnyTrigger, frozen=True, kw_only=True, tag_field="kind", tag="software"):
    """A trigger by a call of Python, see `flowedge.runtime.sources.triggers.Triggered.trigger`."""


class TcpTrigger(AnyTrigger, frozen=True, kw_only=True, tag_field="kind", tag="tcp"):
    """A trigger by lines of text over TCP, each of them the id of a part.

    Attributes:
        host: The address that the station listens at.
        port: The port that the station listens at.
        clients: The most clients at once. A further one takes the place of the one that was silent for longest.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    clients: Annotated[int, msgspec.Meta(ge=1, le=100)] = 4


class MqttTrigger(AnyTrigger, frozen=True, kw_only=True, tag_field="kind", tag="mqtt"):
    """A trigger by messages of an MQTT broker, each of them the id of a part or a JSON object with the key ``part``.

    Attributes:
        host: The address of the broker.
        port: The port of the broker.
        topic: The topic of the messages, which may have wildcards.
        username: The user's name, for a broker that asks for one.
        password_env: The environment variable with the password.
        password_file: The file with the password.
        tls: True to encrypt, and to check the broker's certificate and name.
        ca_file: The certificates to trust in place of the system's.
    """

    host: Annotated[str, msgspec.Meta(min_length=1)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 1883
    topic: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    username: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    password_env: str | None = None
    password_file: Path | None = None
    tls: bool = False
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        """Check the keys that depend on one another."""
        _need_username(self.username, self.password_env, self.password_file)
        if self.ca_file is not None and not self.tls:
            raise ValueError("ca_file is for encrypted connections. Add tls = true")


class ModbusTrigger(AnyTrigger, frozen=True, kw_only=True, tag_field="kind", tag="modbus"):
    """A trigger by a PLC that writes registers over Modbus TCP: the part's id, and then a counter.

    Attributes:
        host: The address that the station listens at.
        port: The port that the station listens at.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


TriggerSettings: TypeAlias = SoftwareTrigger | TcpTrigger | MqttTrigger | ModbusTrigger
"""The settings of a trigger, by the key ``kind``."""


class SourceSettings(Settings, frozen=True, kw_only=True):
    """The settings of one source of frames.

    Attributes:
        address: The place of the frames: an image, a folder, a pattern, a video file or the address of a camera.
        name: The name of the source in records. The default is the address without its password.
        watch: True waits for the pictures that come into a folder, without an end.
        recursive: True searches a folder with its subfolders.
        color: The channels of the frames, where the source does not declare them, or wrongly: ``rgb``, ``bgr``,
            ``gray`` or a Bayer pattern such as ``bayer_rggb``.
        window: The two levels that become 0 and 255 in frames of more than 8 bits, the lower one first.
        username: The user's name, for a camera that asks for one.
        password_env: The environment variable with the password.
        password_file: The file with the password.
        options: The options of the library that opens the source: FFmpeg's for streams and devices, and features for
            industrial cameras.
        trigger: The trigger that names the part in the next frame, a table with the key ``kind``.
        timeout_s: The time without a frame after which a camera counts as lost, in seconds. With 0 it never does, for a
            camera that waits for a trigger.
        reconnect_s: The pause before the first try to connect again, in seconds. Each further pause is twice as long.
        reconnect_max_s: The longest pause before a try to connect again, in seconds.
    """

    address: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    watch: bool = False
    recursive: bool = True
    color: Channels = ""
    window: tuple[float, float] | None = None
    username: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    password_env: str | None = None
    password_file: Path | None = None
    options: Mapping[str, Option] = msgspec.field(default_factory=dict)
    trigger: TriggerSettings | None = None
    timeout_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 5.0
    reconnect_s: Annotated[float, msgspec.Meta(ge=0.01, le=3600)] = 1.0
    reconnect_max_s: Annotated[float, msgspec.Meta(ge=0.01, le=3600)] = 30.0

    def __post_init__(self) -> None:
        """Check the keys that depend on one another."""
        _need_username(self.username, self.password_env, self.password_file)
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError("window is the lower level and the higher one, such as [0, 4095]")

    @property
    def lies_ready(self) -> bool:
        """True for image and video files that are all there, so that no frame has to be waited for."""
        return not self.watch and self.trigger is None and kind_of(self.address) in ("images", "video")


def _need_username(username: str | None, password_env: str | None, password_file: Path | None) -> None:
    if username is None and (password_env is not None or password_file is not None):
        raise ValueError("a password needs the key username")
