import numpy as np
import pytest

from probdeblend.posterior import condensed_catalog

TRUE = np.array([[10.0, 10.0], [11.0, 10.0], [20.0, 30.0]])  # the first two are closer than the radius
EXISTENCE = np.array([1.0, 0.6, 0.3])
FLUX = np.array([[100.0, 50.0], [40.0, 30.0], [10.0, 5.0]])
SAMPLES = 400


@pytest.fixture
def sampled(rng):
    """Catalogs of three sources of two bands, in random order, each there as often as its existence says."""
    there = rng.random((SAMPLES, 3)) < EXISTENCE
    place = TRUE + rng.normal(0, 0.1, (SAMPLES, 3, 2))
    flux = FLUX * np.exp(rng.normal(0, 0.1, (SAMPLES, 3, 1)))
    order = rng.permutation(there.sum())
    return there, [
        values[there][order] for values in (np.arange(SAMPLES)[:, None].repeat(3, 1), *np.moveaxis(place, -1, 0), flux)
    ]


def test_sources_are_told_apart(sampled):
    """Each source has the frequency, the positions and the fluxes that were put in, the close pair's too."""
    there, catalogs = sampled
    table = condensed_catalog(*catalogs, radius=1.2, samples=SAMPLES)
    assert len(table) == 3
    np.testing.assert_allclose(table["existence"], there.mean(0), atol=0.01)
    number = SAMPLES * there.mean(0)
    for name, true in zip("xy", TRUE.T, strict=True):
        assert (np.abs(table[name] - true) < 5 * 0.1 / np.sqrt(number)).all()
        np.testing.assert_allclose(table[f"{name}_err"], 0.1, rtol=0.2)
    for name, sigma in (("flux_16", -0.994), ("flux_50", 0), ("flux_84", 0.994)):
        assert (np.abs(np.log(table[name] / FLUX) - 0.1 * sigma) < 5 * 0.1 * 1.5 / np.sqrt(number)[:, None]).all()


def test_samples_without_a_source_count():
    table = condensed_catalog([0, 1, 3], [5.0, 5.1, 4.9], [7.0] * 3, [9.0, 8.0, 10.0], radius=1.0, samples=6)
    assert table["existence"].tolist() == [0.5]
    assert table["flux_50"].tolist() == [9.0]


def test_one_source_of_each_sample():
    """Two sources of one sample are two rows, however close."""
    table = condensed_catalog([0, 0, 1], [5.0, 5.2, 5.1], [7.0] * 3, [9.0, 8.0, 10.0], radius=1.0)
    assert sorted(table["existence"]) == [0.5, 1.0]


def test_rare_sources_are_left_out():
    settings = {"radius": 1.0, "samples": 10, "least": 0.3}
    given = [[0, 1, 2, 3, 4], [5.0, 5.0, 5.0, 9.0, 9.0], [7.0] * 5, np.ones(5)]
    assert condensed_catalog(*given, **settings)["existence"].tolist() == [0.3]
    assert condensed_catalog(*given, **(settings | {"least": 0.2}))["existence"].tolist() == [0.3, 0.2]


@pytest.mark.parametrize("samples", [0, 4])
def test_nothing(samples):
    table = condensed_catalog([], [], [], [], radius=1.0, samples=samples)
    assert len(table) == 0
    assert table.colnames == ["existence", "x", "x_err", "y", "y_err", "flux_16", "flux_50", "flux_84"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": 0.0}, "radius must be positive, got 0.0"),
        ({"x": [1.0], "y": [1.0]}, "one for each of 2 samples and 2 fluxes"),
        ({"x": [1.0, np.nan]}, "x and y must be finite"),
        ({"flux": [1.0]}, "one for each of 2 samples and 1 fluxes"),
        ({"samples": 1}, "sample must be 0 to below 1, got 0 to 1"),
        ({"sample": [-1, 0]}, "sample must be 0 to below 1, got -1 to 0"),
    ],
)
def test_wrong_input(change, message):
    given = {"sample": [0, 1], "x": [1.0, 2.0], "y": [1.0, 2.0], "flux": [1.0, 2.0], "radius": 1.0}
    with pytest.raises(ValueError, match=message):
        condensed_catalog(**(given | change))
