import json
import math
from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from probdeblend.scene import GALAXY_TYPES, Blend, Components, Instrument, seed_of


def instrument(**changes):
    numbers = {"pixel_scale": 0.06, "psf": torch.ones(3, 3) / 9, "zero_point": 26.0, "sky_rms": 1e-3}
    return Instrument(**(numbers | changes))


def components(blends=2, galaxies=2, parts=3, **changes):
    shape = (blends, galaxies, parts)
    values = {field.name: torch.rand(shape) for field in fields(Components)}
    return Components(**(values | {"present": torch.rand(shape) < 0.5} | changes))


def blend(length=3, galaxies=2, bands=1, size=8, **changes):
    one, many = (length, galaxies), (length, galaxies, bands)
    values = {
        "image": torch.rand(length, bands, size, size),
        "sky_rms": torch.rand(length) + 0.1,
        "flux": torch.rand(many),
        "auto_flux": torch.rand(many),
        "mask": torch.rand(*one, size, size) < 0.5,
        "isolated": torch.rand(*many, size, size),
        "x": torch.rand(one),
        "y": torch.rand(one),
        "galaxy_type": torch.randint(0, len(GALAXY_TYPES), one),
        "half_light_radius": torch.rand(one),
        "exposure": torch.rand(length),
        "count": torch.randint(1, 4, (length,)),
        "identity": torch.randint(0, 9, one),
    }
    return Blend(**(values | changes))


def test_candels_is_a_sampled_psf_with_drizzled_noise():
    hst = Instrument.candels_f160w(sky_rms=4e-3)
    assert (hst.pixel_scale, hst.zero_point, hst.sky_rms, hst.exposure) == (0.06, 25.9463, 4e-3, 3200.0)
    assert hst.psf.dtype == torch.float32
    assert float(hst.psf.sum()) == pytest.approx(1, abs=1e-6)
    middle = hst.psf.shape[0] // 2
    assert int(hst.psf.argmax()) == middle * hst.psf.shape[1] + middle
    assert hst.noise_kernel.shape == (3, 3)
    torch.testing.assert_close(hst.noise_kernel, hst.noise_kernel.rot90())


@pytest.mark.parametrize("name", ["pixel_scale", "sky_rms", "exposure"])
@pytest.mark.parametrize("value", [0.0, -0.3, math.nan])
def test_numbers_of_an_instrument_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive, got {value}"):
        instrument(**{name: value})


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (9,), (1, 3, 3)])
def test_psf_must_be_an_odd_square(shape):
    with pytest.raises(ValueError, match="psf must be square with an odd number of pixels on a side, got shape"):
        instrument(psf=torch.full(shape, 1 / math.prod(shape)))


def test_psf_must_have_unit_sum():
    with pytest.raises(ValueError, match="psf must have unit sum, got 9"):
        instrument(psf=torch.ones(3, 3))


def test_instrument_copies():
    first = instrument(noise_kernel=torch.ones(3, 3))
    second = first.replace(sky_rms=2e-3)
    assert (first.sky_rms, second.sky_rms) == (1e-3, 2e-3)
    moved = first.to("cpu")
    assert torch.equal(moved.psf, first.psf)
    assert torch.equal(moved.noise_kernel, first.noise_kernel)
    assert instrument().to("cpu").noise_kernel is None
    with pytest.raises(FrozenInstanceError):
        first.sky_rms = 1.0
    with pytest.raises(ValueError, match="sky_rms must be positive"):
        first.replace(sky_rms=-1.0)


def test_instrument_describes_itself():
    numbers = {"pixel_scale": 0.06, "zero_point": 26.0, "sky_rms": 1e-3}
    assert json.loads(instrument().describe()) == numbers | {"exposure": None}
    assert json.loads(instrument(exposure=3200.0).describe())["exposure"] == 3200.0


@pytest.mark.parametrize("blends", [0, 1, 7])
def test_total_flux_counts_what_is_present(blends):
    light = components(blends, flux=torch.full((blends, 2, 3), 2.0))
    torch.testing.assert_close(light.total_flux, 2.0 * light.present.sum(-1))
    assert light.total_flux.shape == (blends, 2)
    assert len(light) == blends


def test_components_must_agree_in_shape():
    with pytest.raises(ValueError, match=r"flux must have the axes \(blend, galaxy, component\), got shape"):
        components(flux=torch.rand(2, 2))
    with pytest.raises(ValueError, match=r"angle must have the shape of flux \(2, 2, 3\), got \(2, 2, 1\)"):
        components(angle=torch.rand(2, 2, 1))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_blend_of_any_length(count):
    assert len(blend(count)) == count
    assert len(blend(count, galaxies=3, bands=2)) == count
    assert len(Blend(image=torch.rand(count, 1, 8, 8), sky_rms=torch.ones(count))) == count


@pytest.mark.parametrize("batch", [components, blend])
def test_select_and_move_act_on_every_field(batch):
    made = batch(3)
    for index, kept in ((slice(1), [0]), (torch.tensor([2, 0]), [2, 0])):
        picked = made.select(index)
        assert type(picked) is type(made)
        for field in fields(made):
            torch.testing.assert_close(getattr(picked, field.name), getattr(made, field.name)[kept])
    assert all(getattr(components().to("meta"), field.name).is_meta for field in fields(Components))


def test_select_keeps_what_is_unknown():
    bare = Blend(image=torch.rand(3, 1, 8, 8), sky_rms=torch.ones(3))
    assert bare.select(slice(2)).flux is None
    assert bare.to("cpu").mask is None


@pytest.mark.parametrize("name", [f.name for f in fields(Blend) if f.name not in ("image", "flux")])
def test_fields_of_a_blend_must_fit_the_image(name):
    value = getattr(blend(), name)
    with pytest.raises(ValueError, match=rf"{name} must have shape \(.*\), got \(2,"):
        blend(**{name: value[:2]})


def test_blend_messages():
    with pytest.raises(ValueError, match=r"image must have the axes \(blend, band, y, x\), got shape \(3, 8, 8\)"):
        Blend(image=torch.rand(3, 8, 8), sky_rms=torch.ones(3))
    with pytest.raises(ValueError, match=r"flux must have shape \(3, 2, 1\), got \(3, 2, 4\)"):
        blend(flux=torch.rand(3, 2, 4))


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_noise_of_a_blend_must_be_positive_and_finite(wrong):
    with pytest.raises(ValueError, match="sky_rms must be positive and finite for every blend"):
        blend(sky_rms=torch.tensor([1.0, wrong, 1.0]))


def test_joined_batches_are_one():
    whole = blend(5)
    same = Blend.join([whole.select(slice(2)), whole.select(slice(2, None))])
    for field in fields(Blend):
        assert torch.equal(getattr(same, field.name), getattr(whole, field.name))
    bare = Blend(image=torch.rand(3, 1, 8, 8), sky_rms=torch.ones(3))
    assert len(Blend.join(iter([bare, bare]))) == 6
    assert Blend.join([bare, bare]).flux is None


def test_seeds_differ_and_fit_torch():
    seeds = [seed_of(1, 2), seed_of(2, 1), seed_of(1), seed_of(1, 2, 3)]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 2) == seeds[0]
