"""Keep the bundles that a rollout has put in force at a station, and those before them to go back to."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from flowedge.bundle import open_bundle
from flowedge.bundle_files import MANIFEST, PACK_INDEX, pack_around
from flowedge.clock import utc_now
from flowedge.errors import FlowEdgeError, RegistryError
from flowedge.files import write_whole_file
from flowedge.manifest_bounds import Sha256
from flowedge.manifest_json import MAX_BYTES
from flowedge.pack import open_pack, product_folder
from flowedge.runtime.registry.http_client import Connection
from flowedge.runtime.registry.rollout import Stage
from flowedge.runtime.registry.transfer import pull
from flowedge.runtime.station.record import Event, Tell
from flowedge.runtime.station.settings import ProductSettings, RolloutSettings
from flowedge.text import printable

_KEPT: Final = 3
"""The number of bundles of a product that are kept: the one in force, and those before it to go back to."""


class InForce(msgspec.Struct, frozen=True, kw_only=True):
    """The bundle of a product that a rollout has put in force.

    Attributes:
        sha256: The SHA-256 of its manifest, or of the ``pack.json`` of its pack.
        bundle: The reference that it was pulled from.
        version: The version of the rollout file.
        since: The moment of the switch.
        before: The SHA-256 of the versions before, the newest first.
    """

    sha256: Sha256
    bundle: str
    version: int
    since: str
    before: tuple[Sha256, ...] = ()


class RolledOut:
    """The folder of a station with the bundles of a rollout, and which of them are in force.

    Attributes:
        in_force: The version of each product that a rollout has put in force, by the name of the product.
        connection: The way to a server.
    """

    def __init__(
        self, settings: RolloutSettings, state: Path, products: Sequence[ProductSettings], tell: Tell
    ) -> None:
        """Read which versions are in force.

        Args:
            settings: The table ``[rollout]``.
            state: The station's folder for its state, in which this has a folder of its own.
            products: The products with the bundles of the settings.
            tell: Takes the events.
        """
        self._settings, self._tell = settings, tell
        self._folder = state / "rollout"
        self._bundles = self._folder / "bundles"
        self._of_settings = {product.name: product for product in products}
        self.in_force = self._read_in_force()
        self.connection = Connection(ca_file=settings.ca_file, plain_http=settings.plain_http)

    @property
    def accepted(self) -> Path:
        """The file with the newest rollout file that the station has taken."""
        return self._folder / "accepted.toml"

    def products(self) -> tuple[ProductSettings, ...]:
        """Return the products with the bundles that are in force, at the start of the station.

        A bundle that does not open any more is replaced by the newest one before it that does, or by that of the
        settings, and an event tells it.
        """
        found = []
        for product in self._of_settings.values():
            known = self.in_force.get(product.name)
            for sha256 in () if known is None else (known.sha256, *known.before):
                path = self._place(sha256, product.name)
                try:
                    self._open(path)
                except FlowEdgeError as error:
                    self._tell(
                        Event(
                            kind="rollout_problem",
                            level="alarm",
                            text=f"a bundle that was rolled out does not open, so an older one judges: {error}",
                        )
                    )
                    continue
                if known is not None and sha256 != known.sha256:
                    self.in_force[product.name] = msgspec.structs.replace(known, sha256=sha256)
                found.append(msgspec.structs.replace(product, bundle=path))
                break
            else:
                self.in_force.pop(product.name, None)
                found.append(product)
        return tuple(found)

    def pulled(self, stage: Stage, product: str) -> Path:
        """Return the folder of a stage's bundle, which is pulled where it is not there yet.

        Raises:
            FlowEdgeError: The bundle cannot be pulled, or is not accepted.
        """
        folder = self._bundle_folder(stage.sha256)
        path = self._place(stage.sha256, product)
        try:
            self._open(path)
        except FlowEdgeError:
            folder.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            # What is there is not accepted, and may still judge another product. So it stays until there is another.
            pulled = folder.with_name(f".{folder.name}")
            shutil.rmtree(pulled, ignore_errors=True)
            pull(
                stage.bundle,
                pulled,
                connection=self.connection,
                require_signature=self._settings.keys,
                sha256=stage.sha256,
            )
            shutil.rmtree(folder, ignore_errors=True)
            pulled.rename(folder)
        return self._place(stage.sha256, product)

    def version_of_product(self, product: ProductSettings) -> str:
        """Return the SHA-256 of the version that judges a product."""
        if (known := self.in_force.get(product.name)) is not None:
            return known.sha256
        around = pack_around(product.bundle)
        file = product.bundle / MANIFEST if around is None else around[0] / PACK_INDEX
        content = content_of(file, 2 * MAX_BYTES)
        return "" if content is None else hashlib.sha256(content).hexdigest()

    def bundle_of(self, product: ProductSettings) -> Path:
        """Return the bundle that is in force for a product, or that of the settings."""
        known = self.in_force.get(product.name)
        return product.bundle if known is None else self._place(known.sha256, product.name)

    def remember(self, product: str, stage: Stage, version: int) -> None:
        """Store that a version is in force, and tell it. The versions before it are kept, but for the oldest.

        Args:
            product: The name of the product.
            stage: The stage of the rollout.
            version: The version of the rollout file.

        Raises:
            RegistryError: The state cannot be written.
        """
        before = self.in_force.get(product)
        earlier = () if before is None else (before.sha256, *before.before)
        kept = tuple(one for one in dict.fromkeys(earlier) if one != stage.sha256)[: _KEPT - 1]
        self.in_force[product] = InForce(
            sha256=stage.sha256,
            bundle=stage.bundle,
            version=version,
            since=utc_now().isoformat(),
            before=kept,
        )
        self.write(self._folder / "in_force.json", msgspec.json.encode(self.in_force))
        self._tell(
            Event(
                kind="bundle_changed",
                level="warning",
                text=f"{product or 'every part'} is judged by another bundle now, {printable(stage.bundle)}: "
                f"{printable(stage.why)} ({printable(stage.by)})",
                data={
                    "product": product,
                    "bundle": stage.bundle,
                    "sha256": stage.sha256,
                    "before": "" if before is None else before.sha256,
                    "by": stage.by,
                    "why": stage.why,
                    "rollout": version,
                },
            )
        )
        self._remove_others()

    def write(self, file: Path, content: bytes) -> None:
        """Write a file of the state, so that a reader sees all of it or nothing.

        Raises:
            RegistryError: The system refuses.
        """
        self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        try:
            write_whole_file(file, content)
        except OSError as error:
            raise RegistryError(f"{file} cannot be written: {error.strerror}.") from error

    def _open(self, path: Path) -> None:
        """Check a bundle, or the pack around it, with its signature.

        Raises:
            FlowEdgeError: The bundle is not accepted.
        """
        around = pack_around(path)
        if around is None:
            open_bundle(path, require_signature=self._settings.keys)
        else:
            open_pack(around[0], require_signature=self._settings.keys)

    def _remove_others(self) -> None:
        """Remove the bundles that nobody goes back to."""
        wanted = {sha for one in self.in_force.values() for sha in (one.sha256, *one.before)}
        kept = {self._bundle_folder(sha).name for sha in wanted}
        for folder in self._bundles.iterdir():
            if folder.name not in kept and not folder.name.startswith("."):
                shutil.rmtree(folder, ignore_errors=True)

    def _place(self, sha256: str, product: str) -> Path:
        """Return the bundle of a product in the folder of a version, which may be a pack."""
        folder = self._bundle_folder(sha256)
        return folder / product_folder(product) if os.path.lexists(folder / PACK_INDEX) else folder

    def _bundle_folder(self, sha256: str) -> Path:
        return self._bundles / sha256[:32]

    def _read_in_force(self) -> dict[str, InForce]:
        content = content_of(self._folder / "in_force.json")
        try:
            return {} if content is None else msgspec.json.decode(content, type=dict[str, InForce])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            text = f"{self._folder / 'in_force.json'} cannot be read, so the bundles of the settings judge: {error}"
            self._tell(Event(kind="rollout_problem", level="alarm", text=text))
            return {}


def content_of(file: Path, most_bytes: int = 2 * MAX_BYTES) -> bytes | None:
    """Return the content of a file of the state, or None where there is none."""
    try:
        with file.open("rb") as opened:
            return opened.read(most_bytes)
    except OSError:
        return None
