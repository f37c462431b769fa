"""Networks trained on each source and tested on every one, at a small scale; an interrupted run is resumed."""

import numpy as np
import pytest
import torch
from astropy.table import Table
from click.testing import CliRunner
from libraries import made

from benchmarks import transfer
from probdeblend.surveys import write_library
from probdeblend.surveys.library import identity_number


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
def test_the_command_resumes(tmp_path, monkeypatch):
    write_library(tmp_path / "library", made(20))
    output = tmp_path / "transfer"
    sizes = ["--steps", "2", "--batch-size", "4", "--count", "12", "--filters", "2"]
    options = [str(tmp_path / "library"), *sizes, "--output", str(output)]
    trained, fit = [], transfer.fit

    def interrupted(*arguments, **settings):
        trained.append(1)
        if len(trained) == 4:
            raise KeyboardInterrupt
        return fit(*arguments, **settings)

    monkeypatch.setattr(transfer, "fit", interrupted)
    assert CliRunner().invoke(transfer.main, options).exit_code == 1
    assert not output.exists()
    answer = CliRunner().invoke(transfer.main, [*options, "--resume"], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    assert len(trained) == 4 + 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["library", "transfer"]
    assert sorted(path.name for path in output.iterdir()) == ["transfer.ecsv", "transfer.png"]
    table = Table.read(output / "transfer.ecsv")
    assert len(table) == 25
    for name in transfer.STATISTICS:
        assert np.isfinite(table[name]).all()
        assert (table[f"{name}_low"] <= table[f"{name}_high"]).all()
    assert (table[table["tested_on"] == "real"]["galaxies"] <= 16).all()


def test_a_real_sample_holds_test_galaxies_alone():
    _, test = transfer.sources(made(20))["mixture"]
    drawn = transfer.sample_blends(test, 20, seed=1)
    assert drawn.image.shape == (20, 1, 128, 128)
    numbers = {identity_number(name) for name in test.library.identity}
    assert set(drawn.galaxies[10:].ravel().tolist()) <= numbers
    assert drawn.distinct == 20 + len(set(drawn.galaxies[10:].ravel().tolist()))
    assert torch.isfinite(torch.from_numpy(drawn.log_flux)).all()
