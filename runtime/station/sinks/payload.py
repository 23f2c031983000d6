"""Encode records and events as JSON for all sinks, and give the JSON Schema of both.

Run as a program, this module prints the schema:

    python -m flowedge.runtime.station.sinks.payload > docs/station.schema.json
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from flowedge.runtime.docstrings import attribute_texts, description_of
from flowedge.runtime.station.record import Event, Record, RecordedRegion

_ENCODER: Final = msgspec.json.Encoder()


def payload_of(item: Record | Event) -> bytes:
    """Return a record or an event as UTF-8 JSON in one line."""
    return _ENCODER.encode(item)


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of what sinks send: a record or an event."""
    kinds = (Record, Event, RecordedRegion)
    _, found = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    for kind in kinds:
        table = found[kind.__name__]
        table["description"] = description_of(kind).partition("\n")[0]
        texts = attribute_texts(kind)
        # A sink sends every key, so a default means nothing to a receiver.
        table["required"] = list(table["properties"])
        for key, value in table["properties"].items():
            value.pop("default", None)
            value["description"] = texts[key]
    for name in ("Record", "Event"):
        found[name]["properties"]["time"]["format"] = "date-time"
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A message of an inspection station",
        "anyOf": [{"$ref": "#/$defs/Record"}, {"$ref": "#/$defs/Event"}],
        "$defs": found,
    }


def schema_text() -> str:
    """Return the schema as the text of its file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
