"""Drop outputs that the score does not use, and fold constants into one subnet's weights, in passes over the flow."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from flowedge.export.graph import ir
from flowedge.export.graph.rewriting import (
    CrossNet,
    bias_of,
    float32,
    rewrite_couplings,
    rewrite_cross_nets,
    scale_rows,
)
from flowedge.families import TRAITS


def drop_unused_log_det(model: ir.FlowModel) -> ir.FlowModel:
    """The log-determinant is dropped where the score does not use it, which is everywhere but in CFLOW."""
    if TRAITS[model.family].level_statistic == "log_likelihood":
        return model
    return rewrite_couplings(model, lambda step: dataclasses.replace(step, log_det=False))


def linear_layers_become_convolutions(model: ir.FlowModel) -> ir.FlowModel:
    """A linear layer at every position becomes a 1x1 convolution over the map."""

    def convolved(step: ir.Coupling) -> ir.Coupling:
        subnet = tuple(
            ir.Conv(weight=layer.weight[:, :, None, None], bias=layer.bias)
            if isinstance(layer, ir.Linear)
            else layer
            for layer in step.subnet
        )
        return dataclasses.replace(step, subnet=subnet)

    return rewrite_couplings(model, convolved)


def fold_gain(model: ir.FlowModel) -> ir.FlowModel:
    """FrEIA's factor 0.1 and the factor inside its clamp go into the weights of the subnet's last convolution."""

    def folded(step: ir.Coupling) -> ir.Coupling:
        *others, last = step.subnet
        if not isinstance(last, ir.Conv):
            return step
        # The first rows give the exponent and the others the shift. Only the exponent has an inner factor.
        factor = np.full(len(last.weight), step.gain)
        factor[: len(step.active)] *= step.inner
        return dataclasses.replace(step, subnet=(*others, scale_rows(last, factor)), gain=1.0, inner=1.0)

    return rewrite_couplings(model, folded)


def centre_before_norm(model: ir.FlowModel) -> ir.FlowModel:
    """The weights of a convolution before a norm over channels are centred, so that the norm subtracts no mean."""

    def centred(step: ir.Coupling) -> ir.Coupling:
        subnet = list(step.subnet)
        for place, (conv, norm) in enumerate(itertools.pairwise(step.subnet)):
            if isinstance(conv, ir.Conv) and isinstance(norm, ir.ChannelNorm):
                subnet[place : place + 2] = _centred(conv, norm)
        return dataclasses.replace(step, subnet=tuple(subnet))

    def centred_net(net: CrossNet) -> CrossNet:
        if isinstance(net, ir.CrossScaleNet):
            return net
        conv1, norm = _centred(net.conv1, net.norm)
        return dataclasses.replace(net, conv1=conv1, norm=norm)

    return rewrite_cross_nets(rewrite_couplings(model, centred), centred_net)


def _centred(conv: ir.Conv, norm: ir.ChannelNorm) -> tuple[ir.Conv, ir.ChannelNorm]:
    """Subtract the mean over the outputs from the convolution's weights and bias, and mark the norm as centred."""
    # The mean over the outputs is linear in the input, so it is the output of the weights' mean over the outputs.
    weight = conv.weight.astype(np.float64)
    weight -= weight.mean(0)
    bias = bias_of(conv)
    conv = ir.Conv(weight=float32(weight), bias=float32(bias - bias.mean()))
    return conv, dataclasses.replace(norm, centred=True)
