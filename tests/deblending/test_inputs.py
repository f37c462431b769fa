import numpy as np
import pytest

from probdeblend.deblending.inputs import filled, noise_pixels, stamp_pixels


def test_holes_are_interpolated_or_sky():
    smooth = np.add.outer(np.arange(40.0), np.arange(40.0))
    holed = smooth.copy()
    holed[10:12, 20] = np.inf
    holed[:, 28:] = np.nan
    whole = filled(holed[None])[0]
    assert whole[10:12, 20] == pytest.approx(smooth[10:12, 20], abs=0.5)
    assert (whole[10:30, 39] == 0).all()
    good = np.isfinite(holed)
    assert np.array_equal(whole[good], smooth[good])
    assert np.isinf(holed[10, 20])


def test_masked_pixels_are_bad():
    image = np.ma.array(np.ones((128, 128), np.int16), mask=False)
    image[3, 4] = np.ma.masked
    pixels, unit = stamp_pixels(image)
    assert pixels.shape == (1, 1, 128, 128)
    assert np.argwhere(np.isnan(pixels[0, 0])).tolist() == [[3, 4]]
    assert unit == ""


def test_noise_maps_may_have_holes_but_nothing_negative():
    pixels = np.zeros((2, 1, 128, 128))
    rms = np.ones((128, 128))
    rms[0, 0] = np.nan
    assert noise_pixels(rms, pixels).shape == (1, 1, 128, 128)
    rms[0, 1] = -3
    with pytest.raises(ValueError, match="sky_rms must be positive and finite, got -3"):
        noise_pixels(rms, pixels)
