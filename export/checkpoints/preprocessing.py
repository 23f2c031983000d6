"""Express the sources' input pipelines as `flowedge.manifest.Preprocessing`.

anomalib stores its pipeline, as torchvision transforms (1.x, 2.x) or as Albumentations' (0.x). The official
repositories fix theirs in code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

import torch

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.budget import MAX_TRANSFORM_STEPS, above_budget
from flowedge.export.checkpoints.contents import check_readable, named
from flowedge.export.checkpoints.names import Name
from flowedge.export.checkpoints.settings import INPUT_SIZE, MEAN, RESIZE_METHOD, STD, Choices
from flowedge.export.checkpoints.stand_ins import StandIn, numpy_number
from flowedge.manifest import Preprocessing, ResizeMethod
from flowedge.text import shown

Size: TypeAlias = tuple[int, int]
Triple: TypeAlias = tuple[float, float, float]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_LARGEST: Final = 16384
_COMPOSED: Final = ("Compose", "torch.nn.modules.container.Sequential")
_FEW: Final = 16  # the most numbers that a tensor argument of a transform may have


def fixed_pipeline(
    choices: Choices,
    *,
    size: Size | None = None,
    default_size: Size | None = None,
    size_why: str = "",
    method: ResizeMethod,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
    keep_aspect: bool = False,
    why: str,
) -> Preprocessing:
    """Choose a pipeline that a repository fixes in its code: resize, scale to [0, 1], normalise.

    ``size`` is the height and width that the file holds or its shapes imply. ``default_size`` is assumed otherwise, and
    ``size_why`` is the reason for it. ``why`` is the reason for the method, the mean and the std. ``keep_aspect``
    resizes the shorter side, so that the resized frame has the network's size only if it is square.
    """
    held = None if size is None else size_of(size)
    height, width = choices.take(INPUT_SIZE, held=held, default=default_size, why=size_why)
    return Preprocessing(
        resize=(height, width),
        keep_aspect=keep_aspect,
        method=choices.take(RESIZE_METHOD, default=method, why=why),
        mean=choices.take(MEAN, default=mean, why=why),
        std=choices.take(STD, default=std, why=why),
    )


def albumentations_pipeline(choices: Choices, dataset: object) -> Preprocessing:
    """Read the pipeline of anomalib 0.x from its ``dataset`` configuration: OpenCV resize, centre crop, normalise.

    Raises:
        CheckpointError: The configuration names a file of its own, and the user has not given the input size.
    """
    config = dict(named(dataset))
    resized = size_of(config.get("image_size"), "image_size")
    crop = None if config.get("center_crop") is None else size_of(config["center_crop"], "center_crop")
    paths = dict(named(config.get("transform_config")))
    custom = paths.get("eval") or paths.get("val") or paths.get("train")
    if custom:
        elsewhere = f"Its pipeline is in the file {custom}, which the checkpoint does not hold."
        return fixed_pipeline(choices, size_why=elsewhere, method="cv2_bilinear", why=elsewhere)
    size = choices.take(INPUT_SIZE, held=crop or resized)
    if size != (crop or resized):
        resized, crop = size, None
    check_crop(crop, resized)
    plain = config.get("normalization") == "none"
    return Preprocessing(
        resize=resized,
        method=choices.take(RESIZE_METHOD, held="cv2_bilinear"),
        crop=crop,
        mean=choices.take(MEAN, held=(0.0, 0.0, 0.0) if plain else IMAGENET_MEAN),
        std=choices.take(STD, held=(1.0, 1.0, 1.0) if plain else IMAGENET_STD),
    )


def size_of(value: object, name: str = "image size") -> Size:
    """Read ``[height, width]``, ``[side]`` or ``side`` in pixels.

    Args:
        value: The object in the file.
        name: The value's name in the file.

    Raises:
        CheckpointError: The value has none of these forms.
    """
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    sides = [side for side in items if type(side) is int and 0 < side <= _LARGEST]
    if len(sides) == len(items) and len(sides) in (1, 2):
        return sides[0], sides[-1]
    raise CheckpointError(
        f"the checkpoint's {name} is {shown(value)}, not one or two sides of 1 to {_LARGEST} pixels. Copy or "
        "train it again."
    )


def check_crop(crop: Size | None, resized: Size | None, *, keep_aspect: bool = False) -> None:
    """Refuse a crop that is larger than the image it is cut from.

    Args:
        crop: ``(height, width)``, or None where nothing is cut off.
        resized: ``(height, width)`` of the image.
        keep_aspect: True when the image is larger than ``resized`` on one side that is not known.

    Raises:
        CheckpointError: The crop is larger than the image.
    """
    if crop is None or resized is None:
        return
    is_larger = min(crop) > min(resized) if keep_aspect else crop[0] > resized[0] or crop[1] > resized[1]
    if is_larger:
        raise CheckpointError(
            f"the checkpoint's centre crop of {crop[0]}x{crop[1]} is larger than the image of "
            f"{resized[0]}x{resized[1]} that it is cut from. Give "
            "the size that the model was trained on with --set input_size=HEIGHTxWIDTH."
        )


def transform_steps(transform: object) -> Iterator[tuple[str, dict[str, object]]]:
    """Return the steps of a transform, with compositions taken apart and with enums and tuples made plain."""
    pending = [transform]
    taken = 0
    while pending:
        step = pending.pop()
        taken += 1
        kind, args = _step(step)
        if kind not in _COMPOSED:
            yield kind, _public(args)
            continue
        inner = args.get("transforms", step)
        if isinstance(inner, StandIn):  # a module that holds the steps
            inner = [child for _, child in named(inner.attributes.get("_modules"))]
        if not isinstance(inner, (list, tuple)):
            raise CheckpointError(
                "the checkpoint's transform is a Compose without steps. Copy or train it again."
            )
        if taken + len(inner) > 1 + MAX_TRANSFORM_STEPS:
            raise above_budget("steps of the transform", taken - 1 + len(inner), MAX_TRANSFORM_STEPS)
        pending.extend(reversed(inner))


def _step(transform: object) -> tuple[str, dict[str, object]]:
    """Return the class name and the arguments of one step of a transform."""
    if isinstance(transform, StandIn):
        return _step_name(str(transform.kind)), dict(transform.attributes)
    described = dict(named(transform))
    path = described.get("class_path")
    return _step_name(path if isinstance(path, str) else ""), dict(named(described.get("init_args")))


def _public(args: dict[str, object]) -> dict[str, object]:
    return {name: _plain(value) for name, value in args.items() if not name.startswith("_")}


def _step_name(path: str) -> str:
    """Return the name of a class of torchvision's or anomalib's, and the whole path of any other.

    A class of the user's own may have a known name and do something else.
    """
    known = path.startswith(("torchvision.", "anomalib."))
    return path.rpartition(".")[2] if known else path


def _plain(value: object) -> object:
    """Turn values of enumerations, NumPy and tensors into plain ones, and leave any other value as it is."""
    if isinstance(value, (list, tuple)):
        return [_plain_number(item) for item in value]
    value = _plain_number(value)
    if isinstance(value, StandIn) and value.kind.qualname == "InterpolationMode":
        return value.args[0] if value.args else None
    if isinstance(value, Name):
        return value.qualname.rpartition(".")[2].lower()
    return value


def _plain_number(value: object) -> object:
    if isinstance(value, StandIn):
        return numpy_number(value)
    if isinstance(value, torch.Tensor) and value.numel() <= _FEW:
        check_readable("a tensor of the transform", value)
        return value.tolist()
    return value


def triple_of(name: str, value: object, smallest: float, largest: float) -> Triple:
    """Read an argument of Normalize: three numbers within two bounds."""
    numbers = [
        number
        for number in (value if isinstance(value, (list, tuple)) else ())
        if isinstance(number, (int, float)) and not isinstance(number, bool) and smallest <= number <= largest
    ]
    if isinstance(value, (list, tuple)) and len(value) == len(numbers) == 3:
        return float(numbers[0]), float(numbers[1]), float(numbers[2])
    raise CheckpointError(
        f"the checkpoint's Normalize has {name}={shown(value)}, not three numbers of {smallest:g} to "
        f"{largest:g}. Copy or train it again."
    )
