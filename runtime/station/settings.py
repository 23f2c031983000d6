"""Define the settings of a station: the whole of ``station.toml``."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from flowedge.runtime.area.settings import AreaSettings
from flowedge.runtime.lanes import threads_for_many
from flowedge.runtime.settings import Settings, parse_settings, read_settings
from flowedge.runtime.sources.settings import SourceSettings
from flowedge.runtime.station.decision import DecisionSettings
from flowedge.runtime.station.keeping_settings import ArchiveSettings, JournalSettings
from flowedge.runtime.station.page.settings import PageSettings
from flowedge.runtime.station.sinks.settings import JsonLinesSettings, SinkSettings
from flowedge.runtime.station.watch.settings import ShadowSettings, WatchSettings

Name = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z",
        extra={"allowed": "1 to 64 letters, digits, dots, dashes and underscores, a letter or a digit first"},
    ),
]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class PlaceSettings(Settings, frozen=True, kw_only=True):
    """The table ``[station]``: the name of the station and the place of its state.

    Attributes:
        name: The name of the station in records, 1 to 64 letters, digits, dots, dashes and underscores.
        state: The folder of the journal, the pictures and all else that the station keeps. A missing folder is made.
    """

    name: Name
    state: Path


class InspectSettings(Settings, frozen=True, kw_only=True):
    """The table ``[inspect]``: the bundle and the way from a frame to its verdict.

    Attributes:
        bundle: The bundle, for a station with one product. A station of several products has ``[[products]]``.
        require_signature: A file or a folder of public keys, one of which must have signed each bundle.
        engines: The engines in the order of preference. Without a name, the first that opens is taken.
        precision: The precision of the graph, such as ``fp32`` or ``int8``. The word ``auto`` takes the fastest here.
        threads: The number of CPU threads of one inference. Other frames that wait are judged at the same time on the
            cores that are left. Without a number, files that lie ready get few threads each, and a camera's frame all.
        min_region_px: The number of pixels of the frame below which a region is left out of the record.
        deadline_ms: The time in ms from capture to verdict, after which a verdict is late. Without it none is late.
        queue: The number of frames that may wait between the source and the engine.
        when_full: The policy for a line that is faster than the engine. With ``block`` the source waits. With
            ``drop_oldest`` the oldest waiting frame is dropped and counted.
    """

    bundle: Path | None = None
    require_signature: Path | None = None
    engines: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=16)] = ()
    precision: _Text = "fp32"
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    min_region_px: Annotated[int, msgspec.Meta(ge=1)] = 1
    deadline_ms: Annotated[float, msgspec.Meta(gt=0, le=3_600_000)] | None = None
    queue: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    when_full: Literal["block", "drop_oldest"] = "block"


class ProductSettings(Settings, frozen=True, kw_only=True):
    """A table ``[[products]]``: one product and the parts that it is for.

    Attributes:
        name: The name of the product in records.
        bundle: The bundle.
        parts: A pattern of part ids such as ``bottle-*``. Without a pattern the product is for every frame.
    """

    name: Annotated[str, msgspec.Meta(max_length=64)]
    bundle: Path
    parts: Annotated[str, msgspec.Meta(max_length=200)] = ""

    def fits(self, part: str | None) -> bool:
        """Return True where the product is for a part."""
        return not self.parts or (part is not None and fnmatch.fnmatchcase(part, self.parts))


class RolloutSettings(Settings, frozen=True, kw_only=True):
    """The table ``[rollout]``: the signed file that says which version of its bundles the station runs.

    Attributes:
        file: The rollout file: a path, ``oci://HOST/REPOSITORY:TAG``, ``https://…`` or an address of fsspec.
        keys: A file or a folder of public keys, one of which must have signed the rollout file and each bundle.
        rings: The rings that the station is in, such as ``["canary"]``.
        every_s: The seconds between two looks at the file.
        ca_file: The certificates to trust in place of the system's.
        plain_http: True speaks without encryption also with servers on other machines.
    """

    file: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    keys: Path
    rings: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=100)] = ()
    every_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 60.0
    ca_file: Path | None = None
    plain_http: bool = False


class StationSettings(Settings, frozen=True, kw_only=True):
    """The settings of a station, one attribute for each table of ``station.toml``.

    Attributes:
        station: The name of the station and the place of its state.
        inspect: The bundle and the way from a frame to its verdict.
        source: The source of the frames.
        sinks: The receivers of the records.
        page: The page that shows the station in a browser.
        watch: The checks of frames, engine and drift.
        shadow: A second bundle that judges the same frames and decides nothing.
        area: The area of the frame that is judged.
        decision: The rule by which a verdict becomes ok or nok.
        archive: The pictures that are kept as evidence, and for how long.
        journal: The time for which records are kept.
        rollout: The signed file that says which version of its bundles the station runs.
        products: The products of a station that inspects several. The first one that fits a frame's part judges it.
    """

    station: PlaceSettings
    source: SourceSettings
    inspect: InspectSettings = InspectSettings()
    area: AreaSettings = AreaSettings()
    decision: DecisionSettings = DecisionSettings()
    archive: ArchiveSettings = ArchiveSettings()
    journal: JournalSettings = JournalSettings()
    sinks: Annotated[tuple[SinkSettings, ...], msgspec.Meta(max_length=100)] = ()
    page: PageSettings = PageSettings()
    watch: WatchSettings = WatchSettings()
    shadow: ShadowSettings | None = None
    rollout: RolloutSettings | None = None
    products: Annotated[tuple[ProductSettings, ...], msgspec.Meta(max_length=1000)] = ()

    def __post_init__(self) -> None:
        """Check what no single key shows.

        Raises:
            ValueError: No bundle is named, or one is named in two ways, or two products or sinks have one name.
        """
        if (self.inspect.bundle is None) == (not self.products):
            raise ValueError(
                "Name the bundle by [inspect] bundle, or several by [[products]], and not by both"
            )
        names = [product.name for product in self.products]
        if len(set(names)) < len(names):
            raise ValueError("Two tables [[products]] have the same name")
        if self.shadow is not None and self.shadow.product not in {one.name for one in self.all_products}:
            raise ValueError("[shadow] product names no product of this station")
        sinks = [sink.cursor for sink in self.sinks]
        if len(set(sinks)) < len(sinks):
            raise ValueError("Two tables [[sinks]] have the same name. Give each a name of its own")
        files = [sink.path for sink in self.sinks if isinstance(sink, JsonLinesSettings)]
        if len(set(files)) < len(files):
            raise ValueError("Two tables [[sinks]] write to the same path. Give each a file of its own")

    @property
    def inspect_by_source(self) -> InspectSettings:
        """The table ``[inspect]`` with the number of threads that suits the source, where the site names none.

        Files that lie ready are judged several at a time with few threads each, which is fastest for all of them. A
        frame of a camera gets all cores, which is fastest for this frame.
        """
        if self.inspect.threads is None and self.source.lies_ready:
            return msgspec.structs.replace(self.inspect, threads=threads_for_many())
        return self.inspect

    @property
    def all_products(self) -> tuple[ProductSettings, ...]:
        """The products. A station of one bundle has one product without a name."""
        if self.inspect.bundle is not None:
            return (ProductSettings(name="", bundle=self.inspect.bundle),)
        return self.products


def read_station(file: str | Path) -> StationSettings:
    """Read the settings of a station.

    Raises:
        SettingsError: The file cannot be read, or has a key or a value that is not allowed.
    """
    return read_settings(file, StationSettings)


def parse_station(text: str, *, name: str, folder: Path) -> StationSettings:
    """Read the settings of a station from the text of its file.

    Args:
        text: The text.
        name: The name of the file for messages.
        folder: The folder that paths are relative to.

    Raises:
        SettingsError: The text has a key or a value that is not allowed.
    """
    return parse_settings(text, StationSettings, name=name, folder=folder)
