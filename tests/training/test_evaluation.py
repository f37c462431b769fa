"""Accuracy and calibration of answers whose errors are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from probdeblend.metrics import accuracy_table
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import Blend, Instrument
from probdeblend.simulation.conditions import Conditions
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.sets import write_blends
from probdeblend.training import Mixture, compare, evaluate, log_fluxes, scorecard
from probdeblend.training.evaluation import anomaly_table
from probdeblend.training.streams import stored_blends


@pytest.fixture(scope="module")
def blend():
    shallow = Mixture(Prior.published(), conditions=Conditions((3e-3, 3e-3), (3200, 3200)))
    simulated = shallow.stream(batch_size=130, seed=5).blend(0)
    return Blend(**vars(simulated) | {"auto_flux": 0.9 * simulated.flux})


@pytest.fixture(scope="module")
def stored(tmp_path_factory, blend):
    path = tmp_path_factory.mktemp("set") / "set.h5"
    write_blends(path, [blend], instrument=Instrument.candels_f160w())
    return path


class Oracle:
    """A deblender that knows the truth, errs by a known amount, and gives masks with probabilities 0.9 and 0.1."""

    def __init__(self, blend, *, sd, claimed):
        self.blend, self.sd, self.claimed, self.done = blend, sd, claimed, 0

    calibrator = network = instrument = check_pixel_scale = None

    def __call__(self, image, *, sky_rms, draws, passes, seed, calibrate):
        assert not calibrate
        rows = slice(self.done, self.done + len(image))
        self.done += len(image)
        rng = np.random.default_rng(seed)
        truth = self.blend.flux[rows].numpy()
        center = truth * np.exp(rng.normal(0, self.sd, truth.shape))
        flux = center * np.exp(rng.normal(0, self.claimed, (1, draws, *truth.shape)))
        mask = np.where(self.blend.mask[rows].numpy(), 0.9, 0.1).astype(np.float32)
        return Posterior.from_draws(flux, flux_kind="total", method="network", mask=mask)


@pytest.fixture(scope="module")
def evaluated(blend, stored):
    """The tables for a network whose errors are as it claims."""
    return evaluate(stored, Oracle(blend, sd=0.1, claimed=0.1), draws=500, progress=False)


def test_evaluation_finds_what_was_put_in(evaluated):
    good = evaluated[0][0]
    assert good["count"] == 260
    # 260 independent intervals: four binomial standard errors are 0.116, a false alarm in 16,000.
    assert good["coverage_68"] == pytest.approx(0.68, abs=0.116)
    assert good["mape"] == pytest.approx(100 * 0.1 * (2 / np.pi) ** 0.5, rel=0.2)
    assert good["iou"] == pytest.approx(1.0)


@pytest.mark.parametrize(("claimed", "sign"), [(0.05, -1), (0.3, 1)])
def test_coverage_fails_on_widths_that_are_wrong(blend, claimed, sign):
    found = compare([blend], Oracle(blend, sd=0.1, claimed=claimed), sep=(), draws=500)
    table = accuracy_table({"network": found.network.flux}, found.truth["flux"])
    assert sign * (table["coverage_68"][0] - 0.68) > 0.116


def test_sep_stands_beside_it(evaluated):
    table, by_anomaly = evaluated
    assert list(table["method"]) == ["network", "sep"]
    assert 0.5 < table["detected"][1] <= 1
    assert len(by_anomaly) == 0


def test_errors_grow_with_anomaly():
    """Half of the blends are answered twice as badly, and say so."""
    rng = np.random.default_rng(1)
    anomaly, error = np.repeat([0.1, 0.4], 400), np.repeat([0.05, 0.1], 400)[:, None]
    truth = np.full((800, 2, 1), 100.0)
    center = truth[..., 0] * np.exp(error * rng.normal(size=(800, 2)))
    flux = center * np.exp(0.05 * rng.normal(size=(1, 300, 800, 2)))
    posterior = Posterior.from_draws(flux[..., None], flux_kind="total", method="network", anomaly=anomaly)
    table = anomaly_table(posterior, truth)
    assert table["low"].tolist() == [0, 0.25]
    assert table["high"].tolist() == [0.125, 0.5]
    assert table["blends"].tolist() == [400, 400]
    # 800 errors a row: an NMAD is known to 4 %, a fraction to 0.02.
    np.testing.assert_allclose(table["nmad_mag"], 1.0857 * np.array([0.05, 0.1]), rtol=0.16)
    np.testing.assert_allclose(table["coverage_68"], [0.68, 0.38], atol=0.08)
    assert table["far"][0] < 0.03
    assert table["far"][1] > 0.15


def test_counts_raise_the_anomaly_score(blend, tmp_path):
    """With a count network, the anomaly score is how improbable two galaxies are, over one half."""
    few = blend.select(slice(12))
    write_blends(tmp_path / "set", [few], instrument=Instrument.candels_f160w())
    probability = np.array(4 * [[0.05, 0.9, 0.05]] + 8 * [[0.3, 0.4, 0.3]])
    counter = SimpleNamespace(probability=lambda image: probability, temperature=torch.ones(()))
    oracle = Oracle(few, sd=0.1, claimed=0.1)
    _, table = evaluate(tmp_path / "set", oracle, counter=counter, draws=50, progress=False)
    assert table["low"].tolist() == [0.125, 1.0]
    assert table["blends"].tolist() == [4, 8]


def halves(blend):
    return [blend.select(slice(64)), blend.select(slice(64, 70))]


def test_a_comparison_keeps_answers_and_truth(blend):
    found = compare(halves(blend), Oracle(blend, sd=0.1, claimed=0.1), draws=20)
    assert len(found.network) == len(found.sep["auto"]) == 70
    assert found.calibrated is found.network
    assert "mask" not in found.network.dataset
    assert found.truth["flux"].shape == (70, 2, 1)
    assert found.truth["blendedness"].shape == (70, 2)
    assert (found.iou["network"] == 1).all()
    assert found.iou["sep"].mean() < 0.9
    assert found.galaxies is None
    # All pixels are off by 0.1.
    for region in ("faint", "overlap"):
        assert found.masks[region].calibration_error == pytest.approx(0.1, abs=1e-6)
        assert found.masks[region].brier_score == pytest.approx(0.01, abs=1e-6)
    assert found.masks["faint"].count.sum() > found.masks["overlap"].count.sum()


def test_sep_may_be_left_out(blend):
    found = compare([blend.select(slice(6))], Oracle(blend, sd=0.1, claimed=0.1), sep=(), draws=5)
    assert found.sep == {}
    assert set(found.iou) == {"network"}


def test_bad_blends(blend, tmp_path):
    oracle = Oracle(blend, sd=0.1, claimed=0.1)
    with pytest.raises(ValueError, match="blends must hold at least one batch, got none"):
        compare([], oracle)
    single = Blend(**vars(blend) | {"flux": blend.flux * np.nan})
    with pytest.raises(ValueError, match="blends must be pairs, got other numbers of galaxies"):
        compare([single], oracle)
    with pytest.raises(FileNotFoundError):
        stored_blends(tmp_path / "none")
    blind = Blend(image=blend.image[:3], sky_rms=blend.sky_rms[:3])
    write_blends(tmp_path / "set", [blind], instrument=Instrument.candels_f160w())
    with pytest.raises(ValueError, match="blends must have truth, got some without flux, mask, x, y"):
        evaluate(tmp_path / "set", oracle, progress=False)


def pairs(count=2000, *, claimed=-0.8, narrow=1.0, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.uniform(4, 6, (count, 2)))
    middle = np.log(truth) + 0.1 * rng.multivariate_normal([0, 0], [[1, -0.8], [-0.8, 1]], count)
    noise = rng.multivariate_normal([0, 0], [[1, claimed], [claimed, 1]], size=(1, 100, count))
    flux = np.exp(middle + 0.1 * narrow * noise)[..., None]
    return Posterior.from_draws(flux, flux_kind="total", method="network"), truth[..., None], np.full(count, 0.01)


@pytest.fixture(scope="module")
def exact():
    posterior, truth, floor = pairs()
    return scorecard(posterior, truth, floor=floor)


def test_an_exact_posterior_of_pairs(exact):
    assert list(exact["quantity"]) == ["each flux", "total flux", "both jointly"]
    for row in exact:
        # Galaxies of a pair are tied: four standard errors of 2,000 blends, a false alarm in 16,000.
        assert row["coverage_68"] == pytest.approx(0.68, abs=4 * np.sqrt(0.68 * 0.32 / 2000))
    assert abs(exact["correlation"][2]) < 0.1


def test_a_missing_correlation_shows(exact):
    posterior, truth, floor = pairs(claimed=0.0)
    each, total, joint = scorecard(posterior, truth, floor=floor)
    assert each["coverage_68"] == pytest.approx(0.68, abs=0.042)
    assert total["coverage_68"] > 0.8
    assert joint["correlation"] < -0.7
    assert joint["log_score"] > exact["log_score"][2]
    assert joint["energy_score"] > exact["energy_score"][2]


def test_abstentions_and_negative_draws():
    posterior, truth, floor = pairs(500)
    flux = posterior.flux.values.copy()
    flux[:, :, :50, 0] = np.nan
    flux[:, 0, 60, 1] = -5.0
    posterior = Posterior.from_draws(flux, flux_kind="auto", method="sep")
    draws, true = log_fluxes(posterior, truth, floor)
    assert draws.shape == (100, 500, 2)
    assert draws[0, 60, 1] == pytest.approx(np.log(0.01))
    table = scorecard(posterior, truth, floor=floor)
    assert list(table["count"]) == [950, 450, 450]
    assert true.shape == (500, 2)


def test_bands_are_over_galaxies_where_they_repeat():
    """Of the pair jointly too: twenty central galaxies tell little, however often they are blended."""
    posterior, truth, floor = pairs(20)
    rows = np.arange(600) % 20
    galaxies = np.stack([rows, rows + 20], 1)
    for row in scorecard(posterior.select(rows), truth[rows], floor=floor[rows], galaxies=galaxies):
        assert row["coverage_68_high"] - row["coverage_68_low"] > 0.15
        assert row["galaxies"] == (40 if row["quantity"] == "each flux" else 20)
    for row in scorecard(posterior.select(rows), truth[rows], floor=floor[rows]):
        assert row["coverage_68_high"] - row["coverage_68_low"] < 0.12


def test_shapes_of_a_scorecard():
    posterior, truth, floor = pairs(20)
    with pytest.raises(ValueError, match=r"truth must have the shape \(blend, galaxy, band\) of \(20, 2\), got"):
        scorecard(posterior, truth[:5], floor=floor)
    with pytest.raises(ValueError, match=r"floor must have one number per blend, got shape \(5,\)"):
        scorecard(posterior, truth, floor=floor[:5])
