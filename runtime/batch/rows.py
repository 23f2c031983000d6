"""Define the columns of a batch's results, and make a row of an image and its record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pyarrow
from pyarrow import compute

from flowedge.runtime.record import Inspection
from flowedge.runtime.regions import Region

_TEXT, _REAL, _WHOLE = pyarrow.string(), pyarrow.float64(), pyarrow.int64()

_REGION: Final = pyarrow.struct(
    [
        ("area_px", _WHOLE),
        ("top", _WHOLE),
        ("left", _WHOLE),
        ("height_px", _WHOLE),
        ("width_px", _WHOLE),
        ("centroid", pyarrow.list_(_REAL)),
        ("peak", _REAL),
        ("log_nfa", _REAL),
    ]
)

ROWS: Final = pyarrow.schema(
    [
        ("image", _TEXT),
        ("id", _TEXT),
        ("source", _TEXT),
        ("version", _TEXT),
        ("sha256", _TEXT),
        ("label", _TEXT),
        ("verdict", _TEXT),
        ("score", _REAL),
        ("threshold", _REAL),
        ("log_nfa", _REAL),
        ("log_nfa_limit", _REAL),
        ("anomalous_share", _REAL),
        ("regions", pyarrow.list_(_REGION)),
        ("width_px", _WHOLE),
        ("height_px", _WHOLE),
        ("latency_ms", _REAL),
        ("product", _TEXT),
        ("bundle_sha256", _TEXT),
        ("precision", _TEXT),
        ("engine", _TEXT),
        ("problem", _TEXT),
    ]
)
"""The columns of the results. Those that a station's journal has too have its names and types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image that waits to be judged.

    Attributes:
        image: The name of the image, which no other image of the job has. For a file the name is its absolute path or
            its address. An image of a shard has the shard's name, a ``#`` and the name of the member, and an image of a
            table has the table's name, ``#row=`` and the number of the row.
        read: Gives the content of the image file, or raises `flowedge.errors.ImageError`.
        id: The name that the user knows the image by: the key of a sample, or the id of a table's row.
        source: The shard or the row group that holds the image. The value is None for an image file.
        version: The state of the file: its size, and its time of change or its tag.
        label: The label of the image, where there is one.
    """

    image: str
    read: Callable[[], bytes]
    id: str | None = None
    source: str | None = None
    version: str = ""
    label: str | None = None


def facts_of_image(image: StoredImage, sha256: str | None) -> dict[str, Any]:
    """Return the columns that describe an image, whatever a detector finds in it."""
    return {
        "image": image.image,
        "id": image.id,
        "source": image.source,
        "version": image.version,
        "sha256": sha256,
        "label": image.label,
    }


def facts_of_record(record: Inspection, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return the columns that a detector has found.

    Args:
        record: The record of the inspection.
        size: The height and the width of the image in pixels. The size is None for an image that was not decoded.
    """
    return {
        "verdict": record.verdict,
        "score": record.score,
        "threshold": record.threshold,
        "log_nfa": record.log_nfa,
        "log_nfa_limit": record.log_nfa_limit,
        "anomalous_share": record.anomalous_share,
        "regions": [_facts_of_region(region) for region in record.regions],
        "height_px": None if size is None else size[0],
        "width_px": None if size is None else size[1],
        "latency_ms": record.latency_ms,
        "precision": record.precision,
        "engine": record.engine,
        "problem": record.problem,
    }


def files_of_rows(rows: pyarrow.Table | pyarrow.RecordBatch) -> Any:
    """Return the file of each row: the shard or the row group that holds the image, or else the image itself."""
    return compute.call_function("coalesce", [rows["source"], rows["image"]])


def _facts_of_region(region: Region) -> dict[str, Any]:
    return {field.name: getattr(region, field.name) for field in _REGION}
