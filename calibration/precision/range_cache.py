"""Keep the values that a graph's tensors took in the device's cache, by the graph and the images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from flowedge.bundle import Bundle
from flowedge.calibration.precision.converted_graph import Observed
from flowedge.calibration.precision.ranges import (
    TensorRange,
    bytes_from_ranges,
    ranges_from_bytes,
    ranges_key,
)
from flowedge.runtime.device.device_cache import DeviceCache
from flowedge.runtime.device.engine_file import graph_hash


class RangeCache:
    """The store, in the device's cache, of the values that some tensors took on some images."""

    def __init__(self, cache: DeviceCache, images_sha256: str, observed: Observed) -> None:
        """Name the images and the tensors.

        Args:
            cache: The device's cache.
            images_sha256: The hash of the images that the ranges are taken from.
            observed: The tensors.
        """
        self._cache, self._images_sha256, self._observed = cache, images_sha256, observed

    def read(self, fp32: Bundle) -> dict[str, TensorRange] | None:
        """Return the stored ranges of a bundle's fp32 graph, or None where they are missing or damaged."""
        try:
            ranges = ranges_from_bytes(self._cache.read_extra(self._name(fp32)))
        except ValueError:
            return None
        return ranges if ranges.keys() == set(self._observed.tensors) else None

    def write(self, ranges: Mapping[str, TensorRange], bundles: Iterable[Bundle]) -> None:
        """Store the same ranges once for the fp32 graph of each of these bundles."""
        content = bytes_from_ranges(ranges)
        for name in {self._name(bundle) for bundle in bundles}:
            self._cache.write_extra(name, content)

    def _name(self, fp32: Bundle) -> str:
        """Return the name of the stored ranges in the cache."""
        manifest = fp32.manifest
        preprocessing = msgspec.json.encode((manifest.preprocessing, manifest.pixel_range)).decode()
        inputs = self._images_sha256 + preprocessing
        return f"ranges/{ranges_key(graph_hash(fp32, 'fp32'), inputs, *self._observed)}.npz"
