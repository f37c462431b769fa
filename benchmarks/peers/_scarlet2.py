"""Fit blends with scarlet2, where it is installed: each source has one color and a shape of positive pixels.

scarlet2 (https://github.com/pmelchior/scarlet2) is the successor of scarlet (Melchior et al. 2018,
doi:10.1016/j.ascom.2018.07.001). It is used as its quick start does, without a neural prior of the shapes: sources
start from the moments of the light around them, or as points where these make no sense; Adam fits spectra, in steps
relative to themselves, and pixels. What differs is that images are in units of their noise, that steps shrink to zero,
that sources start from moments of images with a rim of zeros, so that boxes may reach over the edge, and that boxes
have at least 25 pixels on a side.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

if TYPE_CHECKING:
    import jax
    import scarlet2

__all__ = ["SIZES", "Fit", "fit", "installed"]

SIZES = (11, 17, 25, 35, 47, 61)  # pixels on a side of the boxes of sources
FRAME_SIGMA = 0.7  # pixels, of the Gaussian PSF that models have before they are convolved
LEAST_SIDE = 25  # pixels, of boxes; where colors change, those of scarlet2 end too close to have room for a galaxy
DARK = 1e-4  # of the peak, the least light of a pixel to start from; of 1e-6 Adam cannot make it bright
LEAST = 0.1  # of the noise of a pixel, to which spectra to start from are raised
WEIGHTLESS = 1e6  # times the median noise; pixels that are noisier have no weight
SPECTRUM_STEP, PIXEL_STEP = 0.05, 0.1  # in the logarithm


class Fit(NamedTuple):
    """What scarlet2 finds.

    Parameters
    ----------
    flux
        Total fluxes ``(source, band)``.
    light
        Light of each source as observed ``(source, band, y, x)``.
    seconds
        CPU time, without that of compilation.
    compilation
        CPU time of the first step, most of it compilation, which each set of boxes needs anew.
    compact
        Whether a source started as a point ``(source,)``.
    """

    flux: NDArray[np.float64]
    light: NDArray[np.float64]
    seconds: float
    compilation: float
    compact: NDArray[np.bool_]


def installed() -> bool:
    """Return whether scarlet2 can be imported."""
    return importlib.util.find_spec("scarlet2") is not None


def fit(images: NDArray, noise: NDArray, psf: NDArray, place: NDArray, *, steps: int = 200) -> Fit:
    """Fit the sources of a blend.

    Parameters
    ----------
    images
        Pixels ``(band, y, x)``, the sky subtracted; those that are not finite have no weight.
    noise
        Standard deviation of the noise ``(band, y, x)``, or of anything that broadcasts to it.
    psf
        Effective PSFs ``(band, y, x)``, squares with an odd side and unit sum.
    place
        Positions x, y ``(source, 2)`` in pixels, inside of the image.
    steps
        Largest number of steps.

    Returns
    -------
    Fit
        Fluxes and light in units of the images, all finite.

    Raises
    ------
    ImportError
        If scarlet2 is not installed.
    ValueError
        If there are no sources, or one is outside of the image.
    RuntimeError
        If the fit diverges.
    """
    if not installed():
        raise ImportError("scarlet2 is not installed: pip install scarlet2, best in an environment of its own")
    import scarlet2

    place = np.asarray(place, dtype=float).reshape(-1, 2)
    if not len(place) or not ((place >= -0.5) & (place < np.array(images.shape[:0:-1]) - 0.5)).all():
        raise ValueError(f"place must have a row x, y inside of the image per source, got {place.tolist()}")
    began, first = time.process_time(), []
    with _quiet():
        unit = np.median(np.broadcast_to(noise, images.shape), (1, 2), keepdims=True)
        data, weight = _weighted(images / unit, noise / unit)
        kernel = scarlet2.ArrayPSF(_trimmed(psf, min(images.shape[1:])))
        starts, compact = _starts(data, weight, kernel, place)
        seen = scarlet2.Observation(data, weight, psf=kernel)
        scene = _matched(seen, place, starts)
        compiling = time.process_time()
        found = scene.fit(
            seen,
            schedule=partial(_fade, steps=steps),
            max_iter=steps,
            progress_bar=False,
            callback=lambda *_: first or first.append(time.process_time() - compiling),
        )
        flux = np.stack([np.asarray(scarlet2.measure.flux(source)) for source in found.sources])
        light = np.stack([np.asarray(seen.render(found.evaluate_source(source))) for source in found.sources])
        del scarlet2.parameter_registry[scene.registry_key]
    if not (np.isfinite(flux).all() and np.isfinite(light).all()):
        raise RuntimeError(f"scarlet2 diverged: fluxes {flux.tolist()}")
    seconds = time.process_time() - began - first[0]
    return Fit(flux * unit[:, 0, 0].astype(float), light * unit, seconds, first[0], compact)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep scarlet2 from printing and from checking what it is given."""
    import scarlet2
    from scarlet2 import validation_utils

    before = validation_utils.VALIDATION_SWITCH
    scarlet2.set_validation(False)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        scarlet2.set_validation(before)


def _weighted(images: NDArray, noise: NDArray) -> tuple[NDArray, NDArray]:
    """Return images and their inverse variances, both zero where one of them is unknown."""
    noise = np.broadcast_to(noise, images.shape)
    good = np.isfinite(images) & (noise > 0) & (noise < WEIGHTLESS)
    return np.where(good, images, 0.0), np.where(good, 1 / np.where(good, noise, 1.0) ** 2, 0.0)


def _trimmed(psf: NDArray, side: int) -> NDArray:
    """Return PSFs without the rim that makes them larger than an image."""
    rim = max(0, (psf.shape[-1] - side + 1) // 2)
    return np.asarray(psf)[:, rim : psf.shape[-1] - rim, rim : psf.shape[-1] - rim]


def _fade(step: jax.Array, *, steps: int) -> jax.Array:
    """Return how long a step is, over the first."""
    import jax.numpy as jnp

    return 0.5 * (1 + jnp.cos(np.pi * step / steps))


def _frame(shape: tuple[int, ...]) -> scarlet2.Frame:
    import scarlet2

    return scarlet2.Frame(scarlet2.Box(shape), psf=scarlet2.GaussianPSF(FRAME_SIGMA))


def _starts(
    data: NDArray, weight: NDArray, psf: scarlet2.ArrayPSF, place: NDArray
) -> tuple[list[tuple[NDArray, NDArray]], NDArray]:
    """Return the spectrum and the pixels that each source starts from, and whether it is a point."""
    import jax.numpy as jnp
    import scarlet2

    rim = max(SIZES) // 2 + 1
    wide = [np.pad(values, ((0, 0), (rim, rim), (rim, rim))) for values in (data, weight)]
    seen = scarlet2.Observation(*wide, psf=psf)
    sizes = [size for size in SIZES if size < min(data.shape[1:])] or [SIZES[0]]
    starts, compact = [], np.zeros(len(place), dtype=bool)
    with scarlet2.Scene(_frame(wide[0].shape)):
        for number, pixel in enumerate(np.round(place[:, ::-1]).astype(int) + rim):
            center = jnp.asarray(pixel)
            try:
                spectrum, shape = scarlet2.init.from_gaussian_moments(seen, center, box_sizes=sizes, min_value=DARK)
                compact[number] = not bool(jnp.isfinite(shape).all() & (shape.max() > 0.5))
            except ValueError:
                compact[number] = True
            if compact[number]:
                spectrum = scarlet2.init.pixel_spectrum(seen, center, correct_psf=True)
                shape = scarlet2.init.compact_morphology(DARK)
            shape = np.pad(shape, max(0, (LEAST_SIDE - len(shape)) // 2), constant_values=DARK)
            starts.append((np.maximum(np.nan_to_num(spectrum), LEAST), shape))
    return starts, compact


def _matched(seen: scarlet2.Observation, place: NDArray, starts: list[tuple[NDArray, NDArray]]) -> scarlet2.Scene:
    """Return a scene whose spectra fit the images best, and whose parameters are free."""
    import scarlet2
    from numpyro.distributions import constraints

    seen.match(_frame(seen.data.shape))
    scene = _scene(seen, place, starts)
    factors = _factors(scene, seen)
    starts = [(np.maximum(s * factor, LEAST), shape) for (s, shape), factor in zip(starts, factors, strict=True)]
    scene = _scene(seen, place, starts)
    relative = partial(scarlet2.relative_step, factor=SPECTRUM_STEP)
    with scarlet2.Parameters(scene):
        for number, source in enumerate(scene.sources):
            free = {"constraint": constraints.positive}
            scarlet2.Parameter(source.spectrum, name=f"spectrum_{number}", stepsize=relative, **free)
            scarlet2.Parameter(source.morphology, name=f"pixels_{number}", stepsize=PIXEL_STEP, **free)
    return scene


def _scene(seen: scarlet2.Observation, place: NDArray, starts: list[tuple[NDArray, NDArray]]) -> scarlet2.Scene:
    import jax.numpy as jnp
    import scarlet2

    with scarlet2.Scene(_frame(seen.data.shape)) as scene:
        for center, start in zip(np.round(place[:, ::-1]).astype(int), starts, strict=True):
            scarlet2.Source(jnp.asarray(center), *map(jnp.asarray, start))
    return scene


def _factors(scene: scarlet2.Scene, seen: scarlet2.Observation) -> NDArray:
    """Return what spectra are to be multiplied by ``(source, band)``, by least squares without negative light.

    The function of scarlet2 0.5.1 that is meant for this, `forced_photometry`, ends with an error.
    """
    light = np.stack([np.asarray(seen.render(scene.evaluate_source(source))) for source in scene.sources], -1)
    root = np.sqrt(np.asarray(seen.weights, dtype=float))[..., None]
    data = (root[..., 0] * np.asarray(seen.data)).reshape(len(light), -1)
    model = (root * light).reshape(len(light), -1, light.shape[-1])
    return np.stack([nnls(*band)[0] for band in zip(model, data, strict=True)], 1)
