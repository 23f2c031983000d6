"""Choose the units of a hidden layer to keep, and express the other units by them.

The choice is that of a QR factorisation with column pivoting of the layer's values on images (positions as rows, units
as columns), where each unit is weighted by what its readers make of it. A Cholesky factorisation with pivoting of the
units' covariance gives the same pivots, and needs a matrix of units by units whatever the number of positions is
(N. J. Higham, "Analysis of the Cholesky decomposition of a semi-definite matrix", 1990). Folding the other units into
the next layer's weights follows J. Chee et al., "Model Preserving Compression for Neural Networks", NeurIPS 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

# The least squares of units that depend on each other have many solutions. A ridge of this share of the mean variance
# takes a small one, which also holds for values that the images did not have.
_RIDGE: Final = 1e-6
# The share of the largest pivot below which a unit depends on those before it. Values are float32.
_DEPENDENT: Final = 1e-12


class UnitMoments:
    """Collects the sums of a layer's units and of their products over positions of images.

    Attributes:
        count: The number of positions so far.
    """

    def __init__(self, units: int) -> None:
        """Begin without a position."""
        self.count = 0
        self._sums = np.zeros(units)
        self._products = np.zeros((units, units))

    def add(self, values: NDArray[np.floating]) -> None:
        """Add positions.

        Args:
            values: The layer's values, ``(units, positions)``.
        """
        exact = values.astype(np.float64)
        self._sums += exact.sum(1)
        self._products += exact @ exact.T
        self.count += exact.shape[1]

    def means(self, *, constant: bool) -> Matrix:
        """Return the mean of each unit, ``(units,)``, or zeros where no constant may express a unit."""
        return self._sums / self.count if constant else np.zeros_like(self._sums)

    def products(self, *, constant: bool) -> Matrix:
        """Return the mean products of the units around their means, or around zero without a constant."""
        means = self.means(constant=constant)
        return self._products / self.count - np.outer(means, means)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitOrder:
    """The order in which the units of a layer are kept.

    Attributes:
        order: The numbers of the units, the most needed ones first, ``(units,)``.
        errors: For each number of kept units, the sum of the squared errors that the other units leave, as a share of
            the sum with no unit kept, ``(units + 1,)``, from 1 down to 0.
    """

    order: NDArray[np.int64]
    errors: Matrix


def order_of_units(products: Matrix, weights: Matrix) -> UnitOrder:
    """Order the units of a layer by pivoting.

    Args:
        products: The mean products of the units, ``(units, units)``.
        weights: The sum of the squared weights by which the readers multiply each unit, ``(units,)``.
    """
    units = len(products)
    scale = np.sqrt(weights)
    scaled = products * scale * scale[:, None]
    left = np.clip(
        scaled.diagonal(), 0.0, None
    ).copy()  # the part of each unit that the kept ones do not give
    factor = np.zeros((units, units), order="F")
    order = np.arange(units)
    errors = np.zeros(units + 1)
    whole = errors[0] = left.sum()
    smallest = _DEPENDENT * float(left.max(initial=0.0))
    for n in range(units):
        pivot = n + int(np.argmax(left[order[n:]]))
        order[[n, pivot]] = order[[pivot, n]]
        unit = order[n]
        if left[unit] <= smallest:
            break  # All units left depend on the kept ones, and stay in their own order.
        column = (scaled[:, unit] - factor[:, :n] @ factor[unit, :n]) / np.sqrt(left[unit])
        factor[:, n] = column
        left = np.clip(left - column**2, 0.0, None)
        left[order[: n + 1]] = 0.0
        errors[n + 1] = left.sum()
    return UnitOrder(order=order, errors=errors / whole if whole > 0 else errors)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Interpolation:
    """Expresses the units that are left out by those that are kept: ``left_out = weights.T @ kept + constants``.

    Attributes:
        kept: The numbers of the kept units, ascending.
        left_out: The numbers of the other units, ascending.
        weights: The factor of each kept unit for each other unit, ``(kept, left_out)``.
        constants: The constant of each other unit, ``(left_out,)``.
    """

    kept: NDArray[np.int64]
    left_out: NDArray[np.int64]
    weights: Matrix
    constants: Matrix


def interpolation(moments: UnitMoments, order: UnitOrder, kept: int, *, constant: bool) -> Interpolation:
    """Express the units behind the first ones of an order by these, with the least squared error on the images.

    Args:
        moments: The moments of the layer.
        order: The order of the layer's units.
        kept: The number of units to keep.
        constant: True where each unit may get a constant.
    """
    first, others = np.sort(order.order[:kept]), np.sort(order.order[kept:])
    products, means = moments.products(constant=constant), moments.means(constant=constant)
    own = products[np.ix_(first, first)]
    # Units that are constant on the images have no variance, or that of rounding, from which nothing is to be learnt.
    squares = float(np.mean(moments.products(constant=False).diagonal()))
    ridge = max(_RIDGE * float(np.trace(own)) / kept, _DEPENDENT * squares) or 1.0
    weights: Matrix = np.linalg.solve(own + ridge * np.eye(kept), products[np.ix_(first, others)]).astype(
        np.float64
    )
    return Interpolation(
        kept=first, left_out=others, weights=weights, constants=means[others] - weights.T @ means[first]
    )
