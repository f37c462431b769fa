"""What tests of benchmarks share: posteriors that are right or wrong in a known way, weights, and a runner."""

import numpy as np
import pytest
import torch
from astropy.table import Table
from click.testing import CliRunner

from benchmarks._shown import SHOWN
from probdeblend.posterior import Posterior
from probdeblend.scene import Scene

DRAWS = 400


@pytest.fixture
def truth():
    """Make scenes of so many sources each, 24 pixels apart, with unit sky noise."""

    def make(scenes, number=2, *, snr=100.0, seed=0):
        rng = np.random.default_rng(seed)
        sources = scenes * number
        flux = torch.from_numpy(rng.lognormal(5, 1, (sources, 1))).float()
        place = torch.arange(number, dtype=torch.float32).repeat(scenes)
        light = torch.zeros(sources, 1, 4, 4)
        light[:, :, 1, 1] = snr
        return Scene(
            image=torch.zeros(scenes, 1, 4, 4),
            sky_rms=torch.ones(scenes, 1),
            psf=torch.ones(scenes, 1, 1, 1),
            pixel_scale=0.06,
            scene=torch.arange(scenes).repeat_interleave(number),
            x=24 * place,
            y=torch.zeros(sources),
            flux=flux,
            auto_flux=0.9 * flux,
            light=light,
            source_type=torch.zeros(sources, dtype=torch.long),
            half_light_radius=torch.full((sources,), 0.3),
            axis_ratio=torch.ones(sources),
        )

    return make


@pytest.fixture
def posterior():
    """Answer for scenes, each of one group, with errors of `sd` in ln flux, of which `claim` times as much is claimed.

    The errors of neighbors have the correlation `tied`.
    """

    def make(scene, *, sd=0.1, claim=1.0, tied=-0.5, seed=1, kept=None, **columns):
        rng = np.random.default_rng(seed)
        sources, number = len(scene.scene), len(scene.scene) // len(scene)
        spread = sd * np.linalg.cholesky((1 - tied) * np.eye(number) + tied)

        def errors(*shape):
            return (rng.normal(size=(*shape, len(scene), number)) @ spread.T).reshape(*shape, sources)

        drawn = np.log(scene.flux[:, 0].double().numpy()) + errors() + claim * errors(2, DRAWS // 2)
        kept = np.arange(sources) if kept is None else kept
        return Posterior.from_draws(
            np.exp(drawn)[:, :, kept, None],
            0.9 * np.exp(drawn)[:, :, kept, None],
            scene=scene.scene.numpy()[kept],
            group=scene.scene.numpy()[kept],
            x=scene.x.numpy()[kept],
            y=scene.y.numpy()[kept],
            columns=columns,
        )

    return make


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Weights of a network that has not been trained, but for a heat map that follows the light."""
    from probdeblend.deblending import Deblender, Description, save
    from probdeblend.networks import SceneNetwork

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SceneNetwork()
        deblender = Deblender(network, Description(fwhm=(1.0, 20.0)), tokens=torch.randn(200, 96))
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save(deblender, path)
    return path


@pytest.fixture
def run(tmp_path, weights):
    """Run a benchmark's command with small settings, and return its table."""

    def answer(module, *settings, weighted=True):
        name = module.__name__.removeprefix("benchmarks.").removesuffix(".__main__")
        output = tmp_path / name
        given = [*settings, "--output", str(output), *(["--weights", str(weights)] if weighted else [])]
        result = CliRunner().invoke(module.main, given, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert not output.with_name(f"{name}.partial").exists()
        table = Table.read(output / f"{name}.ecsv")
        for shown in SHOWN:
            if shown.benchmark == name:  # what a model card shows of the table is there
                assert set(shown.columns) <= set(table.colnames)
                assert set(shown.meta) <= set(table.meta)
        return table

    return answer
