"""Decide the values that a checkpoint may not hold, and keep account of who decided each.

The user's ``--set name=value`` comes first, then the file's value, then a default. A value from the user or a default
is kept as `flowedge.manifest.Assumed`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, cast

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.names import Name
from flowedge.export.checkpoints.stand_ins import StandIn
from flowedge.manifest import Assumed, Family, ResizeMethod
from flowedge.manifest_bounds import LARGEST_MEAN, LARGEST_STD, SMALLEST_STD, Scalar
from flowedge.runtime.frames.pixel_range import PIXEL_RANGE_FORM, pixel_range_from
from flowedge.text import printable, shown

_LONGEST_NAME: Final = (
    100  # characters of a network's name, because an unknown name is compared with all that are known
)
# The three parts are the hub's place of timm's own models or timm's or torchvision's module, the name, and the tag of
# the
# weights or of an enumeration.
_NETWORK_NAME: Final = re.compile(
    r"(?:(?:hf[-_]hub:)?timm/|timm:|(?:(?:timm|torchvision)[./](?:models[./])?|models\.)(?:[a-z]+\.)?)?"
    r"(?P<name>[A-Za-z0-9_]+?)"
    r"(?:(?P<enum>_(?i:Weights)(?:\.[A-Za-z0-9_]+)?)|(?P<tag>\.[A-Za-z0-9_-]+)?)(?:@[A-Za-z0-9_.-]+)?"
)
T = TypeVar("T")
# A coupling multiplies by exp(clamp) at most, which float32 must hold.
SMALLEST_CLAMP: Final = 1e-6
LARGEST_CLAMP: Final = 88.0
_MAX_SIDE: Final = 16384  # pixels, as in flowedge.geometry
Weights: TypeAlias = Literal["trained", "ema"]


@dataclass(frozen=True, slots=True)
class Setting(Generic[T]):
    """Describe one name of ``--set``.

    Attributes:
        name: The text before the equals sign.
        form: The text that must follow the equals sign, in words.
        parse: The function that reads the user's text and raises ValueError for any text of another form.
    """

    name: str
    form: str
    parse: Callable[[str], T]


def _number(text: str, smallest: float, largest: float) -> float:
    value = float(text)
    if not smallest <= value <= largest:
        raise ValueError(text)
    return value


def _clamp(text: str) -> float:
    return _number(text, SMALLEST_CLAMP, LARGEST_CLAMP)


def _fraction(text: str) -> float:
    return _number(text, sys.float_info.min, 1)


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= _MAX_SIDE**2:
        raise ValueError(text)
    return value


def _size(text: str) -> tuple[int, int]:
    sides = [int(side) for side in text.lower().replace("x", ",").split(",")]
    if len(sides) not in (1, 2) or not all(1 <= side <= _MAX_SIDE for side in sides):
        raise ValueError(text)
    return sides[0], sides[-1]


def _three(text: str) -> tuple[float, float, float]:
    return _within(text, -LARGEST_MEAN, LARGEST_MEAN)


def _three_positive(text: str) -> tuple[float, float, float]:
    return _within(text, SMALLEST_STD, LARGEST_STD)


def _within(text: str, smallest: float, largest: float) -> tuple[float, float, float]:
    red, green, blue = (_number(part, smallest, largest) for part in text.split(","))
    return red, green, blue


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ValueError(text)
    return names


def network_name(text: str) -> str:
    """Return the plain name of a network in small letters, without the libraries' prefixes and suffixes.

    A tag of the weights stays behind a dot. A name is never a path, an address or another owner's model on a hub:
    libraries would fetch from those.

    Raises:
        ValueError: The text is something else.
    """
    match = _NETWORK_NAME.fullmatch(text.strip()) if len(text) <= _LONGEST_NAME else None
    if match is None:
        raise ValueError(text)
    name = match["name"].lower()
    return name if match["enum"] else f"{name}{match['tag'] or ''}"


def _flag(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _one_of(*choices: str) -> tuple[str, Callable[[str], str]]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return " or ".join(choices), parse


BACKBONE: Final = Setting("backbone", "a network's name, such as wide_resnet50_2", network_name)
LAYERS: Final = Setting("layers", "layer names, fine to coarse, such as layer2,layer3,layer4", _names)
CLAMP: Final = Setting("clamp", f"a positive number of {SMALLEST_CLAMP:g} to {LARGEST_CLAMP:g}", _clamp)
CLAMP_VARIANT: Final = Setting("clamp_variant", *_one_of("tanh", "tanh_over_alpha"))
INPUT_SIZE: Final = Setting("input_size", "pixels: one side, or height and width as 256x320", _size)
PADDING: Final = Setting("padding", *_one_of("zeros", "reflect"))
EFFICIENTNET_PADDING: Final = Setting("padding", *_one_of("symmetric", "static_0.7", "static_0.6"))
USE_GAMMA: Final = Setting("use_gamma", "true or false", _flag)
PERMUTATIONS: Final = Setting("permutations", *_one_of("per_level", "shared"))
POOL_TYPE: Final = Setting("pool_type", *_one_of("avg", "max", "none"))
TOP_K: Final = Setting("top_k", "a fraction of the pixels, such as 0.03", _fraction)
TOP_PIXELS: Final = Setting("top_pixels", "a number of pixels, such as 100", _count)
_METHODS: Final = _one_of("float_bilinear", "float_bicubic", "pil_bilinear", "pil_lanczos", "cv2_bilinear")
RESIZE_METHOD: Final = Setting(
    "resize_method", _METHODS[0], cast("Callable[[str], ResizeMethod]", _METHODS[1])
)
MEAN: Final = Setting(
    "mean",
    f"three numbers of {-LARGEST_MEAN:g} to {LARGEST_MEAN:g} in units of the [0, 1] range, such as 0.485,0.456,0.406",
    _three,
)
STD: Final = Setting(
    "std",
    f"three positive numbers of {SMALLEST_STD:g} to {LARGEST_STD:g}, in units of the [0, 1] range",
    _three_positive,
)

_WEIGHTS: Final = _one_of("trained", "ema")
WEIGHTS: Final = Setting("weights", _WEIGHTS[0], cast("Callable[[str], Weights]", _WEIGHTS[1]))

PIXEL_RANGE: Final = Setting("pixel_range", PIXEL_RANGE_FORM, pixel_range_from)

_COMMON: Final = (BACKBONE, CLAMP, INPUT_SIZE, RESIZE_METHOD, MEAN, STD, WEIGHTS, PIXEL_RANGE)
FAMILY_SETTINGS: Final[Mapping[Family, tuple[Setting[object], ...]]] = MappingProxyType(
    cast(
        "dict[Family, tuple[Setting[object], ...]]",
        {
            "cflow": (*_COMMON, CLAMP_VARIANT, LAYERS, PADDING, TOP_PIXELS),
            "csflow": (*_COMMON, EFFICIENTNET_PADDING, USE_GAMMA, PERMUTATIONS),
            "fastflow": (*_COMMON, CLAMP_VARIANT),
            "uflow": (*_COMMON, CLAMP_VARIANT),
            "msflow": (*_COMMON, CLAMP_VARIANT, PADDING, POOL_TYPE, TOP_K),
        },
    )
)


class Choices:
    """Decide the values of one checkpoint and keep account of who decided each.

    Attributes:
        family: The family that has these settings.
        values: The values that were decided so far, by name.
        assumed: The account, in the order of the decisions.
    """

    def __init__(self, family: Family, given: Mapping[str, str]) -> None:
        """Take the user's values.

        Raises:
            CheckpointError: One of them is no setting of the family.
        """
        known = [setting.name for setting in FAMILY_SETTINGS[family]]
        for name in given:
            if name not in known:
                raise CheckpointError(
                    f"--set {name}={given[name]}: {family} has no setting {name!r}; it has {', '.join(known)}."
                )
        self.family: Family = family
        self._given = given
        self.values: dict[str, object] = {}
        self.assumed: list[Assumed] = []

    def offers(self, setting: Setting[Any]) -> bool:
        """Return True when the family has this setting."""
        return setting in FAMILY_SETTINGS[self.family]

    def gives(self, *settings: Setting[Any]) -> bool:
        """Return True when the user gave each of these settings."""
        return all(setting.name in self._given for setting in settings)

    def take(
        self, setting: Setting[T], *, held: T | None = None, default: T | None = None, why: str = ""
    ) -> T:
        """Decide one value.

        Args:
            setting: The setting.
            held: The file's value, or None.
            default: The value to assume otherwise, or None if nothing can be assumed.
            why: One sentence that names the source of the default or says why there is none.

        Raises:
            CheckpointError: The user's text is not of the setting's form, or no value is known.
        """
        name = setting.name
        chosen = given_value(setting, self._given)
        if chosen is not None:
            value = chosen
            reason = why if held is None else f"The file says {held}."
            self.assumed.append(Assumed(name=name, value=_plain(value), given=True, why=reason))
        elif held is not None:
            value = held
        elif default is not None:
            value = default
            self.assumed.append(Assumed(name=name, value=_plain(value), given=False, why=why))
        else:
            raise CheckpointError(
                f"the checkpoint does not say its {name}. {why} Give it with --set {name}=VALUE ({setting.form})."
            )
        self.values[name] = value
        return value


def given_value(setting: Setting[T], given: Mapping[str, str]) -> T | None:
    """Return the value that the user gave for a setting, or None.

    Raises:
        CheckpointError: The user's text is not of the setting's form.
    """
    text = given.get(setting.name)
    if text is None:
        return None
    try:
        return setting.parse(text)
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"--set {setting.name}={text}: {setting.name} is {setting.form}.") from error


def hidden_behind(value: object) -> str:
    """Return one sentence that names the class that hides a value. The result is empty if the value is plain.

    A sequence hides a value if one of its items does.
    """
    items = value if isinstance(value, (list, tuple)) else (value,)
    names = [item.kind if isinstance(item, StandIn) else item for item in items]
    name = next((name for name in names if isinstance(name, Name)), None)
    if name is None:
        return ""
    return f"It is hidden behind {printable(str(name))}, whose code FlowEdge does not run."


def stored_clamp(value: object) -> float | None:
    """Return the clamp that a file holds, or None if it holds none.

    Raises:
        CheckpointError: No coupling of these families computes with such a clamp.
    """
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not SMALLEST_CLAMP <= value <= LARGEST_CLAMP
    ):
        raise CheckpointError(
            f"the checkpoint's clamp is {shown(value)}, not a positive number of {SMALLEST_CLAMP:g} to "
            f"{LARGEST_CLAMP:g}, and FlowEdge knows no coupling without one. Copy the file again, train the "
            "model with such a clamp, or give it with --set clamp=NUMBER if you know it."
        )
    return float(value)


def _plain(value: object) -> Scalar | list[Scalar]:
    return list(value) if isinstance(value, tuple) else cast("Scalar", value)
