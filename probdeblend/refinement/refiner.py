"""Refinement for users: scenes in, posteriors out, each group refined where that can be trusted.

Each group of overlapping sources is refined on a cutout around it, from which the network's images of all other
sources are subtracted. If the model is right, refinement extracts all that can be known; if it is wrong, its intervals
are far too narrow, and importance weights do not show it. A group is refined only if

- its importance weights are reliable: k-hat below ``min(1 - 1 / log10(draws), 0.7)``;
- the fit leaves no more light behind than noise would (`~probdeblend.refinement.mode.misfit`);
- its sources resemble the training set, and nothing else about them is doubtful;
- no other group shines through it: what is subtracted is not known better than the network knows it;
- the network, which was trained on galaxies with knots and arms, agrees: the refined fluxes lie within its posterior.

Otherwise the network's answer stays, and a flag gives the reason.
"""

from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from ..deblending.deblender import Deblender, Positions
from ..posterior.cutouts import Cutouts
from ..posterior.draws import Posterior
from ..posterior.flags import Flag
from ..scene import MASK_THRESHOLD, SCENE_FIELDS, Scene, seed_of, seeded
from .guide import SceneGuide
from .importance import refine
from .mode import misfit
from .model import SceneModel, listed_scenes
from .unknowns import Unknowns

__all__ = ["Refiner"]

DOUBTS = ~int(Flag.OUTSIDE_CALIBRATION)  # any other flag of the network is a reason not to refine
MOST_FOREIGN = 0.3  # light of other groups over a group's own, where that lies
LEAST_MISFIT_P = 0.01
LEAST_AGREEMENT_P = 0.001
LEAST_P = 1e-300
MARGIN = 20  # pixels of a cutout around the centers of a group
LARGEST_CUTOUT = 160  # pixels on a side
RENDERED = 64  # draws of each group that become images and masks
KEY = 64.0  # positions in 1 / 64 of a pixel are the key of a group's seed


class _Found(NamedTuple):
    """Result for a group: flags and anomaly score; where it is refined, draws by name, and pixels of each source."""

    flags: int
    anomaly: float
    drawn: dict[str, NDArray[np.float64]] | None = None
    corner: tuple[int, int] = (0, 0)
    pixels: dict[str, NDArray[np.float32]] | None = None


class Refiner:
    """A deblender and a generative model together; it deblends scenes as the deblender does, but better and slower.

    Parameters
    ----------
    deblender
        Trained weights.
    model
        The generative model; the default one if None.
    draws
        Number of draws of each proposal; more for groups of many sources.
    """

    def __init__(self, deblender: Deblender, *, model: SceneModel | None = None, draws: int = 400) -> None:
        self.deblender, self.draws = deblender, draws
        self.guide = SceneGuide(deblender.network, model or SceneModel()).eval()

    def scenes(self, scene: Scene, *, positions: Positions | None = None, seed: int = 0) -> Posterior:
        """Deblend the images of scenes, without a look at the truth.

        Parameters
        ----------
        scene
            Images and how they were taken.
        positions
            Scene, x and y of the sources ``(source,)``, ordered by scene; None detects them.
        seed
            Same seed, same draws.

        Returns
        -------
        Posterior
            The network's; where ``flags`` has not the bit ``NOT_REFINED``, fluxes, positions, shapes, images and masks
            are refined. A refined Kron flux is the refined total times the network's ratio of the two.

        Raises
        ------
        ValueError
            As the deblender does.
        """
        network = self.deblender.scenes(scene, positions=positions, seed=seed)
        if network.cutouts is None or network.cutouts.image is None:
            raise ValueError("deblender must answer with images of the sources, got a posterior without")
        dataset, groups = network.dataset.copy(deep=True), network.dataset["group"].values
        known = {name: list(arrays) for name, arrays in network.cutouts.known.items()}
        cutouts = Cutouts(network.cutouts.corner.copy(), network.cutouts.shape, **known)
        with seeded(seed), np.errstate(all="ignore"):
            for group in np.unique(groups):
                members = np.flatnonzero(groups == group)
                _put(dataset, cutouts, members, self._group(scene, network, members, seed=seed))
        return Posterior(dataset.assign_attrs(method="refined"), cutouts)

    def _group(self, scene: Scene, network: Posterior, members: NDArray[np.int64], *, seed: int) -> _Found:
        """Refine one group."""
        flux = network.dataset["flux"].values[:, :, members]
        with np.errstate(invalid="ignore", divide="ignore"):
            log_flux = np.log(flux.reshape(-1, *flux.shape[2:])) - np.log(network.dataset["sky_rms"].values[members])
        doubts = int(np.bitwise_or.reduce(network.flags[members])) & DOUBTS
        part, corner, foreign = _cutout(scene, network, members)
        x, y = (network.dataset[name].values[members] - start for name, start in zip("xy", corner[::-1], strict=True))
        kernel = 2 * (scene.noise_kernel.shape[-1] - 1)
        sides = part.image.shape[-2:]
        fits = kernel < min(sides) and max(sides) <= LARGEST_CUTOUT
        if doubts or not fits or not foreign <= MOST_FOREIGN or not np.isfinite(log_flux).all():
            return _Found(Flag.NOT_REFINED, np.nan)
        places = (torch.zeros(len(members), dtype=torch.long), *(torch.from_numpy(v).float() for v in (x, y)))
        own_seed = seed_of(seed, 4, *(int(KEY * max(float(v[0]) + s, 0)) for v, s in ((x, corner[1]), (y, corner[0]))))
        with torch.no_grad(), seeded(own_seed):
            unknowns, guesses = self.guide.guesses(listed_scenes(part, positions=places))
            refined = refine(unknowns, guesses, draws=self.draws, seed=own_seed)
        drawn = refined.resampled(len(log_flux), seed=own_seed)
        found = unknowns.parts(drawn)
        if not refined.usable:
            return _Found(Flag.NOT_REFINED | Flag.POOR_WEIGHTS, np.nan)
        probability = misfit(unknowns, *refined.moments())
        apart = _disagreement(log_flux, found["log_flux"])
        odd = np.fmax(np.sqrt(apart), np.log(max(probability, LEAST_P)) / np.log(LEAST_MISFIT_P))
        flags = Flag.MISFIT * (probability < LEAST_MISFIT_P) | Flag.DISAGREEMENT * bool(apart > 1)
        if flags:
            return _Found(flags | Flag.NOT_REFINED, odd)
        scale = scene.sky_rms[int(network.dataset["scene"].values[members[0]])].double().numpy()
        found |= {"x": found["x"] + corner[1], "y": found["y"] + corner[0]}
        found["flux"] = np.exp(found.pop("log_flux")) * scale
        return _Found(flags, odd, found, corner, _pixels(unknowns, drawn, found["flux"].mean(0) / scale, scale))


def _put(dataset: xr.Dataset, cutouts: Cutouts, members: NDArray[np.int64], found: _Found) -> None:
    """Put the result for a group in its place."""
    dataset["flags"].values[members] |= int(found.flags)
    if "anomaly" in dataset:
        dataset["anomaly"].values[members] = np.fmax(dataset["anomaly"].values[members], found.anomaly)
    if found.drawn is None:
        return
    drawn = dict(found.drawn)
    flux = drawn.pop("flux").reshape(dataset.sizes["chain"], dataset.sizes["draw"], len(members), -1)
    if "flux_auto" in dataset:
        dataset["flux_auto"].values[:, :, members] *= flux / dataset["flux"].values[:, :, members]
    dataset["flux"].values[:, :, members] = flux
    doubled = np.exp(2j * drawn["angle"])  # angles are the same half a turn away
    middle = np.angle(doubled.mean(0))
    drawn["angle"] = (middle + np.angle(doubled * np.exp(-1j * middle))) / 2
    for name, values in drawn.items():
        for column, numbers in ((name, values.mean(0)), (f"{name}_err", values.std(0))):
            if column in dataset.variables:
                dataset[column].values[members] = numbers
    cutouts.corner[members] = found.corner
    for number, source in enumerate(members):
        for name, arrays in cutouts.known.items():
            pixels = found.pixels.get(name, np.zeros_like(found.pixels["mask"]))
            arrays[source] = pixels[number]


def _cutout(scene: Scene, network: Posterior, members: NDArray[np.int64]) -> tuple[Scene, tuple[int, int], float]:
    """Cut out a group, without the light of other sources; return it, and the row and column of its first pixel.

    The last number is the light of other sources over that of the group, weighted by the latter.
    """
    places, cutouts = network.dataset, network.cutouts
    number = int(places["scene"].values[members[0]])
    slices = []
    for axis, size in zip("yx", scene.image.shape[-2:], strict=True):
        center = places[axis].values[members]
        low, high = max(int(center.min()) - MARGIN, 0), min(int(center.max()) + MARGIN + 2, size)
        slices.append(slice(low, max(high, low + 1)))
    rows, columns = slices
    own, others = np.zeros((2, *scene.image.shape[1:]))
    for source in np.flatnonzero(places["scene"].values == number):
        there = cutouts.cutout("image", int(source))
        (own if source in members else others)[(slice(None), *there.slices)] += there.data
    foreign = (own * others).sum() / max(np.square(own).sum(), 1e-300)
    known = {name: getattr(scene, name)[number : number + 1] for name in SCENE_FIELDS[1:]}
    pixels = (scene.image[number].double() - torch.from_numpy(others))[None, :, rows, columns]
    return Scene(image=pixels, pixel_scale=scene.pixel_scale, **known), (rows.start, columns.start), foreign


def _disagreement(own: NDArray[np.float64], refined: NDArray[np.float64]) -> float:
    """Return the squared distance of two answers ``(draw, source, band)``, over the largest that is not flagged."""
    own, refined = (values.reshape(len(values), -1) for values in (own, refined))
    offset = refined.mean(0) - own.mean(0)
    spread = np.atleast_2d(np.cov(own.T) + np.cov(refined.T))
    return float(offset @ np.linalg.solve(spread, offset) / stats.chi2.isf(LEAST_AGREEMENT_P, len(offset)))


def _pixels(
    unknowns: Unknowns, drawn: NDArray[np.float64], flux: NDArray[np.float64], scale: NDArray[np.float64]
) -> dict[str, NDArray[np.float32]]:
    """Render draws: mean and spread of the light of each source ``(source, band, y, x)``, and its mask.

    The mask is the fraction of draws in which the light exceeds three times the sky noise. Images are scaled to the
    mean flux of all draws ``(source, band)``, since these few are noisy.
    """
    some = torch.from_numpy(drawn[:: max(1, len(drawn) // RENDERED)]).float()
    with torch.no_grad():
        light = unknowns.light(some).clamp(min=0)
        mask = (light.square().sum(2) > MASK_THRESHOLD**2).float().mean(0)
        rendered = unknowns.sites(some)["log_flux"][:, 0, ..., 1].exp().mean(0).numpy()
    unit = (scale * flux / rendered)[..., None, None].astype(np.float32)
    return {"image": light.mean(0).numpy() * unit, "image_std": light.std(0).numpy() * unit, "mask": mask.numpy()}
