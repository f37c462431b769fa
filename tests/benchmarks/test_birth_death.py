"""The sampler of catalogs leaves the distribution that it is meant to sample as it is."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.peers import _birth_death
from benchmarks.peers._birth_death import Prior, Target, advance, sample_catalogs
from benchmarks.peers._templates import STAR_RADIUS, Templates
from probdeblend.simulation.profiles import Components, render

SIDE = 20
FALSE_ALARM = 1e-4  # of a whole test, shared among its p-values
NUMBER = (0.1, 0.3, 0.3, 0.2, 0.1)
RADIUS = (0.5, 3.0)
PSF = torch.exp(-((torch.arange(21, dtype=torch.float64) - 10) ** 2) / (2 * 1.5**2))
PSF = torch.outer(PSF, PSF) / PSF.sum() ** 2


@pytest.fixture(scope="module")
def templates():
    return Templates.rendered(PSF, RADIUS)


def _target(templates, *, galaxies=0.4, power=1.0, number=NUMBER):
    error = Target(templates, Prior((1.0,), (1.0, 2.0), SIDE), 1.0).flux_error
    prior = Prior(number, (4 * error, 40 * error), SIDE, galaxies, RADIUS)
    return Target(templates, prior, 1.0, power)


def _after(target, moves, chains, seed):
    """Return catalogs of the prior, each after moves of a chain.

    The chain is given an image of the catalog if the likelihood counts, of another one if not.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(chains):
        sources = target.prior.sample(rng)
        seen = sources if target.power else target.prior.sample(rng)
        image = target.templates.image(seen, SIDE) + rng.normal(size=(SIDE, SIDE))
        found.append(advance(target.start(image, sources), target, moves, rng).sources)
    return found


def _closest(catalogs):
    places = [np.array(sources)[:, :2] for sources in catalogs if len(sources) > 1]
    return [np.sort(np.linalg.norm(p[:, None] - p, axis=-1)[np.triu_indices(len(p), 1)])[0] for p in places]


def _p_values(catalogs, prior):
    """Return p-values of numbers, fluxes, positions, kinds, sizes and least separations of catalogs from the prior.

    Sources of different catalogs are independent, so that one of each counts.
    """
    rng = np.random.default_rng(5)
    number = np.bincount([len(sources) for sources in catalogs], minlength=len(prior.number))
    x, y, flux, radius = np.array([sources[rng.integers(len(sources))] for sources in catalogs if sources]).T
    galaxies, low, high = int((radius > 0).sum()), *np.log(prior.radius)
    separations = _closest([prior.sample(rng) for _ in range(4000)])
    unit = {
        "flux": np.log(flux / prior.flux[0]) / np.log(prior.flux[1] / prior.flux[0]),
        "x": (x + 0.5) / SIDE,
        "y": (y + 0.5) / SIDE,
        "radius": (np.log(radius[radius > 0]) - low) / (high - low),
    }
    return {name: stats.kstest(values, "uniform").pvalue for name, values in unit.items() if len(values)} | {
        "number": stats.chisquare(number, number.sum() * np.array(prior.number)).pvalue,
        "kind": stats.binomtest(galaxies, len(radius), prior.galaxy_fraction).pvalue,
        "separation": stats.ks_2samp(_closest(catalogs), separations).pvalue,
    }


@pytest.mark.slow
def test_posterior(templates):
    """Given images of catalogs of the prior, the posteriors' catalogs have the prior's distribution, all together.

    One run in 10,000 fails by chance (`FALSE_ALARM`), as the p-values are of independent catalogs.
    """
    target = _target(templates)
    found = _p_values(_after(target, 60, 1000, 1), target.prior)
    assert min(found.values()) > FALSE_ALARM / len(found), found


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("walk",), ("reshape",), ("birth", "death"), ("split", "merge")], ids="-".join)
def test_detailed_balance(templates, monkeypatch, pair):
    """With a flat likelihood each kind of move leaves the prior as it is, but for one run in 10,000 (`FALSE_ALARM`).

    The same test fails where acceptance ratios are wrong: by a factor of two on the way forth and one half on the way
    back, and of walks by the ratio of fluxes.
    """
    target = _target(templates, power=0.0)
    right = [getattr(_birth_death, name) for name in pair]

    def wrong(state, target, rng, *, move, factor):
        if (proposal := move(state, target, rng)) is None:
            return None
        ratio = factor if pair != ("walk",) else proposal.new[0][2] / state.sources[proposal.gone[0]][2]
        return proposal._replace(ln_ratio=proposal.ln_ratio + np.log(ratio))

    off = [partial(wrong, move=move, factor=factor) for move, factor in zip(right, (2.0, 0.5), strict=False)]
    for moves, passes in ((right, True), (off, False)):
        monkeypatch.setattr(_birth_death, "MOVES", dict.fromkeys(moves, 1 / len(pair)))
        found = _p_values(_after(target, 40 // len(pair), 600, 1), target.prior)
        assert (min(found.values()) > FALSE_ALARM / len(found)) == passes, found


def test_templates_follow_the_renderer(templates):
    for radius, x, y in ((0.0, 9.8, 11.4), (0.6, 10.3, 10.0), (2.5, 10.5, 9.3)):
        size, index = (radius, 1.0) if radius else (STAR_RADIUS, 0.5)
        columns = [torch.tensor([value], dtype=torch.float64) for value in (7.0, size, index, 1.0, 0.0, x, y)]
        exact = render(Components(*columns, torch.tensor([True])), PSF, pixel_scale=1.0, size=21).numpy()
        error = templates.image([(x, y, 7.0, radius)], 21) - exact
        assert np.abs(error).max() < 5e-3 * exact.max()


def test_a_pair_is_found(templates):
    """Two stars 3.5 pixels apart (one FWHM): both in every late sample, with fluxes within their errors."""
    target = _target(templates, galaxies=0.0)
    bright = 40 * target.flux_error / 1.5
    true = [(8.0, 10.0, bright, 0.0), (11.5, 10.2, bright / 2, 0.0)]
    rng = np.random.default_rng(0)
    image = templates.image(true, SIDE) + rng.normal(size=(SIDE, SIDE))
    found = sample_catalogs(image, target, moves=480, samples=8, rng=rng)
    late = found["sample"] >= 4
    assert np.bincount(found["sample"])[4:].tolist() == [2] * 4
    for x, _, flux, _ in true:
        own = late & (np.abs(found["x"] - x) < 1)
        assert abs(found["flux"][own].mean() - flux) < 6 * target.flux_error
