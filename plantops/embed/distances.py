"""Distances between samples, some rows at a time: what ``pairwise_distances`` of scikit-learn gives for all of them.

A metric that takes statistics of the data (``seuclidean``, ``mahalanobis``) takes those of all samples, whatever the
block; so the dense method and the search for neighbours have the same distances.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import DataConversionWarning
from sklearn.metrics import pairwise_distances
from sklearn.metrics.pairwise import PAIRWISE_BOOLEAN_FUNCTIONS
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from plantops.embed.similarities import rows_at_once
from plantops.errors import ArgumentError

Rows = Callable[[slice], Tensor]
"""From a slice of samples to the squared distances ``[rows, samples]`` of these to all, float64."""


def squared_distances(X: np.ndarray, metric: str | Callable[..., float], params: Mapping[str, Any]) -> Rows:
    """The squares of ``pairwise_distances(X, metric=metric, **params)``.

    Raises (at once, or when rows are asked for):
        ValueError: a metric that scikit-learn does not know or that does not fit the data; distances that are negative
            or not finite.
    """
    if metric == "precomputed":
        return lambda rows: torch.from_numpy(X[rows]).double().square()
    if metric == "euclidean" and not params:
        x = centred(X)
        norms = x.square().sum(1)
        return lambda rows: torch.addmm(norms, x[rows], x.T, alpha=-2.0).add_(norms[rows, None]).clamp_(min=0.0)
    distances = _in_order(X, metric, params) if callable(metric) else _named(X, metric, params)

    def squared(rows: slice) -> Tensor:
        block = torch.from_numpy(np.ascontiguousarray(distances(rows), dtype=np.float64))
        block.diagonal(rows.start).zero_()  # of a sample to itself: no distance that counts
        wrong = ~(block.isfinite() & (block >= 0))
        if wrong.any():
            row, column = (int(place) for place in wrong.nonzero()[0])
            raise ArgumentError(
                f"metric: expected finite distances >= 0 from {metric!r}, got {block[row, column].item()} between the "
                f"samples {rows.start + row} and {column}"
            )
        return block.square_()

    return squared


def centred(X: np.ndarray) -> Tensor:
    """Float64, with mean 0: what keeps the digits of distances far from the origin."""
    x = torch.from_numpy(X).double()
    return x - x.mean(0)


def nearest(
    X: np.ndarray, metric: str | Callable[..., float], params: Mapping[str, Any], count: int
) -> tuple[Tensor, Tensor]:
    """Squared distances, float64, and indices ``[samples, count]`` of each sample's nearest others.

    Raises:
        ValueError: as ``squared_distances``.
    """
    if metric == "euclidean" and not params:
        # The own point is not among the answers when no query is given.
        found, indices = NearestNeighbors(n_neighbors=count).fit(centred(X).numpy()).kneighbors()
        return torch.from_numpy(found).square_(), torch.from_numpy(indices)
    rows_of, points = squared_distances(X, metric, params), len(X)
    squared, neighbours = torch.empty(points, count, dtype=torch.float64), torch.empty(points, count, dtype=torch.int64)
    step = rows_at_once(points)
    for begin in range(0, points, step):
        rows = slice(begin, min(points, begin + step))
        block = rows_of(rows).clone()
        block.diagonal(begin).fill_(torch.inf)
        squared[rows], neighbours[rows] = block.topk(count, largest=False)
    return squared, neighbours


def _named(X: np.ndarray, metric: str, params: Mapping[str, Any]) -> Callable[[slice], np.ndarray]:
    try:
        params = {**_of_all(X, metric, params), **params}
        pairwise_distances(X[:2], metric=metric, **params)  # warns where it makes booleans of numbers
    except (ValueError, TypeError, np.linalg.LinAlgError) as error:
        raise ArgumentError(f"metric: {metric!r} cannot be computed for this data ({error})") from error
    x = X.astype(bool) if metric in PAIRWISE_BOOLEAN_FUNCTIONS else X

    def rows_of(rows: slice) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataConversionWarning)
            return pairwise_distances(x[rows], x, metric=metric, **params)

    return rows_of


def _of_all(X: np.ndarray, metric: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics of all samples that ``pairwise_distances(X)`` would take, had it all samples."""
    if metric == "seuclidean" and "V" not in params:
        return {"V": np.var(X, axis=0, ddof=1, dtype=np.float64)}
    if metric == "mahalanobis" and not {"V", "VI"} & set(params):
        return {"VI": np.linalg.inv(np.atleast_2d(np.cov(X.T.astype(np.float64)))).T}
    return {}


def _in_order(X: np.ndarray, metric: Callable[..., float], params: Mapping[str, Any]) -> Callable[[slice], np.ndarray]:
    """Of a function the value for the earlier sample and the later one, as scikit-learn takes it for both orders."""

    def rows_of(rows: slice) -> np.ndarray:
        block = np.zeros((rows.stop - rows.start, len(X)))
        for place, i in enumerate(range(rows.start, rows.stop)):
            for j in range(len(X)):
                if i != j:
                    block[place, j] = metric(X[min(i, j)], X[max(i, j)], **params)
        return block

    return rows_of
