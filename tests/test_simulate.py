import pytest
import torch

from probdeblend.prior import Prior
from probdeblend.scene import Instrument
from probdeblend.simulate import render_galsim, render_torch, simulate_blends


@pytest.fixture(scope="module")
def instrument():
    return Instrument.candels_f160w()


def simulated(count, instrument, **options):
    settings = {"prior": Prior.published(), "seed": 3, "render": render_torch} | options
    return list(simulate_blends(count, instrument=instrument, **settings))


def test_galsim_and_torch_draw_the_same(instrument):
    prior = Prior.published()
    pairs = prior.sample(6, seed=5)
    components = prior.components(pairs, instrument, seed=5)
    reference, fast = render_galsim(components, instrument), render_torch(components, instrument)
    error = (fast - reference).abs().amax((-2, -1)) / reference.amax((-2, -1))
    assert error.max() < 1e-3
    assert torch.allclose(fast.sum((-2, -1)), reference.sum((-2, -1)), rtol=3e-3)


def test_batches_and_seeds(instrument):
    blends = simulated(7, instrument, batch_size=3)
    assert [len(blend) for blend in blends] == [3, 3, 1]
    again = simulated(3, instrument, batch_size=3)
    assert torch.equal(blends[0].image, again[0].image)
    other = simulated(3, instrument, batch_size=3, seed=4)
    assert not torch.equal(other[0].image, again[0].image)


def test_truth(instrument):
    (blend,) = simulated(12, instrument)
    assert torch.equal(blend.mask, blend.isolated[:, :, 0] > 3 * instrument.sky_rms)
    magnitude = -2.5 * torch.log10(blend.auto_flux / blend.flux)
    # AUTO misses some light of every galaxy, most of a spheroid's wings.
    assert 0 < float(magnitude.nanmedian()) < 0.25
    residual = (blend.image[:, 0] - blend.isolated.sum(1)[:, 0])[:, :20, :20] / instrument.sky_rms
    assert float(residual.std()) == pytest.approx(1.0, abs=0.2)
    assert (blend.sky_rms == instrument.sky_rms).all()


def test_galsim_set_has_all_its_truth(instrument):
    (blend,) = simulated(2, instrument, render=render_galsim)
    assert all(getattr(blend, name) is not None for name in vars(blend))


def test_errors(instrument):
    with pytest.raises(ValueError, match="count"):
        simulated(-1, instrument)
    with pytest.raises(ValueError, match="batch_size"):
        simulated(1, instrument, batch_size=0)
