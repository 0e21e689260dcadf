"""q-SNE as a scikit-learn estimator."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.utils import check_random_state
from torch import Tensor

from plantops.embed import similarities as _similarities
from plantops.embed.distances import nearest, squared_distances
from plantops.embed.optimiser import Objective, Schedule, minimise
from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.ops import _checks
from plantops.ops import qsne_kl as _qsne
from plantops.ops._registry import check_impl

DENSE_LIMIT = 5000
_START_DEVIATION = 1e-2


class QSNE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """q-SNE: an embedding in one to three dimensions whose similarities are q-Gaussian; q = 2 is t-SNE.

    Similarities P of the data are those of t-SNE. Those of the embedding are proportional to
    ``(1 + (q-1)/(3-q) d^2)^(-1/(q-1))``, and KL(P || Q) is minimised by exact gradient descent with momentum and gains.
    A q below 2 has lighter tails (one continuous picture, little room between clusters), a q above 2 heavier ones
    (clusters that are tighter and further apart). Computed in float32; all pairs repel each other, so a step takes
    O(N^2) time, in O(N) memory beyond P.

    Parameters
    ----------
    n_components : int, default=2
        Dimensions of the embedding, 1 to 3.
    q : float, default=2.0
        The kernel, in [1, 3).
    perplexity : float, default=30.0
        How many neighbours a point has, about. More than a third of the other points are too many for it to mean
        anything: it is then lowered to that, with a warning.
    early_exaggeration, exaggeration_iter : float, default=12.0; int, default=250
        For so many first steps the attraction is so many times as strong, and the momentum is 0.5 instead of 0.8.
    learning_rate : float or "auto", default="auto"
        "auto": 4/3 N / early_exaggeration. On the 1,797 digits that is the published 200; the gradient of a point
        shrinks as 1/N, so it is as far from instability for any other number of samples.
    max_iter : int, default=1000
        Number of steps.
    method : {"auto", "dense", "neighbors"}, default="auto"
        P over all pairs, or over the 3 perplexity nearest neighbours of each point. "auto": dense up to 5,000 points
        (P then takes 4 N^2 bytes).
    metric : str or callable, default="euclidean"
        Any metric of `sklearn.metrics.pairwise_distances`, or a function of two samples; the distances are those of
        ``pairwise_distances(X, metric=metric, **metric_params)``, in both methods. "precomputed": X is a matrix of
        distances. Other metrics than "euclidean" take O(N^2) distances in "neighbors", too.
    metric_params : dict or None, default=None
        Further arguments of the metric, as ``{"p": 3}`` of "minkowski". Variances and covariances that "seuclidean" and
        "mahalanobis" need are, unless given here, those of X.
    init : {"random", "pca"} or array of shape (n_samples, n_components), default="random"
        "random": normal with standard deviation 0.01 (variance 1e-4).
    random_state : int, RandomState instance or None, default=None
        The random start. The same seed gives the same bits on the same machine.
    callback : callable or None, default=None
        Called every `callback_every` steps and after the last as ``callback(steps, kl_divergence, embedding)``; a true
        answer ends the fit.
    callback_every : int, default=50
    verbose : int, default=0
        1 prints a line every `callback_every` steps.
    impl : str, default="auto"
        Implementation of the op `plantops::qsne_kl`.

    Attributes
    ----------
    embedding_ : ndarray of shape (n_samples, n_components), float32
    kl_divergence_ : float
        KL(P || Q) of `embedding_`.
    n_iter_ : int
        Steps taken.
    perplexity_ : float
        The perplexity that was used.
    n_features_in_, feature_names_in_
        As in every scikit-learn estimator.

    References
    ----------
    Abe, Miyao, Kurita, "q-SNE: Visualizing Data using q-Gaussian Distributed Stochastic Neighbor Embedding",
    arXiv 2012.00999.

    Examples
    --------
    >>> from plantops.embed import QSNE
    >>> embedding = QSNE(q=2.5, random_state=0).fit_transform(X)
    """

    def __init__(
        self,
        n_components: int = 2,
        q: float = 2.0,
        perplexity: float = 30.0,
        *,
        early_exaggeration: float = 12.0,
        exaggeration_iter: int = 250,
        learning_rate: float | str = "auto",
        max_iter: int = 1000,
        method: str = "auto",
        metric: str | Callable[..., float] = "euclidean",
        metric_params: dict[str, Any] | None = None,
        init: Any = "random",
        random_state: Any = None,
        callback: Callable[[int, float, np.ndarray], Any] | None = None,
        callback_every: int = 50,
        verbose: int = 0,
        impl: str = "auto",
    ) -> None:
        self.n_components = n_components
        self.q = q
        self.perplexity = perplexity
        self.early_exaggeration = early_exaggeration
        self.exaggeration_iter = exaggeration_iter
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.method = method
        self.metric = metric
        self.metric_params = metric_params
        self.init = init
        self.random_state = random_state
        self.callback = callback
        self.callback_every = callback_every
        self.verbose = verbose
        self.impl = impl

    def fit(self, X: Any, y: Any = None) -> QSNE:
        """Embeds the rows of X ``(n_samples, n_features)``, or of a distance matrix. y is ignored."""
        self._check_parameters()
        X = self._validate(X)
        with torch.no_grad():
            self._fit(X)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Embeds the rows of X and returns `embedding_`."""
        return self.fit(X).embedding_

    def _fit(self, X: np.ndarray) -> None:
        self.perplexity_ = self._usable_perplexity(len(X))
        start = torch.from_numpy(self._start(X))
        objective = Objective(self._similarities(X), self.q, self.impl)
        schedule = Schedule(
            max_iter=self.max_iter,
            exaggeration=self.early_exaggeration,
            exaggeration_iter=self.exaggeration_iter,
            learning_rate=self._step_length(len(X)),
        )
        began = time.perf_counter()

        def after_step(steps: int, embedding: Tensor) -> bool:
            watched = self.callback is not None or self.verbose
            if not watched or (steps % self.callback_every and steps != self.max_iter):
                return False
            kl = objective.kl(embedding)
            if self.verbose:
                seconds = time.perf_counter() - began
                print(f"q-SNE: step {steps} of {self.max_iter}, KL {kl:.4f}, {seconds:.1f} s")
            return self.callback is not None and bool(self.callback(steps, kl, embedding.numpy().copy()))

        embedding, self.n_iter_ = minimise(objective, start, schedule, after_step)
        self.embedding_ = embedding.numpy()
        self.kl_divergence_ = objective.kl(embedding)

    def _similarities(self, X: np.ndarray) -> _similarities.Similarities:
        points = len(X)
        params = {} if self.metric_params is None else self.metric_params
        if self.method == "dense" or (self.method == "auto" and points <= DENSE_LIMIT):
            squared = squared_distances(X, self.metric, params)
            return _similarities.dense(squared, points, self.perplexity_, torch.float32)
        count = min(points - 1, int(3 * self.perplexity_) + 1)
        return _similarities.sparse(*nearest(X, self.metric, params, count), self.perplexity_, torch.float32)

    def _start(self, X: np.ndarray) -> np.ndarray:
        shape = (len(X), self.n_components)
        if isinstance(self.init, str):
            if self.init == "random":
                start = check_random_state(self.random_state).standard_normal(shape) * _START_DEVIATION
            else:
                start = PCA(self.n_components, random_state=self.random_state).fit_transform(X)
                start = start / max(float(start[:, 0].std()), 1e-30) * _START_DEVIATION
        else:
            start = np.asarray(self.init)
            if start.shape != shape or not np.isfinite(start).all():
                raise ArgumentError(f"init: expected finite values of shape {shape}, got shape {start.shape}")
        return np.ascontiguousarray(start, dtype=np.float32)

    def _step_length(self, points: int) -> float:
        if isinstance(self.learning_rate, str):
            return 4.0 * points / (3.0 * self.early_exaggeration)
        return float(self.learning_rate)

    def _usable_perplexity(self, points: int) -> float:
        most = (points - 1) / 3
        if self.perplexity <= most:
            return float(self.perplexity)
        lowered = max(1.0, most)
        warnings.warn(
            f"perplexity {self.perplexity} is too high for {points} samples; {lowered:g} is used", stacklevel=4
        )
        return lowered

    def _validate(self, X: Any) -> np.ndarray:
        options: dict[str, Any] = {"dtype": [np.float64, np.float32], "ensure_min_samples": 2}
        finite = "allow-nan" if self.metric == "nan_euclidean" else True
        try:
            from sklearn.utils.validation import validate_data
        except ImportError:  # scikit-learn < 1.6
            X = self._validate_data(X, force_all_finite=finite, **options)
        else:
            X = validate_data(self, X, ensure_all_finite=finite, **options)
        X = np.require(X, requirements=["C", "W"])  # as torch wants arrays that it shares
        if self.metric == "precomputed":
            if X.shape[0] != X.shape[1]:
                raise ArgumentError(f"X: expected a square matrix of distances, got shape {X.shape}")
            if (X < 0).any():
                raise ArgumentError(f"X: expected distances >= 0, got {X.min()}")
        return X

    def _check_parameters(self) -> None:
        for name, kind, least in (
            ("n_components", Integral, 1),
            ("exaggeration_iter", Integral, 0),
            ("max_iter", Integral, 1),
            ("callback_every", Integral, 1),
            ("perplexity", Real, 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise ArgumentTypeError(
                    f"{name}: expected {'an integer' if kind is Integral else 'a number'}, got {value!r}"
                )
            if not least <= float(value) < float("inf"):
                raise ArgumentError(f"{name}: expected at least {least}, got {value}")
        if self.n_components > _qsne.MOST_DIMENSIONS:
            raise ArgumentError(f"n_components: expected 1 to {_qsne.MOST_DIMENSIONS}, got {self.n_components}")
        _qsne.check_q(self.q)
        _checks.check_positive("early_exaggeration", self.early_exaggeration)
        if self.learning_rate != "auto":
            if not isinstance(self.learning_rate, Real):
                raise ArgumentTypeError(f"learning_rate: expected a number or 'auto', got {self.learning_rate!r}")
            _checks.check_positive("learning_rate", float(self.learning_rate))
        _checks.check_choice("method", self.method, ("auto", "dense", "neighbors"))
        if not isinstance(self.metric, str) and not callable(self.metric):
            raise ArgumentTypeError(f"metric: expected a name or a function of two samples, got {self.metric!r}")
        if self.metric_params is not None and not isinstance(self.metric_params, dict):
            raise ArgumentTypeError(f"metric_params: expected a dict or None, got {self.metric_params!r}")
        if isinstance(self.init, str):
            _checks.check_choice("init", self.init, ("random", "pca"))
            if self.init == "pca" and self.metric == "precomputed":
                raise ArgumentError("init: expected 'random' or an array with metric='precomputed', got 'pca'")
        check_impl(self.impl)

    @property
    def _n_features_out(self) -> int:
        return self.embedding_.shape[1]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.metric == "precomputed"
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _more_tags(self) -> dict[str, Any]:  # scikit-learn < 1.6
        return {"pairwise": self.metric == "precomputed", "preserves_dtype": [np.float32]}
