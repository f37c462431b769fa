"""Classes of blends in simulated fields and in DC2: what counts, and answers that are right or miss in a known way."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.peers import blend_classes
from benchmarks.peers.blend_classes import bins, classified, dc2_field, fields, moffat, row, simulated, star_profile
from probdeblend.scene import Scene


def test_detections_of_faint_sources_do_not_count():
    """A bright source with a detection, a faint one 0.7 arcsec away with another, and a faint one far away."""
    true = tuple(np.array(v, dtype=float) for v in ([0, 0, 0], [10, 13.5, 40], [10, 10, 10]))
    counted = np.array([True, False, False])
    found = classified(true, true, counted)
    assert found["true_0.5"].tolist() == found["true_1"].tolist() == ["single"]
    assert found["found_0.5"].tolist() == found["found_1"].tolist() == ["single"]
    every = classified(true, true, ~counted | counted)
    assert every["true_0.5"].tolist() == ["single"] * 3
    assert every["true_1"].tolist() == every["found_1"].tolist() == ["resolved", "resolved", "single"]
    wrong = classified((true[0], true[1] + 4, true[2]), true, counted)
    assert wrong["found_0.5"].tolist() == ["spurious"] * 2  # one lies at the faint source


def test_rows_are_fractions():
    found = {
        "true_1": np.array(["single", "shredded", "missed", "missed"]),
        "found_1": np.array(["single", "shredded", "shredded", "shredded", "spurious"]),
        "snr": np.array([10.0, 20, 30, 200]),
    }
    (name, ends), *others = bins(found)
    whole = row(found, 1.0, name, ends)
    assert [whole[name] for name in blend_classes.CLASSES] == [0.25, 0, 0, 0, 0.25, 0.5]
    assert (whole["detections"], whole["spurious"], whole["pieces"]) == (1.25, 0.2, 0.4)
    parts = [row(found, 1.0, *each) for each in others]
    assert [part["sources"] for part in parts] == [0, 2, 1, 1]
    assert parts[1]["shredded"] == 0.5
    assert np.isnan(parts[1]["spurious"])
    assert np.isnan(parts[0]["missed"])


def test_the_psf_of_stars_is_measured(rng):
    psf = 1000 * moffat(3.7, 4.0).numpy()
    image = rng.normal(0, 0.05, (60, 60))
    image[5:46, 5:46] += psf
    image[18:59, 18:59] += psf
    fwhm, exponent = star_profile(image, [(25.2, 24.8), (38, 38), (2, 2)])
    assert fwhm == pytest.approx(3.7, rel=0.05)
    assert exponent == pytest.approx(4.0, rel=0.4)


@pytest.mark.slow
def test_whoever_knows_the_truth_resolves_all(monkeypatch):
    monkeypatch.setattr(blend_classes, "GROUPS", 2)
    scene = fields(1, seed=1)
    assert scene.image.shape == (1, 3, 256, 256)

    def told(scene: Scene, *, shift: float = 0.0) -> SimpleNamespace:
        names = {"scene": scene.scene, "x": scene.x + shift, "y": scene.y}
        return SimpleNamespace(dataset={name: SimpleNamespace(values=v.numpy()) for name, v in names.items()})

    known = simulated(told, scene)
    assert set(known["true_1"]) | set(known["true_0.5"]) <= {"single", "resolved"}
    assert (known["snr"] >= 5).all()
    shifted = simulated(lambda scene: told(scene, shift=1000.0), scene)
    assert set(shifted["true_1"]) == {"missed"}
    assert set(shifted["found_1"]) == {"spurious"}


@pytest.mark.slow
def test_the_dc2_field(data_dir):
    scene, magnitude = dc2_field(data_dir / "deepdisc_fields" / "dc2")
    assert scene.image.shape == (1, 3, 525, 525)
    assert len(magnitude) == len(scene.x) > 400
    bright = torch.from_numpy((magnitude > 18) & (magnitude < 22))
    y, x = scene.y[bright].round().long(), scene.x[bright].round().long()
    assert (scene.image[0, 2, y, x] > 20 * scene.sky_rms[0, 2]).all()  # positions are where sources are


@pytest.mark.slow
def test_the_command(run, monkeypatch):
    monkeypatch.delenv("PROBDEBLEND_DATA", raising=False)
    monkeypatch.setattr(blend_classes, "GROUPS", 1)
    table = run(blend_classes, "--count", "1")
    assert set(table["images"]) == {"simulated"}
    assert set(table["radius"]) == {0.5, 1.0}
    sums = sum(table[name] for name in blend_classes.CLASSES)
    assert np.allclose(sums[table["sources"] > 0], 1)
