"""Calibrators are fitted to answers that are too narrow or too wide, and tested on scenes that they have not seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from probdeblend.posterior import Cutouts, Posterior
from probdeblend.scene import Scene
from probdeblend.training import fit_calibrator

SIZE, SKY_RMS, COUNT = 8, 0.01, 400
FOUR = 4.0  # standard errors: a false alarm in 16,000


def scenes_of(count=COUNT, *, seed=0):
    """Scenes of one to three bright sources and a faint one, each a few pixels of light."""
    rng = np.random.default_rng(seed)
    size = rng.integers(2, 5, count)
    owner = np.repeat(np.arange(count), size)
    last = np.diff(owner, append=-1) != 0
    flux = np.where(last, 1e-3, np.exp(rng.uniform(0, 3, len(owner))))
    light = flux[:, None, None] * rng.random((len(owner), SIZE, SIZE)) / 8
    image = np.zeros((count, 1, SIZE, SIZE))
    np.add.at(image[:, 0], owner, light)
    number = np.concatenate([np.arange(n) for n in size])
    truth = {"x": 2.0 * number, "y": 2.0 * number, "flux": flux[:, None], "auto_flux": 0.9 * flux[:, None]}
    known = {name: torch.from_numpy(values) for name, values in (truth | {"light": light[:, None]}).items()}
    one = torch.ones(count, 1)
    image = torch.from_numpy(image)
    return Scene(image, SKY_RMS * one, one[..., None, None], 0.06, scene=torch.from_numpy(owner), **known)


class Wrong:
    """Errs by 0.2 in ln flux and claims another error; claims too much of existence and of masks."""

    def __init__(self, narrow=0.5, *, pixels=True, existence=True):
        self.narrow, self.pixels, self.existence = narrow, pixels, existence

    def scenes(self, scene, *, positions=None, seed=0):
        rng = np.random.default_rng(seed)
        given = positions is not None
        total = scene.auto_flux.numpy() / 0.9
        chosen = np.flatnonzero(total[:, 0] > 0.1)
        false = 0 if given else len(scene) // 2
        owner = np.append(scene.scene.numpy()[chosen], rng.integers(len(scene), size=false))
        x = np.append(scene.x.numpy()[chosen], np.full(false, 100.0))
        flux = np.append(total[chosen], np.ones((false, 1)), 0)
        noise = rng.normal(size=(101, *flux.shape))
        draws = flux * np.exp(0.2 * (noise[:1] + self.narrow * noise[1:]))
        masks = [np.where(m, 0.999, 0.2).astype(np.float32) for m in scene.mask.numpy()[chosen]]
        masks = [np.where(rng.random(m.shape) < 0.2, m.max() - m + m.min(), m) for m in masks]
        cutouts = Cutouts(np.zeros((len(chosen), 2)), (SIZE, SIZE), mask=masks) if given and self.pixels else None
        columns = {"sky_rms": np.full(flux.shape, SKY_RMS)}
        columns |= {"existence": np.full(len(owner), 0.99)} if self.existence else {}
        return Posterior.from_draws(draws[None], 0.9 * draws[None], scene=owner.astype(int), group=owner.astype(int),
                                    x=x, y=x, pixel_scale=0.06, columns=columns, cutouts=cutouts)  # fmt: skip


def rows(table, **wanted):
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


@pytest.fixture(scope="module")
def fit():
    scenes = scenes_of()
    return fit_calibrator([scenes.select(slice(150)), scenes.select(slice(150, None))], Wrong(), fitted_on="made up")


def test_the_test_is_on_unseen_scenes(fit):
    for kind in ("flux", "flux_auto"):
        before, after = rows(fit.tested, quantity=kind)
        assert (before["state"], after["state"]) == ("before", "after")
        assert 130 < after["count"] < 190  # a fifth of about 800 bright sources
        assert before["coverage_68"] < 0.5
        tolerance = FOUR * np.sqrt(0.68 * 0.32 * (1 / after["count"] + 1 / 600))
        assert after["coverage_68"] == pytest.approx(0.68, abs=tolerance)
        assert after["interval_score"] < before["interval_score"]
    before, after = rows(fit.tested, quantity="flux of groups")
    assert before["coverage_68"] < 0.55
    assert after["coverage_68"] == pytest.approx(0.68, abs=FOUR * np.sqrt(0.68 * 0.32 * (1 / after["count"] + 1 / 200)))
    before, after = rows(fit.tested, quantity="flux, jointly")
    assert before["count"] == 80
    assert abs(after["coverage_68"] - 0.68) < abs(before["coverage_68"] - 0.68)


def test_posteriors_that_are_too_wide():
    found = fit_calibrator([scenes_of()], Wrong(2.0, pixels=False)).tested
    before, after = rows(found, quantity="flux")
    assert before["coverage_68"] > 0.85
    assert after["coverage_68"] == pytest.approx(0.68, abs=FOUR * np.sqrt(0.68 * 0.32 * (1 / after["count"] + 1 / 600)))


def test_probabilities(fit):
    for quantity in ("mask", "existence"):
        before, after = rows(fit.probabilities, quantity=quantity)["ece"]
        assert before > 0.1
        assert after < 0.05


def test_the_calibrator_is_fitted_to_all_scenes(fit):
    assert fit.calibrator.fitted_on == "made up"
    assert fit.calibrator.method == "network"
    scenes = scenes_of(seed=1)
    bright = scenes.flux[:, 0] > 0.1
    answer = fit.calibrator(Wrong().scenes(scenes, positions=(scenes.scene, scenes.x, scenes.y), seed=9))
    low, high = np.quantile(answer.flux.values[0], (0.16, 0.84), axis=0)
    truth = scenes.flux[bright].numpy()
    inside = ((low < truth) & (truth < high)).mean()
    assert inside == pytest.approx(0.68, abs=FOUR * np.sqrt(0.68 * 0.32 * 2 / len(truth)))


def test_what_is_not_known_is_left_out():
    found = fit_calibrator([scenes_of()], Wrong(pixels=False, existence=False))
    assert len(found.probabilities) == 0
    assert found.calibrator.mask is None
    assert found.calibrator.existence is None


def test_total_fluxes_that_are_unknown_are_left_out():
    """As of real galaxies."""
    scenes = scenes_of()
    real = replace(scenes, flux=torch.full_like(scenes.flux, torch.nan))
    fit = fit_calibrator([real], Wrong())
    assert set(fit.calibrator.flux) == {"auto"}
    assert {name.partition(",")[0].partition(" ")[0] for name in fit.tested["quantity"]} == {"flux_auto"}


def test_too_few_scenes():
    with pytest.raises(ValueError, match="scenes must hold at least one batch, got none"):
        fit_calibrator([], Wrong())
    with pytest.raises(ValueError, match="at least 320 sources with draws and truth are needed to fit, got"):
        fit_calibrator([scenes_of(20)], Wrong())
