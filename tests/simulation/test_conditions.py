"""Conditions of a training set, and batches that are turned."""

import itertools

import pytest
import torch

from probdeblend.scene import Instrument
from probdeblend.simulation.conditions import Batch, Conditions, turn


@pytest.fixture(scope="module")
def instrument():
    return Instrument.candels_f160w()


def test_turn_moves_images_and_masks_together():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    mask = torch.stack([image[:, 0] > 3, image[:, 0] > 11], 1)
    flux = torch.ones(1, 2)
    for quarters, flip in itertools.product(range(4), (False, True)):
        turned, same, masks, light = turn(Batch(image, flux, mask, 2.0 * mask), quarters=quarters, flip=flip)
        assert torch.equal(light, 2.0 * masks)
        assert torch.equal(masks[:, 0], turned[:, 0] > 3)
        assert torch.equal(same, flux)
    quarter = turn(Batch(image, flux, mask, mask), quarters=1, flip=False).image
    # A quarter turn from +x to +y brings the pixel at (x, y) = (3, 0) to (3, 3).
    assert quarter[0, 0, 3, 3] == image[0, 0, 0, 3]


def test_conditions_errors():
    with pytest.raises(ValueError, match="sky_rms must be a positive, increasing range"):
        Conditions(sky_rms=(0.0, 1.0))
    with pytest.raises(ValueError, match="exposure must be a positive, increasing range"):
        Conditions(exposure=(5.0, 1.0))
    with pytest.raises(ValueError, match="psf_growth must be a positive, increasing range"):
        Conditions(psf_growth=(1.1, 0.9))
    with pytest.raises(ValueError, match="psf_shear must be at least 0 and less than 1, got 1"):
        Conditions(psf_shear=1.0)


def test_psf_varies_within_its_range(instrument):
    """Widths by the second moment within 8 pixels, relative to the instrument's."""
    places = torch.arange(-32, 33.0)
    near = (places[:, None].square() + places.square() < 64).float()

    def moments(psf):
        light = psf * near / (psf * near).sum()
        return (light * places.square()).sum(), (light * places[:, None].square()).sum()

    with torch.random.fork_rng():
        torch.manual_seed(1)
        drawn = [Conditions().sample_psf(instrument.psf) for _ in range(60)]
    nominal = sum(moments(instrument.psf))
    size = torch.stack([(sum(moments(psf)) / nominal).sqrt() for psf in drawn])
    assert 0.96 < float(size.min()) < 0.98
    assert 1.02 < float(size.max()) < 1.04
    x, y = torch.tensor([moments(psf) for psf in drawn]).T
    assert 0.01 < float(((x - y) / (x + y)).std()) < 0.03
    assert Conditions(psf_growth=(1, 1), psf_shear=0).sample_psf(instrument.psf) is instrument.psf
