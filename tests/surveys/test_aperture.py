"""From Kron to total flux: the aperture correction, and the fluxes of a library."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_isolated import MIDDLE, cut, window_with

from probdeblend.surveys.aperture import fit_aperture_correction, library_of


def test_aperture_correction_follows_the_profile(correction):
    """Wings beyond the aperture: a concentrated galaxy misses more of its light than a disk."""
    values = {"sky_rms": 3e-3, "auto_flux": 100.0}
    disk = SimpleNamespace(half_light_radius=6.0, concentration=2.6, **values)
    spheroid = SimpleNamespace(half_light_radius=6.0, concentration=4.5, **values)
    factors = correction.factors([disk, spheroid])
    assert 1.0 < factors[0] < factors[1] < 1.4
    assert 0 < correction.scatter < 0.05


def test_aperture_correction_needs_galaxies(hst):
    with pytest.raises(ValueError, match="at least 50 simulated galaxies must be found, got"):
        fit_aperture_correction(hst, count=20)


def test_library_of_known_fluxes(hst, correction):
    galaxy = cut(window_with(hst, (MIDDLE, MIDDLE, 50, 4)), hst)
    known = library_of([galaxy], origin="x", instrument=hst, correction=correction, true_flux=[52.0])
    assert known.flux[0] == 52.0
    assert known.flux_kind[0] == "true"
    corrected = library_of([galaxy], origin="x", instrument=hst, correction=correction)
    assert corrected.flux[0] == pytest.approx(galaxy.auto_flux * correction.factors([galaxy])[0])
    assert corrected.flux_error[0] > correction.scatter * corrected.flux[0] * 0.99
    assert np.isnan(corrected.ra).all()
