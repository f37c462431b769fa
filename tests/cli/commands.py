"""What tests of the command line share: a deblender without a network, and how a refusal looks."""

import numpy as np
from astropy.wcs import WCS

from probdeblend.posterior import Cutouts, Posterior


class FakeDeblender:
    """Keeps what it is asked, and answers with two sources of flux 100 and 50 with an error of 1."""

    def __init__(self):
        self.calls = []
        self.calibrator = "inside the weights"

    def __call__(self, image, **options):
        self.calls.append({"image": image} | options)
        options["progress"](1, 1)
        rng = np.random.default_rng(options["seed"])
        mean = np.array([100.0, 50.0])[:, None]
        flux = mean + rng.normal(size=(2, options["draws"] // 2, 2, 1))
        mask = [np.full((20, 20), 0.9)] * 2
        cutouts = Cutouts(np.array([[50, 50], [60, 64]]), (128, 128), mask=mask, image=[m[None] for m in mask])
        position = {"x": [60.0, 74.0], "y": [60.0, 70.0], "scene": [0, 0], "group": [0, 0]}
        named = {"unit": "electron / s", "zero_point": (25.9463,), "cutouts": cutouts, "wcs": plane()}
        posterior = Posterior.from_draws(flux, 0.9 * flux, **position, **named)
        posterior.dataset.attrs["notes"] = "the noise is taken as white; the sky is subtracted"
        return posterior


def plane(scale=0.06):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150, 2], [100, 100]
    wcs.wcs.cd = np.diag([-scale / 3600, scale / 3600])
    return wcs


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
