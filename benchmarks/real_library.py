"""Make a library of isolated real galaxies of several HST surveys, each looked at.

Every set of galaxies has a reader that knows its traps:

- ``candels_gs_3band``: galaxies of GOODS-S in F606W, F814W and F125W (Giavalisco et al. 2004, Grogin et al. 2011), of
  which all pixels beyond an isophote, and negative ones, are zero. There is neither sky nor a PSF: PSFs are those of
  the same filters in other fields, and the sky noise is that of the table's signal-to-noise ratios.
- ``cosmos_f814w_bright`` and ``cosmos_f814w``: galaxies of COSMOS in F814W with a PSF each, in GalSim's RealGalaxy
  form (Mandelbaum et al. 2012, doi:10.1111/j.1365-2966.2012.20983.x). Sources beside them are replaced by zeros in
  some of the images, which end near the galaxies.
- ``candels_f160w``: cutouts of mosaics, out of which `probdeblend.surveys.isolate` cuts the galaxies.

Two further sets are left out: galaxies of ``ivy_030mas.npz`` are galaxies of ``candels_gs_3band`` once more, among
them 7, 19, 40 and 84, and images of ``vela_f160w`` all show one simulated galaxy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import galsim
import numpy as np
from astropy.table import Table
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks._command import FILE, Run, benchmark
from probdeblend.photometry import read_psf
from probdeblend.photometry.sky import dilate
from probdeblend.surveys import Galaxy, isolate, write_library

__all__ = ["main", "real_galaxies"]

BY_EYE = {
    "goods-s:43": "star",
    "goods-s:71": "the same galaxy as 3",
    "goods-s:83": "two sources",
    "goods-s:91": "companion at the rim",
    "goods-s:93": "star",
    "goods-s:94": "companion at the rim",
    "goods-s:110": "star",
    "goods-s:111": "ragged",
    "goods-s:131": "the same galaxy as 80",
    "goods-s:137": "as compact as a star",
    "goods-s:154": "two sources",
    "goods-s:177": "ragged, with a companion at the rim",
    "goods-s:184": "two nuclei",
    "cosmos:5": "a defect of the image, and the noise is not known",
    "cosmos:bright-108402": "masked in the middle",
    "cosmos:bright-116522": "two sources",
    "gds_H.gf18160:42,172": "two sources",
    "gds_H.gf18959:94,123": "star",
}
"""Reasons to reject galaxies that were found by eye on the contact sheets, by identity."""

KEPT_BY_EYE = {"cosmos:42", "cosmos:bright-108277", "cosmos:bright-114596", "gds_H.gf18160:132,131"}
"""Galaxies to keep although a flag is raised: the pixels that are missing, and the noise, hardly matter for them."""

PSF_SIDE = 41
GOODS_FILTERS = {"f606w": 0.59, "f814w": 0.81, "f125w": 1.25}  # wavelength in micron
PSF_SCALE, GOODS_SCALE, COSMOS_SCALE = 0.04, 0.06, 0.03  # arcsec
COSMOS_FAINTEST, COSMOS_ZERO_POINT, COSMOS_WAVELENGTH = 24.2, 25.947, 0.81
SMOOTHING, THRESHOLD = 2.0, 1.0  # Gaussian in pixels, and least light in it over the noise of a pixel
LEAST_AREA = 40  # pixels of a footprint
TAKEN = 0.05  # share of a footprint that may be masked
CANDELS_SNR, CANDELS_ZERO_POINT = 50.0, 25.9463


@benchmark("real_library", resume=False)
@click.option("--data", type=FILE, envvar="PROBDEBLEND_DATA", required=True, help="Folder of all sets.")
def main(run: Run, data: Path) -> None:
    """Make a library of real galaxies from the sets under PROBDEBLEND_DATA."""
    galaxies = real_galaxies(data)
    names = write_library(run.output, galaxies, overwrite=run.overwrite)
    reasons = Counter((one.origin.partition(":")[0], "kept" if one.keep else "; ".join(one.flags)) for one in galaxies)
    rows = [(origin, reason, number) for (origin, reason), number in sorted(reasons.items())]
    click.echo("\n".join(Table(rows=rows, names=("set", "reason", "galaxies")).pformat(max_width=-1, max_lines=-1)))
    click.echo(f"{sum(galaxy.keep for galaxy in galaxies)} of {len(galaxies)} galaxies are kept")
    click.echo(f"written to {run.output}: {', '.join(names)}")


def real_galaxies(data: Path) -> list[Galaxy]:
    """Return the galaxies of all sets, judged."""
    sets = [goods_galaxies(data), *(cosmos_galaxies(data / f"cosmos_f814w{name}") for name in ("_bright", ""))]
    return [_judged(galaxy) for one in [*sets, candels_galaxies(data / "candels_f160w")] for galaxy in one]


def _judged(galaxy: Galaxy) -> Galaxy:
    seen = BY_EYE.get(galaxy.identity)
    flags = (*galaxy.flags, seen) if seen else galaxy.flags
    return replace(galaxy, flags=flags, keep=not flags or galaxy.identity in KEPT_BY_EYE)


def goods_galaxies(data: Path) -> Iterator[Galaxy]:
    """Galaxies of GOODS-S: the footprint is the isophote, without threads and islands, and with its holes filled."""
    folder = data / "candels_gs_3band"
    table = Table.read(folder / "table.csv")
    psfs = np.stack([_resampled(data, name) for name in GOODS_FILTERS])
    with np.load(folder / "stamps.npz") as stored:
        images, numbers, zero_points = stored["images"], stored["id"], stored["zeropoint_ab"]
    light = images.sum((2, 3)) / np.sqrt((images > 0).sum((2, 3)))
    noise = [np.median(light[:, band] / table[f"sn_{name}_est"]) for band, name in enumerate(GOODS_FILTERS)]
    for pixels, number in zip(images, numbers, strict=True):
        isophote = (pixels > 0).any(0)
        footprint = _brightest(pixels.sum(0), ndimage.binary_opening(isophote, np.ones((3, 3))))
        part = tuple(slice(first.min(), first.max() + 1) for first in np.nonzero(isophote))
        yield Galaxy(
            identity=f"goods-s:{number}",
            origin=folder.name,
            pixels=np.where(isophote | footprint, pixels, np.nan)[(slice(None), *part)],
            footprint=footprint[part],
            psf=psfs.astype(np.float32),
            sky_rms=np.array(noise),
            zero_point=zero_points.astype(float),
            wavelength=np.array([*GOODS_FILTERS.values()]),
            pixel_scale=GOODS_SCALE,
            flags=("small",) if footprint.sum() < LEAST_AREA else (),
        )


def _resampled(data: Path, name: str) -> NDArray[np.float64]:
    """Return the PSF of a filter with the pixels of GOODS."""
    psf = read_psf(data / "psfs" / "grizli" / "ceers" / f"psf-ceers-{name}.fits")
    fine = galsim.InterpolatedImage(galsim.Image(psf, scale=PSF_SCALE), x_interpolant="lanczos15")
    grid = {"nx": PSF_SIDE, "ny": PSF_SIDE, "scale": GOODS_SCALE}
    drawn = fine.drawImage(**grid, method="no_pixel", dtype=float).array
    return drawn / drawn.sum()


def _brightest(light: NDArray, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the part of a mask, of those that are connected, with the most light; its holes are filled."""
    labels, number = ndimage.label(mask, np.ones((3, 3)))
    sums = ndimage.sum_labels(light, labels, np.arange(1, number + 1))
    return ndimage.binary_fill_holes(labels == 1 + np.argmax(sums))


def cosmos_galaxies(folder: Path) -> Iterator[Galaxy]:
    """Galaxies of COSMOS: what is connected in the smoothed image, however clumpy, without what is masked by zeros."""
    catalog = galsim.RealGalaxyCatalog("real_galaxy_catalog.fits", dir=str(folder))
    for index in np.flatnonzero(np.asarray(catalog.mag) < COSMOS_FAINTEST):
        pixels, noise = catalog.getGalImage(index).array.astype(float), float(catalog.variance[index]) ** 0.5
        masked = ndimage.binary_dilation(pixels == 0) if (pixels == 0).any() else np.zeros(pixels.shape, dtype=bool)
        weight = ndimage.gaussian_filter((~masked).astype(float), SMOOTHING)
        smooth = ndimage.gaussian_filter(np.where(masked, 0.0, pixels), SMOOTHING) / np.maximum(weight, 1e-3)
        labels, _ = ndimage.label((smooth > THRESHOLD * noise) & ~masked, np.ones((3, 3)))
        own = _brightest(pixels, labels > 0)
        labels[np.bincount(labels.ravel())[labels] < LEAST_AREA] = 0  # noise
        labels[own] = labels.max() + 1
        whole = dilate(own.astype(np.int32)) > 0
        footprint = (dilate(labels) == labels.max()) & whole & ~masked
        grid = {"nx": PSF_SIDE, "ny": PSF_SIDE, "scale": COSMOS_SCALE}
        psf = catalog.getPSF(index).drawImage(**grid, method="no_pixel", dtype=float).array
        yield Galaxy(
            identity=f"cosmos:{folder.name.endswith('bright') * 'bright-'}{catalog.ident[index]}",
            origin=folder.name,
            pixels=np.where(masked, np.nan, pixels)[None].astype(np.float32),
            footprint=footprint,
            psf=(psf / psf.sum())[None].astype(np.float32),
            sky_rms=np.array([noise]),
            zero_point=np.array([COSMOS_ZERO_POINT]),
            wavelength=np.array([COSMOS_WAVELENGTH]),
            pixel_scale=COSMOS_SCALE,
            ra=float(catalog.cat["RA"][index]),
            dec=float(catalog.cat["DEC"][index]),
            flags=("missing pixels",) if (whole & ~footprint).sum() > TAKEN * whole.sum() else (),
        )


def candels_galaxies(folder: Path) -> Iterator[Galaxy]:
    """Galaxies of CANDELS mosaics in F160W, with `isolate`."""
    for path in sorted(folder.glob("*.fits")):
        camera = {"psf": "candels_f160w", "zero_point": CANDELS_ZERO_POINT}
        found = isolate(f"{path}[1]", **camera, least_snr=CANDELS_SNR, origin=path.stem)
        yield from (replace(galaxy, origin=folder.name) for galaxy in found)


if __name__ == "__main__":
    main()
