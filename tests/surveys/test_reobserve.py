"""Galaxies of other surveys, observed again."""

from collections import Counter

import galsim
import numpy as np
import pytest
from astropy.io import fits

from probdeblend.photometry.sky import dilate
from probdeblend.surveys import Quality, reobserve_galaxies
from probdeblend.surveys.reobserve import observe_real_galaxies


@pytest.mark.slow
def test_cosmos_galaxies_are_observed_anew(hst, data_dir):
    """Fluxes by their magnitudes, and the noise of a CANDELS image all over the stamp."""
    catalog = galsim.RealGalaxyCatalog("real_galaxy_catalog.fits", dir=str(data_dir / "cosmos_f814w"))
    skipped = Counter()
    found = list(observe_real_galaxies(catalog, instrument=hst, skipped=skipped))
    assert len(found) + skipped.total() == 100
    assert len(found) >= 5
    magnitude = dict(zip(map(str, catalog.ident), catalog.mag, strict=True))
    flagged = 0
    for galaxy in found:
        wanted = 10 ** (-0.4 * (magnitude[galaxy.identity.split(":")[1]] - hst.zero_point))
        assert 0.75 < galaxy.auto_flux / wanted < 1.1
        flagged += bool(galaxy.quality & Quality.TWO_NOISE_LEVELS)
        sky = galaxy.pixels[dilate(galaxy.segmentation.astype(np.int32)) == 0].reshape(-1)
        assert np.median(np.abs(sky)) * 1.4826 == pytest.approx(hst.sky_rms, rel=0.06)
        # Around the galaxy, where its own old noise lies, as well.
        near = dilate(galaxy.segmentation.astype(np.int32), margin=14, growth=0.5) > 0
        ring = galaxy.pixels[near & (dilate(galaxy.segmentation.astype(np.int32)) == 0)]
        if not galaxy.quality:
            assert np.median(np.abs(ring - np.median(ring))) * 1.4826 == pytest.approx(hst.sky_rms, rel=0.25)
    assert flagged <= 1


def test_files_that_hold_no_galaxies(tmp_path, hst):
    (tmp_path / "text.fits").write_text("no")
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "image.fits")
    for name in ("text.fits", "image.fits"):
        with pytest.raises(ValueError, match=rf"{name}: not a catalog in GalSim's RealGalaxy format \(.+\)"):
            reobserve_galaxies(tmp_path / name, instrument=hst)
    with pytest.raises(FileNotFoundError, match=r"none.fits: no such file"):
        reobserve_galaxies(tmp_path / "none.fits", instrument=hst)
