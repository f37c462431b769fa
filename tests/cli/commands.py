"""What tests of the command line share: a deblender without a network, small images, and how a refusal looks."""

import numpy as np
import torch
from astropy.io import fits
from astropy.wcs import WCS

from probdeblend.deblending import EXAMPLE_PATH
from probdeblend.deblending.deblender import Deblender
from probdeblend.deblending.inputs import noise_pixels, stamp_pixels
from probdeblend.posterior import Posterior
from probdeblend.scene import Instrument


class FakeDeblender(Deblender):
    """The checks of the real one, without a network: two fluxes of 100 and 50 with an error of 1."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.instrument = Instrument.candels_f160w()
        self.calls = []
        self.network = None
        self.calibrator = None
        self.flux_prior = None

    def forward(self, image, *, sky_rms, draws=1000, passes=32, seed=0, calibrate=True):
        pixels, unit = stamp_pixels(image)
        noise = noise_pixels(sky_rms, pixels)
        self.calls.append({"sky_rms": noise, "draws": draws, "passes": passes, "seed": seed})
        rng = np.random.default_rng(seed)
        mean = np.array([100.0, 50.0])[:, None]
        flux = mean + rng.normal(size=(max(passes, 1), draws // max(passes, 1), len(pixels), 2, 1))
        mask = np.full((len(pixels), 2, 128, 128), 0.25)
        position = np.full((len(pixels), 2), 63.5)
        named = {"mask": mask, "mask_std": mask / 5, "x": position, "y": position, "flux_unit": unit}
        named["anomaly"] = np.full(len(pixels), 0.1)
        return Posterior.from_draws(flux, flux_kind="total", method="network", **named)


def plane(scale=0.06):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150, 2], [100, 100]
    wcs.wcs.cd = np.diag([-scale / 3600, scale / 3600])
    return wcs


def stamp(path, pixels=None, *, scale=0.06):
    pixels = fits.getdata(EXAMPLE_PATH) if pixels is None else pixels
    fits.PrimaryHDU(pixels, plane(scale).to_header() if scale else None).writeto(path)
    return path


def refused(result, *parts):
    """The command ended with one sentence that holds `parts`, beside what progress bars wrote."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    *before, error = result.stderr.splitlines()
    assert "Error: " in error
    assert not [line for line in before if "Error" in line or "Traceback" in line]
    assert result.stdout == ""
    for part in parts:
        assert part in error


def succeeded(result):
    """The command ended well; return what it printed, without progress bars."""
    assert result.exit_code == 0, result.output
    return result.stdout
