"""Stored references, how refinement is compared with them, and how they are sampled."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from astropy.table import Table
from click.testing import CliRunner

from benchmarks import references, sample_references
from benchmarks.references import read_references, reference_model
from probdeblend.refinement.importance import Refined
from probdeblend.refinement.model import Observed

NUMBERS = 16


@pytest.fixture(scope="module")
def stored():
    return read_references()


def standardized(draws, seed):
    """Draws whose mean is zero and whose covariance is one, exactly."""
    drawn = np.random.default_rng(seed).normal(size=(draws, NUMBERS))
    drawn -= drawn.mean(0)
    return np.linalg.solve(np.linalg.cholesky(drawn.T @ drawn / draws), drawn.T).T


def refined(*, mean=0.0, scale=1.0, k_hat=0.1, turn=0.0):
    """Refinement of one blend with exact moments; the two ln fluxes have the correlation `turn`."""
    drawn = standardized(400, 5)
    drawn[:, 7] = turn * drawn[:, 0] + np.sqrt(1 - turn**2) * drawn[:, 7]
    even, order = np.full((400, 1), -np.log(400)), np.zeros((400, 1), dtype=int)
    settings = {"k_hat": np.array([k_hat]), "effective": np.array([200.0]), "chi_square": np.ones((1, 2))}
    settings |= {"log_evidence": np.zeros(1), "log_evidence_error": np.zeros(1)}
    return Refined(mean + scale * drawn[:, None], order, np.ones_like(even), even, **settings)


@pytest.mark.parametrize(
    ("changed", "column", "value"),
    [
        ({}, "mean_flux", 0.0),
        ({"mean": 0.5}, "mean_flux", 0.5),
        ({"scale": 1.5}, "ratio_largest", 1.5),
        ({"scale": 0.6}, "ratio_least", 0.6),
        ({"turn": 0.4}, "correlation", 0.4),
    ],
)
def test_what_differs_is_found(changed, column, value):
    row = references.compare(refined(**changed), 0, standardized(300, 7).reshape(2, 150, NUMBERS))
    assert row[column] == pytest.approx(value, abs=0.01)
    assert row["within"] == (not changed)


def test_abstentions_are_not_within():
    row = references.compare(refined(k_hat=0.9), 0, standardized(300, 7).reshape(2, 150, NUMBERS))
    assert np.isnan(row["mean_flux"])
    assert not row["within"]


def test_stored_references_have_converged(stored):
    assert stored.converged.all()
    assert stored.white.tolist() == 12 * [False] + 2 * [True]
    assert stored.image.shape == (14, references.SIZE, references.SIZE)
    assert not replace(stored, effective=0 * stored.effective).converged.any()
    r_hat = stored.r_hat.copy()
    r_hat[1, 4] = 1.02
    assert replace(stored, r_hat=r_hat).converged.sum() == 13


def test_images_are_those_of_the_stored_truth(stored):
    """Residuals of the cut stamps, over their standard deviation, have a mean square of one."""
    for blend in (0, 5, 12, 13):
        model = reference_model(white=bool(stored.white[blend]))
        latents, sky_level, growth = model.split(torch.from_numpy(stored.unknown[[blend]]))
        taken = Observed(*(torch.from_numpy(getattr(stored, name)[[blend]]) for name in Observed._fields))
        noisy = model.noisy(model.light(latents, growth).sum(1), sky_level, taken)
        square = float(noisy.residual(taken.image).square().mean())
        # Correlated pixels: 2.25**2 fewer are independent.
        assert square == pytest.approx(1, abs=4 * np.sqrt(2 * 5 / 64**2))


def test_other_files_are_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["format"] = "probdeblend weights"
    with pytest.raises(ValueError, match=r"other.h5: must be a references written by probdeblend"):
        read_references(tmp_path / "other.h5")
    (tmp_path / "text.h5").write_text("text")
    answer = CliRunner().invoke(references.main, [str(tmp_path / "text.h5"), "--output", str(tmp_path / "out")])
    assert answer.exit_code == 1
    assert answer.output.startswith("Error: ")
    with pytest.raises(FileNotFoundError, match=r"nothing.h5: no such file"):
        read_references(tmp_path / "nothing.h5")


@pytest.mark.slow
def test_the_command(tmp_path):
    """Refinement comes to what the sampler found: other tests show that half as wide, or turned, is not within."""
    output = tmp_path / "references"
    answer = CliRunner().invoke(references.main, ["--output", str(output)], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    table = Table.read(output / "references.ecsv")
    assert table["blend"].tolist() == [0, 1, 12, 13]
    assert table["within"].all()
    assert table.meta["abstained"] == 0
    assert table.meta["within"] == 1


@pytest.mark.slow
def test_sampling(tmp_path):
    """One blend, sampled briefly: what is stored agrees with a new refinement as far as so few draws tell."""
    output = tmp_path / "sampled"
    settings = ["--count", "1", "--draws", "50", "--once", "--output", str(output)]
    answer = CliRunner().invoke(sample_references.main, settings, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    assert [path.name for path in tmp_path.iterdir()] == ["sampled"]
    table = Table.read(output / "references.ecsv")
    assert (table["r_hat"] < 1.3).all()
    assert (table["effective"] > 8).all()
    found = read_references(output / "references.h5")
    assert found.draws.shape == (1, 2, 150, NUMBERS)
    central, companion = found.unknown[0, [1, 2]], found.unknown[0, [8, 9]]
    assert np.abs(companion).max() <= 22
    assert np.linalg.norm(companion - central) >= 2
    refused = CliRunner().invoke(references.main, [str(output / "references.h5"), "--output", str(tmp_path / "out")])
    assert "references must have converged, got none of 1" in refused.output
