"""Galaxies of other surveys, observed again."""

import galsim
import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner

from benchmarks.reobserve import main, reobserve_galaxies
from probdeblend.photometry.sky import dilate
from probdeblend.simulation import Camera
from probdeblend.surveys import Quality

HST = Camera.candels_f160w()


@pytest.mark.slow
def test_cosmos_galaxies_are_observed_anew(data_dir):
    """Fluxes by their magnitudes, and the noise of a CANDELS image all over the stamp."""
    catalog = galsim.RealGalaxyCatalog("real_galaxy_catalog.fits", dir=str(data_dir / "cosmos_f814w"))
    collection = reobserve_galaxies(data_dir / "cosmos_f814w" / "real_galaxy_catalog.fits", instrument=HST)
    found = collection.library
    assert len(found) + collection.skipped.total() == 100
    assert len(found) >= 5
    magnitude = dict(zip(map(str, catalog.ident), catalog.mag, strict=True))
    flagged = (found.quality & Quality.TWO_NOISE_LEVELS > 0).sum()
    for i, pixels in enumerate(found.pixels):
        wanted = 10 ** (-0.4 * (magnitude[found.identity[i].split(":")[1]] - HST.zero_point[0]))
        assert 0.75 < found.auto_flux[i] / wanted < 1.1
        segmentation = found.segmentation[i].astype(np.int32)
        sky = pixels[dilate(segmentation) == 0]
        assert np.median(np.abs(sky)) * 1.4826 == pytest.approx(float(HST.sky_rms[0]), rel=0.06)
        # Around the galaxy, where its own old noise lies, as well.
        near = dilate(segmentation, margin=14, growth=0.5) > 0
        ring = pixels[near & (dilate(segmentation) == 0)]
        if not found.quality[i]:
            assert np.median(np.abs(ring - np.median(ring))) * 1.4826 == pytest.approx(float(HST.sky_rms[0]), rel=0.25)
    assert flagged <= 1


def test_files_that_hold_no_galaxies(tmp_path):
    (tmp_path / "text.fits").write_text("no")
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "image.fits")
    for name in ("text.fits", "image.fits"):
        with pytest.raises(ValueError, match=rf"{name}: not a catalog in GalSim's RealGalaxy format \(.+\)"):
            reobserve_galaxies(tmp_path / name, instrument=HST)
    with pytest.raises(FileNotFoundError, match=r"none.fits: no such file"):
        reobserve_galaxies(tmp_path / "none.fits", instrument=HST)
    found = CliRunner().invoke(main, [str(tmp_path / "text.fits"), "--output", str(tmp_path / "out")])
    assert found.exit_code == 1
    assert "text.fits: not a catalog in GalSim's RealGalaxy format" in found.output
