"""Fitters beside the network: what they are given, what is made of their answers, and that each is run as it should."""

import importlib.util

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.peers import fitters
from benchmarks.peers.fitters import FITTERS, SIDE, Cut, Fit, fitted, groups, without_pixel
from benchmarks.refinement import STAR
from probdeblend.scene import Scene
from probdeblend.simulation.cameras import Camera
from probdeblend.simulation.profiles import Components, render

RMS = 8e-3
SPREAD = 0.05  # of the flux
LOST = {"AstroPhot": 0.02, "pysersic": 0.02, "scarlet2": 0.08}  # of the flux; boxes of scarlet2 end within galaxies
GALAXIES = ("one Sérsic profile", "bulges and knots")


def installed(name):
    missing = importlib.util.find_spec(name.lower()) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"{name} is not installed"))


def cut_of(*galaxies, index=1.0):
    """Return a cut-out of galaxies x, y, flux, radius in arcsec, ratio and angle, with noise."""
    camera, rng = Camera.candels_f160w(sky_rms=RMS), np.random.default_rng(0)
    x, y, flux, radius, ratio, angle = torch.tensor(galaxies).T[..., None]
    components = Components(flux, radius, torch.full_like(x, index), ratio, angle, x, y, torch.ones_like(x) > 0)
    light = render(components, camera.psf[0], pixel_scale=camera.pixel_scale, size=SIDE).sum(0).double().numpy()
    noise = np.full(light.shape, RMS)
    place = np.column_stack([x, y]).astype(float)
    return Cut(light + noise * rng.normal(size=light.shape), noise, camera.psf[0].double().numpy(), place)


@pytest.fixture(scope="module")
def scene():
    """Twenty pairs, of which only the image and the fluxes matter."""
    number = 20
    flux = torch.linspace(50, 200, 2 * number)[:, None]
    light = torch.zeros(2 * number, 1, 90, 90)
    light[:, :, 45, 45] = 100.0
    return Scene(
        image=torch.ones(number, 1, 90, 90),
        sky_rms=torch.ones(number, 1),
        psf=torch.nn.functional.pad(torch.ones(number, 1, 1, 1), (1, 1, 1, 1)),
        pixel_scale=0.06,
        scene=torch.arange(number).repeat_interleave(2),
        x=torch.tensor([40.0, 50.0]).repeat(number),
        y=torch.full((2 * number,), 45.0),
        flux=flux,
        auto_flux=flux,
        light=light,
        source_type=torch.zeros(2 * number, dtype=torch.long),
        half_light_radius=torch.full((2 * number,), 0.3),
        axis_ratio=torch.ones(2 * number),
    )


def answers(scene, *, claim=1.0, bad=()):
    """Return a fit that errs by `SPREAD`, states `claim` times as much, and fails for some of the scenes."""
    rng, flux, calls = np.random.default_rng(1), scene.flux[:, 0].double().numpy().reshape(-1, 2), iter(range(99))

    def fit(cut):
        number = next(calls)
        if number in bad:
            raise RuntimeError("diverged")
        error = SPREAD * flux[number]
        return Fit(flux[number] + error * rng.normal(size=2), np.diag((claim * error) ** 2), compilation=1.0)

    return fit


def test_starts_follow_the_light():
    start = cut_of((40.0, 40.0, 100.0, 0.3, 0.5, 0.6)).start()
    assert 50 < start.flux[0] < 100
    assert start.radius[0] == pytest.approx(0.3 / 0.06, rel=0.5)
    assert start.ratio[0] < 0.75
    assert np.sin(start.angle[0] - 0.6) == pytest.approx(0, abs=0.1)
    left, right = cut_of((34.0, 40.0, 100.0, 0.2, 0.9, 0.0), (46.0, 40.0, 50.0, 0.2, 0.9, 0.0)).start().flux
    assert left == pytest.approx(2 * right, rel=0.25)
    empty = cut_of((40.0, 40.0, 1e-6, 0.3, 0.5, 0.6)).start()
    assert empty.flux[0] > 0
    assert np.isfinite(empty).all()


def test_pixels_are_taken_from_the_psf():
    """A Gaussian averaged over pixels becomes one at points again."""
    from scipy.special import erf

    edge, sigma = np.arange(26) - 12.5, 1.5
    averaged = np.diff(erf(edge / sigma / 2**0.5)) / 2
    point = np.exp(-((edge[:-1] + 0.5) ** 2) / (2 * sigma**2)) / (sigma * (2 * np.pi) ** 0.5)
    assert without_pixel(np.outer(averaged, averaged)) == pytest.approx(np.outer(point, point), abs=1e-5)


def test_cutouts_have_the_sources_and_the_noise(scene):
    place = np.array([[40.0, 45.0], [89.0, 45.0]])
    cut = Cut.around(scene, 0, place)
    assert cut.image.shape == cut.noise.shape == (SIDE, SIDE)
    assert ((cut.place >= 0) & (cut.place < SIDE)).all()
    assert cut.place[1, 0] - cut.place[0, 0] == 49
    assert cut.noise == pytest.approx(float((1 + scene.photon[0, 0]) ** 0.5))  # white noise, and an image of ones


@pytest.mark.parametrize(("claim", "low", "high"), [(1.0, 0.5, 0.86), (0.3, 0.0, 0.45), (3.0, 0.9, 1.0)])
def test_coverage_tells_wrong_errors(scene, claim, low, high):
    found = fitted(answers(scene, claim=claim), scene)
    row = fitters._row(found)
    assert low <= row["coverage_68"] <= high
    assert row["pull"] == pytest.approx(1 / claim, rel=0.35)
    assert row["nmad_mag"] == pytest.approx(1.086 * SPREAD, rel=0.35)
    assert row["failed"] == 0
    assert row["compilation"] == 1


def test_failures_are_counted(scene):
    found = fitted(answers(scene, bad=(3, 7)), scene)
    row = fitters._row(found)
    assert row["failed"] == 4
    assert row["detected"] == pytest.approx(0.9)
    assert np.isfinite([row["mape"], row["pull"], row["coverage_68"]]).all()


def test_no_errors_no_coverage(scene):
    flux = scene.flux[:2, 0].double().numpy()
    row = fitters._row(fitted(lambda cut: Fit(flux), scene.select(slice(1))))
    assert row["mape"] < 0.1
    assert np.isnan([row["pull"], row["coverage_68"], row["joint_68"], row["total_68"], row["width"]]).all()


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fitters.importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(fitters.main, ["--fitter", "AstroPhot", "--output", str(tmp_path / "out")])
    assert result.exit_code != 0
    assert "pip install astrophot" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("galaxies", GALAXIES)
def test_groups_are_bright_galaxies_close_by(galaxies):
    scene = groups(galaxies, 2, 3, 0)
    assert torch.bincount(scene.scene).tolist() == [2, 2, 2]
    assert (scene.source_type != STAR).all()
    assert (scene.x.reshape(-1, 2).diff().abs() <= 40).all()
    assert torch.equal(scene.image, groups(galaxies, 2, 3, 0).image)


@pytest.mark.slow
@pytest.mark.parametrize("name", [installed(name) for name in FITTERS])
def test_fitters_find_bright_galaxies(name):
    cut = cut_of((40.2, 40.4, 100.0, 0.3, 0.6, 0.6))
    found = FITTERS[name](cut._replace(place=cut.place + np.array([0.3, -0.2])))
    assert found.flux == pytest.approx([100.0], rel=LOST[name])
    if found.covariance is not None:
        assert 0.1 < found.covariance[0, 0] ** 0.5 < 1.5


@pytest.mark.slow
def test_command(run):
    """It runs to its end with any fitters, or none."""
    table = run(fitters, "--count", "1")
    assert len(table) >= 12
    known = np.isin(table["method"], ["network", "refined"])
    assert np.isfinite([table[name][known] for name in ("mape", "coverage_68", "pull", "seconds")]).all()
    assert (table["seconds"] > 0).all()
    assert (table["failed"] <= table["sources"]).all()
