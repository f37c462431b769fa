"""Libraries for tests: round Gaussian galaxies in white noise."""

import numpy as np

from probdeblend.surveys import Library

STAMP_SIZE = 128


def made(count=12, *, identities=None, **changes):
    """A library of round Gaussian galaxies in white noise."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:STAMP_SIZE, :STAMP_SIZE] - 63.0
    flux = rng.uniform(50, 100, count)
    light = flux[:, None, None] * np.exp(-(x**2 + y**2) / (2 * 5.0**2)) / (2 * np.pi * 25)
    values = {
        "identity": np.array([f"g{i}" for i in range(count)] if identities is None else identities),
        "origin": np.full(count, "made"),
        "pixels": (light + 3e-3 * rng.normal(size=light.shape)).astype(np.float32),
        "segmentation": light > 9e-3,
        "sky_rms": np.full(count, 3e-3),
        "x": np.full(count, 63.0),
        "y": np.full(count, 63.0),
        "ra": np.full(count, np.nan),
        "dec": np.full(count, np.nan),
        "auto_flux": 0.95 * flux,
        "flux_error": 0.02 * flux,
        "half_light_radius": np.full(count, 0.35),
        "galaxy_type": np.full(count, 1),
        "quality": np.zeros(count, dtype=np.int64),
        "keep": np.ones(count, dtype=bool),
        "zero_point": np.full(count, 25.9463),
        "exposure": np.full(count, 3200.0),
    }
    return Library(**(values | changes))
