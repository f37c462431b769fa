import numpy as np
import pytest
import torch

from probdeblend.posterior.draws import Posterior
from probdeblend.scene import Blend
from probdeblend.simulation.conditions import Conditions
from probdeblend.training.trial import run_trial, set_batches, simulated_batches


class Sharp:
    """Answers near the truth, with mask probabilities of 0.9 and 0.1."""

    def __init__(self, blends):
        self.blends = iter(blends)

    def __call__(self, image, *, sky_rms, draws, passes, seed, calibrate):
        assert not calibrate
        blend = next(self.blends)
        rng = np.random.default_rng(seed)
        flux = blend.flux.numpy() * np.exp(0.1 * rng.normal(size=(1, draws, len(image), 2, 1)))
        mask = np.where(blend.mask.numpy(), 0.9, 0.1).astype(np.float32)
        return Posterior.from_draws(flux, flux_kind="total", method="network", mask=mask)


@pytest.fixture(scope="module")
def blends():
    conditions = Conditions((3e-3, 3e-3), (3200, 3200))
    return list(simulated_batches(70, seed=3, conditions=conditions, progress=False))


def test_batches_of_close_pairs():
    close, usual = (next(simulated_batches(64, seed=3, close_fraction=share, progress=False)) for share in (1.0, 0.0))
    distance = [torch.hypot(*(blend.x.diff(dim=1), blend.y.diff(dim=1))).max() for blend in (close, usual)]
    assert distance[0] <= 4.5 < distance[1]


def test_simulated_batches(blends):
    assert [len(blend) for blend in blends] == [64, 6]
    again = next(simulated_batches(70, seed=3, conditions=Conditions((3e-3, 3e-3), (3200, 3200)), progress=False))
    assert np.array_equal(again.image, blends[0].image)
    other = next(simulated_batches(70, seed=4, progress=False))
    assert not np.array_equal(other.image, blends[0].image)


def test_a_trial_keeps_answers_and_truth(blends):
    trial = run_trial(blends, Sharp(blends), draws=20)
    assert len(trial.network) == len(trial.sep["auto"]) == 70
    assert trial.calibrated is trial.network
    assert "mask" not in trial.network.dataset
    assert trial.truth["flux"].shape == (70, 2, 1)
    assert trial.truth["blendedness"].shape == (70, 2)
    assert (trial.iou["network"] == 1).all()
    assert trial.iou["sep"].mean() < 0.9
    assert trial.galaxies is None
    # All pixels are off by 0.1.
    for region in ("faint", "overlap"):
        assert trial.masks[region].calibration_error == pytest.approx(0.1, abs=1e-6)
        assert trial.masks[region].brier_score == pytest.approx(0.01, abs=1e-6)
    assert trial.masks["faint"].count.sum() > trial.masks["overlap"].count.sum()


def test_sep_may_stay_out(blends):
    trial = run_trial(blends[1:], Sharp(blends[1:]), sep=(), draws=5)
    assert trial.sep == {}
    assert set(trial.iou) == {"network"}


def test_mistakes(blends, tmp_path):
    with pytest.raises(ValueError, match="blends must hold at least one batch, got none"):
        run_trial([], Sharp([]))
    single = Blend(**vars(blends[1]) | {"flux": blends[1].flux * np.nan})
    with pytest.raises(ValueError, match="blends must be pairs, got other numbers of galaxies"):
        run_trial([single], Sharp(blends))
    with pytest.raises(FileNotFoundError):
        set_batches(tmp_path / "none")
