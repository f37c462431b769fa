"""Stored references: how they are made, kept and compared with, by samplers of known answers."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import references as referencecheck
from benchmarks.commands_reference import reference
from benchmarks.references import (
    StoredReferences,
    compare_references,
    make_references,
    read_references,
    reference_model,
    report,
)
from probdeblend.deblending import weights
from probdeblend.refinement import guides
from probdeblend.refinement.nuts import Reference
from probdeblend.refinement.refine import Refined
from probdeblend.scene import Instrument

NUMBERS = 16


class Network:
    """Trained weights that are never asked."""

    instrument = Instrument.candels_f160w()
    network = None


def truth_plus(value):
    """A guide whose mean is `value` for every unknown."""
    return lambda image: SimpleNamespace(mean=torch.full((len(image), NUMBERS), value))


def refined(count, *, mean=0.0, scale=1.0, draws=400, k_hat=0.1, turn=0.0):
    """Draws whose mean and covariance are exact; the two ln fluxes have the correlation `turn`."""
    drawn = np.random.default_rng(5).normal(size=(draws, NUMBERS))
    drawn -= drawn.mean(0)
    drawn = np.linalg.solve(np.linalg.cholesky(drawn.T @ drawn / draws), drawn.T).T
    drawn[:, 7] = turn * drawn[:, 0] + np.sqrt(1 - turn**2) * drawn[:, 7]
    unknown = np.repeat(mean + scale * drawn[:, None], count, 1)
    even = np.full((draws, count), -np.log(draws))
    order, effective = np.zeros((draws, count), dtype=int), np.full(count, draws / 2.0)
    return Refined(unknown, order, np.ones_like(even), even, np.full(count, k_hat), effective, *[np.ones(count)] * 3)


def fakes(patch):
    """Refinement and a sampler that both answer with a unit normal; return what the sampler is given."""
    calls = []

    def sample_reference(model, observed, found, *, draws, seed, progress):
        calls.append((model, observed, draws))
        drawn = np.random.default_rng(seed).normal(size=(2, draws, NUMBERS))
        effective = np.full(NUMBERS, 500.0 if draws > 300 else 390.0)
        return Reference(drawn, np.full(NUMBERS, 1.001), effective)

    def refine(model, observed, start, *, draws, seed, fits=None):
        assert observed.image.shape[1:] == (model.size, model.size)
        return refined(len(start), draws=draws)

    patch.setattr(referencecheck, "sample_reference", sample_reference)
    patch.setattr(referencecheck, "refine", refine)
    return calls


@pytest.fixture
def normal(monkeypatch):
    return fakes(monkeypatch)


SETTINGS = {"count": 2, "white": 1, "draws": 400, "progress": False}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of two blends of one kind and one of the other, and what the sampler was given."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        calls = fakes(patch)
        make_references(Network(), folder, guide=truth_plus(2.0), **SETTINGS)
    return folder, calls


@pytest.fixture
def stored(made):
    return made[0] / "reference.h5"


def test_what_is_stored(made, stored):
    found = read_references(stored)
    assert found.image.shape == (3, 64, 64)
    assert found.draws.shape == (3, 2, 150, NUMBERS)
    assert found.white.tolist() == [False, False, True]
    assert found.converged.all()
    assert (found.start == 2).all()
    assert stored.stat().st_size < 300_000
    place = found.unknown[:, [8, 9]]
    assert np.abs(place).max() <= 22
    assert (np.linalg.norm(place - found.unknown[:, [1, 2]], axis=1) >= 2).all()
    for (model, observed, draws), image, white in zip(made[1], found.image, found.white, strict=True):
        assert draws == 400
        assert (model.instrument.noise_kernel is None) == white
        np.testing.assert_array_equal(observed.image[0], image)
    with h5py.File(stored) as file:
        assert '"start": "guide"' in file.attrs["settings"]
        assert '"useless": {"correlated": 0, "white": 0}' in file.attrs["settings"]


def test_images_are_those_of_the_stored_truth(stored):
    """Residuals of the cut stamps, over their standard deviation, have a mean square of one."""
    found = read_references(stored)
    for blend in range(3):
        model = reference_model(white=bool(found.white[blend]))
        unknown = torch.from_numpy(found.unknown[[blend]])
        latents, sky_level, growth = model.split(unknown)
        taken = referencecheck.Observed(
            *(torch.from_numpy(getattr(found, name)[[blend]]) for name in ("image", "sky_rms", "exposure"))
        )
        noisy = model.noisy(model.light(latents, growth).sum(1), sky_level, taken)
        square = float(noisy.residual(taken.image).square().mean())
        # Correlated pixels: 2.25**2 fewer are independent.
        assert square == pytest.approx(1, abs=4 * np.sqrt(2 * 5 / 64**2))


def test_it_goes_on_where_it_stopped(tmp_path, made, normal):
    folder = tmp_path / "copy"
    shutil.copytree(made[0], folder)
    with pytest.raises(FileExistsError, match=r"reference.h5: exists already"):
        make_references(Network(), folder, guide=truth_plus(2.0), **SETTINGS)
    first = read_references(folder / "reference.h5")
    (folder / "reference.h5").unlink()
    with pytest.raises(ValueError, match=r"correlated-000\d.h5: made with other settings, .*'seed': 0"):
        make_references(Network(), folder, guide=truth_plus(2.0), seed=1, **SETTINGS)
    sorted(folder.glob("correlated-*.h5"))[-1].unlink()
    again = read_references(make_references(Network(), folder, guide=truth_plus(2.0), **SETTINGS))
    assert len(normal) == 1
    np.testing.assert_array_equal(again.image, first.image)
    np.testing.assert_array_equal(again.seconds[[0, 2]], first.seconds[[0, 2]])


def test_chains_that_have_not_converged_are_made_longer(tmp_path, normal):
    path = make_references(Network(), tmp_path, count=1, white=0, draws=200, guide=truth_plus(0.0), progress=False)
    assert [draws for _, _, draws in normal] == [200, 600]
    assert read_references(path).converged.all()


def test_blends_that_cannot_be_refined_are_counted(tmp_path, normal, monkeypatch):
    turns = iter([0.9, 0.1])
    monkeypatch.setattr(referencecheck, "refine", lambda *_, **__: refined(1, k_hat=next(turns)))
    settings = {"guide": truth_plus(0.0), "draws": 400, "progress": False}
    path = make_references(Network(), tmp_path / "some", count=1, white=0, **settings)
    with h5py.File(path) as file:
        assert '"useless": {"correlated": 1, "white": 0}' in file.attrs["settings"]
    monkeypatch.setattr(referencecheck, "refine", lambda *_, **__: refined(1, k_hat=0.9))
    with pytest.raises(ValueError, match="guesses must be good enough to refine, got 11 blends without usable weights"):
        make_references(Network(), tmp_path / "none", count=1, white=0, **settings)
    assert not list((tmp_path / "none").iterdir())


@pytest.mark.parametrize(
    ("changed", "column", "value"),
    [
        ({}, "within", True),
        ({"mean": 0.5}, "mean_flux", 0.5),
        ({"scale": 1.5}, "ratio_largest", 1.5),
        ({"scale": 0.6}, "ratio_least", 0.6),
        ({"turn": 0.4}, "correlation", 0.4),
    ],
)
def test_what_differs_is_found(stored, monkeypatch, changed, column, value):
    monkeypatch.setattr(referencecheck, "refine", lambda model, observed, start, **_: refined(len(start), **changed))
    table = compare_references(stored)
    assert len(table) == 3
    assert table["white"].tolist() == [False, False, True]
    if column == "within":
        assert table["within"].all()
        assert table.meta == {"stored": 3, "converged": 3, "abstained": 0, "within": 1.0}
        assert "standard deviations (limit 0.3)" in report(table)
        assert f"{min(table['ratio_least']):.2f} to {max(table['ratio_largest']):.2f} times" in report(table)
    else:
        # Of 300 draws, means and correlations are known to 0.06, and widths to 4 %.
        np.testing.assert_allclose(table[column], value, atol=0.24)
        assert not table["within"].any()


def test_abstentions_are_not_within(stored, monkeypatch):
    monkeypatch.setattr(referencecheck, "refine", lambda model, observed, start, **_: refined(len(start), k_hat=0.9))
    table = compare_references(stored)
    assert np.isnan(table["mean_flux"]).all()
    assert not table["within"].any()
    assert table.meta["abstained"] == 3
    said = "3 of 3 references have converged; refinement abstains on 3 of them, and is within all limits for 0%"
    assert report(table) == said


def test_references_that_have_not_converged_do_not_count(stored, tmp_path, normal):
    found = read_references(stored)
    r_hat = found.r_hat.copy()
    r_hat[1, 4] = 1.02
    path = tmp_path / "some.h5"
    referencecheck._write(path, replace(found, r_hat=r_hat), {})
    table = compare_references(path)
    assert table["blend"].tolist() == [0, 2]
    assert "2 of 3 references have converged; refinement abstains on 0 of them, and is within all limits for" in report(
        table
    )
    referencecheck._write(path, replace(found, effective=0 * found.effective), {})
    with pytest.raises(ValueError, match="references must have converged, got none of 3"):
        compare_references(path)


def test_refuses(tmp_path):
    for changed, message in (
        ({"count": 0, "white": 0}, "count and white must not be negative, nor both zero, got 0 and 0"),
        ({"count": -1}, "count and white must not be negative, nor both zero, got -1 and 2"),
        ({"draws": 100}, "draws must be at least 150 a chain, got 100"),
    ):
        with pytest.raises(ValueError, match=message):
            make_references(Network(), tmp_path, **changed)
    with pytest.raises(FileNotFoundError, match=r"nothing.h5: no such references"):
        read_references(tmp_path / "nothing.h5")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(ValueError, match=r"text.h5: not references written by probdeblend, or damaged"):
        read_references(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["format"] = "probdeblend references"
        file.attrs["version"] = 7
    with pytest.raises(ValueError, match=r"other.h5: not references written by probdeblend, or of another version"):
        read_references(tmp_path / "other.h5")


def test_the_command(tmp_path, monkeypatch, stored, normal):
    monkeypatch.setattr(weights, "load", lambda path=None: Network())
    monkeypatch.setattr(guides, "load_guide", lambda path, deblender: truth_plus(1.0))
    folder = tmp_path / "made"
    options = ["--count", "1", "--white", "0", "--draws", "400", "--guide", "g.safetensors", "--output", str(folder)]
    answer = CliRunner().invoke(reference, options, catch_exceptions=False)
    assert f"written to {folder / 'reference.h5'}" in answer.output
    assert (read_references(folder / "reference.h5").start == 1).all()
    answer = CliRunner().invoke(reference, ["--compare", str(stored)], catch_exceptions=False)
    assert "3 of 3 references have converged" in answer.output
    monkeypatch.setattr(referencecheck, "SHIPPED", stored.name)
    monkeypatch.setattr(referencecheck, "files", lambda package: tmp_path / "package")
    (tmp_path / "package" / "data").mkdir(parents=True)
    shutil.copy(stored, tmp_path / "package" / "data" / stored.name)
    answer = CliRunner().invoke(reference, ["--compare"], catch_exceptions=False)
    assert "3 of 3 references have converged" in answer.output


def test_references_ship_and_have_converged():
    found = read_references()
    assert found.converged.all()
    assert found.white.tolist() == 12 * [False] + 2 * [True]
    size = reference_model().size
    assert found.image.shape == (14, size, size)


@pytest.mark.slow
def test_refinement_comes_to_what_the_sampler_found():
    """All that ship are within the limits: other tests show that what is half as wide, or turned, is not."""
    table = compare_references(draws=2000)
    assert table.meta["abstained"] == 0
    assert table.meta["within"] == 1


@pytest.mark.slow
def test_refinement_is_close_to_a_short_chain(tmp_path, monkeypatch):
    """One real blend, sampled briefly: what is stored agrees with a new refinement as far as so few draws tell."""
    monkeypatch.setattr(Reference, "converged", True)  # or it would be sampled longer
    path = make_references(weights.load(), tmp_path, count=1, white=0, draws=150, progress=False)
    found = read_references(path)
    assert found.draws.shape == (1, 2, 150, NUMBERS)
    assert (found.r_hat < 1.2).all()
    assert (found.effective > 20).all()
    monkeypatch.setattr(StoredReferences, "converged", np.array([True]))
    (row,) = compare_references(path)
    assert row["mean_flux"] < 0.6
    assert row["mean_all"] < 1.2
    assert row["ratio_least"] > 0.6
    assert row["ratio_largest"] < 1.6
    assert row["correlation"] < 0.4
