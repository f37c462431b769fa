"""From Kron to total flux: the aperture correction, and the fluxes of a library."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_isolated import MIDDLE, cut, window_with

from probdeblend.surveys.aperture import fit_aperture_correction, library_of


@pytest.mark.slow
def test_aperture_correction_follows_the_profile(measured_correction):
    """Wings beyond the aperture: a concentrated galaxy misses more of its light than a disk."""
    values = {"sky_rms": 3e-3, "auto_flux": 100.0}
    disk = SimpleNamespace(half_light_radius=6.0, concentration=2.6, **values)
    spheroid = SimpleNamespace(half_light_radius=6.0, concentration=4.5, **values)
    factors = measured_correction.factors([disk, spheroid])
    assert 1.0 < factors[0] < factors[1] < 1.4
    assert 0 < measured_correction.scatter < 0.05


def test_aperture_correction_needs_galaxies(hst):
    with pytest.raises(ValueError, match="at least 50 simulated galaxies must be found, got"):
        fit_aperture_correction(hst, count=8)


def test_a_library_has_corrected_fluxes(hst, correction):
    galaxy = cut(window_with(hst, (MIDDLE, MIDDLE, 50, 4)), hst)
    library = library_of([galaxy], origin="x", instrument=hst, correction=correction)
    assert library.flux_kind.tolist() == ["corrected"]
    assert library.flux[0] == pytest.approx(galaxy.auto_flux * correction.factors([galaxy])[0])
    assert library.flux_error[0] > correction.scatter * library.flux[0] * 0.99
    assert np.isnan(library.ra).all()
