"""The generative model of scenes, as a Pyro program.

For each scene of a batch, with any number of listed sources (the plate ``source``, masked where a scene has fewer):

1. A source is a star or a galaxy. Its fluxes, in all bands and of both kinds, its center near the listed position and,
   if it is a galaxy, its size and shape follow the population (`~probdeblend.refinement.latents`).
2. Sky subtraction has left a level of the sky in each band, normal with a standard deviation of 0.05 of the sky noise;
   the PSF is wider than assumed by a factor, ln of it normal with a standard deviation of 0.02.
3. Galaxies are Sérsic profiles, stars are points; both are convolved with the PSF of each band
   (`~probdeblend.simulation.profiles.render`). Bands share centers and shapes.
4. The image has photon noise, and correlated sky noise (`~probdeblend.refinement.likelihood.NoisyImage`).

All is in units of the sky noise. With the PSF or the sky taken as known, intervals of fluxes are too narrow, and
chi-square does not show it.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

from ..networks.joint import TOTAL
from ..photometry.noise import noise_numbers
from ..scene import Scene, check_positive
from ..simulation.population import Population
from ..simulation.profiles import Components, render, widen_psf
from .latents import FLATTEST, POSITION_SPREAD, FluxPrior, ShapePrior
from .likelihood import NoisyImage, expected_periodogram

__all__ = ["SITES", "Listed", "SceneModel", "listed_scenes"]

SITES = ("log_flux", "position", "shape", "sky_level", "log_psf_growth")
STAR_RADIUS = 1e-2  # pixels
NEAR = 0.9  # of the renderer's reach, to which positions are clipped


class Listed(NamedTuple):
    """Images of scenes, how they were taken, and the sources that are listed in them.

    - `image`: pixels over the sky noise ``(scene, band, y, x)``, zero where not `good`.
    - `psf (scene, band, y, x)`, `power (scene, band, y, x)`: effective PSF, and expected periodogram of the noise.
    - `photon`: variance that light of one sky rms in a pixel adds, over that of the sky ``(scene, band)``.
    - `noise`: numbers that describe noise and color to the network ``(scene, band, 5)``.
    - `x`, `y`, `there (scene, source)`: listed positions in pixels, and which of them are not padding.
    - `pixel_scale` in arcsec.
    """

    image: Tensor
    good: Tensor
    psf: Tensor
    power: Tensor
    photon: Tensor
    noise: Tensor
    x: Tensor
    y: Tensor
    there: Tensor
    pixel_scale: float

    def repeated(self, count: int) -> Self:
        """Return the only scene so many times."""
        return self._make([*(v.expand(count, *v.shape[1:]) for v in self[:-1]), self.pixel_scale])


def listed_scenes(scene: Scene, *, positions: tuple[Tensor, Tensor, Tensor] | None = None) -> Listed:
    """List sources in scenes, at given positions or at the true ones.

    Parameters
    ----------
    scene
        Images and how they were taken.
    positions
        Scene, x and y of the sources ``(source,)``, ordered by scene; None takes those that the scenes know.

    Returns
    -------
    Listed
        Images and listed sources; those beyond the last of a scene are padding.
    """
    number, x, y = (scene.scene, scene.x, scene.y) if positions is None else positions
    counts = torch.bincount(number, minlength=len(scene))
    place = torch.arange(len(number)) - (counts.cumsum(0) - counts)[number]
    there = torch.arange(int(counts.max())) < counts[:, None]
    across, along = (torch.zeros(there.shape).index_put((number, place), v.float()) for v in (x, y))
    ratio = scene.image / scene.sky_rms[..., None, None]
    good = torch.isfinite(ratio)
    photon = scene.photon.float()
    power = expected_periodogram(scene.noise_kernel, tuple(ratio.shape[-2:])).float()
    noise = noise_numbers(scene.noise_kernel, photon, scene.wavelength.float())
    image = torch.where(good, ratio, 0.0).float()
    taken = (scene.psf.float(), power, photon, noise)
    return Listed(image, good.float(), *taken, across, along, there, scene.pixel_scale)


@dataclass(frozen=True, eq=False)
class SceneModel:
    """The generative model; it is called as a Pyro program.

    Parameters
    ----------
    population
        Sizes and shapes of galaxies, and the fraction of stars; those that networks are trained on by default.
    sky_level
        Standard deviation of the sky level left by sky subtraction, over the sky noise.
    psf_growth
        Standard deviation of ln of the PSF's true width over the assumed one.

    Raises
    ------
    ValueError
        If a standard deviation is not positive.
    """

    population: Population = field(default_factory=Population.default)
    sky_level: float = 0.05
    psf_growth: float = 0.02

    def __post_init__(self) -> None:
        check_positive(sky_level=self.sky_level, psf_growth=self.psf_growth)

    def __call__(self, listed: Listed, *, observed: bool = True) -> Tensor:
        """Run the program.

        Parameters
        ----------
        listed
            Images and the sources listed in them.
        observed
            Whether to condition on the images; else they are drawn.

        Returns
        -------
        Tensor
            Images over the sky noise ``(scene, band, y, x)``.
        """
        (scenes, bands), sources = listed.photon.shape, listed.x.shape[1]
        with pyro.plate("scene", scenes, dim=-2):
            with pyro.plate("source", sources, dim=-1), pyro.poutine.mask(mask=listed.there):
                star = pyro.sample("star", dist.Bernoulli(self.population.star_fraction))
                position = pyro.sample("position", dist.Normal(torch.zeros(2), POSITION_SPREAD).to_event(1))
                with pyro.poutine.mask(mask=star == 0):
                    shape = pyro.sample("shape", ShapePrior(self.population, listed.pixel_scale))
            # One site for all fluxes of a scene: those of overlapping sources are not independent in the guide.
            fluxes = FluxPrior(bands, (scenes, 1, sources)).mask(listed.there[:, None]).to_event(1)
            log_flux = pyro.sample("log_flux", fluxes)[:, 0]
            zero = torch.zeros(scenes, 1, bands)
            sky_level = pyro.sample("sky_level", dist.Normal(zero, self.sky_level).to_event(1))
            growth = pyro.sample("log_psf_growth", dist.Normal(zero, self.psf_growth).to_event(1))[:, 0]
            light = self.light(listed, log_flux[..., TOTAL], position, shape, star=star, growth=growth)
            light = (light * listed.there[..., None, None, None]).sum(1, keepdim=True)
            photon, power, good = (values[:, None] for values in (listed.photon, listed.power, listed.good))
            noisy = NoisyImage(light, sky_level, photon=photon, power=power, good=good)
            return pyro.sample("image", noisy, obs=listed.image[:, None] if observed else None)[:, 0]

    @staticmethod
    def light(
        listed: Listed, log_flux: Tensor, position: Tensor, shape: Tensor, *, star: Tensor, growth: Tensor
    ) -> Tensor:
        """Return the expected light of each source over the sky noise ``(scene, source, band, y, x)``.

        Parameters
        ----------
        listed
            How the images were taken, and the listed positions.
        log_flux
            ln total flux over sky noise ``(scene, source, band)``.
        position
            Center from the listed position in pixels ``(scene, source, 2)``.
        shape
            Size and shape ``(scene, source, 4)``, of galaxies.
        star
            1 for stars ``(scene, source)``.
        growth
            ln of the PSF's width over the assumed one ``(scene, band)``.

        Returns
        -------
        Tensor
            Images of each source alone.
        """
        height, width = listed.image.shape[-2:]
        size = max(height, width)
        ln_radius, first, second, ln_index = shape[..., None, :].unbind(-1)
        star = (star > 0)[..., None]
        ellipticity = torch.sqrt(first.square() + second.square() + 1e-12).clamp(max=FLATTEST)
        radius = torch.where(star, STAR_RADIUS, ln_radius.exp()) * listed.pixel_scale
        index = torch.where(star, 1.0, ln_index.exp().clamp(0.5, 6.0))
        axis_ratio = torch.where(star, 1.0, (1 - ellipticity) / (1 + ellipticity))
        angle = torch.atan2(second, first + 1e-6) / 2
        center = torch.stack([listed.x, listed.y], -1) + position
        reach = NEAR * size / 4
        x, y = center.clamp(-reach, size - 1 + reach)[..., None, :].unbind(-1)
        one = torch.ones_like(radius)
        source = Components(one, radius, index, axis_ratio, angle, x, y, one > 0)
        excess = max(0, (listed.psf.shape[-1] - size + 1) // 2)  # of PSFs over what an image of this size can hold
        images = []
        for band, given in enumerate(functional.pad(listed.psf, (-excess,) * 4).unbind(1)):
            psf = widen_psf(given, growth[:, band].exp())
            unit = render(source, psf, pixel_scale=listed.pixel_scale, size=size)[..., :height, :width]
            images.append(unit * log_flux[..., band, None, None].exp())
        return torch.stack(images, 2)

    def log_joint(self, listed: Listed, values: dict[str, Tensor]) -> Tensor:
        """Return the density ``(scene,)`` of all unknowns and the images together, from a trace of the program.

        Parameters
        ----------
        listed
            Images and the sources listed in them.
        values
            Values of the sites `SITES` and of ``star``.

        Returns
        -------
        Tensor
            The logarithm of the density.
        """
        trace = pyro.poutine.trace(pyro.poutine.condition(self, data=values)).get_trace(listed)
        trace.compute_log_prob(lambda name, _: name != "star")
        sites = [site["log_prob"] for _, site in trace.iter_stochastic_nodes()]
        sites += [trace.nodes[name]["log_prob"] for name in trace.observation_nodes if "log_prob" in trace.nodes[name]]
        return sum(density.sum(-1) for density in sites)
