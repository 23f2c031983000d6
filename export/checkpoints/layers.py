"""Decide the layers of the feature extractor whose outputs a CFLOW reads."""

from __future__ import annotations

from collections.abc import Sequence

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.backbone import resnet_channels
from flowedge.export.checkpoints.budget import MAX_COUPLINGS, MAX_NAME
from flowedge.export.checkpoints.settings import LAYERS, Choices, hidden_behind
from flowedge.text import printable, shown


def take_layers(choices: Choices, stored: object, *, network: str, widths: tuple[int, ...]) -> None:
    """Decide the layers that a CFLOW reads, by the rules of anomalib's feature extractor.

    Args:
        choices: The account that keeps the decision.
        stored: The layers in the file, as names or numbers of stages, or None.
        network: The extractor's name.
        widths: Channels of the flow's levels.

    Raises:
        CheckpointError: Nobody knows the layers, or they are not as many as the levels.
    """
    hidden = hidden_behind(stored)
    held = _resnet_layers(network, widths)
    left_out: tuple[str, ...] = ()
    if isinstance(stored, (list, tuple)) and not hidden:
        _check_names(stored)
        held, left_out = _layers_of_trainer(stored, network, len(widths))
    if left_out:
        others = printable(", ".join(left_out))
        why = f"The file also says {others:.300}, which {network} lacks and the trainer left out."
        taken = choices.take(LAYERS, default=held, why=why)
    else:
        taken = choices.take(
            LAYERS, held=held, why=hidden or f"The levels have {widths} channels on {network}."
        )
    if len(taken) != len(widths):
        stages = _stages(network)
        available = f" {network} has {', '.join(stages)}." if stages else ""
        raise CheckpointError(
            f"the layers {printable(', '.join(taken)):.300} are {len(taken)}, and the flow has {len(widths)} levels."
            f"{available} Name those of the levels with --set layers=a,b,c."
        )


def _check_names(stored: Sequence[object]) -> None:
    """Refuse a checkpoint's list of layers with items that are neither names nor numbers.

    Raises:
        CheckpointError: An item is neither, or there are more or longer ones than the budget allows.
    """
    are_names = all(isinstance(layer, (str, int)) and len(str(layer)) <= MAX_NAME for layer in stored)
    if not are_names or not 0 < len(stored) <= MAX_COUPLINGS:
        raise CheckpointError(
            f"the checkpoint's layers are {shown(stored)}, not names of layers. Give them with --set "
            "layers=NAME,NAME, fine to coarse."
        )


def _layers_of_trainer(
    stored: Sequence[object], network: str, levels: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the layers that anomalib's extractor taps, and those that it leaves out with a warning.

    The extractor takes names or numbers of stages, and leaves out other names. Where the number of names is the number
    of levels, none was left out.
    """
    names = tuple(map(str, stored))
    numbers = [layer for layer in stored if isinstance(layer, int) and not isinstance(layer, bool)]
    if len(names) == levels and not numbers:
        return names, ()
    stages = _stages(network)
    if len(numbers) == len(names) and all(-len(stages) <= number < len(stages) for number in numbers):
        return tuple(stages[number] for number in numbers), ()
    known = tuple(name for name in names if name in stages)
    return (
        (known, tuple(name for name in names if name not in stages)) if len(known) == levels else (names, ())
    )


def _stages(network: str) -> list[str]:
    """Return the stages of a network, or nothing where timm cannot tell them."""
    from flowedge.export.backbones.convolutional import stage_names  # timm takes seconds to import

    try:
        return stage_names(network)
    except CheckpointError:
        return []


def _resnet_layers(network: str, widths: tuple[int, ...]) -> tuple[str, ...] | None:
    """Return the layers with the levels' channels, where the network is a ResNet."""
    if not network.startswith(("resnet", "wide_resnet", "resnext")):
        return None
    channels = resnet_channels(network)
    if not set(widths) <= set(channels):
        return None
    return tuple(f"layer{channels.index(width) + 1}" for width in widths)
