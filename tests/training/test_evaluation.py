import numpy as np
import pytest

import probdeblend.training.evaluation as room
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import Blend, Instrument
from probdeblend.simulation.conditions import Conditions
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.sets import write_blends
from probdeblend.training.evaluation import anomaly_table, evaluate, report
from probdeblend.training.streams import SimulatedStream


@pytest.fixture(scope="module")
def blend():
    stream = SimulatedStream(
        Prior.published(),
        Instrument.candels_f160w(),
        conditions=Conditions((3e-3, 3e-3), (3200, 3200)),
        batch_size=130,
        seed=5,
    )
    simulated = stream.blend(0)
    return Blend(**{name: getattr(simulated, name) for name in vars(simulated)} | {"auto_flux": 0.9 * simulated.flux})


@pytest.fixture(scope="module")
def stored(tmp_path_factory, blend):
    path = tmp_path_factory.mktemp("set") / "set.h5"
    write_blends(path, [blend], instrument=Instrument.candels_f160w())
    return path


class Oracle:
    """A deblender that knows the truth and errs by a known amount."""

    def __init__(self, blend, *, sd, claimed):
        self.blend, self.sd, self.claimed, self.done = blend, sd, claimed, 0

    calibrator = None

    def __call__(self, image, *, sky_rms, draws, passes, seed, calibrate):
        rows = slice(self.done, self.done + len(image))
        self.done += len(image)
        rng = np.random.default_rng(seed)
        truth = self.blend.flux[rows].numpy()
        center = truth * np.exp(rng.normal(0, self.sd, truth.shape))
        flux = center * np.exp(rng.normal(0, self.claimed, (1, draws, *truth.shape)))
        mask = self.blend.mask[rows].float().numpy()
        return Posterior.from_draws(flux, flux_kind="total", method="network", mask=mask)


def row(blend, stored, **options):
    return evaluate(stored, Oracle(blend, **options), draws=500, progress=False)[0]


def test_evaluation_finds_what_was_put_in(blend, stored):
    good = row(blend, stored, sd=0.1, claimed=0.1)
    assert good["count"] == 260
    # 260 independent intervals: four binomial standard errors are 0.116, a false alarm in 16,000.
    assert good["coverage_68"] == pytest.approx(0.68, abs=0.116)
    assert good["mape"] == pytest.approx(100 * 0.1 * (2 / np.pi) ** 0.5, rel=0.2)
    assert good["iou"] == pytest.approx(1.0)


def test_coverage_fails_on_widths_that_are_wrong(blend, stored):
    assert row(blend, stored, sd=0.1, claimed=0.05)["coverage_68"] < 0.68 - 0.116
    assert row(blend, stored, sd=0.1, claimed=0.3)["coverage_68"] > 0.68 + 0.116


def test_sep_stands_beside_it(blend, stored):
    table = evaluate(stored, Oracle(blend, sd=0.1, claimed=0.1), draws=50, progress=False)
    assert list(table["method"]) == ["network", "sep"]
    assert 0.5 < table["detected"][1] <= 1
    text = report(table)
    assert "coverage_68" in text
    assert "sep" in text


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


def test_anomaly_is_counted(monkeypatch, blend, stored):
    """With a count network, the anomaly score is how improbable two galaxies are, over one half."""
    probability = np.tile([0.3, 0.4, 0.3], (130, 1))
    probability[:30] = [0.05, 0.9, 0.05]
    rows = iter([slice(0, 128), slice(128, 130)])
    monkeypatch.setattr(room, "count_stamps", lambda image, counter, *, sky_rms: probability[next(rows)])
    table = evaluate(stored, Oracle(blend, sd=0.1, claimed=0.1), counter=object(), draws=50, progress=False)
    assert table.meta["anomaly"]["low"] == [0.125, 1.0]
    assert table.meta["anomaly"]["blends"] == [30, 100]
    assert "The network by anomaly score" in report(table)


def test_errors(tmp_path, blend):
    path = tmp_path / "set.h5"
    blind = Blend(image=blend.image[:3], sky_rms=blend.sky_rms[:3])
    write_blends(path, [blind], instrument=Instrument.candels_f160w())
    with pytest.raises(ValueError, match="blends must have truth, got some without flux, mask, x, y"):
        evaluate(path, Oracle(blend, sd=0.1, claimed=0.1), progress=False)
