"""Scenes that several tests of refinement share: small, drawn from the model, with an undersized PSF."""

import pyro
import pytest
import torch

from probdeblend.networks.scenes import SceneNetwork
from probdeblend.refinement import SceneModel, Unknowns, listed_scenes
from probdeblend.scene import Scene

PLACES = torch.tensor([[14.0, 15.0], [19.5, 17.0], [16.0, 21.0]])


def gaussian_psf(fwhm=2.8, size=15):
    place = torch.arange(size) - size // 2
    psf = torch.exp(-4 * 0.6931 * (place.square() + place[:, None].square()) / fwhm**2)
    return psf / psf.sum()


def blank(counts, *, bands=1, size=32, kernel=None, fwhm=2.8):
    """Scenes without light, and the positions of so many sources in each."""
    scenes = len(counts)
    number = torch.repeat_interleave(torch.arange(scenes), torch.tensor(counts))
    place = torch.cat([PLACES[:count] for count in counts])
    scene = Scene(
        image=torch.zeros(scenes, bands, size, size),
        sky_rms=torch.full((scenes, bands), 2.0),
        psf=gaussian_psf(fwhm).expand(scenes, bands, -1, -1),
        pixel_scale=0.1,
        exposure=torch.full((scenes, bands), 25.0),
        noise_kernel=None if kernel is None else kernel.expand(scenes, bands, -1, -1),
        wavelength=torch.linspace(0.6, 0.9, bands).expand(scenes, bands),
    )
    return scene, (number, *place.T)


@pytest.fixture(scope="session")
def model():
    return SceneModel()


@pytest.fixture
def draw(model):
    """Draw scenes with so many sources from the model: what is listed, and the trace with all values."""

    def drawn(counts, *, seed=0, log_flux=None, star=0.0, observed=False, **how):
        scene, positions = blank(counts, **how)
        listed = listed_scenes(scene, positions=positions)
        data = {"star": torch.full(listed.x.shape, star)}
        if log_flux is not None:
            flux = torch.tensor(log_flux)[: listed.x.shape[1], None, None]
            shape = (len(counts), 1, listed.x.shape[1], listed.photon.shape[1], 2)
            data["log_flux"] = (flux + torch.tensor([-0.1, 0.0])).expand(shape)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            program = pyro.poutine.condition(model, data=data)
            trace = pyro.poutine.trace(program).get_trace(listed, observed=observed)
        return listed._replace(image=trace.nodes["_RETURN"]["value"]), trace

    return drawn


@pytest.fixture
def group(model, draw):
    """Draw one scene: its unknowns, and the true vector."""

    def drawn(count, **how):
        listed, trace = draw([count], **how)
        values = {name: trace.nodes[name]["value"] for name in ("log_flux", "position", "shape", "star")}
        unknowns = Unknowns(model, listed, values["star"][0])
        return unknowns, unknowns.vector(values["log_flux"][:, 0, ..., 1], values["position"], values["shape"])[0]

    return drawn


@pytest.fixture(scope="session")
def network():
    """A scene network that has learned nothing, but takes sources near each other for a group."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        network = SceneNetwork().eval()
        network.trunk.union[-1].bias.fill_(3.0)
        network.answers.bias[-2] = -9.0  # no stars
        return network
