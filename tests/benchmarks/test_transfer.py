"""Training on each source and testing on every one, at a small scale; resuming; the table."""

import numpy as np
import pytest
import torch
from test_galaxies import made

from benchmarks import transfer
from probdeblend.surveys.library import identity_number


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    tiny = {"patch": 2, "unet_filters": 2, "depth": 2, "first_filters": 2, "hidden": 4}
    monkeypatch.setattr(transfer, "SMALL_NETWORK", tiny)


def test_sources_separate_their_galaxies():
    found = transfer.sources(made(20))
    assert list(found) == ["Sérsic, white noise", "Sérsic", "realistic", "real", "mixture"]
    for name in ("real", "mixture"):
        training, test = (set(mixture.library.identity) for mixture in found[name])
        assert not training & test
    assert found["Sérsic, white noise"][0].instrument.noise_kernel is None
    assert found["Sérsic"][0].prior.smooth
    assert not found["realistic"][0].prior.smooth
    assert list(transfer.sources())[-1] == "realistic"


@pytest.mark.slow
def test_the_matrix(tmp_path, monkeypatch):
    output = tmp_path / "transfer"
    settings = {"library": made(20), "steps": 2, "batch_size": 4, "count": 12, "progress": False}
    trained = []
    fit = transfer.fit

    def counted(*arguments, **options):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(1)
        return fit(*arguments, **options)

    monkeypatch.setattr(transfer, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        transfer.transfer(output, **settings)
    assert not output.exists()
    assert (tmp_path / "transfer.partial").is_dir()
    trained.clear()
    table = transfer.transfer(output, **settings)
    assert len(trained) == 2
    assert len(table) == 25
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["transfer"]
    assert sorted(entry.name for entry in output.iterdir()) == ["transfer.ecsv", "transfer.png"]
    for name in transfer.STATISTICS:
        assert np.isfinite(table[name]).all()
        assert (table[f"{name}_low"] <= table[f"{name}_high"]).all()
    real = table[table["tested_on"] == "real"]
    assert (real["galaxies"] <= 16).all()
    assert "Sérsic, white noise" in transfer.report(table)
    with pytest.raises(FileExistsError, match="transfer: exists already"):
        transfer.transfer(output, **settings)


def test_a_real_test_set_holds_test_galaxies_alone():
    _, test = transfer.sources(made(20))["mixture"]
    drawn = transfer._test_set(test, 20, seed=1)
    assert drawn.image.shape == (20, 1, 128, 128)
    numbers = {identity_number(name) for name in test.library.identity}
    assert set(drawn.galaxies[10:].ravel().tolist()) <= numbers
    assert drawn.distinct == 20 + len(set(drawn.galaxies[10:].ravel().tolist()))
    assert torch.isfinite(torch.from_numpy(drawn.log_flux)).all()
