"""The training of the bench's models uses the true log-determinant, and writes the learned weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from bench.full_size import FullSize
from bench.train_flows import LogDets, features_of, negative_log_likelihood, options_of, train_flow
from flowedge.export.demo.photos import PhotoPlan, write_photos
from flowedge.export.pipeline import read_model
from flowedge.export.reference.csflow import TwoSidedCoupling


class _Net(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 2 * outputs, 1)

    def forward(self, levels: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [(scale, shift) for scale, shift in (self.conv(level).chunk(2, 1) for level in levels)]


def test_the_log_determinant_of_a_coupling_is_that_of_its_jacobian() -> None:
    torch.manual_seed(1)
    coupling = TwoSidedCoupling(_Net(2, 3), _Net(3, 2), clamp=1.9).double()
    levels = [torch.randn(1, 5, 2, 2).double(), torch.randn(1, 5, 1, 1).double()]

    def flattened(values: Tensor) -> Tensor:
        moved: list[Tensor] = coupling([values[:20].reshape(1, 5, 2, 2), values[20:].reshape(1, 5, 1, 1)])
        return torch.cat([level.flatten() for level in moved])

    jacobian = torch.func.jacrev(flattened)(torch.cat([level.flatten() for level in levels]))
    with LogDets(coupling) as heard:
        coupling(levels)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(sum(heard.found)[0], expected)  # type: ignore[index]


def test_what_was_learned_is_in_the_file(tmp_path: Path) -> None:
    photos = write_photos(
        tmp_path / "photos", PhotoPlan(train=8, calibration=1, test_good=1, test_per_defect=1)
    )
    model = FullSize(family="msflow", layout="official", network="resnet18", size=64)
    trained = train_flow(model, photos.train, tmp_path, epochs=3)
    read = read_model(tmp_path / "model.pt", options_of(model, tmp_path))
    reference = read.reference_network()
    with torch.no_grad():
        loss = negative_log_likelihood(
            reference, features_of(reference, photos.train, read.preprocessing)
        ).item()
    assert trained.steps == 3
    assert loss < trained.last_nll < trained.first_nll  # the last loss was taken before the last step
