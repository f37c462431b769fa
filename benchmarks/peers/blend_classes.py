"""Classes of blends by friends of friends: resolved, partly, not recognized; sources that are shredded or missed.

Each detection and each true source belongs to a class (`probdeblend.metrics.blend_classes`), which depends on the
radius within which they are linked and matched: 0.5 and 1 arcsec, as DeepDISC for Roman and Rubin has them. Images are
simulated ones, and a field of the second data challenge of LSST DESC (DC2; Abolfathi et al. 2021,
doi:10.3847/1538-4365/abd62c), of which true positions are known. Both have pixels of 0.2 arcsec, bands g, r and i, and
a PSF of 0.75 arcsec.

What is too faint to be found does not count: in simulations sources with a signal-to-noise ratio below 5, in DC2 those
with an i magnitude above 26. A detection that no other source needs, and that lies within the radius of such a one,
does not count either. DC2 lists what the pipeline of LSST found and matched with the truth: no two that count lie
within 1 arcsec of each other, so that there are no blends to be told apart, and a detection of a source that is not
listed counts as spurious.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import torch
from astropy.modeling.fitting import TRFLSQFitter
from astropy.modeling.models import Moffat2D
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from benchmarks._command import Run, benchmark, kept_arrays, sized_option, weights_option
from benchmarks._held_out import data_folder
from benchmarks._populations import FAINT_SNR
from benchmarks._scenes import LEAST_SNR, column, compare, formatted, positions, truth
from probdeblend.deblending.sep import SepDeblender
from probdeblend.deblending.weights import load
from probdeblend.metrics.detections import blend_classes, match_sources
from probdeblend.photometry.sky import estimate_noise_kernel, subtract_sky
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import PSF_SIZE, Scene
from probdeblend.simulation.cameras import Camera
from probdeblend.simulation.population import Population
from probdeblend.simulation.scenes import Simulator

__all__ = ["classified", "dc2_field", "fields", "main", "row"]

RADII = (0.5, 1.0)  # arcsec
PIXEL_SCALE = 0.2
BANDS, WAVELENGTH = (1, 2, 3), (0.48, 0.62, 0.75)  # g, r, i of six bands; micron
ZERO_POINT = 27.0
MOFFAT = (3.75, 4.0)  # FWHM in pixels and exponent of the simulated PSF, as the stars of DC2 have them
SIDE, GROUPS = 256, 12  # pixels of a field, and groups of sources in it
FAINTEST = 26.0  # i magnitude of a source of DC2 that must be found
STARS, WINDOW = (18.0, 21.5), 7  # i magnitudes of stars that tell the PSF, and pixels around them
CLASSES = ("single", "resolved", "partial", "unrecognized", "shredded", "missed")
EDGES = {
    "snr": (5.0, 10.0, 30.0, 100.0, np.inf),
    "contested": (-np.inf, 0.02, 0.1, 0.3, 1.0),
    "magnitude": (0.0, 23.0, 24.0, 25.0, FAINTEST),
}
Arrays = dict[str, NDArray]
Places = tuple[NDArray, NDArray, NDArray]
Scenes = Callable[[Scene], Posterior]


@benchmark("peers.blend_classes")
@sized_option("--count", 2, 120, help="Simulated fields, of about 50 sources each.")
@weights_option
def main(run: Run, count: int, weights: Path | None) -> None:
    """Tell classes of blends for the network and SEP: by signal-to-noise ratio or magnitude, and by contested light.

    Classes are fractions of the true sources. `detections` is their number over that of true sources; of them,
    `spurious` is the fraction of no source, and `pieces` that of the ones that shredded sources have too many. The DC2
    field needs PROBDEBLEND_DATA.
    """
    deblender = load(weights)
    asked = {"network": partial(deblender.scenes, draws=32), "SEP": SepDeblender(draws=2).scenes}
    with run.unfinished(deblender=deblender, count=count) as kept:
        methods = {method: partial(simulated, scenes) for method, scenes in asked.items()}
        found = {"simulated": compare(kept, "fields", count, fields, methods, seed=run.seed, chunk=1)}
        try:
            scene, magnitude = dc2_field(data_folder() / "deepdisc_fields" / "dc2")
        except FileNotFoundError as error:
            click.echo(f"The DC2 field is left out: {error}")
        else:
            found["DC2"] = {
                method: kept_arrays(kept / f"dc2-{method}.npz", partial(observed, scenes, scene, magnitude))
                for method, scenes in asked.items()
            }
        table = formatted(
            {"images": images, "radius": radius, "method": method} | row(arrays, radius, feature, ends)
            for images, by_method in found.items()
            for radius in RADII
            for feature, ends in bins(next(iter(by_method.values())))
            for method, arrays in by_method.items()
        )
        run.write(table)


def bins(known: Arrays) -> list[tuple[str, tuple[float, float]]]:
    """Return the bins of all features that are known."""
    known_edges = [(feature, ends) for feature, edges in EDGES.items() if feature in known for ends in pairwise(edges)]
    return [("all", (-np.inf, np.inf)), *known_edges]


def row(found: Arrays, radius: float, feature: str, ends: tuple[float, float]) -> dict[str, object]:
    """Return the fraction of the sources in each class and, where all sources count, of the detections."""
    own, theirs = found[f"true_{radius:g}"], found[f"found_{radius:g}"]
    of_found = dict.fromkeys(("detections", "spurious", "pieces"), np.nan)
    if feature == "all":
        chosen = np.ones(len(own), dtype=bool)
        pieces = (theirs == "shredded").sum() - (own == "shredded").sum()
        of_found |= {"detections": _part(len(theirs), len(own)), "pieces": _part(pieces, len(theirs))}
        of_found["spurious"] = _part((theirs == "spurious").sum(), len(theirs))
    else:
        chosen = (found[feature] >= ends[0]) & (found[feature] < ends[1])
    fractions = {name: _part((own[chosen] == name).sum(), chosen.sum()) for name in CLASSES}
    return {"feature": feature, "low": ends[0], "high": ends[1], "sources": int(chosen.sum())} | fractions | of_found


def _part(some: int, every: int) -> float:
    return float(some / every) if every else np.nan


def classified(found: Places, true: Places, counted: NDArray[np.bool_]) -> Arrays:
    """Return the classes of the true sources that count, and of the detections that are not of another one."""
    classes, (bright, faint) = {}, ([values[chosen] for values in true] for chosen in (counted, ~counted))
    for radius in RADII:
        pixels = radius / PIXEL_SCALE
        needed = np.isin(np.arange(len(found[0])), match_sources(found, bright, radius=pixels))
        needed |= blend_classes(found, faint, radius=pixels)[1] == "spurious"
        own, theirs = blend_classes(tuple(values[needed] for values in found), bright, radius=pixels)
        classes |= {f"true_{radius:g}": own, f"found_{radius:g}": theirs}
    return classes


def answered(scenes: Scenes, scene: Scene) -> Places:
    """Return the scene, x and y of what is found."""
    posterior = scenes(scene)
    return tuple(column(posterior, name) for name in ("scene", "x", "y"))


def simulated(scenes: Scenes, scene: Scene) -> Arrays:
    """Return the classes in simulated fields, with signal-to-noise ratio and contested light of the sources."""
    known, true = truth(scene), tuple(values.double().numpy() for values in positions(scene))
    counted = known["snr"] >= LEAST_SNR
    classes = classified(answered(scenes, scene), true, counted)
    return classes | {name: known[name][counted] for name in ("scene", "snr", "contested")}


def observed(scenes: Scenes, scene: Scene, magnitude: NDArray) -> Arrays:
    """Return the classes in the DC2 field, with the magnitudes of its sources."""
    true, counted = tuple(values.double().numpy() for values in positions(scene)), magnitude < FAINTEST
    return classified(answered(scenes, scene), true, counted) | {"magnitude": magnitude[counted]}


def moffat(fwhm: float, exponent: float) -> Tensor:
    """Return a round PSF ``(y, x)`` of unit sum."""
    y, x = np.mgrid[:PSF_SIZE, :PSF_SIZE] - PSF_SIZE // 2
    psf = Moffat2D(gamma=fwhm / 2 / np.sqrt(2 ** (1 / exponent) - 1), alpha=exponent)(x, y)
    return torch.from_numpy(psf / psf.sum()).float()


def fields(count: int, seed: int) -> Scene:
    """Draw fields in three bands, in which groups of sources lie anywhere, faint ones among them."""
    bands = len(BANDS)
    psf = moffat(*MOFFAT).expand(bands, -1, -1)
    camera = Camera(PIXEL_SCALE, psf, torch.ones(bands), wavelength=torch.tensor(WAVELENGTH))
    population = Population.default().replace(snr=(FAINT_SNR, 300.0))
    simulator = Simulator(population, camera, (SIDE, SIDE), groups=GROUPS)
    return Scene.join(simulator.batches(count, seed=seed, batch_size=1))


def dc2_field(folder: Path) -> tuple[Scene, NDArray]:
    """Read the DC2 field, with true positions, and the i magnitudes of its sources.

    Magnitudes are those of point sources, too faint for galaxies; infinite where unknown. The PSF is a Moffat profile,
    whose width and exponent are the medians of fits to bright stars.
    """
    with (folder / "double_test.json").open() as file:
        listed = json.load(file)[0]["annotations"]
    box, magnitude, redshift = (np.array([one[name] for one in listed]) for name in ("bbox", "mag_i", "redshift"))
    place = box[:, :2] + (box[:, 2:] - 1) / 2
    with np.errstate(invalid="ignore"):
        magnitude = np.where(magnitude > 0, magnitude, np.inf)
    images = np.load(folder / "3828_2,2_12_images.npy")[list(BANDS)]
    pixels, noise = (np.stack(values) for values in zip(*map(subtract_sky, images), strict=True))
    star = (redshift == 0) & (magnitude > STARS[0]) & (magnitude < STARS[1])
    psf = [moffat(*star_profile(band, place[star])) for band in pixels]
    inside = ((place >= 0) & (place <= np.array(pixels.shape[:0:-1]) - 1)).all(1)
    known = {"psf": torch.stack(psf)[None], "wavelength": torch.tensor([WAVELENGTH])}
    known |= {"noise_kernel": torch.stack([*map(estimate_noise_kernel, pixels)])[None]}
    known |= {"sky_rms": torch.from_numpy(np.median(noise, (1, 2)))[None].float()}
    known |= {"scene": torch.zeros(int(inside.sum()), dtype=torch.long)}
    known |= {name: torch.from_numpy(values[inside]).float() for name, values in zip("xy", place.T, strict=True)}
    points = (ZERO_POINT,) * len(BANDS)
    image = torch.from_numpy(pixels)[None].float()
    return Scene(image=image, pixel_scale=PIXEL_SCALE, zero_point=points, **known), magnitude[inside]


def star_profile(image: NDArray, place: ArrayLike) -> tuple[float, float]:
    """Return the median FWHM in pixels and exponent of Moffat profiles that fit the stars at places x, y."""
    y, x = np.mgrid[: 2 * WINDOW + 1, : 2 * WINDOW + 1] - WINDOW
    found = []
    for column_, row_ in np.round(place).astype(int):
        star = image[row_ - WINDOW : row_ + WINDOW + 1, column_ - WINDOW : column_ + WINDOW + 1]
        if star.shape == x.shape:
            fit = TRFLSQFitter()(Moffat2D(star.max(), 0.0, 0.0, gamma=3.0, alpha=3.0), x, y, star)
            found.append((fit.fwhm, fit.alpha.value))
    return tuple(np.median(found, axis=0).tolist())


if __name__ == "__main__":
    main()
