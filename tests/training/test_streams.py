import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from libraries import made
from scipy.stats import binomtest

from probdeblend.scene import Blend, Instrument
from probdeblend.simulation.conditions import Conditions, training_batch
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.sets import write_blends
from probdeblend.surveys.blends import PairRules
from probdeblend.training.streams import (
    EndlessStream,
    LibraryStream,
    MixedStream,
    Mixture,
    SimulatedStream,
    StoredStream,
)


@pytest.fixture(scope="module")
def instrument():
    return Instrument.candels_f160w()


@pytest.fixture(scope="module")
def stream(instrument):
    return SimulatedStream(Prior.default(), instrument, Conditions(), batch_size=6, seed=4)


def test_batches_depend_on_seed_and_number_alone(stream, instrument):
    torch.manual_seed(123)
    first = stream.blend(3)
    state = torch.get_rng_state()
    again = stream.blend(3)
    assert torch.equal(first.image, again.image)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.image, stream.blend(4).image)
    later = SimulatedStream(Prior.default(), instrument, Conditions(), batch_size=6, seed=4, first=3)
    expected = training_batch(first)
    assert all(torch.equal(a, b) for a, b in zip(next(iter(later)), expected, strict=True))


def test_workers_do_not_change_the_stream(instrument):
    def images(workers):
        stream = SimulatedStream(Prior.default(), instrument, Conditions(), batch_size=2, seed=1)
        loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=workers)
        return torch.stack([batch[0] for batch in itertools.islice(loader, 3)])

    assert torch.equal(images(0), images(2))


def test_blend_is_what_it_says(stream):
    blend = stream.blend(0)
    rms = blend.sky_rms[:, None, None, None]
    assert ((blend.sky_rms >= 2e-3) & (blend.sky_rms <= 8e-3)).all()
    assert torch.equal(blend.mask, blend.isolated[:, :, 0] > 3 * rms)
    inside = blend.isolated.sum((-2, -1))
    assert (inside <= blend.flux * 1.001).all()
    residual = (blend.image[:, 0] - blend.isolated.sum(1)[:, 0]) / rms[:, 0]
    assert 0.9 < residual.median(-1).values.std() + 1 < 1.2
    assert residual[:, :8, :8].std().item() == pytest.approx(1.0, abs=0.25)


def test_training_batch_is_in_units_of_the_noise(stream):
    blend = stream.blend(1)
    image, flux, mask, light = training_batch(blend)
    assert torch.allclose(light * blend.sky_rms[:, None, None, None], blend.isolated[:, :, 0])
    assert torch.allclose(image * blend.sky_rms[:, None, None, None], blend.image, atol=1e-6)
    assert torch.allclose(flux * blend.sky_rms[:, None], blend.flux[..., 0])
    assert mask.dtype == torch.bool
    with pytest.raises(ValueError, match="blends must have flux, mask and isolated to train on"):
        training_batch(Blend(image=blend.image, sky_rms=blend.sky_rms))


def test_stored_stream_sees_every_blend_once_an_epoch(tmp_path, stream, instrument):
    path = tmp_path / "set.h5"
    write_blends(path, [stream.blend(i) for i in range(2)], instrument=instrument)
    stored = StoredStream(path, batch_size=4, seed=0)
    epoch = list(itertools.islice(stored, 3))
    assert sum(len(batch[1]) for batch in epoch) == 12
    seen = np.sort(torch.cat([batch[1] for batch in epoch]).flatten().numpy())
    stored_flux = torch.cat([training_batch(stream.blend(i))[1] for i in range(2)])
    assert seen == pytest.approx(np.sort(stored_flux.flatten().numpy()), rel=1e-5)
    later = next(iter(StoredStream(path, batch_size=4, seed=0, first=2)))
    assert torch.equal(later[0], epoch[2][0])
    with pytest.raises(ValueError, match=r"set\.h5: must hold at least one batch of 40 blends, got 12"):
        StoredStream(path, batch_size=40)


def test_real_blends_stream(instrument):
    stream = LibraryStream(made(), instrument, PairRules(), batch_size=4, seed=3)
    batch = stream.batch(2)
    assert torch.equal(
        batch.image, LibraryStream(made(), instrument, PairRules(), batch_size=4, seed=3, first=2).batch(2).image
    )
    assert torch.equal(
        next(iter(LibraryStream(made(), instrument, PairRules(), batch_size=4, seed=3, first=2))).image, batch.image
    )
    assert (batch.flux > 0).all()


def test_a_mixture_draws_from_both(instrument, false_alarm):
    @dataclass(eq=False)
    class Constant(EndlessStream):
        value: int

        def blend(self, number):
            return self.value

    mixed = MixedStream([Constant(0), Constant(1)], (0.7, 0.3), seed=2)
    drawn = [mixed.blend(number) for number in range(1000)]
    assert binomtest(sum(drawn), 1000, 0.3).pvalue > false_alarm
    assert drawn == [MixedStream([Constant(0), Constant(1)], (0.7, 0.3), seed=2).blend(n) for n in range(1000)]


def test_mixtures(instrument):
    prior = Prior.default()
    work = {"batch_size": 2, "seed": 0}
    assert isinstance(Mixture(prior, instrument).stream(**work), SimulatedStream)
    assert isinstance(Mixture(prior, instrument, library=made(), real_fraction=1.0).stream(**work), LibraryStream)
    both = Mixture(prior, instrument, library=made(), real_fraction=0.5).stream(**work, first=3)
    assert isinstance(both, MixedStream)
    assert torch.equal(next(iter(both)).image, both.batch(3).image)
    all_kinds = Mixture(prior, instrument, library=made(), real_fraction=0.5, close_fraction=0.2).stream(**work)
    assert [type(stream) for stream in all_kinds.streams] == [SimulatedStream, LibraryStream, SimulatedStream]
    assert all_kinds.fractions == pytest.approx((0.4, 0.5, 0.1))
    with pytest.raises(ValueError, match="close_fraction must be between 0 and 1, got -1"):
        Mixture(prior, instrument, close_fraction=-1)
    with pytest.raises(ValueError, match="real_fraction must be between 0 and 1, got 2"):
        Mixture(prior, instrument, real_fraction=2)
    with pytest.raises(ValueError, match=r"library must be given for a real_fraction of 0.5, got None"):
        Mixture(prior, instrument, real_fraction=0.5)


def test_close_pairs_of_a_mixture(instrument):
    """All else of them is as the prior has it."""
    prior, work = Prior.default(), {"batch_size": 64, "seed": 0}
    close, usual = (Mixture(prior, instrument, close_fraction=share).stream(**work).blend(0) for share in (1.0, 0.0))
    distance = torch.hypot(close.x[:, 1] - close.x[:, 0], close.y[:, 1] - close.y[:, 0])
    assert distance.max() <= 4.5
    assert torch.equal(close.galaxy_type, usual.galaxy_type)
    assert torch.equal(close.half_light_radius, usual.half_light_radius)


def test_blends_of_a_mixture():
    made = list(Mixture().blends(70, seed=3, progress=False))
    assert [len(blend) for blend in made] == [64, 6]
    close = next(Mixture(close_fraction=1.0).blends(70, seed=3, progress=False))
    distance = [torch.hypot(blend.x.diff(dim=1), blend.y.diff(dim=1)).max() for blend in (made[0], close)]
    assert distance[1] <= 4.5 < distance[0]
    # They are others than those of a training with that seed.
    assert not torch.equal(Mixture().stream(batch_size=4, seed=3).blend(0).flux, made[0].flux[:4])


def test_only_pairs_train(instrument):
    crowded = Mixture(replace(Prior.default(), crowding=(0.5, 0.5)), instrument).stream(batch_size=8)
    with pytest.raises(ValueError, match="blends must be pairs to train on, got other numbers of galaxies"):
        crowded.batch(0)
