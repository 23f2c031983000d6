"""List the passes, which rewrite a flow as its paper writes it to one that an engine computes quickly.

A pass is a function ``FlowModel -> FlowModel``. `lower` runs the passes from top to bottom of `PASSES`. The passes
fold weights in float64 and round once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import getdoc
from typing import Final

from flowedge.export.graph import ir
from flowedge.export.graph.affine import fold_affine
from flowedge.export.graph.channels import fill_channel_groups
from flowedge.export.graph.cross_scale import (
    fold_soft_clamp,
    merge_cross_convolutions,
    merge_scale_and_shift_heads,
    mix_channels_before_upsampling,
)
from flowedge.export.graph.folding import (
    centre_before_norm,
    drop_unused_log_det,
    fold_gain,
    linear_layers_become_convolutions,
)
from flowedge.export.graph.permutations import (
    absorb_gathers,
    drop_last_rotation,
    index_hard_permutations,
    order_halves,
)
from flowedge.export.graph.position import carry_position, reduce_position_code
from flowedge.lowering import Exactness


@dataclass(frozen=True, slots=True)
class Pass:
    """One rewriting of the flow, with what is known of its result.

    Attributes:
        rewrite: The function. The first paragraph of its docstring is shown to the user.
        exactness: The difference that the pass may make to the flow's output. A ``bitwise`` pass changes at most the
            sign of a zero. A ``re-association`` pass changes nothing in real arithmetic, but float32 sums are taken in
            another order. An ``orthogonality`` pass relies on a stored matrix being orthogonal, and checks that.
        keeps_latents: True when each channel of the latent keeps its value, in whatever order the channels are.
            False when only their sum of squares is kept.
    """

    rewrite: Callable[[ir.FlowModel], ir.FlowModel]
    exactness: Exactness
    keeps_latents: bool = True

    @property
    def name(self) -> str:
        """The function's name."""
        return self.rewrite.__name__

    @property
    def summary(self) -> str:
        """One sentence that says what the pass does."""
        return " ".join((getdoc(self.rewrite) or "").split("\n\n")[0].split())

    def __call__(self, model: ir.FlowModel) -> ir.FlowModel:
        return self.rewrite(model)


PASSES: Final = (
    Pass(drop_unused_log_det, "bitwise"),
    # The passes below look for convolutions.
    Pass(linear_layers_become_convolutions, "re-association"),
    # Permutations become gathers, and gathers are absorbed. Matrices that stay are rotations.
    Pass(index_hard_permutations, "bitwise"),
    Pass(absorb_gathers, "re-association"),
    Pass(drop_last_rotation, "orthogonality", keeps_latents=False),
    # The scale and offset of a coupling can be folded once its gain is 1.
    Pass(fold_gain, "re-association"),
    Pass(reduce_position_code, "re-association"),
    Pass(fold_affine, "re-association"),
    # Only a reduced position code is small enough to be carried. Channels are counted with it.
    Pass(carry_position, "bitwise"),
    # The channels that the pass after this one adds lie beside the runs.
    Pass(order_halves, "re-association"),
    Pass(fill_channel_groups, "re-association"),
    # The passes below do not depend on the passes above.
    Pass(centre_before_norm, "re-association"),
    Pass(merge_scale_and_shift_heads, "re-association"),
    Pass(mix_channels_before_upsampling, "re-association"),
    Pass(merge_cross_convolutions, "re-association"),
    Pass(fold_soft_clamp, "re-association"),
)


def lower(
    model: ir.FlowModel,
    *,
    keep_latents: bool = False,
    on_pass: Callable[[Pass, ir.FlowModel], None] = lambda _pass, _after: None,
) -> ir.FlowModel:
    """Run every pass.

    Args:
        model: The flow as its checkpoint holds it.
        keep_latents: Leave out passes that keep only the sum of squares of a latent's channels.
        on_pass: Called with each pass that ran and the flow that it returned.

    Returns:
        The lowered flow.
    """
    for one in PASSES:
        if keep_latents and not one.keeps_latents:
            continue
        model = one(model)
        on_pass(one, model)
    return model
