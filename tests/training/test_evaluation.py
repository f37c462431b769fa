"""Accuracy, coverage and detections of answers whose errors are known."""

from functools import cache

import numpy as np
import pytest
import torch

from probdeblend.deblending import SepDeblender
from probdeblend.posterior import Cutouts, Posterior
from probdeblend.scene import Scene
from probdeblend.simulation import write_scenes
from probdeblend.training import evaluate, stored_scenes
from probdeblend.training.evaluation import signal_to_noise

SIZE, SKY_RMS = 48, 0.01
FOUR = 4.0  # standard errors: a false alarm in 16,000
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE].astype(float)


@cache
def scenes_of(count=40, *, number=None, bands=1, seed=0):
    """Gaussian sources of a scale of two pixels, one to three per scene unless their number is given."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 4, count) if number is None else np.full(count, number)
    owner = np.repeat(np.arange(count), size)
    x, y = rng.uniform(16, 32, (2, len(owner)))
    flux = np.exp(rng.uniform(0.5, 3, (len(owner), 1)) + 0.3 * rng.normal(size=(len(owner), bands)))
    shape = np.exp(-0.5 * ((COLUMNS - x[:, None, None]) ** 2 + (ROWS - y[:, None, None]) ** 2) / 4) / (8 * np.pi)
    light = flux[..., None, None] * shape[:, None]
    image = SKY_RMS * rng.normal(size=(count, bands, SIZE, SIZE))
    np.add.at(image, owner, light)
    known = {"x": x, "y": y, "flux": flux, "auto_flux": 0.95 * flux, "light": light}
    known |= {"half_light_radius": np.full(len(owner), 0.14), "axis_ratio": np.ones(len(owner))}
    known |= {"angle": np.zeros(len(owner))}
    truth = {name: torch.from_numpy(values).float() for name, values in known.items()}
    truth |= {"source_type": torch.zeros(len(owner), dtype=torch.long)}
    truth |= {"identity": torch.full((len(owner),), -1)}
    psf = torch.zeros(count, bands, 3, 3)
    psf[..., 1, 1] = 1
    rms = torch.full((count, bands), SKY_RMS)
    return Scene(torch.from_numpy(image).float(), rms, psf, 0.06, scene=torch.from_numpy(owner), **truth)


class Oracle:
    """Knows the truth, errs by a known amount and claims another; misses and invents some detections."""

    def __init__(self, *, sd=0.1, claimed=0.1, missed=0.0, false=0):
        self.sd, self.claimed, self.missed, self.false = sd, claimed, missed, false

    def scenes(self, scene, *, positions=None, seed=0):
        rng = np.random.default_rng(seed)
        owner, x, y = (v.numpy() for v in (scene.scene, scene.x, scene.y))
        flux, masks = scene.auto_flux.double().numpy() / 0.95, scene.mask.numpy()
        forced = positions is not None
        kept = np.isin(x, positions[1].numpy()) if forced else rng.random(len(owner)) >= self.missed
        owner, x, y, flux, masks = (v[kept] for v in (owner, x, y, flux, masks))
        false = 0 if forced else self.false
        owner, x, y = (np.append(v, np.zeros(false)) for v in (owner, x, y))
        flux = np.append(flux, np.ones((false, flux.shape[1])), 0)
        masks = np.append(masks, np.zeros((false, SIZE, SIZE), bool), 0)
        size = flux.shape
        noise = rng.normal(size=(501, *size))
        draws = flux * np.exp(self.sd * noise[:1] + self.claimed * noise[1:])
        existence = np.where(np.arange(len(owner)) < len(owner) - false, 0.9, 0.1)
        cutouts = Cutouts(np.zeros((len(owner), 2)), (SIZE, SIZE), mask=[m.astype(np.float32) for m in masks])
        given = {"scene": owner.astype(int), "group": np.arange(len(owner)), "x": x, "y": y}
        bands = ("",) if size[1] == 1 else tuple("grizy"[: size[1]])
        return Posterior.from_draws(draws[None], 0.95 * draws[None], **given, bands=bands, cutouts=cutouts,
                                    columns={"existence": existence}, scenes=len(scene))  # fmt: skip


@pytest.fixture(scope="module")
def right():
    """The tables of a method whose errors are as it claims."""
    scenes = scenes_of()
    return evaluate([scenes.select(slice(30)), scenes.select(slice(30, 40))], Oracle(), seed=1)


def rows(table, **wanted):
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


def test_evaluation_finds_what_was_put_in(right):
    for kind in ("flux", "flux_auto"):
        (row,) = rows(right.accuracy, method="network", flux=kind, sources="all")
        count = row["count"]
        assert count == len(scenes_of().scene)
        for level in (50, 68, 95):
            p = level / 100
            assert row[f"coverage_{level}"] == pytest.approx(p, abs=FOUR * np.sqrt(p * (1 - p) / count))
        assert row["joint_68"] == pytest.approx(0.68, abs=FOUR * np.sqrt(0.68 * 0.32 / 40))
        assert row["total_68"] == pytest.approx(0.68, abs=FOUR * np.sqrt(0.68 * 0.32 / 40))
        assert 0.1 < row["coverage_68_high"] - row["coverage_68_low"] < 0.4
        assert row["coverage_68_low"] <= row["coverage_68"] <= row["coverage_68_high"]
        # A normal of unit scatter has a 68 % interval of 1.99, and a penalty of as much when missed: 3.04 together.
        assert row["interval_score"] == pytest.approx(0.304, rel=0.3)
        assert row["mape"] == pytest.approx(100 * 0.1 * (2 / np.pi) ** 0.5, rel=0.3)
        assert row["nmad_mag"] == pytest.approx(0.1086, rel=0.3)
        assert row["iou"] == 1
        assert np.isnan(row["color_68"])


def test_rows_by_number_of_sources(right):
    table = rows(right.accuracy, method="network", flux="flux")
    assert list(table["sources"]) == ["all", "1", "2", "3"]
    assert table["count"][1:].sum() == table["count"][0]
    assert (table["total_nmad_mag"][1:] < 0.2).all()


@pytest.mark.parametrize(("claimed", "sign"), [(0.05, -1), (0.25, 1)])
def test_widths_that_are_wrong(claimed, sign):
    table = evaluate([scenes_of()], Oracle(claimed=claimed)).accuracy
    (row,) = rows(table, method="network", flux="flux", sources="all")
    for name in ("coverage_68", "joint_68", "total_68"):
        assert sign * (row[name] - 0.68) > 0.15


def test_sep_stands_beside_it(right):
    table = rows(right.accuracy, method="sep", sources="all")
    assert list(table["flux"]) == ["flux_auto"]
    assert 0.6 < table["detected"][0] <= 1
    assert table["iou"][0] < 0.95
    assert list(right.summary["method"]) == ["network", "sep"]


def test_sep_alone():
    found = evaluate([scenes_of(15, number=2), scenes_of(5, number=1)], SepDeblender(draws=100))
    assert set(found.accuracy["method"]) == {"sep"}
    assert len(found.summary) == 1


def test_colors():
    table = evaluate([scenes_of(bands=2)], Oracle()).accuracy
    (row,) = rows(table, method="network", flux="flux", sources="all")
    assert row["color_68"] == pytest.approx(0.68, abs=FOUR * np.sqrt(0.68 * 0.32 / (row["count"] / 2)))
    assert row["color_nmad_mag"] == pytest.approx(2**0.5 * 0.1086, rel=0.3)


def test_detections():
    scenes = scenes_of(count=60, number=1)
    summary = evaluate([scenes], Oracle(missed=0.3, false=20)).summary[0]
    found = 60 * summary["completeness"]
    assert found == pytest.approx(42, abs=FOUR * np.sqrt(60 * 0.21))
    assert summary["purity"] == pytest.approx(found / (found + 20))
    # All real ones come first: precision is 1 up to the recall that is reached.
    assert summary["ap_50"] == pytest.approx(summary["completeness"], abs=0.03)
    # Certainties of 0.9 for what is always real, and 0.1 for what never is.
    assert summary["existence_ece"] == pytest.approx(0.1)


def test_detections_by_feature(right):
    table = right.detection
    assert set(table["quantity"]) == {"completeness", "purity"}
    network = rows(table, method="network", quantity="completeness", feature="flux")
    assert network["count"].sum() == len(scenes_of().scene)
    np.testing.assert_array_equal(network["fraction"], 1)
    assert set(rows(table, method="sep")["feature"]) == {"flux", "contested"}
    # SEP has no estimate of contested light.
    assert not len(rows(table, method="sep", quantity="purity", feature="contested"))


def test_faint_sources_do_not_count():
    scenes = scenes_of(20, number=1)
    dim = torch.where(torch.arange(20) < 5, 1e-3, 1.0)
    changes = {name: getattr(scenes, name) * dim[:, None] for name in ("flux", "auto_flux")}
    changes["light"] = scenes.light * dim[:, None, None, None]
    faint = Scene(**vars(scenes) | changes)
    assert (signal_to_noise(faint) < 5).sum() == 5
    found = evaluate([faint], Oracle())
    assert rows(found.accuracy, method="network", sources="all")["count"][0] == 15
    assert found.summary["purity"][0] == 1


def test_real_galaxies():
    """Total fluxes are not known, and the same galaxies occur in many scenes: bands are those of twelve galaxies."""
    scenes = scenes_of()
    known = {"flux": torch.full_like(scenes.flux, torch.nan), "identity": torch.arange(len(scenes.scene)) % 12}
    real = Scene(**vars(scenes) | known)
    table = evaluate([real.select(slice(20)), real.select(slice(20, 40))], Oracle()).accuracy
    assert set(table["flux"]) == {"flux_auto"}
    (row,) = rows(table, method="network", sources="all")
    assert row["coverage_68"] == pytest.approx(0.68, abs=FOUR * np.sqrt(0.68 * 0.32 / row["count"]))
    assert 0.05 < row["coverage_68_high"] - row["coverage_68_low"] < 0.4


def test_stored_sets(tmp_path):
    scenes = scenes_of()
    write_scenes(tmp_path / "set", [scenes])
    read = list(stored_scenes(tmp_path / "set", progress=False))
    assert [len(part) for part in read] == [16, 16, 8]
    np.testing.assert_allclose(torch.cat([part.flux for part in read]), scenes.flux, rtol=1e-3)


def test_scenes_without_truth():
    with pytest.raises(ValueError, match="scenes must hold at least one batch, got none"):
        evaluate([], Oracle())
    scenes = scenes_of()
    blind = Scene(scenes.image, scenes.sky_rms, scenes.psf, 0.06)
    with pytest.raises(ValueError, match="scenes must have truth, got some without scene, x, y, flux, auto_flux, li"):
        evaluate([blind], Oracle())
