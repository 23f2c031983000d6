"""Read and write packs: several detectors in one folder that share the graph of their backbone.

A pack holds, for each precision, one graph of the backbone, and for each product a graph of its head. The head takes
the features of the backbone as ``feature_0``, ``feature_1`` and so on, and gives the outputs of the product's bundle.

- ``pack.json`` describes the pack and lists all other files with their hashes.
- ``backbone.onnx`` is the backbone in fp32, ``backbone.fp16.onnx`` in fp16, and so on.
- ``products/NAME/`` holds the bundle of a product without its graphs: ``manifest.json`` unchanged, the self-test, and
  in place of the graphs ``head.onnx``, ``head.fp16.onnx`` and so on.

A pack is as untrusted as a bundle, and is read by the same rules: nothing is used before every listed byte of it was
checked.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import msgspec

from flowedge.bundle import Bundle, check_free, folder_for_next_version, store_file
from flowedge.bundle_files import (
    MANIFEST,
    PACK_INDEX,
    PRODUCTS,
    check_paths,
    description_bytes,
    pack_around,
    verify,
)
from flowedge.errors import BundleError
from flowedge.manifest import Manifest, PrecisionName, StoredFile
from flowedge.manifest_bounds import Moment, Name, PixelCount, Pixels, Sha256
from flowedge.manifest_json import (
    HASH_FIELD,
    RefusedError,
    SchemaOnly,
    canonical_hash,
    json_content,
    manifest_from_json,
    take_hash,
)
from flowedge.replacing import put_at_free_place, recover, swap, sync_folder
from flowedge.signature import Required, Signature, check_signature

SCHEMA: Final = 1
PRODUCT_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
"""The names that a product may have. The name is a folder in the pack, and a word on the command line."""


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tensor ``(N, channels, height, width)`` float32 that the backbone gives to every head."""

    channels: PixelCount
    height: Pixels
    width: Pixels


class Backbone(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shared graph of one precision.

    Attributes:
        precision: The precision of the graph.
        digest: A hash of the computation, whatever its tensors and nodes are called. All packed bundles have it.
        features: The outputs ``feature_0``, ``feature_1`` and so on.
    """

    precision: PrecisionName
    digest: Sha256
    features: Annotated[tuple[Feature, ...], msgspec.Meta(min_length=1, max_length=64)]


ProductName: TypeAlias = Annotated[str, msgspec.Meta(pattern=rf"^{PRODUCT_NAME.pattern}\Z")]


class PackIndex(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of ``pack.json``.

    Attributes:
        schema: The schema number of the file, which is `SCHEMA`.
        flowedge_version: The version that wrote the pack.
        created: The moment of writing in UTC, as ISO 8601.
        backbones: The shared graphs, one for each precision of the pack.
        products: The names of the products, in the order in which they were packed.
        files: Every file of the pack except ``pack.json``.
    """

    schema: int
    flowedge_version: Name
    created: Moment
    backbones: Annotated[tuple[Backbone, ...], msgspec.Meta(min_length=1, max_length=5)]
    products: Annotated[tuple[ProductName, ...], msgspec.Meta(min_length=1, max_length=1000)]
    files: Annotated[tuple[StoredFile, ...], msgspec.Meta(max_length=10_000)] = ()


@dataclass(frozen=True, slots=True)
class Pack:
    """A verified pack. When it was opened, every listed file had its listed size and hash.

    Attributes:
        path: The pack's folder.
        index: The content of ``pack.json``.
        products: By name, the bundle of a product without its graphs. Its manifest lists the precisions of the pack.
        signature: The accepted signature. The value is None where the opening required none.
    """

    path: Path
    index: PackIndex
    products: Mapping[str, Bundle]
    signature: Signature | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the products, in the order in which they were packed."""
        return self.index.products

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions of the pack."""
        return tuple(backbone.precision for backbone in self.index.backbones)

    def backbone(self, precision: str) -> Backbone:
        """Return the shared backbone of a precision.

        Raises:
            BundleError: The pack has no graphs of this precision.
        """
        for backbone in self.index.backbones:
            if backbone.precision == precision:
                return backbone
        raise BundleError(
            f"{self.path} has no {precision} graphs. It has {', '.join(self.precisions)}. Choose one of them, or pack "
            f"bundles that all have the same {precision} backbone."
        )

    def product(self, name: str) -> Bundle:
        """Return the bundle of a product.

        Raises:
            BundleError: The pack has no such product.
        """
        if name not in self.products:
            raise BundleError(
                f"{self.path} has no product {name!r}. Choose one of: {', '.join(self.products)}."
            )
        return self.products[name]

    def hash_of_graph(self, file: str) -> str:
        """Return the listed hash of a graph, joined with that of its weights where these have a file of their own."""
        hashes = {stored.path: stored.sha256 for stored in self.index.files}
        weights = hashes.get(f"{file}.data")
        return hashes[file] if weights is None else f"{hashes[file]} {weights}"


def backbone_file(precision: str) -> str:
    """Name the file of the backbone in a precision, relative to the pack."""
    return f"backbone{_ending(precision)}"


def product_folder(product: str) -> str:
    """Name the folder of a product, relative to the pack."""
    return f"{PRODUCTS}/{product}"


def folder_of_product(path: Path, product: str | None) -> Path:
    """Return the folder of one product in a pack, and the folder of a bundle as it is.

    Raises:
        BundleError: The folder is a pack and no product of it was named, or it is none and a product was named.
    """
    around = pack_around(path)
    if around is None or around[1]:
        if product is not None:
            raise BundleError(f"{path} is not a pack, and --product names a product of a pack. Leave it out.")
        return path
    names = read_index(path).products
    if product not in names:
        problem = "is a pack" if product is None else f"has no product {product!r}"
        raise BundleError(f"{path} {problem}. Name one with --product: {', '.join(names)}.")
    return path / product_folder(product)


def head_file(product: str, precision: str) -> str:
    """Name the file of a product's head in a precision, relative to the pack."""
    return f"{product_folder(product)}/head{_ending(precision)}"


def _ending(precision: str) -> str:
    return ".onnx" if precision == "fp32" else f".{precision}.onnx"


def open_pack(path: str | os.PathLike[str], *, require_signature: Required = None) -> Pack:
    """Open a pack and verify all of it. This reads every byte once and takes about a second per gigabyte.

    Args:
        path: The folder.
        require_signature: A file or a folder of trusted public keys, one of which must have signed the pack. By
            default it is the one that the environment variable ``FLOWEDGE_REQUIRE_SIGNATURE`` names, if it is set.
            False needs no signature.

    Raises:
        SignatureError: A signature is required, and there is none that is accepted.
        BundleError: The folder is no pack, a description in it is not valid or of an unknown schema, the products do
            not fit each other, or a listed file is missing, is not a regular file inside the folder, or has another
            size or hash.
    """
    folder = Path(path)
    recover(Path(os.path.realpath(folder)))
    data = _index_bytes(folder)
    index = parse_index(folder, data)
    signature = check_signature(folder, data, require_signature)
    for stored in index.files:
        verify(folder, stored)
    manifests = {name: _read_manifest(folder, name) for name in index.products}
    check_alike(folder, manifests)
    packed = {backbone.precision for backbone in index.backbones}
    products: dict[str, Bundle] = {}
    for name, manifest in manifests.items():
        graphs = tuple(graph for graph in manifest.graphs if graph.precision in packed)
        if len(graphs) != len(packed):
            raise BundleError(f"{folder}: the product {name} lacks a precision of the pack. Pack again.")
        products[name] = Bundle(
            folder / product_folder(name), msgspec.structs.replace(manifest, graphs=graphs), signature
        )
    return Pack(folder, index, products, signature)


def write_pack(
    target: str | os.PathLike[str],
    index: PackIndex,
    files: Mapping[str, Path | bytes],
    *,
    overwrite: bool = False,
) -> Pack:
    """Write a pack, all of it or nothing.

    Args:
        target: The folder to make. The parent folder must exist.
        index: The description, whose field ``files`` is ignored and computed from the argument ``files``.
        files: The content of each file by its path in the pack (forward slashes): bytes, or a file to copy from.
        overwrite: Replace ``target`` where it is a pack already. Another folder is never replaced.

    Raises:
        BundleError: The target exists, a path is not safe, or the system refuses. Nothing is left behind.
    """
    place = check_free(target, "a pack", PACK_INDEX, overwrite=overwrite)
    check_paths(files)
    with folder_for_next_version(place) as draft:
        folder = draft / "pack"
        folder.mkdir()
        stored = [store_file(folder, path, content) for path, content in files.items()]
        index = msgspec.structs.replace(index, schema=SCHEMA, files=tuple(sorted(stored, key=_path_of)))
        _check_complete(index)
        store_file(folder, PACK_INDEX, _json_of(index))
        for inner, _, _ in os.walk(folder):
            sync_folder(Path(inner))
        put_pack_in_place(folder, place)
    return open_pack(target, require_signature=False)  # what was just written has no signature yet


def put_pack_in_place(draft: Path, place: Path) -> None:
    """Give a finished draft of a pack its place, in one step. An older pack is moved to the draft.

    Raises:
        BundleError: Another process made something at a place that was free.
        OSError: The system refuses.
    """
    if os.path.lexists(place):
        swap(draft, place)
        sync_folder(place.parent)
    else:
        put_at_free_place(draft, place)


def check_alike(where: Path, manifests: Mapping[str, Manifest]) -> None:
    """Check that all products take the same frames and prepare them alike.

    Raises:
        BundleError: Two products differ. The message names them, what differs, and both values.
    """
    first, *others = manifests.items()
    for name, manifest in others:
        for field in ("preprocessing", "image_size", "frame_size", "pixel_range"):
            ours, theirs = getattr(first[1], field), getattr(manifest, field)
            if ours == theirs:
                continue
            if field == "preprocessing":
                field, ours, theirs = next(
                    (inner, getattr(ours, inner), getattr(theirs, inner))
                    for inner in ours.__struct_fields__
                    if getattr(ours, inner) != getattr(theirs, inner)
                )
                field = f"preprocessing's {field}"
            raise BundleError(
                f"{where}: the products {first[0]} and {name} cannot share a backbone: the {field} is {ours} in "
                f"{first[0]} and {theirs} in {name}. Products share a backbone where frames become the same input. "
                "Pack them apart, or export one of them again with the settings of the other."
            )


def _path_of(stored: StoredFile) -> str:
    return stored.path


def _check_complete(index: PackIndex) -> None:
    """Check that the names fit each other and that every graph and manifest is listed.

    Raises:
        BundleError: A name is there twice, a path is not safe, or a file is not listed.
    """
    check_paths(stored.path for stored in index.files)
    listed = {stored.path for stored in index.files}
    precisions = [backbone.precision for backbone in index.backbones]
    if len(set(precisions)) != len(precisions):
        raise BundleError(f"a precision is listed twice: {', '.join(precisions)}. Pack again.")
    if len({name.casefold() for name in index.products}) != len(index.products):
        raise BundleError(
            f"a product is listed twice (capitals do not count): {', '.join(index.products)}. "
            "Name the products with --name."
        )
    needed = [backbone_file(precision) for precision in precisions]
    for name in index.products:
        needed.append(f"{product_folder(name)}/{MANIFEST}")
        needed += [head_file(name, precision) for precision in precisions]
    missing = next((path for path in needed if path not in listed), None)
    if missing is not None:
        raise BundleError(f"{missing!r} is not among the pack's files. Pack again.")


def _read_manifest(folder: Path, product: str) -> Manifest:
    """Read the manifest of a product, whose hash was checked."""
    path = f"{product_folder(product)}/{MANIFEST}"
    try:
        return manifest_from_json(description_bytes(folder, path))
    except BundleError as error:
        raise BundleError(f"{folder / path}: {error}") from error


def read_index(folder: Path) -> PackIndex:
    """Read and check ``pack.json``, and no other file.

    Raises:
        BundleError: The file is not there, is not valid, or lists what no pack may hold.
    """
    return parse_index(folder, _index_bytes(folder))


def _index_bytes(folder: Path) -> bytes:
    if not os.path.lexists(folder / PACK_INDEX):
        raise _no_pack(folder)
    return description_bytes(folder, PACK_INDEX)


def parse_index(folder: Path, data: bytes) -> PackIndex:
    """Check the bytes of ``pack.json``.

    Args:
        folder: The pack's folder, for messages.
        data: The bytes.

    Raises:
        BundleError: The index is not valid, or lists what no pack may hold.
    """
    try:
        content = json_content(data)
        schema = msgspec.convert(content, SchemaOnly).schema
        if schema != SCHEMA:
            raise BundleError(
                f"{folder / PACK_INDEX} has schema {schema}, and this FlowEdge reads schema {SCHEMA}. "
                "Install a newer FlowEdge."
            )
        take_hash(content)
        index = msgspec.convert(content, PackIndex)
    except (RefusedError, msgspec.ValidationError, RecursionError) as error:
        raise BundleError(f"{folder / PACK_INDEX} is refused: it {error}. Copy or pack again.") from error
    try:
        _check_complete(index)
    except BundleError as error:
        raise BundleError(f"{folder / PACK_INDEX} is refused: {error}") from error
    return index


def _no_pack(folder: Path) -> BundleError:
    """Return the error of a path that is no pack, with the next step."""
    around = pack_around(folder)
    if around is not None:
        return BundleError(
            f"{folder} is a product of the pack {around[0]}, and this takes the pack. Name the pack, or open the "
            "product with flowedge.load."
        )
    if os.path.lexists(folder / MANIFEST):
        return BundleError(
            f"{folder} is a bundle, and this takes a pack. Open it with flowedge.load, or make a pack with: flowedge "
            "pack BUNDLE... -o PACK"
        )
    what = f"it has no {PACK_INDEX}" if os.path.isdir(folder) else "no such folder"
    return BundleError(
        f"{folder} is not a pack: {what}. Name the folder that flowedge pack made, or make one with: flowedge pack "
        "BUNDLE... -o PACK"
    )


def _json_of(index: PackIndex) -> bytes:
    content = msgspec.to_builtins(index)
    whole = {**content, HASH_FIELD: canonical_hash(content)}
    return json.dumps(whole, indent=2, ensure_ascii=False).encode() + b"\n"
