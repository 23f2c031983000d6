"""Declare the options that fit thresholds and explain a change, and refuse the names that they once had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from flowedge.errors import FlowEdgeError
from flowedge.manifest import NfaForm

if TYPE_CHECKING:
    from flowedge.calibration.threshold import ThresholdRequest
    from flowedge.calibration.threshold_history import ChangeOrigin

NFA_FORMS: Final[dict[str, NfaForm]] = {"nfa": "tree", "nfa-tree": "tree", "nfa-block": "block"}
FITTED_RULES: Final = ("quantile", "target-fpr", "f1")
_SUFFIXES: Final = {"quantile": "quantile", "target-fpr": "rate"}
_DEFAULTS: Final = {"quantile": (0.99, 0.9995), "target-fpr": (0.01, 0.0005), "f1": (None, None)}

ImageQuantile: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--image-quantile",
        help="With --threshold quantile: the quantile of the scores of good images.",
        show_default="0.99",
    ),
]
PixelQuantile: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--pixel-quantile",
        help="With --threshold quantile: the quantile of the pixels of good maps.",
        show_default="0.9995",
    ),
]
ImageRate: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--image-rate",
        help="With --threshold target-fpr: the largest share of good images above the threshold.",
        show_default="0.01",
    ),
]
PixelRate: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--pixel-rate",
        help="With --threshold target-fpr: the largest share of the pixels of good maps above the threshold.",
        show_default="0.0005",
    ),
]
OldImage: TypeAlias = Annotated[str | None, typer.Option("--image", hidden=True)]
OldPixel: TypeAlias = Annotated[str | None, typer.Option("--pixel", hidden=True)]
By: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--by", help="The author, for the bundle's history.", show_default="the user and this host's name"
    ),
]
Reason: TypeAlias = Annotated[
    str, typer.Option("--reason", help="Why the thresholds change, for the bundle's history.")
]


def threshold_request(
    rule: str,
    *,
    image_quantile: float | None,
    pixel_quantile: float | None,
    image_rate: float | None,
    pixel_rate: float | None,
    old_image: str | None,
    old_pixel: str | None,
) -> ThresholdRequest | None:
    """Return the thresholds to fit, or None for a rule that fits none.

    Args:
        rule: The value of ``--threshold``, which is known.
        image_quantile: The value of ``--image-quantile``.
        pixel_quantile: The value of ``--pixel-quantile``.
        image_rate: The value of ``--image-rate``.
        pixel_rate: The value of ``--pixel-rate``.
        old_image: The value of ``--image``, which has another name now.
        old_pixel: The value of ``--pixel``, which has another name now.

    Raises:
        FlowEdgeError: An option does not belong to the rule, has its old name, or is not between 0 and 1.
    """
    from flowedge.calibration.threshold import ThresholdRequest

    for name, old in (("image", old_image), ("pixel", old_pixel)):
        if old is not None:
            raise FlowEdgeError(_renamed(name, old, rule))
    given = {
        "--image-quantile": ("quantile", image_quantile),
        "--pixel-quantile": ("quantile", pixel_quantile),
        "--image-rate": ("target-fpr", image_rate),
        "--pixel-rate": ("target-fpr", pixel_rate),
    }
    for option, (owner, value) in given.items():
        if value is None:
            continue
        if owner != rule:
            raise FlowEdgeError(f"{option} belongs to --threshold {owner}, got --threshold {rule}.")
        if not 0 < value < 1:
            raise FlowEdgeError(f"{option} must lie between 0 and 1, got {value}.")
    if rule not in _DEFAULTS:
        return None
    image_default, pixel_default = _DEFAULTS[rule]
    image = image_quantile if rule == "quantile" else image_rate
    pixel = pixel_quantile if rule == "quantile" else pixel_rate
    return ThresholdRequest(
        method=rule,  # type: ignore[arg-type]
        image=image_default if image is None else image,
        pixel=pixel_default if pixel is None else pixel,
    )


def origin_of(command: str, by: str | None, reason: str) -> ChangeOrigin:
    """Return the author of a change."""
    from flowedge.calibration.threshold_history import ChangeOrigin

    return ChangeOrigin(command=f"flowedge {command}", by=by, reason=reason)


def _renamed(name: str, value: str, rule: str) -> str:
    """Return the message for an option with its old name."""
    if rule not in _SUFFIXES:
        return f"--{name} is no option any more, and --threshold {rule} takes no number for it. Leave it out."
    return f"--{name} has another name now: write --{name}-{_SUFFIXES[rule]} {value}."
