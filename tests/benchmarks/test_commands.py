"""Every benchmark's command, at its smallest: it runs to its end and writes the table that it promises."""

from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import (
    ablation,
    bands,
    crowding,
    detections,
    dropout,
    field,
    labels,
    march,
    pairs,
    psfs,
    references,
    refinement,
    times,
)
from benchmarks._nuts import Reference
from benchmarks.boucaud2020 import __main__ as boucaud2020
from probdeblend.simulation.stream import SceneStream

pytestmark = pytest.mark.slow
COVERAGE = ("coverage_50", "coverage_68", "coverage_95")


def test_pairs(run):
    table = run(pairs, "--count", "2")
    assert len(table) == 6
    given = ["true" in method for method in table["method"]]
    assert (table["detected"][given] == 1).all()
    assert np.isfinite(table["coverage_68"][given]).all()
    assert (table["seconds"][:5] > 0).all()
    assert table["detected"][4] >= table["detected"][5]  # the rule of the paper is harder on SEP


def test_crowding(run):
    table = run(crowding, "--count", "4", "--number", "1", "--number", "3")
    assert table["number"].tolist() == [1, 3]
    assert (table["groups"] > 0).all()
    assert np.isfinite([table[name] for name in (*COVERAGE, "joint_68", "total_68")]).all()


def test_psfs(run, monkeypatch):
    monkeypatch.setattr(psfs, "FWHM", (3.0,))
    table = run(psfs, "--count", "1")
    assert table["noise"].tolist() == ["white"] * 2 + ["drizzled"] * 2
    assert np.isfinite(table["coverage_68"]).all()


def test_bands(run, monkeypatch):
    monkeypatch.setattr(bands, "NUMBERS", (2,))
    table = run(bands, "--count", "2")
    assert table["bands"].tolist() == ["joint", "one by one"]
    assert (table["scatter"] > 0).all()
    assert table["gain"][1] == 1


def test_detections(run):
    table = run(detections, "--count", "4")
    assert table["feature"][0] == "all"
    assert 0 < table["completeness_sep"][0] <= 1
    assert table["sources"][table["feature"] == "contested"].sum() == table["sources"][0]
    assert set(table.meta) >= {"existence_ece", "threshold"}


def test_dropout(run, tmp_path, weights):
    table = run(dropout, "--count", "2")
    assert table["images"].tolist() == [*dropout.CHANGES, dropout.NOT_CALIBRATED]
    assert table["ratio"][0] == 1
    assert ((table["share"] > 0) & (table["share"] < 1)).all()


def test_field(run, monkeypatch):
    monkeypatch.setattr(field, "_in_a_process", field._deblend)
    monkeypatch.setattr(field, "SMALL_SIDES", (256,))
    table = run(field)
    assert table["tile"].tolist() == [256, 128]
    assert table["same"][1] == 1 or table["found"][0] == 0
    assert (table["memory"] > 0.1).all()
    assert (table["sources"] > 5).all()
    assert "network - SEP, median" in table.meta


def test_march(run):
    table = run(march, "--noise-draws", "10")
    network = table[table["method"] == "network"]
    assert (network["count"] == 10).all()
    assert np.isfinite(network["mean"]).all()
    assert set(table["separation"]) == set(march.SMALL_SEPARATIONS)


def test_labels_resume(tmp_path, monkeypatch):
    """Interrupted after its set was made and resumed, it writes what an undisturbed run writes."""
    settings = ["--pairs", "20", "--steps", "2", "--batch-size", "2", "--output"]
    run = CliRunner()
    whole = run.invoke(labels.main, [*settings, str(tmp_path / "whole")], catch_exceptions=False)

    def interrupted(*given, **named):
        raise OSError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(labels, "train_labels", interrupted)
        assert "interrupted" in run.invoke(labels.main, [*settings, str(tmp_path / "labels")]).output
    answer = run.invoke(labels.main, [*settings, str(tmp_path / "labels"), "--resume"], catch_exceptions=False)
    assert answer.exit_code == 0
    assert answer.stdout.splitlines()[:-1] == whole.stdout.splitlines()[:-1]
    again = run.invoke(labels.main, [*settings, str(tmp_path / "labels")])
    assert again.exit_code == 1
    assert "exists already; --overwrite replaces it" in again.output


def test_boucaud2020(run, tmp_path):
    table = run(boucaud2020, "--pairs", "16", "--width", "0.02", "--epochs", "1")
    methods = table["method"].tolist()
    assert methods[:4] == ["blend2flux", "blend2mask2flux", "scene network", "SEP"]
    assert table["mape"][methods.index("blend2mask2flux (published)")] == pytest.approx(7.63, abs=0.01)
    assert np.isfinite(table["mape"][:2]).all()
    assert table.meta["millions of parameters, blend2mask2flux"] == pytest.approx(18.43, abs=0.01)
    written = {path.name for path in (tmp_path / "boucaud2020").iterdir()}
    assert written == {*boucaud2020.FILES, ".probdeblend.json"}


def test_ablation(run, monkeypatch):
    monkeypatch.setattr("benchmarks.ablation.SceneStream", partial(SceneStream, bank=2))
    settings = ["--steps", "1", "--batch-size", "2", "--test", "1", "--network", "whole", "--network", "no exchange"]
    table = run(ablation, *settings, weighted=False)
    assert table["network"].tolist() == ["whole"] * 2 + ["no exchange"] * 2
    assert np.isfinite([table[name] for name in ("flux", "mask", "share", "scatter")]).all()


def test_refinement(run, monkeypatch):
    monkeypatch.setattr(refinement, "NUMBERS", (2,))
    table = run(refinement, "--count", "1")
    assert table["method"].tolist() == ["network", "refined"] * 2
    assert np.isfinite(table["over_bound"][:2]).all()
    assert np.isnan(table["over_bound"][2:]).all()
    assert (table["seconds"] > 0).all()


def test_the_bound_is_that_of_a_bright_source():
    """Three sources: the bound lies above the photon noise and far below the scatter of the population."""
    scene, bound = refinement.model_scenes(3, 1, 0)
    assert bound.shape == (3,)
    assert (bound > 0).all()
    assert (bound < 4).all()
    brighter = np.argsort(scene.flux[:, 0].numpy())
    assert bound[brighter[-1]] < bound[brighter[0]]


def test_times(run, monkeypatch):
    monkeypatch.setattr(times, "NUMBERS", (1, 5))
    table = run(times, "--count", "1")
    assert table["method"].tolist() == ["network", "SEP", "refinement", "network", "SEP"]
    assert (table["seconds"] > 0).all()


def test_references(run, monkeypatch):
    """With the sampler replaced by draws like those of refinement, both agree."""

    def sampled(unknowns, refined, *, draws, seed, progress):
        vector = refined.resampled(2 * 500, seed=1).reshape(2, 500, -1)
        return Reference(vector, np.ones(vector.shape[-1]), np.full(vector.shape[-1], 500.0))

    monkeypatch.setattr(references, "sample_reference", sampled)
    table = run(references)
    assert len(table) == 1
    assert table["within"][0] or table["k_hat"][0] > 0.5
