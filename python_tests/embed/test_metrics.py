"""QSNE's metrics: the distances of scikit-learn's pairwise_distances over all samples, in both methods."""

import warnings

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn", reason='scikit-learn is not installed: pip install "plantops[data]"')

from sklearn.metrics import pairwise_distances  # noqa: E402

from plantops import PlantopsError  # noqa: E402
from plantops.embed import QSNE, distances  # noqa: E402

RANDOM = np.random.RandomState(0)
POINTS = RANDOM.randn(60, 4) * [1, 10, 0.1, 3] + 2
SHARES = RANDOM.dirichlet([1, 1, 1, 1], 60)
BITS = (RANDOM.rand(60, 12) < 0.4).astype(float)
BITS[:, 0] = 1.0  # no sample is all zeros
MISSING = np.where(RANDOM.rand(60, 4) < 0.1, np.nan, POINTS)
SPHERE = RANDOM.rand(60, 2) - 0.5
COVARIANCE = np.diag([1.0, 2.0, 3.0, 4.0]) + 0.5

METRICS = {
    "euclidean": (POINTS, {}), "l2": (POINTS, {}), "l1": (POINTS, {}), "manhattan": (POINTS, {}),
    "cityblock": (POINTS, {}), "cosine": (POINTS, {}), "sqeuclidean": (POINTS, {}), "chebyshev": (POINTS, {}),
    "correlation": (POINTS, {}), "canberra": (POINTS, {}), "braycurtis": (SHARES, {}),
    "minkowski": (POINTS, {"p": 3}), "minkowski below 1": (POINTS, {"p": 0.5}), "seuclidean": (POINTS, {}),
    "seuclidean given": (POINTS, {"V": np.array([1.0, 4.0, 9.0, 16.0])}), "mahalanobis": (POINTS, {}),
    "mahalanobis given": (POINTS, {"VI": np.linalg.inv(COVARIANCE)}), "euclidean squared": (POINTS, {"squared": True}),
    "nan_euclidean": (MISSING, {}), "haversine": (SPHERE, {}), "hamming": (BITS, {}), "jaccard": (BITS, {}),
    "dice": (BITS, {}), "rogerstanimoto": (BITS, {}), "russellrao": (BITS, {}), "sokalsneath": (BITS, {}),
    "yule": (BITS, {}),
}  # fmt: skip


def lopsided(a: np.ndarray, b: np.ndarray, power: float = 2.0) -> float:
    """No metric: depends on the order, and breaks the triangle inequality."""
    return float((np.abs(a - b) ** power).sum() + 0.1 * max(a[0] - b[0], 0.0))


def fast(**changes) -> QSNE:
    return QSNE(**{"perplexity": 6, "max_iter": 5, "exaggeration_iter": 2, "random_state": 0, **changes})


def check(data: np.ndarray, metric, params: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        right = pairwise_distances(data, metric=metric, **params)
        right = np.triu(right, 1) + np.triu(right, 1).T
        for method in ("dense", "neighbors"):
            named = fast(metric=metric, metric_params=params or None, method=method).fit_transform(data)
            given = fast(metric="precomputed", method=method).fit_transform(right)
            np.testing.assert_allclose(named, given, rtol=1e-3, atol=1e-6)
        found, places = distances.nearest(data, metric, params, 7)
        np.fill_diagonal(right, np.inf)
        np.testing.assert_allclose(np.sqrt(found), np.sort(right, 1)[:, :7], rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(np.take_along_axis(right, places.numpy(), 1), np.sqrt(found), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_pairwise_distances_in_both_methods(name: str):
    data, params = METRICS[name]
    check(data, name.split()[0], params)


@pytest.mark.parametrize("name", ["seuclidean", "mahalanobis", "jaccard", "manhattan"])
def test_statistics_are_of_all_samples_whatever_the_block(name: str, monkeypatch: pytest.MonkeyPatch):
    data, params = METRICS[name]
    monkeypatch.setattr(distances, "rows_at_once", lambda others: 7)
    check(data, name, params)


@pytest.mark.parametrize("params", [{}, {"power": 0.5}])
def test_a_function_is_a_metric(params: dict):
    check(POINTS, lopsided, params)


@pytest.mark.parametrize("method", ["dense", "neighbors"])
@pytest.mark.parametrize(
    ("metric", "params", "message"),
    [
        ("no such", None, "metric: 'no such' cannot be computed for this data"),
        ("haversine", None, "metric: 'haversine' cannot be computed for this data"),
        ("minkowski", {"q": 3}, "metric: 'minkowski' cannot be computed for this data"),
        (
            lambda a, b: -1.0,
            None,
            "expected finite distances >= 0 from .*, got -1.0 between the samples 0 and 1",
        ),
        (lambda a, b: np.nan, None, "metric: expected finite distances >= 0 from .*, got nan between"),
        (3, None, "metric: expected a name or a function of two samples, got 3"),
        (None, None, "metric: expected a name or a function of two samples, got None"),
        ("minkowski", 3, "metric_params: expected a dict or None, got 3"),
    ],
)
def test_a_metric_that_cannot_be_is_named(metric, params, message: str, method: str):
    with pytest.raises(PlantopsError, match=message):
        fast(metric=metric, metric_params=params, method=method).fit(POINTS)


@pytest.mark.parametrize("metric", ["seuclidean", "mahalanobis"])
def test_a_feature_that_never_changes_has_no_variance(metric: str):
    for method in ("dense", "neighbors"):
        with pytest.raises(PlantopsError, match=f"metric: .*'{metric}'"), np.errstate(all="ignore"):
            fast(metric=metric, method=method).fit(np.c_[POINTS, np.ones(60)])
