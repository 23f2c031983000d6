"""Write the records of a journal into a Parquet file for analysis."""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
from pathlib import Path
from typing import Any, Final

import msgspec

from flowedge.errors import JournalError
from flowedge.packages import explain_missing
from flowedge.runtime.station.journal_reader import JournalReader
from flowedge.runtime.station.record import Record, Signal
from flowedge.version import __version__

_ROWS_AT_ONCE: Final = 5000


def export_parquet(
    journal: JournalReader,
    path: Path,
    *,
    after: int = 0,
    signal: Signal | None = None,
    since: datetime.datetime | None = None,
) -> int:
    """Write records into a Parquet file. A reader sees the whole file or the old one.

    Each attribute of a record is a column of its own type. ``regions`` is a list of structures, and ``stages_ms`` is a
    map from names to numbers. Records that are written to the journal meanwhile are left out.

    Args:
        journal: The journal.
        path: The file, whose folder must exist. A file that is there is replaced.
        after: Only records with a larger number.
        signal: Only records with this signal.
        since: Only frames that were taken at this time or later.

    Returns:
        The number of records.

    Raises:
        JournalError: The file cannot be written, or the journal cannot be read.
        MissingPackageError: The package pyarrow is not installed.
    """
    with explain_missing("station"):
        import pyarrow
        from pyarrow import parquet
    schema = pyarrow.schema(_columns(pyarrow), metadata={"flowedge": __version__})
    end = journal.last() + 1
    count = 0
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
            while records := journal.records(after, _ROWS_AT_ONCE, before=end, signal=signal, since=since):
                rows = [_row(record) for record in records]
                writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=schema))
                count += len(records)
                after = records[-1].number
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except OSError as error:
        raise JournalError(
            f"{path} cannot be written: {error.strerror or error}. Check that its folder exists, is writable and has "
            "space."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return count


def _columns(pyarrow: Any) -> list[tuple[str, Any]]:
    """Return name and type of each column, in the order of the record's attributes."""
    text, whole, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    few = pyarrow.dictionary(pyarrow.int32(), text)  # texts that most records share
    region = pyarrow.struct(
        [
            ("area_px", whole),
            ("top", whole),
            ("left", whole),
            ("height_px", whole),
            ("width_px", whole),
            ("centroid", pyarrow.list_(real)),
            ("peak", real),
            ("log_nfa", real),
            ("length_px", real),
            ("area_mm2", real),
            ("length_mm", real),
        ]
    )
    return [
        ("number", whole),
        ("id", text),
        ("station", few),
        ("run", few),
        ("time", pyarrow.timestamp("us", tz="UTC")),
        ("monotonic_ns", whole),
        ("source", few),
        ("source_id", text),
        ("source_key", text),
        ("part", text),
        ("product", few),
        ("bundle_sha256", few),
        ("engine", few),
        ("engine_version", few),
        ("engine_reason", few),
        ("precision", few),
        ("threshold", real),
        ("log_nfa_limit", real),
        ("threshold_version", whole),
        ("score", real),
        ("log_nfa", real),
        ("verdict", few),
        ("signal", few),
        ("reason", text),
        ("severity", few),
        ("regions", pyarrow.list_(region)),
        ("regions_left_out", whole),
        ("late", pyarrow.bool_()),
        ("stages_ms", pyarrow.map_(text, real)),
        ("dropped_before", whole),
        ("problem", text),
        ("picture", text),
    ]


def _row(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(record, builtin_types=(datetime.datetime,))
    return row | {"stages_ms": list(record.stages_ms.items())}
