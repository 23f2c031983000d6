"""How well two sets of numbers agree: correlations, streamed or of ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class PairMoments:
    """Means, squares and products of pairs of numbers, in float64, of any number of pairs.

    Sets are merged by their means (T. Chan et al., "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances", 1979), so that maps which live in 100.0..100.5 lose no digits.
    """

    def __init__(self) -> None:
        self._count = 0
        self._means = np.zeros(2)
        self._products = np.zeros((2, 2))

    def add(self, first: NDArray[Any], second: NDArray[Any]) -> None:
        """Count pairs.

        Args:
            first: Any shape, not empty, finite.
            second: The same shape.
        """
        values = np.stack([first.ravel(), second.ravel()]).astype(np.float64)
        pivots = values[:, :1].copy()  # so that equal numbers have no deviation at all
        values -= pivots
        means = values.mean(axis=1, keepdims=True)
        values -= means
        one = PairMoments()
        one._count = values.shape[1]
        one._means = (pivots + means)[:, 0]
        one._products = np.einsum("in,jn->ij", values, values)  # not BLAS, whose threads would linger
        self.merge(one)

    def merge(self, other: PairMoments) -> None:
        """Count all pairs of another set, which has at least one."""
        count = self._count + other._count
        apart = other._means - self._means
        between = np.outer(apart, apart) * (self._count * other._count / count)
        self._products = self._products + other._products + between
        self._means = self._means + apart * (other._count / count)
        self._count = count

    def correlation(self) -> float:
        """Pearson's, -1 to 1; 1 where neither number ever varies, 0 where only one does."""
        (a, product), (_, b) = self._products
        if a == 0 or b == 0:
            return float(a == b)
        return float(np.clip(product / (math.sqrt(a) * math.sqrt(b)), -1, 1))

    def first_deviation(self) -> float:
        """The standard deviation of the pairs' first numbers; 0 without pairs."""
        return math.sqrt(self._products[0, 0] / self._count) if self._count else 0.0


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's, as `PairMoments.correlation` of the ranks; equal values share the mean of theirs.

    Args:
        first: ``(n,)``, not empty, finite.
        second: ``(n,)``.
    """
    pairs = PairMoments()
    pairs.add(_ranks(np.asarray(first)), _ranks(np.asarray(second)))
    return pairs.correlation()


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[index]
    return ranks
