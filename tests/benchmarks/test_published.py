"""The fit of the prior to the published galaxies."""

import numpy as np
import pytest
import torch

from benchmarks.published import fit_prior, read_galaxies
from probdeblend.scene import GALAXY_TYPES
from probdeblend.simulation import Prior


@pytest.mark.slow
def test_fit_reproduces_the_shipped_prior(data_dir):
    types, magnitudes, radii = read_galaxies(data_dir / "boucaud2020/test_results.csv")
    assert fit_prior(types, magnitudes, radii).means == Prior.published().means


@pytest.mark.slow
def test_fit_finds_a_known_population(rng):
    types = np.repeat(GALAXY_TYPES, 400)
    magnitudes = rng.normal(21, 0.5, 1600)
    radii = np.exp(-0.3 * (magnitudes - 21) + rng.normal(-1, 0.2, 1600))
    fitted = fit_prior(types, magnitudes, radii)
    assert fitted.type_probabilities == (0.25, 0.25, 0.25, 0.25)
    sample = fitted.magnitude_and_radius(torch.arange(4).repeat(4000)).sample().numpy()
    assert sample.mean(0) == pytest.approx([21, -1], abs=0.05)
    assert np.polyfit(sample[:, 0], sample[:, 1], 1)[0] == pytest.approx(-0.3, abs=0.05)


def test_errors_of_the_fit(rng):
    ones = np.ones(100)
    with pytest.raises(ValueError, match="types must be among sph, disk, sphd, irr, got star"):
        fit_prior(np.repeat("star", 100), ones, ones)
    with pytest.raises(ValueError, match="magnitudes must be finite and radii finite and positive"):
        fit_prior(np.repeat("sph", 100), ones, -ones)
    with pytest.raises(ValueError, match="at least 30 galaxies of each type are needed, got 0 of type disk"):
        fit_prior(np.repeat("sph", 100), rng.normal(21, 1, 100), ones + rng.random(100))
