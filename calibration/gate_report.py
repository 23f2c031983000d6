"""The limits that a lower precision is compared against, and the report of such a comparison.

`flowedge.calibration.gates` makes the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec


class GateLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits that a graph of lower precision must keep to pass the gate. `GateReport` describes the quantities.

    Attributes:
        map_correlation: The smallest correlation of the maps, in -1..1.
        map_error: The largest error of a pixel, in standard deviations.
        rank_agreement: The smallest rank correlation of the image scores, in -1..1.
        flips: The largest share of verdicts that differ, in 0..1.
        image_auroc: The largest absolute change of the AUROC of images.
        pixel_auroc: The largest absolute change of the AUROC of pixels.
        aupro: The largest absolute change of the AUPRO.
        quantile: Each precision's threshold is this quantile of its scores of good images, in 0..1.
    """

    map_correlation: float
    map_error: float
    rank_agreement: float
    flips: float
    image_auroc: float
    pixel_auroc: float
    aupro: float
    quantile: float = 0.99


# The limits were chosen on a trained CFLOW (tf_efficientnet_lite0, 30 to 60 good images, as many or twice as many
# defects), which gave:
#
# | precision              | map correlation | map error | rank agreement | largest change of a metric |
# | float16                | 0.99999         | 0.04      |                |                            |
# | bfloat16 (emulated)    | 0.9989          | 0.5       |                |                            |
# | int8 of the flow alone | 0.998           | 0.7       | 0.997          | 0.005                      |
# | int8 of everything     | 0.85            | 3.9       | 0.92           | 0.04 (AUROC)               |
#
# The limit of the map error lies above the error that harmless rounding reaches in the worst of millions of pixels.
DEFAULT_LIMITS: Final[Mapping[str, GateLimits]] = MappingProxyType(
    {
        "pruned": GateLimits(
            map_correlation=0.999,
            map_error=0.8,
            rank_agreement=0.995,
            flips=0.02,
            image_auroc=0.002,
            pixel_auroc=0.002,
            aupro=0.002,
        ),
        "fp16": GateLimits(
            map_correlation=0.9999,
            map_error=0.2,
            rank_agreement=0.999,
            flips=0.01,
            image_auroc=0.001,
            pixel_auroc=0.001,
            aupro=0.001,
        ),
        "bf16": GateLimits(
            map_correlation=0.998,
            map_error=0.8,
            rank_agreement=0.995,
            flips=0.02,
            image_auroc=0.002,
            pixel_auroc=0.002,
            aupro=0.002,
        ),
        "int8": GateLimits(
            map_correlation=0.995,
            map_error=2.0,
            rank_agreement=0.98,
            flips=0.03,
            image_auroc=0.005,
            pixel_auroc=0.005,
            aupro=0.005,
        ),
    }
)


class GateQuantity(msgspec.Struct, frozen=True, kw_only=True):
    """Describes one quantity that the gate measured.

    Attributes:
        name: One of the names that `GateReport` lists.
        value: The measured number. The value is None where the quantity is not defined or not finite.
        limit: The limit of the measured number. The limit is None for a quantity that is reported only.
        passed: True where the value keeps the limit, and for a quantity that is reported only.
        summary: Name, value and limit as one line to read. The JSON calls it ``words``.
    """

    name: str
    value: float | None
    limit: float | None
    passed: bool
    summary: str = msgspec.field(name="words")


class GateReport(msgspec.Struct, frozen=True, kw_only=True):
    """Gives the result of comparing a graph of lower precision with the fp32 graph on the same images.

    The quantities, by name:

    - ``not_finite``: the number of images whose score or map holds NaN or infinity in the lower precision. These
      images count in no other quantity. The limit is 0.
    - ``self_test``: the check of the bundle's self-test that is nearest to its limit. Its value and limit are those of
      `flowedge verify`, because a device refuses a graph that fails its self-test. A bundle without a self-test has no
      such quantity.
    - ``map_correlation``: Pearson's correlation over all pixels of all images together. An offset or a factor between
      the maps does not change it.
    - ``worst_image_correlation``: the smallest correlation within one image. This correlation has no limit, because a
      good image's map may be nearly flat, and the correlation of two flat maps is that of their noise.
    - ``map_error``: the largest ``max|a - b| / max(std(good fp32 maps), std(this image's fp32 map))`` of an image. The
      deviation of the good maps is that of all pixels of all good images, so the error does not depend on the scale of
      a family's maps. The deviation of the image's own map is larger where a defect raises the map, and an error in
      proportion to it is harmless.
    - ``rank_agreement``: Spearman's correlation of the image scores, over all images.
    - ``flips``: the share of images whose verdict differs, with each precision's own threshold. The limit is rounded
      up to a whole number of verdicts, because one score next to its threshold proves nothing.
    - ``image_auroc``, ``pixel_auroc``, ``aupro``: the absolute change of the metric on the labelled images. These
      changes are measured only where there are labelled images. The limit of ``image_auroc`` is never less than the
      change that one pair of images makes when its scores change places.
    - ``synthetic_pixel_auroc``, ``synthetic_aupro``: the change of the metric on good images and synthetic defects.
      These changes have no limit, because these defects are painted and no product has them.

    Attributes:
        passed: True where every quantity passed.
        limits: The limits of the comparison.
        good_images: The number of good images that were compared.
        defect_images: The number of images with a synthetic defect.
        labelled_images: The number of labelled images.
        quantities: The measured quantities, in the order of the list above.
    """

    passed: bool
    limits: GateLimits
    good_images: int
    defect_images: int
    labelled_images: int
    quantities: tuple[GateQuantity, ...]

    def quantity(self, name: str) -> GateQuantity:
        """Return the quantity of this name.

        Raises:
            KeyError: The gate did not measure this quantity.
        """
        return {quantity.name: quantity for quantity in self.quantities}[name]

    @property
    def failures(self) -> tuple[str, ...]:
        """Return one line to read for each quantity that did not pass."""
        return tuple(quantity.summary for quantity in self.quantities if not quantity.passed)
