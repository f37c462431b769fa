"""The check of refinement: what it measures, with the model's own truth as an answer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from astropy.table import Table
from click.testing import CliRunner
from matplotlib.figure import Figure

from benchmarks import march as marching
from benchmarks import refinement as refinecheck
from benchmarks.commands_bayes import march, refine_check
from probdeblend import plots
from probdeblend.deblending import weights
from probdeblend.posterior.draws import Posterior
from probdeblend.refinement import guides
from probdeblend.scene import Instrument


class Oracle:
    """A deblender that says ln flux 8, with an error of 0.3."""

    instrument = Instrument.candels_f160w()
    network = None
    digest = "oracle"
    calibrator = None

    def __call__(self, image, *, sky_rms, draws, passes, seed):
        rng = np.random.default_rng(seed)
        flux = np.exp(8 + 0.3 * rng.normal(size=(1, draws, len(image), 2, 1)))
        return Posterior.from_draws(flux, flux_kind="total", method="network")


@pytest.fixture
def exact(monkeypatch):
    """Refinement that draws around the truth as widely as the bound says, and blends without images."""
    rng = np.random.default_rng(3)

    def simulate(self, count, *, seed):
        unknown = torch.from_numpy(rng.normal(8, 0.1, (count, 16)))
        return SimpleNamespace(image=unknown), unknown

    def refined(model, observed, start, *, draws, seed, fits):
        middle = observed.image.numpy() + 0.1 * rng.normal(size=(len(observed.image), 16))
        drawn = middle + 0.1 * rng.normal(size=(draws, *middle.shape))
        good = np.full(len(middle), 0.1)
        return SimpleNamespace(
            unknown=drawn,
            resampled=lambda count, seed: drawn,
            effective=np.full(len(middle), draws / 2),
            k_hat=np.where(np.arange(len(middle)) == 0, 0.9, good),
            usable=np.arange(len(middle)) > 0,
            chi_square=np.ones((len(middle), 2)),
        )

    monkeypatch.setattr(refinecheck.BlendModel, "simulate", simulate)
    monkeypatch.setattr(refinecheck, "refine", refined)
    monkeypatch.setattr(refinecheck, "_bound", lambda model, observed, unknown: np.full((len(unknown), 2), 0.1))


def start(image):
    return image[:, 0]


def test_an_exact_refinement_reaches_the_bound(exact):
    table = refinecheck.refine_check(Oracle(), start, count=400, draws=200)
    refined, network = table
    # The NMAD of 800 errors is known to 4 %.
    assert refined["nmad_over_bound"] == pytest.approx(1, abs=0.15)
    assert refined["coverage_68"] == pytest.approx(0.68, abs=0.06)
    assert refined["joint_95"] == pytest.approx(0.95, abs=0.04)
    assert network["coverage_68"] > 0.9
    assert table.meta["effective"] == 0.5
    assert table.meta["usable"] == pytest.approx(1 - 1 / 16)
    assert table.meta["k_hat"] == pytest.approx(1 - 1 / 16)
    assert "400 blends of the model: 50% of the draws effective" in refinecheck.report(table)
    with pytest.raises(ValueError, match="count must be positive, got 0"):
        refinecheck.refine_check(Oracle(), start, count=0)


def test_an_interrupted_check_goes_on(tmp_path, monkeypatch, exact):
    """What is kept is not computed again, and is what was found."""
    settings = {"count": 40, "draws": 100, "kept": tmp_path}
    whole = refinecheck.refine_check(Oracle(), start, **settings)
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert names == ["blends-00000.npz", "blends-00016.npz", "blends-00032.npz"]
    (tmp_path / names[1]).unlink()
    made = []
    kept = refinecheck.BlendModel.simulate
    monkeypatch.setattr(
        refinecheck.BlendModel, "simulate", lambda *given, **named: made.append(given[1]) or kept(*given, **named)
    )
    again = refinecheck.refine_check(Oracle(), start, **settings)
    assert made == [16]
    assert again["nmad_over_bound"][0] != whole["nmad_over_bound"][0]  # the fake's blends are new ones
    whole = refinecheck.refine_check(Oracle(), start, **settings)
    assert made == [16]
    assert whole["nmad_over_bound"].tolist() == again["nmad_over_bound"].tolist()


def test_the_commands(tmp_path, monkeypatch, exact):
    table = refinecheck.refine_check(Oracle(), start, count=20, draws=100)
    monkeypatch.setattr(weights, "load", lambda path=None: Oracle())
    monkeypatch.setattr(refinecheck, "refine_check", lambda deblender, start, **settings: table)
    monkeypatch.setattr(guides, "default_guide", lambda deblender: start)
    options = ["--count", "5", "--output", str(tmp_path / "refined")]
    answer = CliRunner().invoke(refine_check, options, catch_exceptions=False)
    assert "times the bound" in answer.output
    assert Table.read(tmp_path / "refined" / "refined.ecsv").meta["blends"] == 20
    assert [entry.name for entry in tmp_path.iterdir()] == ["refined"]
    assert isinstance(CliRunner().invoke(refine_check, options).exception, FileExistsError)
    monkeypatch.setattr(refinecheck, "refine_check", None)  # what fails before anything is found leaves nothing
    answer = CliRunner().invoke(refine_check, [*options[:-1], str(tmp_path / "other")])
    assert "not callable" in str(answer.exception)
    assert [entry.name for entry in tmp_path.iterdir()] == ["refined"]
    answer = CliRunner().invoke(refine_check, [*options[:-1], str(tmp_path / "other"), "--resume"])
    assert "nothing to resume" in str(answer.exception)
    monkeypatch.setattr(marching, "march", lambda deblender, **settings: table)
    monkeypatch.setattr(marching, "report", lambda table: "the report")
    monkeypatch.setattr(plots, "plot_march", lambda table: Figure())
    answer = CliRunner().invoke(march, ["--output", str(tmp_path / "march")], catch_exceptions=False)
    assert "the report" in answer.output
    assert "march.ecsv, march.png" in answer.output
    assert Table.read(tmp_path / "march" / "march.ecsv").meta["blends"] == 20
    assert (tmp_path / "march" / "march.png").is_file()
