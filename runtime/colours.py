"""Choose the painted values of a result and the colours of these values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.manifest import ColourScale, NfaForm, NfaThreshold, Threshold

COLOURS: Final[NDArray[np.uint8]] = np.array(
    cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_VIRIDIS)[:, 0, ::-1], np.uint8
)
"""``(256, 3)`` uint8 RGB, the colours of a scale from its low end to its high one. The lightness grows evenly, so that
people with any colour vision, and a print in grey, show the same order."""

NFA_DECADES: Final[Mapping[NfaForm, float]] = MappingProxyType({"tree": 100.0, "block": 10.0})
"""By the form of the test, the powers of ten of the number of false alarms between the limit and each end of the scale
of log NFA. The tree multiplies the probabilities of many pixels, and the block those of one window."""


class Painted(Protocol):
    """The parts of a result that choose the colours. `flowedge.runtime.result.Result` describes them."""

    # Pyright accepts no cached property of a result where a protocol has a plain one.
    @cached_property
    def anomaly_map(self) -> NDArray[np.float32]: ...
    @cached_property
    def log_nfa_map(self) -> NDArray[np.float32] | None: ...
    @property
    def nfa(self) -> NfaThreshold | None: ...
    @property
    def pixel_threshold(self) -> Threshold | None: ...
    @property
    def colours(self) -> ColourScale | None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PaintedValues:
    """The values that a picture paints, with their colour scale.

    Attributes:
        values: ``(H, W)`` float32 over the frame, NaN where the frame was not inspected. A larger value is more
            anomalous.
        low: The value of the first colour.
        high: The value of the last colour.
        threshold: The limit above which a pixel is anomalous. The value is None where there is no limit.
        title: The name of the quantity, for the colour bar.
        sign: The factor that turns a value into the number that people read, 1 or -1.
    """

    values: NDArray[np.float32]
    low: float
    high: float
    threshold: float | None
    title: str
    sign: int = 1

    def text(self, value: float) -> str:
        """Return a value as the colour bar prints it, with three digits."""
        return f"{self.sign * value + 0.0:.3g}"


def painted_values(result: Painted) -> PaintedValues:
    """Choose the quantity that decided, and its colour scale.

    1. The number of false alarms decides: minus log NFA is painted, as many powers of ten to both sides of the limit as
       ``NFA_DECADES`` has for the form.
    2. The bundle has a colour scale: the anomaly map is painted on it. A threshold outside of the lower two thirds
       widens the scale, so that values above the threshold keep different colours.
    3. The bundle has no colour scale: the anomaly map is painted on a scale of the image alone, and the title says so.
    """
    if result.nfa is not None and result.log_nfa_map is not None:
        limit, decades = -result.nfa.log_nfa, NFA_DECADES[result.nfa.form]
        return PaintedValues(
            values=-result.log_nfa_map,
            low=limit - decades,
            high=limit + decades,
            threshold=limit,
            title="log NFA",
            sign=-1,
        )
    threshold = None if result.pixel_threshold is None else result.pixel_threshold.value
    if result.colours is not None:
        low, high, title = result.colours.low, result.colours.high, "anomaly map"
    else:
        finite = result.anomaly_map[np.isfinite(result.anomaly_map)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        title = "anomaly map, colours of this image alone"
    if threshold is not None:
        low = min(low, threshold)
        high = max(high, threshold + (threshold - low) / 2)
    if not low < high:
        high = low + max(1.0, abs(low) * 1e-6)
    return PaintedValues(values=result.anomaly_map, low=low, high=high, threshold=threshold, title=title)


def heatmap(values: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    """Colour values of any shape from ``low`` and below to ``high`` and above.

    Args:
        values: The values. The colour of NaN is that of ``low``.
        low: The value of the first colour, in the values' unit.
        high: The value of the last colour, in the values' unit.

    Returns:
        uint8 RGB of the values' shape, with a last dimension of 3.

    Raises:
        ValueError: ``low`` is not below ``high``.
    """
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
    # In float64, whose range holds the difference of any two numbers of float32.
    share = values.astype(np.float64)
    share -= low
    share /= high - low
    np.clip(share, 0, 1, out=share)
    np.nan_to_num(share, copy=False, nan=0.0)
    share *= 255
    return np.take(COLOURS, np.rint(share, out=share).astype(np.uint8), axis=0)
