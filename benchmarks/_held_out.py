"""Real blends of HSC in five bands, and what is left out of them: a band, or pixels of one.

Blends are those of the public data of Aihara et al. (2018, doi:10.1093/pasj/psx066) in the folder hsc_cosmos_blends,
with inverse variances in the footprint of each blend, PSFs and peaks. Their noise is correlated as `NOISE_KERNEL` has
it, which `estimate_noise_kernel` finds in a large HSC image.

*A band* is predicted from the deblended light of the bands on either side of it. Every source has one shape, the mean
of the bands' deblended images of unit sum, weighted by their signal-to-noise ratios, and one free flux. All bands are
brought to the widest PSF of the three before. The fit is judged by its chi-square over the pixels of the footprint,
divided by its expectation, which allows for the noise of both sides, its correlation, and the number of fluxes.

*Pixels* are predicted from the draws of fluxes, positions and shapes, as Sérsic profiles: a posterior has deblended
images, which are shares of the pixels and thus unknown where these are masked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, special
from scipy.signal import fftconvolve

from benchmarks._real import ln_flux
from benchmarks._scenes import column, flat_draws
from probdeblend.deblending.deblender import Deblender
from probdeblend.deblending.sep import SepDeblender
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import Scene, correlation_sum, drizzle_kernel
from probdeblend.simulation.profiles import Components, render

__all__ = ["BANDS", "BETWEEN", "NOISE_KERNEL", "WAVELENGTH", "Blend", "color_pull", "data_folder", "held_band"]
__all__ += ["held_pixels", "hsc_blends", "interpolation", "light_draws", "measured_snr"]

BANDS, WAVELENGTH = "grizy", (0.481, 0.622, 0.773, 0.891, 0.978)  # micron
PIXEL_SCALE = 0.168  # arcsec
NOISE_KERNEL = drizzle_kernel(0.23)
LARGEST = 128  # pixels on a side
# For each band that is left out, those that are seen; networks are trained for up to three. The ones on either side,
# which predict it, are the second and the third.
BETWEEN = {"r": "zgi", "i": "grz", "z": "riy"}
FRACTION, PATCH = 0.1, 4  # of the pixels, and pixels on a side
DRAWS = 48  # of images
RIDGE = 1e-4  # of the power of a PSF, below which matching does not amplify


@dataclass(frozen=True, eq=False)
class Blend:
    """A blend: pixels and variances ``(band, y, x)``, footprint ``(y, x)``, PSFs, and peaks x, y ``(source, 2)``."""

    name: str
    image: NDArray[np.float64]
    variance: NDArray[np.float64]
    footprint: NDArray[np.bool_]
    psf: NDArray[np.float64]
    place: NDArray[np.float64]

    @cached_property
    def sky_rms(self) -> NDArray[np.float64]:
        """Sky noise of a pixel ``(band,)``: that of most of the pixels."""
        return np.sqrt(np.quantile(self.variance[:, self.footprint], 0.3, axis=1))

    @cached_property
    def gain(self) -> NDArray[np.float64]:
        """Counts per unit of flux ``(band,)``, from how the variance grows with the light."""
        light, extra = self.image[:, self.footprint], self.variance[:, self.footprint] - self.sky_rms[:, None] ** 2
        slope = (light.clip(0) * extra).sum(1) / (light.clip(0) ** 2).sum(1)
        return 1 / (np.maximum(slope, 1e-6 * self.sky_rms) * float(correlation_sum(NOISE_KERNEL)))

    def settings(self, bands: Sequence[int]) -> dict[str, object]:
        """Return arguments of a deblender for some of the bands."""
        waves = [WAVELENGTH[band] for band in bands]
        known = {name: getattr(self, name)[list(bands)] for name in ("psf", "sky_rms", "gain")}
        return known | {"positions": self.place, "zero_point": 27.0, "wavelength": waves}


def data_folder() -> Path:
    """Return the folder with survey data."""
    if (data := os.environ.get("PROBDEBLEND_DATA")) is None:
        raise FileNotFoundError("the variable PROBDEBLEND_DATA must name a folder with survey data")
    return Path(data)


def hsc_blends(count: int) -> list[Blend]:
    """Return the first blends that are at most 128 pixels on a side, in the order of their names."""
    found: list[Blend] = []
    for path in sorted((data_folder() / "hsc_cosmos_blends").glob("*.npz")):
        with np.load(path) as file:
            image, weight, psf = (file[name].astype(np.float64) for name in ("images", "weights", "psfs"))
            place = file["peaks"].astype(np.float64)
        footprint = (weight > 0).all(0)
        if max(image.shape) > LARGEST or not footprint.any() or len(found) == count:
            continue
        typical = np.median(weight[:, footprint], axis=1)[:, None, None]
        variance = 1 / np.where(weight > 0, weight, typical)
        found.append(Blend(path.stem, image, variance, footprint, psf / psf.sum((1, 2), keepdims=True), place))
    return found


def held_band(deblender: Deblender, blend: Blend, band: str, *, seed: int = 0) -> dict[str, NDArray]:
    """Predict a band from its neighbors, divided by the network, by SEP's segments, and not at all.

    SEP's segments end where the light sinks into the noise. Grown ones divide all light that the network finds, each
    pixel going to the nearest segment.

    Returns
    -------
    dict
        Chi-square over its expectation by the name of the method, number of sources and of segments, and the pixels
        ``(y, x)`` that are wanted for a picture: the band, what the network predicts, and residuals over the noise.
    """
    held, seen = BANDS.index(band), [BANDS.index(name) for name in BETWEEN[band]]
    posterior = deblender(blend.image[seen], **blend.settings(seen), draws=64, passes=8, seed=seed)
    shares = {"network": _shares(posterior, blend.image[seen])[:, 1:], "SEP": _segments(blend, seen)[:, None]}
    whole = shares["network"].sum(0, keepdims=True)
    shares |= {"SEP, grown": whole * _nearest(shares["SEP"]), "whole": whole}
    task = _Matched(blend, seen[1:], held)
    found, variance = {}, None
    for method, share in shares.items():
        found[method], model, variance = task.fit(np.broadcast_to(share, (len(share), *task.light.shape)), variance)
        found[f"residual {method}"] = np.where(blend.footprint, (task.data - model) / np.sqrt(variance), 0)
        found.setdefault("model", model)
    return found | {"data": task.data, "sources": len(shares["network"]), "segments": len(shares["SEP"])}


def _shares(posterior: Posterior, image: NDArray) -> NDArray[np.float64]:
    """Return the share ``(source, band, y, x)`` of each source in the light of pixels: deblended over all light."""
    found = np.zeros((len(posterior), *image.shape))
    for number in range(len(posterior)):
        cut = posterior.cutouts.cutout("image", number)
        light = image[:, *cut.slices]
        found[number][:, *cut.slices] = np.divide(cut.data, light, out=np.zeros_like(light), where=light != 0)
    return found.clip(0, 1)


def _segments(blend: Blend, bands: Sequence[int]) -> NDArray[np.float64]:
    """Return the segments ``(segment, y, x)`` of SEP that lie in the footprint."""
    image, rms = (torch.from_numpy(v[list(bands)]).float()[None] for v in (blend.image, blend.sky_rms))
    psf = torch.from_numpy(blend.psf[list(bands)]).float()[None]
    found = SepDeblender(draws=2).scenes(Scene(image=image, sky_rms=rms, psf=psf, pixel_scale=PIXEL_SCALE)).cutouts
    segments = np.zeros((len(found), *blend.footprint.shape))
    for number in range(len(found)):
        cut = found.cutout("mask", number)
        segments[number][cut.slices] = cut.data
    return segments[(segments * blend.footprint).any((1, 2))]


def _nearest(segments: NDArray) -> NDArray[np.float64]:
    """Return segments ``(segment, band, y, x)`` that take all pixels that are nearest to them."""
    if not len(segments):
        return np.zeros_like(segments)
    owner = np.argmin([ndimage.distance_transform_edt(segment == 0) for segment in segments[:, 0]], axis=0)
    return (owner == np.arange(len(segments))[:, None, None]).astype(float)[:, None]


class _Matched:
    """Bands on either side of one that is left out, all brought to the widest of their PSFs."""

    def __init__(self, blend: Blend, sides: Sequence[int], held: int) -> None:
        every = [*sides, held]
        widest = blend.psf[min(every, key=lambda band: (blend.psf[band] ** 2).sum())]
        self.footprint, self.light, self.rms = blend.footprint, blend.image[sides], blend.sky_rms[sides]
        self.kernels = [_matching(blend.psf[band], widest) for band in every]
        self.data, self.noise = _same(blend.image[held], self.kernels[-1]), self._variance(blend.variance[held], -1)
        self.variances = blend.variance[sides]
        whole = fftconvolve(self.kernels[-1], NOISE_KERNEL.double().numpy())
        rho = fftconvolve(whole, whole[::-1, ::-1])
        self.correlation = rho / rho.max()

    def _variance(self, variance: NDArray, number: int) -> NDArray[np.float64]:
        """Return the variance of pixels after convolution, whose noise is correlated before."""
        kernel, noise = self.kernels[number], NOISE_KERNEL.double().numpy()
        more = (fftconvolve(kernel, noise) ** 2).sum() / (kernel**2).sum() / (noise**2).sum()
        return more * _same(variance, kernel**2).clip(1e-12)

    def fit(self, share: NDArray, variance: NDArray | None) -> tuple[float, NDArray, NDArray]:
        """Fit one flux per source; return chi-square over its expectation, the model, and the variance of pixels.

        The latter includes the noise of the model, at the fluxes of a first fit, unless it is given.
        """
        light = share * self.light
        total = light.sum((2, 3)).clip(0)
        weight = total / self.rms**2
        weight = weight / (weight * total).sum(1, keepdims=True).clip(1e-12)
        shape = sum(
            np.stack([_same(own, kernel) for own in light[:, band] * weight[:, band, None, None]])
            for band, kernel in enumerate(self.kernels[:-1])
        )
        if variance is None:
            flux, _ = self._solve(shape, self.noise)
            of_pixel = np.einsum("sbyx,sb->byx", share, weight * flux[:, None]) ** 2 * self.variances
            variance = self.noise + sum(self._variance(values, band) for band, values in enumerate(of_pixel))
        flux, basis = self._solve(shape, variance)
        model = np.tensordot(flux, shape, 1)
        chi2 = ((self.data - model)[self.footprint] ** 2 / variance[self.footprint]).sum()
        fitted = sum((vector * _same(vector, self.correlation)).sum() for vector in basis)
        return chi2 / max(self.footprint.sum() - fitted, 1.0), model, variance

    def _solve(self, shape: NDArray, variance: NDArray) -> tuple[NDArray, NDArray]:
        """Return fluxes by least squares, and an orthonormal basis ``(flux, y, x)`` of what they can fit."""
        scaled = np.where(self.footprint, shape / np.sqrt(variance), 0)
        matrix, data = scaled.reshape(len(shape), -1).T, (self.data / np.sqrt(variance)).ravel()
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        kept = values > 1e-6 * values.max(initial=1e-30)
        flux = right[kept].T @ ((left[:, kept].T @ data) / values[kept])
        return flux, left[:, kept].T.reshape(-1, *self.footprint.shape)


def _matching(psf: NDArray, wanted: NDArray) -> NDArray[np.float64]:
    """Return a kernel of unit sum that turns one PSF into another, wider one."""
    own, aim = (np.fft.fft2(np.fft.ifftshift(values)) for values in (psf, wanted))
    kernel = np.fft.fftshift(np.fft.ifft2(aim * own.conj() / (np.abs(own) ** 2 + RIDGE)).real)
    return kernel / kernel.sum()


def _same(image: NDArray, kernel: NDArray) -> NDArray[np.float64]:
    return fftconvolve(image, kernel, mode="same")


def color_pull(deblender: Deblender, blend: Blend, band: str, scatter: float, *, seed: int = 0) -> dict[str, NDArray]:
    """Compare the flux in a band, from its neighbors' posterior and the prior's scatter, with its own measurement.

    ln flux is interpolated linearly in ln wavelength.
    """
    held, (_, *sides) = BANDS.index(band), (BANDS.index(name) for name in BETWEEN[band])
    seen, joint = [BANDS.index(name) for name in BETWEEN[band]], [sides[0], held, sides[1]]
    answers = [deblender(blend.image[bands], **blend.settings(bands), seed=seed) for bands in (seen, joint)]
    without, measured = (flat_draws(posterior, "total") for posterior in answers)
    weight = interpolation([WAVELENGTH[number] for number in joint])
    predicted, spread = ln_flux(np.exp(np.log(without[..., 1:].clip(1e-30)) @ weight))
    found, own_spread = ln_flux(measured[..., 1])
    apart = predicted - found
    snr = measured_snr(answers[1], blend.sky_rms[held], band=1)
    return {"difference": apart, "z": apart / np.sqrt(spread**2 + own_spread**2 + scatter**2), "snr": snr}


def measured_snr(posterior: Posterior, sky_rms: float, *, band: int = 0) -> NDArray[np.float64]:
    """Return the signal-to-noise ratio of each source from the pixels of its mask, with what noise adds taken off."""
    cuts = [posterior.cutouts.cutout(name, n) for n in range(len(posterior)) for name in ("mask", "image")]
    inside = [light.data[band][mask.data > 0.5] / sky_rms for mask, light in zip(cuts[::2], cuts[1::2], strict=True)]
    return np.sqrt([max((values**2).sum() - len(values), 0) for values in inside])


def interpolation(wavelength: Sequence[float]) -> NDArray[np.float64]:
    """Return the weights of the outer two of three wavelengths in the middle one, linear in their logarithms."""
    first, middle, last = np.log(wavelength)
    return np.array([last - middle, middle - first]) / (last - first)


def held_pixels(deblender: Deblender, blend: Blend, *, patch: bool, seed: int = 0) -> dict[str, NDArray]:
    """Mask pixels of the i band, scattered ones or a patch in the footprint, and predict them from the posterior.

    Returns
    -------
    dict
        ``z`` of the pixels in the footprint, the normal quantile of the pixel's rank among the draws with noise, and
        the light that is expected there over the noise, ``ratio``.
    """
    band, rng = BANDS.index("i"), np.random.default_rng([seed, int(patch)])
    mask = rng.random(blend.footprint.shape) < FRACTION
    if patch:
        y, x = rng.permutation(np.argwhere(blend.footprint))[0]
        mask = np.zeros_like(mask)
        mask[slice(max(y - PATCH // 2, 0), y + PATCH // 2), slice(max(x - PATCH // 2, 0), x + PATCH // 2)] = True
    posterior = deblender(blend.image[band], mask=mask, **blend.settings([band]), seed=seed)
    light = light_draws(posterior, blend.psf[band], blend.footprint.shape, draws=DRAWS, seed=seed)
    chosen = mask & blend.footprint
    drawn, noise = light[:, chosen], np.sqrt(blend.variance[band][chosen])
    rank = special.ndtr((blend.image[band][chosen] - drawn) / noise).mean(0)
    return {"z": special.ndtri(rank.clip(1e-9, 1 - 1e-9)), "ratio": drawn.mean(0) / noise}


def light_draws(
    posterior: Posterior, psf: NDArray, shape: tuple[int, int], *, draws: int, seed: int
) -> NDArray[np.float64]:
    """Return draws ``(draw, y, x)`` of the light of all sources, in an image of one band and one scene.

    Every source is a Sérsic profile of its drawn flux, with a position and shape that are drawn with their errors,
    independently of each other and of the flux.
    """
    rng = np.random.default_rng(seed)
    flux = flat_draws(posterior, "total")[..., 0]
    flux = flux[np.linspace(0, len(flux) - 1, draws).astype(int)]

    def drawn(name: str, low: float, high: float) -> NDArray:
        values = column(posterior, name) + column(posterior, f"{name}_err") * rng.normal(size=flux.shape)
        return values.clip(low, high)

    side = max(*shape, len(psf))
    values = {name: drawn(name, -side / 8, 1.1 * side) for name in "xy"}
    values |= {"half_light_radius": drawn("half_light_radius", 0.05, side), "angle": drawn("angle", -np.inf, np.inf)}
    values |= {"axis_ratio": drawn("axis_ratio", 0.1, 1), "sersic_index": drawn("sersic_index", 0.5, 6)}
    star = rng.random(flux.shape) < column(posterior, "star")
    values["half_light_radius"] = np.where(star, 0.01, values["half_light_radius"]) / posterior.dataset.pixel_scale
    light = {name: torch.from_numpy(array)[..., None] for name, array in (values | {"flux": flux}).items()}
    sources = Components(**light, present=torch.ones(*flux.shape, 1, dtype=torch.bool))
    images = render(sources, torch.from_numpy(psf), pixel_scale=1.0, size=side)
    return images.sum(1).numpy()[:, : shape[0], : shape[1]]
