"""Write and read the file ``manifest.json``: JSON with a hash of its own content.

Writing checks the bounds that reading checks.

The field ``sha256`` holds the SHA-256 of the manifest's canonical form: the JSON without that field, its keys sorted,
without spaces, in UTF-8. Python's ``json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)``
gives the canonical form. So a change of any digit is refused, while the file may be indented in any way. The hash finds
accidents. The hash is no signature, since anybody who changes a manifest on purpose can compute a new hash.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import msgspec

from flowedge.errors import BundleError
from flowedge.families import scoring_problem
from flowedge.frame_quantities import FRAME_QUANTITIES
from flowedge.manifest import READABLE_SCHEMAS, SCHEMA, FrameRange, Manifest

MAX_BYTES: Final = 4 << 20
HASH_FIELD: Final = "sha256"
_LARGEST_INTEGER: Final = 1 << 64  # seeds have 64 bits


def manifest_from_json(data: bytes) -> Manifest:
    """Parse and check a manifest.

    Raises:
        BundleError: The bytes are not JSON, a key is there twice, the schema number is unknown, the content is not
            the one that was hashed, or a field is missing, unknown, of another type or out of its bounds.
    """
    try:
        return _manifest_from(json_content(data))
    except RefusedError as error:
        raise BundleError(f"manifest.json {error}. {error.advice}.") from error
    except RecursionError as error:
        raise BundleError(
            "manifest.json is nested too deeply to be a manifest. Copy or export the bundle again."
        ) from error


def json_from_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as indented UTF-8 JSON of schema `SCHEMA`, with a stable field order and its hash.

    Raises:
        BundleError: `manifest_from_json` would refuse the result.
    """
    manifest = msgspec.structs.replace(manifest, schema=SCHEMA)
    content = msgspec.to_builtins(manifest)
    try:
        _check_numbers(content, "")
        data = (
            json.dumps(
                {**content, HASH_FIELD: canonical_hash(content)}, indent=2, ensure_ascii=False
            ).encode()
            + b"\n"
        )
        # Reading its own result makes sure that nothing is written that cannot be read.
        again = _manifest_from(json_content(data))
    except RefusedError as error:
        raise BundleError(f"manifest.json cannot be written: it {error}.") from error
    assert again == manifest, f"{again} was written for {manifest}"
    return data


class RefusedError(Exception):
    """The reason why a manifest is refused, and the advice to the reader of a file."""

    def __init__(self, reason: str, advice: str = "Copy or export the bundle again") -> None:
        super().__init__(reason)
        self.advice = advice


class SchemaOnly(msgspec.Struct):
    """The schema number of a description, which decides how the rest is read."""

    schema: int


def json_content(data: bytes) -> Any:
    """Return the JSON value. A key that is there twice and a number that is no JSON are refused."""
    if len(data) > MAX_BYTES:
        raise RefusedError(f"is larger than {MAX_BYTES} bytes, which no manifest is")
    try:
        return json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except ValueError as error:  # neither UTF-8 nor JSON, or an integer of thousands of digits
        raise RefusedError(f"is not a FlowEdge manifest: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object and refuse equal keys, of which some readers take the first and others the last."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise RefusedError(f"has the field {name!r} twice in one object")
        found[name] = value
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise RefusedError(f"holds {word}, and only finite numbers are allowed")


def _manifest_from(content: Any) -> Manifest:
    """Convert and check a parsed manifest, and its hash where its schema has one."""
    try:
        schema = msgspec.convert(content, SchemaOnly).schema
    except msgspec.ValidationError as error:
        raise RefusedError(f"is not a FlowEdge manifest: {error}") from error
    if schema not in READABLE_SCHEMAS:
        raise RefusedError(
            f"has schema {schema}, and this FlowEdge reads schema {' and '.join(map(str, READABLE_SCHEMAS))}",
            "Install a newer FlowEdge" if schema > SCHEMA else "Export the bundle again",
        )
    _check_numbers(content, "")
    if schema > 1:
        take_hash(content)
    try:
        manifest = msgspec.convert(content, Manifest)
    except msgspec.ValidationError as error:
        raise RefusedError(f"is not valid: {error}") from error
    _check_together(manifest)
    return manifest


def take_hash(content: dict[str, Any]) -> None:
    """Check the hash that the content holds of itself, and remove it from the content."""
    stated = content.pop(HASH_FIELD, None)
    if stated is None:
        raise RefusedError(f"is not whole: its field {HASH_FIELD} is missing")
    if stated != (sha256 := canonical_hash(content)):
        raise RefusedError(
            f"is not what was written: the SHA-256 of its content is {sha256}, and its field says {stated!r}"
        )


def canonical_hash(content: dict[str, Any]) -> str:
    """Return the SHA-256 of the canonical form, in hexadecimal digits."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    try:
        return hashlib.sha256(canonical.encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise RefusedError(f"holds half of a surrogate pair, which is no text: {error}") from error


def _check_numbers(value: object, where: str) -> None:
    """Refuse numbers that JSON readers do not agree on: infinite ones, and integers beyond 64 bits."""
    if isinstance(value, float) and not math.isfinite(value):
        raise RefusedError(f"has {value} in {where}, and only finite numbers are allowed")
    if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        raise RefusedError(f"has an integer of more than 64 bits in {where}")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_numbers(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_numbers(item, f"{where}[{index}]")


def _check_together(manifest: Manifest) -> None:
    """Check that the fields of a manifest fit each other, which their types cannot express."""
    for graph in manifest.graphs:
        problem = scoring_problem(graph.scoring, manifest.family, len(manifest.levels))
        if problem is not None:
            raise RefusedError(f"is not valid: in the {graph.precision} graph's scoring, {problem}")
    if not manifest.levels or not manifest.graphs:
        raise RefusedError("is not valid: a bundle needs at least one level and one graph")
    names = [graph.precision for graph in manifest.graphs]
    if len(set(names)) != len(names):
        raise RefusedError(f"is not valid: a precision is listed twice: {', '.join(names)}")
    if manifest.pixel_range is not None and not manifest.pixel_range[0] < manifest.pixel_range[1]:
        raise RefusedError(f"is not valid: pixel_range must ascend, got {list(manifest.pixel_range)}")
    scale = manifest.source_scale
    if scale is not None and scale.rule == "0.x-cdf":
        parts = (scale.image, scale.pixel)
        needed = (scale.image.log_mean, *(v for part in parts for v in (part.threshold, part.log_std)))
        if None in needed:
            raise RefusedError(
                "is not valid: a source_scale by 0.x-cdf needs both thresholds and log_std, and image.log_mean"
            )
    if manifest.frame_check is not None:
        _check_frame_ranges(manifest.frame_check.ranges)


def _check_frame_ranges(ranges: Sequence[FrameRange]) -> None:
    """Check that each range is of a known quantity, is the only one of it, and holds a value."""
    names = [one.quantity for one in ranges]
    if unknown := sorted(set(names).difference(FRAME_QUANTITIES)):
        raise RefusedError(f"is not valid: frame_check has a range of {unknown[0]!r}, which is not known")
    if len(set(names)) != len(names):
        raise RefusedError(f"is not valid: frame_check lists a quantity twice: {', '.join(names)}")
    for one in ranges:
        if one.low >= one.high:
            raise RefusedError(
                f"is not valid: the range of {one.quantity!r} in frame_check must rise, got {one.low} to {one.high}"
            )
