"""The map of Figure 3."""

import numpy as np

from drfuse.reproduce.experiments.figure3 import tsne


def test_tsne_places_each_representation_of_each_stay_the_same_way_again() -> None:
    rng = np.random.default_rng(0)
    h = {name: (rng.normal(size=(12, 6)) + 20 * place).astype("f4") for place, name in enumerate(("a", "b"))}
    placed = tsne(h)
    assert list(placed) == ["a", "b"]
    assert all(points.shape == (12, 2) for points in placed.values())
    again = tsne(h)
    assert all(np.array_equal(placed[name], again[name]) for name in h)
    centres = [points.mean(axis=0) for points in placed.values()]
    within = max(np.linalg.norm(points - points.mean(axis=0), axis=1).max() for points in placed.values())
    assert np.linalg.norm(centres[0] - centres[1]) > within


def test_tsne_of_a_handful_of_stays() -> None:
    h = {name: np.random.default_rng(0).normal(size=(2, 3)).astype("f4") for name in "abcd"}
    assert all(np.isfinite(points).all() for points in tsne(h).values())
