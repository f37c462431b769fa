"""The check of refinement on galaxies that the model has not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from astropy.table import Table
from click.testing import CliRunner

from benchmarks import profiles as profilecheck
from benchmarks.commands_bayes import profile_check as command
from benchmarks.profiles import KINDS, profile_check, report
from probdeblend.deblending import weights
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag
from probdeblend.refinement import guides, refiner
from probdeblend.refinement.model import BlendModel
from probdeblend.scene import Instrument
from probdeblend.simulation.prior import Prior

MODEL = BlendModel(Prior.default(), Instrument.candels_f160w())


class Fake:
    """Refinement that is five standard deviations off for half of the blends, and says so for two thirds of these."""

    model = MODEL

    def __init__(self, truth):
        self.truth = truth

    def __call__(self, image, *, sky_rms, draws, passes, seed):
        blends = len(image)
        rng = np.random.default_rng(seed)
        flux = self.truth * np.exp(0.1 * rng.normal(size=(1, draws, blends, 2, 1)))
        flags = np.zeros((blends, 2), dtype=int)
        off = np.arange(blends) < blends // 2
        flags[: blends // 3] = int(Flag.NOT_REFINED)
        posterior = Posterior.from_draws(flux, flux_kind="total", method="refined", flags=flags)
        value = self.truth * np.where(off, 1.5, 1.0)[:, None] * np.ones(2)
        moments = {"refined_flux": value, "refined_flux_sd": np.full((blends, 2), 0.1 * self.truth)}
        return Posterior(
            posterior.dataset.assign({name: (("blend", "galaxy"), each) for name, each in moments.items()})
        )

    deblender = property(lambda self: self)


def test_what_is_counted(monkeypatch, tmp_path):
    """Fluxes of 7 behind a fake that answers 7: all covered, half far off, two thirds of them caught."""
    fake = Fake(7.0)
    observed = SimpleNamespace(image=torch.zeros(12, 4, 4), sky_rms=torch.ones(12))
    monkeypatch.setattr(profilecheck, "_blends", lambda model, kind, blends, seed: (observed, np.full((12, 2), 7.0)))
    table = profile_check({"fake": fake}, count=12, draws=400, kept=tmp_path)
    assert list(table["galaxies"]) == list(KINDS)
    row = table[0]
    assert row["blends"] == 12
    assert row["refined"] == pytest.approx(8 / 12)
    assert row["far"] == 0.5
    assert row["caught"] == pytest.approx(4 / 6)
    assert row["false_flags"] == 0
    assert row["ungated_68"] == 0.5
    assert row["network_68"] == row["answer_68"] == 1
    assert "de Vaucouleurs with knots" in report(table)
    assert len(list(tmp_path.iterdir())) == len(KINDS)
    monkeypatch.setattr(profilecheck, "_blends", None)  # what is kept is not made again
    assert report(profile_check({"fake": None}, count=12, draws=400, kept=tmp_path)) == report(table)
    with pytest.raises(ValueError, match="count must be positive, got 0"):
        profile_check({}, count=0)


def test_blends_of_every_kind():
    """Same seed, same blends; the kinds differ in what is under the noise, and truths are the light of the images."""
    for kind in KINDS:
        (observed, truth), (again, _) = (profilecheck._blends(MODEL, kind, range(2), seed=3) for _ in range(2))
        np.testing.assert_array_equal(observed.image, again.image)
        assert observed.image.shape == (2, 128, 128)
        held = observed.image.double().sum((-2, -1)).numpy()
        noise = 3 * 128 * 2.25**0.5
        assert (np.abs(held - truth.sum(1)) < 0.25 * truth.sum(1) + 4 * noise).all()
    assert len(profilecheck._blends(MODEL, KINDS[0], range(16, 17), seed=3)[1]) == 1


def test_the_command(tmp_path, monkeypatch):
    table = Table([{"model": "any index", "galaxies": KINDS[0], "blends": 3, "refined": 1.0}])
    monkeypatch.setattr(weights, "load", lambda path=None: SimpleNamespace(digest="fake", calibrator=None))
    monkeypatch.setattr(guides, "default_guide", lambda deblender: None)
    monkeypatch.setattr(refiner, "Refiner", lambda deblender, guide, prior=None: prior)
    monkeypatch.setattr(profilecheck, "profile_check", lambda refiners, **settings: table)
    output = tmp_path / "profiles"
    answer = CliRunner().invoke(command, ["--output", str(output)], catch_exceptions=False)
    assert "one Sérsic profile" in answer.output
    assert Table.read(output / "profiles.ecsv")["blends"][0] == 3
    assert isinstance(CliRunner().invoke(command, ["--output", str(output)]).exception, FileExistsError)
