"""Galaxies for tests: round and Gaussian, in white noise."""

import numpy as np

from probdeblend.surveys.library import Galaxy


def gaussian(shape, center, sigma):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)


def galaxy(number=0, *, bands=1, side=80, **changes):
    """A galaxy of 100 units of flux in a stamp of sky with an rms of 3e-3."""
    rng = np.random.default_rng(number)
    light = 100 * gaussian((side, side), (side / 2 + 0.3, side / 2 - 0.2), 4.0)
    values = {
        "identity": f"g{number}",
        "origin": "made",
        "pixels": (light + 3e-3 * rng.normal(size=(bands, side, side))).astype(np.float32),
        "footprint": light > 9e-3,
        "psf": np.repeat(gaussian((41, 41), (20, 20), 1.3)[None], bands, axis=0).astype(np.float32),
        "sky_rms": np.full(bands, 3e-3),
        "zero_point": np.full(bands, 25.9463),
        "wavelength": np.full(bands, np.nan),
        "pixel_scale": 0.06,
    }
    return Galaxy(**(values | changes))
