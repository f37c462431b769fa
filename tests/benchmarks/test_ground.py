"""Ground images labeled from space: both images show one sky, and what is counted of their sources."""

from types import SimpleNamespace

import numpy as np
import pytest
from astropy.table import QTable

from benchmarks.peers import ground
from benchmarks.peers.ground import Pair, area, blurred, draw_cameras, forced, frame, kinds, listed, rows, several, sky
from probdeblend.posterior import Posterior
from probdeblend.simulation import SimulatedSources
from probdeblend.surveys import Overlap


def test_the_seeing_makes_the_psf_of_the_ground(rng):
    """A star of the sharp image is the PSF of the other, of the seeing's width, at the same place of the sky."""
    cameras = draw_cameras(rng)
    star = np.zeros((123, 123))
    star[41:82, 41:82] = cameras.sharp.psf[0]
    seen = blurred(star, cameras.seeing)
    assert seen.sum() == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(seen / seen.sum(), cameras.ground.psf[0], atol=1e-6)
    half = seen[20] > seen[20].max() / 2
    assert half.sum() * ground.PIXEL_SCALE == pytest.approx(ground.SEEING, rel=0.35)
    place = frame(123, cameras.sharp.pixel_scale).pixel_to_world(61, 61)
    np.testing.assert_allclose(frame(41, ground.PIXEL_SCALE).world_to_pixel(place), [20, 20], atol=1e-6)
    off = np.zeros((123, 123))
    off[61, 70] = 1
    assert np.unravel_index(blurred(off, cameras.seeing).argmax(), (41, 41)) == (20, 23)


@pytest.fixture
def pair():
    """Four ground sources, with no sharp source, one, and two that are unlike or alike, on 20 pixels each."""
    segments = np.zeros((ground.SIDE, ground.SIDE), dtype=np.int32)
    segments[:20, :4] = [1, 2, 3, 4]
    sources = QTable({"label": [1, 2, 3, 4], "number": [0, 1, 2, 2], "share": [np.nan, 1.0, 0.95, 0.6]})
    return Pair(None, None, Overlap(QTable(), sources, segments, np.zeros(0), np.zeros(0)))


def test_kinds_of_ground_sources(pair):
    assert [ground.KINDS[kind] for kind in kinds(pair)] == ["none", "single", "dominated", "blend", "none"]


def test_the_probability_of_several_sources(pair):
    x, existence = [1.4, 2.0, 2.0, 3.0, 3.2, 2.9], [0.9, 0.8, 0.5, 1.0, 0.5, 0.5]
    where = {"scene": [0] * 6, "group": [0] * 6, "x": x, "y": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    posterior = Posterior.from_draws(np.ones((1, 2, 6, 1)), **where, columns={"existence": existence})
    np.testing.assert_allclose(several(posterior, pair), [0, 0, 0.4, 0.75], atol=1e-12)


def test_scores_that_tell_blends():
    told = {"kind": np.array([1, 1, 2, 3, 3]), "score": np.array([0.1, np.nan, 5.0, 0.1, 0.2])}
    assert area(told, "score") == 0.75
    assert np.isnan(area({"kind": np.array([1]), "score": np.ones(1)}, "score"))


def test_rows_count_what_the_sharp_image_shows():
    number = np.array([0, 1, 1, 3])
    told = {"kind": number, "magnitude": np.array([20.0, 22.0, 25.0, 26.0])}
    told |= {name: np.arange(4.0) for name in (*ground.TOLD, "error", "error_all")}
    told |= {"inside": np.array([1.0, 1.0, 0.0, np.nan]), "inside_all": np.ones(4)}
    fluxes = {"kind": number, "magnitude": told["magnitude"], "snr": np.full(4, 10.0)}
    fluxes |= {name: np.ones(4) for name in ("flux", "estimate", "width")} | {"rank": np.array([0.5, 0.5, 0.5, 0.99])}
    fluxes |= {name: np.zeros(0) for name in ("group_size", "group_joint", "group_total")}
    table = {row["sources"]: row for row in rows({"ground": told, "sharp": fluxes})}
    assert (table["all"]["ground"], table["gold"]["ground"], table["none"]["ground"]) == (3, 2, 0)
    assert table["all"]["unrecognized"] == table["all"]["blends"] == pytest.approx(1 / 3)
    assert table["single"]["coverage_68"] == 0.5
    assert table["single"]["p_several"] == 1.5
    assert np.isnan(table["blend"]["coverage_68"])
    assert [table[name]["sharp_sources"] for name in ground.KINDS] == [1, 2, 0, 1]
    assert table["blend"]["sharp_coverage_68"] == 0


@pytest.mark.slow
def test_both_images_show_one_sky(monkeypatch):
    monkeypatch.setattr(ground, "SIDE", 96)
    drawn = sky(SimulatedSources(), 1, 2)
    sharp = drawn.sharp.double().numpy().reshape(96, 3, 96, 3).sum((1, 3))
    seen, flux = drawn.scene.image[0, 0].double().numpy(), drawn.scene.auto_flux[:, 0].numpy()
    owner, bright = ground.matched(drawn), flux.argmax()
    assert owner[bright] >= 0
    x, y, light = (drawn.overlap.positions[name][owner[bright]] for name in ("x", "y", "flux"))
    true_x, true_y = (float(getattr(drawn.scene, name)[bright]) for name in "xy")
    assert np.hypot(x - true_x, y - true_y) < 0.5
    assert float(light[0]) == pytest.approx(flux[bright], rel=0.3)
    rows_, columns = np.indices(seen.shape)
    near = np.hypot(columns - true_x, rows_ - true_y) < 8
    assert seen[near].sum() == pytest.approx(sharp[near].sum(), rel=0.2)

    def told(scene, *, positions=None, factor=1.0):
        """Answer with the true flux of the nearest source, of which the middle draw is right."""
        x, y = (scene.x.numpy(), scene.y.numpy()) if positions is None else (p.numpy() for p in positions[1:])
        nearest = np.hypot(x[:, None] - scene.x.numpy(), y[:, None] - scene.y.numpy()).argmin(1)
        draws = flux[nearest] * factor * np.linspace(0.9, 1.1, 100)[:, None]
        known = {"existence": np.ones(len(x)), "flags": np.zeros(len(x), dtype=int)}
        where = {"scene": np.zeros(len(x), dtype=int), "group": np.arange(len(x)), "x": x, "y": y}
        return Posterior.from_draws(flux_auto=draws[None, :, :, None], **where, columns=known)

    knows = SimpleNamespace(scenes=told)
    answers = {"ground": listed(knows, drawn), "sharp": forced(knows, drawn)}
    row = next(rows(answers))
    assert row["ground"] > 1
    assert row["sharp_coverage_68"] > 0.8
    assert row["coverage_68"] > 0.6
    single = (answers["ground"]["kind"] == 1) & np.isfinite(answers["ground"]["error"])
    np.testing.assert_allclose(answers["ground"]["error"][single], answers["ground"]["error_all"][single])
    wrong = SimpleNamespace(scenes=lambda scene, **given: told(scene, factor=2.0, **given))
    row = next(rows({"ground": listed(wrong, drawn), "sharp": forced(wrong, drawn)}))
    assert row["sharp_coverage_68"] < 0.2
    assert row["coverage_68"] < 0.4
    assert row["sharp_mape"] > 80


@pytest.mark.slow
def test_the_command(run, monkeypatch):
    monkeypatch.delenv("PROBDEBLEND_DATA", raising=False)
    monkeypatch.setattr(ground, "SIDE", 96)
    table = run(ground, "--count", "1")
    assert set(table["images"]) == {"simulated"}
    assert table["sources"].tolist() == [name for name, *_ in ground.BINS]
    assert table["ground"][0] == sum(table["ground"][table["sources"] == kind][0] for kind in ground.KINDS)


@pytest.mark.slow
def test_real_galaxies_are_seen_by_both_cameras(data_dir, monkeypatch):
    monkeypatch.setattr(ground, "SIDE", 96)
    monkeypatch.setenv("PROBDEBLEND_DATA", str(data_dir))
    drawn = sky(dict(ground.skies())["real galaxies"], 1, 3)
    assert (drawn.scene.auto_flux > 0).any()
    assert len(drawn.overlap.positions) > 0
