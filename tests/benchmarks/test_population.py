"""A population is recovered from posteriors made under another prior; stacked, they do not give it."""

import numpy as np
import pytest
from astropy.table import Table
from click.testing import CliRunner

import probdeblend
from benchmarks.population import __main__ as command
from benchmarks.population.deconvolution import agreement, recover_population, stack
from benchmarks.population.recovery import WIDE_CELLS, population_table, recover, shares_table, summarize
from benchmarks.population.reweighting import Imitation, concentrated
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import Instrument
from probdeblend.simulation.prior import Prior

pytestmark = pytest.mark.slow

ERROR = 0.4
CENTER, WIDTH = 0.5, 0.3
EDGES = np.array([-1.5, 0, 0.25, 0.5, 0.75, 1, 2])
CELLS = np.arange(-3, 3.01, 0.2)
FLUX = 10 ** (0.4 * (25.9463 - 23.3))


@pytest.fixture(scope="module")
def pairs():
    """Two quantities with normal errors, under a unit normal prior: draws, truths and draws of the prior."""
    rng = np.random.default_rng(4)
    truth = rng.normal(CENTER, WIDTH, (800, 2))
    seen = truth + rng.normal(0, ERROR, truth.shape)
    narrower = 1 / (1 + ERROR**2)
    draws = seen * narrower + ERROR * narrower**0.5 * rng.normal(size=(200, *truth.shape))
    return draws, truth, rng.normal(size=(60_000, 2))


@pytest.fixture(scope="module")
def recovered(pairs):
    draws, _, prior = pairs
    return recover_population(draws, prior, (CELLS, CELLS), seed=1)


def shares(values, edges=EDGES):
    return np.histogram(values, edges)[0] / np.size(values)


@pytest.fixture(scope="module")
def true_shares():
    """Of each quantity, and of their difference."""
    drawn = np.random.default_rng(5).normal(CENTER, WIDTH, (400_000, 2))
    return shares(drawn), shares(drawn[:, 1] - drawn[:, 0], EDGES - 0.5)


def resampled(added):
    rng = np.random.default_rng(6)
    return rng.multinomial(len(added), np.full(len(added), 1 / len(added)), size=500) / len(added) @ added


def test_what_was_put_in_is_recovered(pairs, recovered, true_shares):
    _, _, prior = pairs
    for values, edges, truth in (
        (prior[:, 0], EDGES, true_shares[0]),
        (prior[:, 1], EDGES, true_shares[0]),
        (prior[:, 1] - prior[:, 0], EDGES - 0.5, true_shares[1]),
    ):
        found = recovered.histogram(values, edges)
        assert np.abs((found.mean(0) - truth) / found.std(0)).max() < 4
        assert agreement(found, truth) > 0.01
    assert recovered.unused == 0
    assert recovered.accepted > 0.6


def test_stacking_fails(pairs, true_shares):
    draws, _, _ = pairs
    for values, edges, truth in (
        (draws, EDGES, true_shares[0]),
        (draws[..., 1] - draws[..., 0], EDGES - 0.5, true_shares[1]),
    ):
        for added in stack(values, edges):
            found = resampled(added)
            assert np.abs((found.mean(0) - truth) / found.std(0)).max() > 5
            assert agreement(found, truth) == pytest.approx(1 / 501)


def test_posteriors_that_are_too_narrow_show(pairs, true_shares):
    draws, _, prior = pairs
    narrow = draws.mean(0) + 0.4 * (draws - draws.mean(0))
    found = recover_population(narrow, prior, (CELLS, CELLS), samples=250).histogram(prior[:, 0], EDGES)
    assert np.abs((found.mean(0) - true_shares[0]) / found.std(0)).max() > 6
    assert agreement(found, true_shares[0]) < 0.005


def test_without_errors_bands_are_those_of_counting(rng):
    """Cells so far apart that nothing ties them have the shares of a Dirichlet distribution."""
    edges, probability = np.arange(0.0, 6.0), np.array([0.1, 0.15, 0.25, 0.3, 0.2])
    counts = rng.multinomial(4000, probability)
    draws = np.tile(np.repeat(np.arange(5) + 0.5, counts), (3, 1))[..., None]
    prior = rng.uniform(0, 5, (20_000, 1))
    found = recover_population(draws, prior, [edges], scale=0.1, samples=600).histogram(prior[:, 0], edges)
    share = counts / counts.sum()
    scatter = np.sqrt(share * (1 - share) / counts.sum())
    # The scatter of 600 draws that are almost independent is known to 3 %.
    np.testing.assert_allclose(found.std(0), scatter, rtol=0.15)
    np.testing.assert_allclose(found.mean(0), share, atol=0.3 * scatter.min())


def test_same_seed_same_population(pairs):
    draws, _, prior = pairs
    first, again, other = (
        recover_population(draws[:, :100], prior, (CELLS, CELLS), samples=20, seed=seed).shares for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_what_the_prior_excludes_is_left_out(pairs, recovered):
    draws, _, prior = pairs
    far = np.full((len(draws), 3, 2), 2.9)  # in a cell without draws of the prior
    far[:, 1] = 10.0
    far[:, 2] = np.nan
    found = recover_population(np.concatenate([draws, far], 1), prior, (CELLS, CELLS), samples=20, seed=1)
    assert found.unused == 3
    np.testing.assert_allclose(found.shares, recovered.shares[:20], rtol=1e-6)
    assert found.shares.sum(1) == pytest.approx(1)
    assert found.histogram(prior[:, 0], [-3, 0, 3]).sum(1) == pytest.approx(1)
    assert (found.prior_cell == -1).any()


def test_stacks_are_means_over_blends():
    draws = np.array([[0.1, 2.5], [0.2, 0.5], [0.9, 9.0]])
    medians, every = stack(draws, [0, 0.5, 1, 3])
    np.testing.assert_allclose(medians, [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(every, [[2 / 3, 1 / 3, 0], [0, 1 / 3, 1 / 3]])
    both = stack(np.stack([draws, draws + 0.5], -1), [0, 0.5, 1, 3])[0]
    np.testing.assert_allclose(both, [[0.5, 0.5, 0], [0, 0, 0.5]])  # 3 itself is beyond the last bin


def test_agreement_is_uniform_for_another_draw(rng, false_alarm):
    from scipy.stats import kstest

    values = [agreement(rng.normal(size=(400, 6)), rng.normal(size=6)) for _ in range(300)]
    assert kstest(values, "uniform").pvalue > false_alarm
    assert agreement(rng.normal(size=(400, 6)), np.full(6, 9.0)) == pytest.approx(1 / 401)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draws": np.zeros((5, 3))}, r"draws must have the axes \(draw, blend, quantity\), got shape \(5, 3\)"),
        ({"prior_draws": np.zeros(5)}, r"prior_draws must have the shape \(draw, 1\), got \(5,\)"),
        ({"edges": [[0, 1], [0, 1]]}, "edges must be given for each of 1 quantities, got 2"),
        ({"edges": [[0, 1, 1]]}, "edges must be at least two finite numbers that ascend"),
        ({"scale": 0.0}, "scale must be positive, got 0"),
        ({"samples": 1}, "samples must be at least 2, got 1"),
        ({"draws": np.full((5, 3, 1), 7.0)}, "blends must have draws in cells with 20 draws of the prior, got none"),
    ],
)
def test_errors(changes, message):
    given = {"draws": np.zeros((5, 3, 1)), "prior_draws": np.zeros((50, 1)), "edges": [[-1, 1]]} | changes
    with pytest.raises(ValueError, match=message):
        recover_population(given.pop("draws"), given.pop("prior_draws"), given.pop("edges"), **given)


def test_errors_of_histograms(recovered):
    with pytest.raises(ValueError, match=r"values must have the shape \(60000,\), got \(3,\)"):
        recovered.histogram([1, 2, 3], EDGES)
    with pytest.raises(ValueError, match=r"draws must have the axes .* got shape \(3,\)"):
        stack(np.zeros(3), EDGES)


def test_a_concentrated_prior_is_the_prior_with_weights():
    prior = Prior.default()
    before, after = (each.sample(25_000, seed=2) for each in (prior, concentrated(prior, center=22.5, width=0.4)))
    weight = np.exp(-(((before["magnitude"].numpy() - 22.5) / 0.4) ** 2).sum(1) / 2)
    effective = weight.sum() ** 2 / (weight**2).sum()
    assert effective > 1200
    for name, function in (
        ("magnitude", np.asarray),
        ("half_light_radius", np.log),
        ("galaxy_type", lambda kind: kind == 1),
        ("axis_ratio", np.asarray),
    ):
        wanted, found = (function(pairs[name].numpy()).mean(1) for pairs in (before, after))
        error = found.std() * (1 / effective + 1 / len(found)) ** 0.5
        assert abs(np.average(wanted, weights=weight) - found.mean()) < 4.5 * error, name


COARSE = (0.25, 0.5)  # cells that are quick to fill and to sample


class Guess:
    """A deblender whose every posterior is a magnitude of 23.3, with an error of 0.15."""

    calibrator = None
    digest = "guess"
    instrument = Instrument.candels_f160w()

    def __call__(self, image, *, sky_rms, draws, passes, seed, calibrate):
        rng = np.random.default_rng(seed)
        flux = FLUX * np.exp(0.14 * rng.normal(size=(1, draws, len(image), 2, 1)))
        return Posterior.from_draws(flux, flux_kind="total", method="network")


def test_the_command_resumes(tmp_path, monkeypatch):
    asked = []

    class Interrupted(Guess):
        def __call__(self, image, **settings):
            asked.append(1)
            if len(asked) == 3:
                raise KeyboardInterrupt
            return super().__call__(image, **settings)

    options = ["--count", "70", "--draws", "100", "--passes", "0", "--output", str(tmp_path / "found")]
    monkeypatch.setattr(command, "load", lambda path: Interrupted())
    monkeypatch.setattr(command, "WIDE_CELLS", COARSE)
    assert CliRunner().invoke(command.main, options).exit_code == 1
    answer = CliRunner().invoke(command.main, [*options, "--resume"], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    assert "misplaced" in answer.output
    assert len(asked) == 5  # two batches of each population; and the one that was interrupted
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["found", "population.ecsv", "population.png"]
    table = Table.read(tmp_path / "found/population.ecsv")
    assert list(dict.fromkeys(table["quantity"])) == ["magnitude", "ln flux ratio"]
    assert table.meta["blends"] == 70
    assert table.meta["unused"] == 0
    for quantity in ("magnitude", "ln flux ratio"):
        rows = table[table["quantity"] == quantity]
        assert (rows["high"][:-1] == rows["low"][1:]).all()
        for name in ("truth", "recovered", "medians", "draws"):
            assert sum(rows[name]) == pytest.approx(1, abs=0.03)
        for name in ("low_95", "low_68"):
            assert (rows[name] <= rows[name.replace("low", "high")]).all()
        # Medians that are all alike are no distribution.
        assert table.meta["p_values"][quantity]["medians"] < 0.01
    summary = summarize(table)
    assert len(summary) == 8
    assert ((summary["misplaced"] >= 0) & (summary["misplaced"] < 1)).all()


def test_errors_of_pairs():
    shape = r"must be pairs of magnitudes \(pair, 2\), got shape \(4,\)"
    with pytest.raises(ValueError, match=f"prior {shape}"):
        recover(None, np.zeros(4))
    with pytest.raises(ValueError, match=f"truth {shape}"):
        shares_table(None, np.zeros(4))


def pair_coordinates(magnitudes):
    """Magnitude of both galaxies together, and the difference."""
    together = -2.5 * np.log10((10 ** (-0.4 * magnitudes)).sum(-1))
    return np.stack([together, magnitudes[..., 0] - magnitudes[..., 1]], -1)


def normal_magnitudes(truth, *, seed, shift=0.0):
    """Posteriors of magnitudes with an error of 0.2, under a prior of unit width around 23; too faint by a shift."""
    rng = np.random.default_rng(seed)
    narrower = 1 / (1 + 0.2**2)
    middle = 23.0 + (truth + rng.normal(0, 0.2, truth.shape) - 23.0) * narrower + shift
    return middle + 0.2 * narrower**0.5 * rng.normal(size=(200, *truth.shape))


def test_exact_posteriors(rng):
    prior = rng.normal(23.0, 1.0, (600_000, 2))
    first = recover(normal_magnitudes(rng.normal(23.3, 0.2, (900, 2)), seed=1), prior)
    table = shares_table(first, rng.normal(23.3, 0.2, (200_000, 2)))
    for p_values in table.meta["p_values"].values():
        assert p_values["recovered"] == p_values["uncorrected"]
        assert p_values["recovered"] > 0.01
        assert p_values["medians"] < 0.004
        assert p_values["draws"] < 0.004


def test_errors_that_posteriors_share_are_taken_off(rng):
    """Posteriors all too faint by 0.05 mag, a quarter of their error: seen only where many are put together."""
    prior = rng.normal(23.0, 1.0, (600_000, 2))
    truth = rng.normal(23.3, 0.2, (900, 2))
    first = recover(normal_magnitudes(truth, seed=1, shift=0.05), prior)
    weights = first.found.weights(pair_coordinates(prior))
    assert weights.sum() == pytest.approx(1)
    assert weights @ prior[:, 0] == pytest.approx(23.35, abs=0.03)
    imitated = prior[rng.choice(len(prior), 200_000, p=weights)]
    again = recover(normal_magnitudes(imitated[:900], seed=2, shift=0.05), prior)
    found = shares_table(first, rng.normal(23.3, 0.2, (200_000, 2)), again=again, imitated=imitated)
    assert found.meta["p_values"]["magnitude"]["uncorrected"] < 0.004
    for p_values in found.meta["p_values"].values():
        assert p_values["recovered"] > 0.01
    with pytest.raises(ValueError, match="values must lie in cells of the population, got none that does"):
        first.found.weights(pair_coordinates(prior + 99))


def test_an_imitation_is_drawn_as_was_found():
    prior = Prior.default()
    pool = prior.sample(400, seed=1)
    probability = np.where(np.arange(400) < 3, 1 / 3, 0.0)
    drawn = Imitation(prior, pool, probability).sample(50, seed=2)
    assert set(drawn) == set(pool)
    assert {value.item() for value in drawn["magnitude"][:, 0]} == {value.item() for value in pool["magnitude"][:3, 0]}


def test_the_weights_that_ship():
    sampling = {"draws": 400, "passes": 16, "seed": 0}
    table = population_table(probdeblend.load(), count=400, cells=WIDE_CELLS, **sampling)
    for quantity in ("magnitude", "ln flux ratio"):
        rows = table[table["quantity"] == quantity]
        wrong = {name: abs(rows[name] - rows["truth"]).sum() / 2 for name in ("recovered", "medians", "draws")}
        assert wrong["recovered"] < 0.6 * wrong["draws"]
