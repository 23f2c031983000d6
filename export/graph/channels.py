"""Give subnets channel counts that engines compute quickly, in one pass."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Final

import numpy as np

from flowedge.export.graph import ir
from flowedge.export.graph.permutations import behind_gathers
from flowedge.export.graph.rewriting import channels_after_insertion, with_inserted, with_latents_at

CHANNEL_GROUP: Final = 8
"""The number of channels that engines compute together."""


def fill_channel_groups(model: ir.FlowModel) -> ir.FlowModel:
    """Subnets get idle channels up to a multiple of eight, which engines compute faster than fewer channels.

    The pass adds at most a quarter of a layer's channels. The subnet's input repeats a channel of the passive half,
    and its hidden layers get channels of zeros. All weights of the idle channels are zero. The repeated channel
    stays in the stream, and no later step reads it.
    """
    steps: list[ir.Step] = []
    moved: dict[int, ir.Index] = {}  # by stream, the index of each channel once some channels are repeated
    for step in model.steps:
        # The next reader of a stream looks for its channels where they are now, or a gather puts them back.
        gathers, current = behind_gathers(step, moved)
        steps += gathers
        if isinstance(current, ir.Coupling):
            filled = _filled(current)
            passive_width, added = len(current.passive), len(filled.passive) - len(current.passive)
            if added:
                width = passive_width + len(current.active)
                moved[current.stream] = channels_after_insertion(passive_width, width, added)
            current = filled
        steps.append(current)
    levels = list(model.levels)
    for stream, channel_of in moved.items():
        levels[stream] = with_latents_at(levels[stream], channel_of)
    return dataclasses.replace(model, steps=tuple(steps), levels=tuple(levels))


def _filled(step: ir.Coupling) -> ir.Coupling:
    """Add idle channels to the convolutions of a coupling's subnet, and repeated channels to its passive half."""
    first, *others = step.subnet
    # Idle channels of zeros would change the mean and the variance that a norm over channels computes.
    if not isinstance(first, ir.Conv) or any(isinstance(layer, ir.ChannelNorm) for layer in others):
        return step
    passive_width, added = len(step.passive), _missing_channels(first.weight.shape[1])
    # The repeated channels come after the passive half, and before a condition.
    weight = np.insert(first.weight, [passive_width] * added, 0.0, axis=1)
    subnet: list[ir.SubnetLayer] = [dataclasses.replace(first, weight=weight), *others]
    # Each hidden layer gets rows of zeros, and the convolution that reads it gets as many columns of zeros.
    places = [place for place, layer in enumerate(subnet) if isinstance(layer, ir.Conv)]
    for place, following in itertools.pairwise(places):
        conv, reader = subnet[place], subnet[following]
        assert isinstance(conv, ir.Conv)
        assert isinstance(reader, ir.Conv)
        rows = [(0, _missing_channels(len(conv.weight)))]
        whole = [(0, 0)]
        subnet[place] = ir.Conv(
            weight=np.pad(conv.weight, rows + 3 * whole),
            bias=None if conv.bias is None else np.pad(conv.bias, rows),
        )
        subnet[following] = dataclasses.replace(
            reader, weight=np.pad(reader.weight, whole + rows + 2 * whole)
        )
    return dataclasses.replace(
        step,
        passive=np.concatenate([step.passive, np.repeat(step.passive[:1], added)]),
        subnet=tuple(subnet),
        scale=with_inserted(step.scale, passive_width, added, 1.0),
        offset=with_inserted(step.offset, passive_width, added, 0.0),
    )


def _missing_channels(channels: int) -> int:
    """Return how many idle channels make ``channels`` a multiple of 8.

    The answer is 0 where that would add more than a quarter.
    """
    missing = -channels % CHANNEL_GROUP
    return missing if 4 * missing <= channels else 0
