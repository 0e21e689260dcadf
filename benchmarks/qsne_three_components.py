"""Three components: ``QSNE(3, q=5/3)`` beside scikit-learn's ``TSNE(3)``, which has the same objective.

    python benchmarks/qsne_three_components.py [--points 300] [--seeds 3]

Both embed the first images of the digits from random starts; the KL divergence of both embeddings is then computed by
one formula in float64, over one P (scikit-learn's). ``findings/tsne_three_components.sh`` shows why they differ.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy.spatial.distance import pdist, squareform
from sklearn.datasets import load_digits
from sklearn.manifold import TSNE
from sklearn.manifold._t_sne import _joint_probabilities

from plantops.embed import QSNE


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--perplexity", type=float, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    images = load_digits().data[: options.points]
    p = _joint_probabilities(squareform(pdist(images, "sqeuclidean")).astype(np.float32), options.perplexity, 0)

    def kl(embedding: np.ndarray, freedom: float) -> float:
        kernel = (1 + pdist(embedding.astype(np.float64), "sqeuclidean") / freedom) ** (-(freedom + 1) / 2)
        return float(2 * np.sum(p * np.log(np.maximum(p, 1e-300) / (kernel / (2 * kernel.sum())))))

    print("| components | method | KL, median over seeds | seconds |\n| --- | --- | --- | --- |")
    for components in (2, 3):
        freedom = components - 1  # Student's degrees of freedom, as scikit-learn has them; q = (3 + v) / (1 + v)
        q = (3 + freedom) / (1 + freedom)
        found: dict[str, list[tuple[float, float]]] = {}
        for seed in range(options.seeds):
            how = {"perplexity": options.perplexity, "random_state": seed}
            for name, method in (
                (f"scikit-learn, TSNE({components}), exact", TSNE(components, method="exact", init="random", **how)),
                (f"plantops, QSNE({components}, q={q:.4g})", QSNE(components, q=q, **how)),
            ):
                began = time.perf_counter()
                embedding = method.fit_transform(images)
                found.setdefault(name, []).append((kl(embedding, freedom), time.perf_counter() - began))
        for name, values in found.items():
            score, seconds = np.median(values, axis=0)
            print(f"| {components} | {name} | {score:.4f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
