"""Describe what the exporter's passes did to the flow, as plain data in the bundle that no runtime needs.

Counts are of the flow alone, without the backbone. Parameters are the numbers that the model stores as weights:
matrices, biases, scales and offsets, but neither indices nor maps that follow from the position. Multiply-accumulates
(MACs) are those of convolutions and matrix products, for one image.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from flowedge.bundle import Bundle
from flowedge.errors import BundleError

LOWERING: Final = "lowering.json"
SCHEMA: Final = 2
READABLE_SCHEMAS: Final = (1, 2)

_MOST_BYTES: Final = 1 << 20
_MOST_ENTRIES: Final = 10_000

Exactness: TypeAlias = Literal["bitwise", "re-association", "orthogonality"]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
# A bundle is untrusted, and names end up on a terminal: no control characters, and no markup.
Word: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_ ,-]{1,80}\Z")]
Sentence: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=300)]


class Totals(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The number of steps, parameters and multiply-accumulates of a whole flow for one image."""

    steps: Count
    parameters: Count
    macs: Count


class PassEffect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The effect of one pass.

    Attributes:
        name: The name of the pass's function.
        exactness: The difference that the pass may make: ``bitwise`` is none, ``re-association`` is another order of
            float32 sums, and ``orthogonality`` is the distance of a stored matrix from an orthogonal one.
        summary: One sentence on what the pass does.
        before: The totals of the flow before the pass.
        after: The totals of the flow after the pass.
    """

    name: Word
    exactness: Exactness
    summary: Sentence
    before: Totals
    after: Totals


class Lowering(msgspec.Struct, frozen=True, kw_only=True):
    """The passes in the order in which they ran.

    A file of schema 1 has a further field, ``program``, which is not read.
    """

    schema: int
    passes: Annotated[tuple[PassEffect, ...], msgspec.Meta(max_length=_MOST_ENTRIES)]


def json_from_lowering(lowering: Lowering) -> bytes:
    """Return the content of the file ``lowering.json``."""
    return msgspec.json.format(msgspec.json.encode(lowering), indent=1) + b"\n"


def read_lowering(bundle: Bundle) -> Lowering:
    """Read how the graph of a bundle was lowered.

    Raises:
        BundleError: An older version wrote the bundle without this file, or the file cannot be read.
    """
    place = bundle.path / LOWERING
    size = next((stored.size for stored in bundle.manifest.files if stored.path == LOWERING), None)
    if size is None:
        raise BundleError(
            f"{bundle.path} does not say how its graph was lowered: FlowEdge {bundle.manifest.flowedge_version} "
            f"wrote no {LOWERING}. Export the checkpoint again."
        )
    if size > _MOST_BYTES:
        raise BundleError(
            f"{place} has {size} bytes, and at most {_MOST_BYTES} are read. Export the bundle again."
        )
    try:
        lowering = msgspec.json.decode(bundle.read(LOWERING), type=Lowering)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BundleError(f"{place} cannot be read: {error}. Export the bundle again.") from error
    if lowering.schema not in READABLE_SCHEMAS:
        raise BundleError(
            f"{place} has schema {lowering.schema}, and this version reads {READABLE_SCHEMAS}. Install the version "
            f"that wrote it ({bundle.manifest.flowedge_version}), or export the bundle again."
        )
    return lowering
