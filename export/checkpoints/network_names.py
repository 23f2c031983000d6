"""Translate the names of feature extractors that people and libraries write to those that timm has today.

All of these are ``resnet18``: ``resnet18.a1_in1k`` with the tag of its first weights, ``timm/resnet18.a1_in1k`` and
``hf-hub:timm/resnet18.a1_in1k`` as on the hub, ``tv_resnet18`` and ``gluon_resnet18_v1b`` of older versions of timm,
``ResNet18_Weights.IMAGENET1K_V1`` of torchvision, and ``ResNet18``.
"""

from __future__ import annotations

import difflib
from typing import Any, Final

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.settings import BACKBONE, Choices, hidden_behind, network_name
from flowedge.text import printable

# Names that need no look-up in timm, whose import takes seconds.
_USUAL: Final = frozenset(
    {
        *(
            "resnet18",
            "resnet34",
            "resnet50",
            "resnet101",
            "resnet152",
            "wide_resnet50_2",
            "wide_resnet101_2",
        ),
        *(
            "resnext50_32x4d",
            "resnext101_32x8d",
            "efficientnet_b5",
            "vit_base_patch16_224",
            "vit_base_patch16_384",
        ),
        *("deit_base_distilled_patch16_384", "cait_m48_448", "cait_s24_224"),
    }
)
# Networks that timm does not have: torchvision's, and the pair of transformers of U-Flow.
_NOT_OF_TIMM: Final = ("mobilenet_v3_large", "mobilenet_v3_small", "mcait")
# The prefixes of older versions of timm, and the beginnings of the tags that replace them.
_OLD_PREFIXES: Final = {"tv": "tv_", "gluon": "gluon_", "ssl": "fb_ssl_", "swsl": "fb_swsl_", "ig": "fb_wsl_"}


def take_backbone(
    choices: Choices, *, stored: object = None, default: str | None = None, why: str = ""
) -> str:
    """Decide the name of the feature extractor.

    Args:
        choices: The account that keeps the decision, which is the network's name of today without a tag.
        stored: The object that the file holds as the name, or None.
        default: The name that the tensors determine, or None. The default is also taken where the file's name cannot
            be read.
        why: One sentence that says why the tensors do not determine the name.

    Returns:
        The network's name today, with the tag of its weights where the file or the user gives one.

    Raises:
        CheckpointError: Nobody knows the name, or timm knows no network of that name.
    """
    held = default
    if isinstance(stored, str):
        try:
            held = network_name(stored)
        except ValueError as error:
            if not choices.gives(BACKBONE):
                raise CheckpointError(
                    f"the checkpoint names the network '{printable(stored):.80}', which is no plain name, and nothing "
                    "is fetched from elsewhere. Say which network it is with --set backbone=NAME."
                ) from error
    name = current_name(choices.take(BACKBONE, held=held, why=hidden_behind(stored) or why))
    choices.values[BACKBONE.name] = name.partition(".")[0]
    return name


def current_name(name: str) -> str:
    """Return the name that timm has for a network today.

    Args:
        name: A name that `settings.network_name` returned, perhaps with the tag of its weights behind a dot.

    Raises:
        CheckpointError: There is no network of that name. The message has the nearest names.
    """
    architecture, _, tag = name.partition(".")
    if architecture in _USUAL or architecture in _NOT_OF_TIMM:
        return name
    import timm

    if timm.is_model(architecture) and architecture not in _renamed():
        return name
    renamed = _renamed().get(architecture) or _without_old_prefix(architecture)
    if renamed is not None:
        return f"{renamed.partition('.')[0]}.{tag}" if tag else renamed
    nearest = difflib.get_close_matches(architecture, [*timm.list_models(), *_NOT_OF_TIMM], n=3, cutoff=0.5)
    shown = f" The nearest names are {', '.join(nearest)}." if nearest else ""
    raise CheckpointError(
        f"neither timm {timm.__version__} nor FlowEdge knows a network {printable(name):.80}.{shown} "
        "Name the network with --set backbone=NAME."
    )


def _renamed() -> dict[str, str | None]:
    """Return timm's own table of the names that it has replaced. Without such a table in timm the result is empty."""
    from timm.models import _registry

    registry: Any = _registry
    return dict(getattr(registry, "_deprecated_models", {}))


def _without_old_prefix(architecture: str) -> str | None:
    """Return today's name of a network with an old prefix that timm's table lacks, or None."""
    import timm

    prefix, _, rest = architecture.partition("_")
    start = _OLD_PREFIXES.get(prefix)
    if start is None or not timm.is_model(rest):
        return None
    tags = (name.partition(".")[2] for name in timm.list_pretrained(f"{rest}.*"))
    return next((f"{rest}.{tag}" for tag in tags if tag.startswith(start)), rest)
