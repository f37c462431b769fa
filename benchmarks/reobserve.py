"""Make a library of the isolated galaxies of the COSMOS survey, observed again as CANDELS F160W would.

A COSMOS galaxy comes with its own PSF and noise (GalSim's `galsim.RealGalaxyCatalog`; Mandelbaum et al. 2012,
doi:10.1111/j.1365-2966.2012.20983.x). GalSim deconvolves it, and convolution with the wider F160W PSF brings the
deconvolved noise back to a finite, correlated field. New sky noise is added so that its variance and that of the old
noise add up to the instrument's; a galaxy whose old noise alone exceeds that is left out.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from astropy.stats import mad_std
from numpy.typing import NDArray
from scipy import ndimage
from tqdm.auto import tqdm

from benchmarks._command import FILE, Run, benchmark
from probdeblend.photometry.detection import HOT, detect
from probdeblend.photometry.sky import dilate, draw_noise
from probdeblend.scene import STAMP_CENTER, STAMP_SIZE, correlation_sum
from probdeblend.simulation.cameras import Camera
from probdeblend.surveys import Quality, write_library
from probdeblend.surveys.cutouts import NOISE_RATIO, Galaxy, NotIsolatedError, measure_galaxy
from probdeblend.surveys.selection import Collection, collect

if TYPE_CHECKING:
    import galsim

__all__ = ["main", "reobserve_galaxies"]

FAINTEST = 24.2  # magnitude in the catalog's band
SMALLEST_SAMPLE = 50
RING = 10  # width in pixels of the ring around a galaxy whose noise is compared with that farther out


@benchmark("reobserve", resume=False)
@click.argument("catalog", type=FILE)
def main(run: Run, catalog: Path) -> None:
    """Observe the galaxies of CATALOG, in GalSim's RealGalaxy format, as CANDELS F160W would.

    OUTPUT is a library of isolated galaxies, as `probdeblend isolate` makes it, for `probdeblend inject`.
    """
    found = reobserve_galaxies(catalog, instrument=Camera.candels_f160w(), seed=run.seed)
    names = write_library(run.output, found.library, overwrite=run.overwrite)
    click.echo("\n".join(found.summary().pformat(max_width=-1, max_lines=-1)))
    click.echo(f"written to {run.output}: {', '.join(names)}")


def reobserve_galaxies(path: Path, *, instrument: Camera, seed: int = 0) -> Collection:
    """Observe galaxies of a catalog in GalSim's RealGalaxy format, its images beside it, with an instrument."""
    import galsim

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        catalog = galsim.RealGalaxyCatalog(path.name, dir=str(path.parent))
    except Exception as error:  # GalSim and astropy raise many kinds
        reason = " ".join(str(error).split())[:80]
        raise ValueError(f"{path}: not a catalog in GalSim's RealGalaxy format ({reason})") from error
    kernel = galsim.Image(instrument.psf[0].double().cpu().numpy(), scale=instrument.pixel_scale)
    psf = galsim.InterpolatedImage(kernel, x_interpolant=galsim.Lanczos(31))
    skipped: Counter[str] = Counter()
    galaxies: list[Galaxy] = []
    for number in tqdm(range(catalog.nobjects), desc=path.name, unit="galaxy", leave=False):
        try:
            cut = _observe(catalog, number, psf, instrument, seed)
        except NotIsolatedError as error:
            skipped[str(error)] += 1
            continue
        # With their positions, the same galaxies in another library are recognized.
        place = {name.lower(): float(catalog.cat[name][number]) for name in {"RA", "DEC"} & set(catalog.cat.names)}
        told = {"identity": f"cosmos:{catalog.ident[number]}", "origin": path.name, "galaxy_type": -1}
        galaxies.append({"ra": np.nan, "dec": np.nan} | cut | told | place | {"zero_point": instrument.zero_point[0]})
    return collect(galaxies, skipped, instrument.pixel_scale)


def _observe(
    catalog: galsim.RealGalaxyCatalog, number: int, psf: galsim.GSObject, instrument: Camera, seed: int
) -> Galaxy:
    """Observe a galaxy, keeping its magnitude; its number is the key of the noise's seed."""
    import galsim

    if not catalog.mag[number] < FAINTEST:
        raise NotIsolatedError("too faint")
    galaxy = galsim.RealGalaxy(catalog, index=number)
    sky_rms, exposure = float(instrument.sky_rms[0]), float(instrument.exposure[0])
    wanted = 10 ** (-0.4 * (catalog.mag[number] - instrument.zero_point[0]))
    seen = galsim.Convolve(galaxy * (wanted / galaxy.flux), psf)
    grid = {"nx": STAMP_SIZE, "ny": STAMP_SIZE, "scale": instrument.pixel_scale}
    image = seen.drawImage(**grid, method="no_pixel", dtype=float).array
    # The old noise fills the galaxy's own, smaller stamp alone, and may exceed GalSim's model, which is for fluxes per
    # pixel of the catalog's size.
    native = float(catalog.pixel_scale[number])
    side = min(catalog.getGalImage(number).array.shape) * native / instrument.pixel_scale
    inside = np.abs(np.arange(STAMP_SIZE) - STAMP_CENTER) <= side / 2
    own = inside[:, None] & inside
    blank = own & (dilate(detect(image, sky_rms, **HOT).segmentation) == 0)
    model = seen.noise.getVariance() * (instrument.pixel_scale / native) ** 4
    old = max(model, mad_std(image[blank]) ** 2 if blank.sum() > SMALLEST_SAMPLE else 0.0)
    if old > sky_rms**2:
        raise NotIsolatedError("its own noise exceeds the instrument's")
    photons = np.maximum(image, 0.0) / (exposure * float(correlation_sum(instrument.noise_kernel[0])))
    variance = sky_rms**2 - np.where(own, old, 0.0) + photons
    noise = draw_noise(variance.shape, instrument.noise_kernel[0], np.random.default_rng((seed, number)))
    stamp = image + np.sqrt(np.maximum(variance, 0.0)) * noise
    settings = {"exposure": exposure, "kernel": instrument.noise_kernel[0]}
    galaxy = measure_galaxy(stamp, sky_rms, (STAMP_CENTER, STAMP_CENTER), **settings)
    uneven = _noise_ratio(stamp, galaxy["segmentation"]) > NOISE_RATIO
    return galaxy | {"quality": galaxy["quality"] | int(Quality.TWO_NOISE_LEVELS * uneven)}


def _noise_ratio(stamp: NDArray[np.float64], segmentation: NDArray[np.bool_]) -> float:
    """Noise around the galaxy over that far from it, from differences of neighboring pixels: wings cancel."""
    distance = ndimage.distance_transform_edt(~segmentation)[:, 1:]
    difference = np.abs(np.diff(stamp, axis=1))
    near, far = difference[(distance > 2) & (distance <= RING)], difference[distance > 2 * RING]
    if min(near.size, far.size) < 2 * SMALLEST_SAMPLE:
        return 1.0
    return float(np.median(near) / np.median(far))


if __name__ == "__main__":
    main()
