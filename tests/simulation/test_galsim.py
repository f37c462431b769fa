from dataclasses import fields, replace

import galsim
import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from probdeblend.photometry.detection import auto_flux
from probdeblend.scene import GALAXY_TYPES, STAMP_CENTER, Blend, Components, Instrument
from probdeblend.simulation import (
    Prior,
    read_blends,
    render_galsim,
    render_torch,
    simulate,
    simulate_blends,
    simulate_mosaic,
    write_blends,
)


@pytest.fixture(scope="module")
def hst():
    return Instrument.candels_f160w()


@pytest.fixture(scope="module")
def prior():
    return Prior.published()


TRUTH = [field.name for field in fields(Blend) if field.name != "identity"]


def simulated(count, prior, instrument, **options):
    options = {"seed": 1, "render": render_torch, "batch_size": 8} | options
    return list(simulate_blends(count, prior=prior, instrument=instrument, **options))


@pytest.fixture(scope="module")
def blends(prior, hst):
    return Blend.join(simulated(40, prior, hst, batch_size=20))


@pytest.mark.slow
def test_galsim_and_torch_draw_the_same_galaxies(hst):
    """Twelve blends with every type, faint and bright, companions anywhere in some of them."""
    prior = replace(Prior.default(), anywhere_fraction=0.3)
    pairs = prior.sample(12, seed=4)
    kinds = torch.arange(24).reshape(12, 2) % len(GALAXY_TYPES)
    light = prior.components(pairs | {"galaxy_type": kinds}, hst, seed=5)
    assert set(light.present.sum(-1).flatten().tolist()) > {1, 2, 4}
    galsim_images, torch_images = render_galsim(light, hst), render_torch(light, hst)
    assert galsim_images.dtype == torch_images.dtype == torch.float32
    peak = galsim_images.amax((-2, -1))
    assert float(((galsim_images - torch_images).abs().amax((-2, -1)) / peak).max()) < 1e-3
    missing = (galsim_images - torch_images).sum((-2, -1)) / light.total_flux
    assert float(missing.abs().max()) < 3e-3


def one_galaxy(**changes):
    numbers = {"flux": 5.0, "half_light_radius": 0.3, "sersic_index": 1.0, "axis_ratio": 0.5, "angle": 0.4}
    numbers |= {"x": STAMP_CENTER, "y": STAMP_CENTER} | changes
    present = torch.ones(1, 1, 1, dtype=torch.bool)
    return Components(**{name: torch.full((1, 1, 1), value) for name, value in numbers.items()}, present=present)


@pytest.mark.parametrize("render", [render_galsim, render_torch])
def test_positions_and_angles(hst, render):
    """The light's moments against those of a round galaxy at the center, which the PSF's own are taken out with."""
    y, x = torch.meshgrid(*(torch.arange(128.0).double(),) * 2, indexing="ij")

    def moments(**changes):
        image = render(one_galaxy(**changes), hst)[0, 0].double()
        assert float(image.sum()) == pytest.approx(5, rel=2e-3)
        share = image / image.sum()
        center = [float((share * axis).sum()) for axis in (x, y)]
        dx, dy = x - center[0], y - center[1]
        return np.array(center), np.array([float((share * p).sum()) for p in (dx * dx, dy * dy, dx * dy)])

    center, second = moments(x=70.0, y=50.25)
    middle, round_ = moments(axis_ratio=1.0)
    np.testing.assert_allclose(center - middle, [70.0 - STAMP_CENTER, 50.25 - STAMP_CENTER], atol=0.05)
    xx, yy, xy = second - round_
    assert 0.5 * np.arctan2(2 * xy, xx - yy) == pytest.approx(0.4, abs=0.03)


def test_galsim_draws_sums_and_leaves_out_what_is_absent(hst):
    parts = [one_galaxy(x=60.0), one_galaxy(flux=2.0, sersic_index=2.0, y=70.0)]
    names = [field.name for field in fields(Components)]
    both = Components(**{name: torch.cat([getattr(p, name) for p in parts], -1) for name in names})
    images = [render_galsim(light, hst) for light in parts]
    torch.testing.assert_close(render_galsim(both, hst), sum(images), atol=2e-5, rtol=0)
    first = replace(both, present=torch.tensor([[[True, False]]]))
    torch.testing.assert_close(render_galsim(first, hst), images[0], atol=1e-6, rtol=0)
    none = replace(both, present=torch.zeros(1, 1, 2, dtype=torch.bool))
    assert not render_galsim(none, hst).any()


def test_galsim_refuses_what_it_cannot_draw(hst):
    with pytest.raises(galsim.GalSimRangeError, match="Sersic index"):
        render_galsim(one_galaxy(sersic_index=9.0), hst)


def test_truth_belongs_to_the_image(blends, hst):
    assert blends.image.shape == (40, 1, 128, 128)
    assert (blends.sky_rms == torch.tensor(hst.sky_rms)).all()
    assert (blends.exposure == hst.exposure).all()
    assert torch.equal(blends.mask, blends.isolated[:, :, 0] > 3 * torch.tensor(hst.sky_rms))
    assert float(blends.mask.sum((-2, -1)).float().min()) > 20
    inside = blends.isolated.sum((-2, -1)) / blends.flux
    assert float(inside.max()) < 1.005
    assert float(inside.median()) > 0.97


def test_rules_of_a_blend(blends, hst):
    magnitude = hst.zero_point - 2.5 * torch.log10(blends.flux[..., 0])
    assert float((magnitude[:, 0] - magnitude[:, 1]).abs().max()) < 2.001
    for center in (blends.x, blends.y):
        assert float((center[:, 0] - STAMP_CENTER).abs().max()) <= 1


def test_auto_flux_is_that_of_each_galaxy_alone(blends, hst):
    expected = auto_flux(blends.isolated[3, 1, 0].numpy(), hst.sky_rms)
    assert float(blends.auto_flux[3, 1, 0]) == pytest.approx(expected)
    ratio = blends.auto_flux / blends.flux
    assert 0.85 < float(ratio.nanmedian()) < 1
    assert float(ratio.isnan().float().mean()) < 0.02


def test_what_is_left_is_noise(blends, hst):
    """Residuals over their expected scatter: unit variance, and correlated as drizzled pixels are."""
    light = blends.isolated.sum(1)
    residual = blends.image - light
    assert abs(float(residual.mean())) < 5 * hst.sky_rms * 2.25 / (residual.numel() ** 0.5)
    sky = residual[light < 0.01 * hst.sky_rms]
    assert float(sky.std()) == pytest.approx(hst.sky_rms, rel=0.02)
    neighbors = (residual[..., 1:] * residual[..., :-1]).mean() / residual.square().mean()
    assert float(neighbors) == pytest.approx(0.52, abs=0.03)
    bright = light > 10 * hst.sky_rms
    assert residual[bright].std() > 1.05 * sky.std()


def test_same_seed_same_bits_whatever_the_count(prior, hst):
    before = torch.random.get_rng_state()
    short, long = (Blend.join(simulated(count, prior, hst)) for count in (5, 11))
    for name in TRUTH:
        first, second = getattr(short, name), getattr(long, name)[:5]
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    other = simulated(5, prior, hst, seed=2)[0]
    assert not torch.equal(other.x, short.x)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_batches_differ_and_both_renderers_draw_the_same_truth(prior, hst):
    one, two = simulated(4, prior, hst, batch_size=2)
    assert not torch.equal(one.x, two.x)
    (drawn,) = simulated(2, prior, hst, batch_size=2, render=render_galsim)
    for name in ("x", "y", "flux", "galaxy_type", "half_light_radius"):
        assert torch.equal(getattr(drawn, name), getattr(one, name))
    torch.testing.assert_close(drawn.image, one.image, atol=2e-3 * float(one.isolated.max()), rtol=0)


def test_noise_can_be_white_and_without_photons(prior, hst):
    quiet = hst.replace(noise_kernel=None, exposure=float("inf"))
    blend = Blend.join(simulated(8, prior, quiet))
    residual = (blend.image - blend.isolated.sum(1)) / hst.sky_rms
    assert float(residual.std()) == pytest.approx(1, abs=0.01)
    assert float((residual[..., 1:] * residual[..., :-1]).mean()) == pytest.approx(0, abs=0.01)
    assert torch.isinf(blend.exposure).all()


def test_lengths_of_batches(prior, hst):
    assert [len(batch) for batch in simulated(9, prior, hst, batch_size=4)] == [4, 4, 1]
    assert simulated(0, prior, hst) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": -1}, "count must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -3}, "seed must be at least 0, got -3"),
    ],
)
def test_messages_come_at_once(prior, hst, options, message):
    options = {"count": 1, "seed": 0} | options
    with pytest.raises(ValueError, match=message):
        simulate_blends(options.pop("count"), prior=prior, instrument=hst, **options)


def test_a_stored_set_is_what_was_simulated(prior, hst, tmp_path):
    path = tmp_path / "blends"
    count = write_blends(path, iter(simulated(5, prior, hst, batch_size=3)), instrument=hst)
    stored, expected = read_blends(path), Blend.join(simulated(5, prior, hst, batch_size=3))
    assert count == 5
    for name in TRUTH:
        found, true = getattr(stored, name).numpy(), getattr(expected, name).numpy()
        rounding = {"rtol": 2**-11, "atol": 1e-7} if name in ("image", "isolated") else {"rtol": 0}
        np.testing.assert_allclose(found, true, **rounding)


@pytest.mark.slow
def test_same_bits_whatever_the_workers(prior, hst):
    alone, shared = (Blend.join(simulated(10, prior, hst, batch_size=4, workers=number)) for number in (0, 2))
    for name in TRUTH:
        assert torch.equal(getattr(alone, name), getattr(shared, name)), name


def test_a_later_start_goes_on(prior, hst):
    batches, later = simulated(10, prior, hst, batch_size=4), simulated(10, prior, hst, batch_size=4, first=2)
    assert len(later) == 1
    assert torch.equal(later[0].image, batches[2].image)


def test_a_mosaic_holds_the_galaxies_of_its_catalog(hst):
    image, catalog = simulate_mosaic(10, (300, 420), prior=Prior.published(), instrument=hst, seed=2)
    assert image.shape == (300, 420)
    assert len(catalog) == 10
    assert ((catalog["x"] > -1) & (catalog["x"] < 420) & (catalog["y"] > -1) & (catalog["y"] < 300)).all()
    magnitude = hst.zero_point - 2.5 * np.log10(catalog["flux"])
    np.testing.assert_allclose(magnitude, catalog["magnitude"], rtol=1e-5)
    for row in catalog:
        x, y = int(np.rint(row["x"])), int(np.rint(row["y"]))
        assert image[max(y - 4, 0) : y + 5, max(x - 4, 0) : x + 5].mean() > 5 * hst.sky_rms
    again, _ = simulate_mosaic(10, (300, 420), prior=Prior.published(), instrument=hst, seed=2)
    assert np.array_equal(again, image)
    with pytest.raises(ValueError, match=r"shape must be at least 128 pixels on a side, got \(100, 300\)"):
        simulate_mosaic(1, (100, 300), prior=Prior.published(), instrument=hst, seed=2)
    with pytest.raises(ValueError, match="count must not be negative, got -1"):
        simulate_mosaic(-1, (300, 300), prior=Prior.published(), instrument=hst, seed=2)


@pytest.mark.slow
def test_crowded_stamps_say_how_many_galaxies_they_hold(hst, false_alarm):
    prior = replace(Prior.published(), crowding=(0.2, 0.5, 0.2, 0.1))
    blends = Blend.join(simulated(128, prior, hst, batch_size=64))
    there = ~blends.flux[..., 0].isnan()
    assert blends.flux.shape == (128, 4, 1)
    assert torch.equal(there.sum(1), blends.count)
    for number, share in enumerate(prior.crowding, start=1):
        assert binomtest(int((blends.count == number).sum()), 128, share).pvalue > false_alarm
    assert not blends.isolated[~there].any()
    assert not blends.mask[~there].any()
    assert (blends.galaxy_type[~there] == -1).all()
    for name in ("x", "y", "half_light_radius", "auto_flux"):
        assert torch.equal(getattr(blends, name).reshape(128, 4).isnan(), ~there), name
    magnitude = -2.5 * blends.flux[..., 0].log10()
    assert float((magnitude - magnitude[:, :1]).abs().nan_to_num().max()) < 2
    # One galaxy fewer changes nothing else: pairs are drawn as before.
    pairs = Blend.join(simulated(8, replace(prior, crowding=(0.0, 1.0)), hst, batch_size=8))
    assert pairs.flux.shape == (8, 2, 1)


def test_smooth_galaxies_have_one_component(hst):
    prior = replace(Prior.published(), smooth=True)
    light = prior.components(prior.sample(40, seed=1), hst, seed=1)
    assert (light.present.sum(-1) == 1).all()
    assert float(light.sersic_index.max()) > 2.5


def test_crowding_is_a_distribution():
    for shares in ((0.5, 0.4), (-0.5, 1.5), (), (0.1,) * 10):
        with pytest.raises(ValueError, match="crowding must be up to 5 probabilities that sum to 1"):
            replace(Prior.published(), crowding=shares)


def test_simulate_gives_what_the_batches_hold(prior, hst):
    whole = simulate(5, seed=3, render=render_torch)
    (batch,) = simulated(5, prior, hst, seed=3, batch_size=5)
    for name in TRUTH:
        torch.testing.assert_close(getattr(whole, name), getattr(batch, name), rtol=0, atol=0, equal_nan=True)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        simulate(0)
