"""The bank and the stream: what they make has the distribution of the population's program."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, kstest

from probdeblend.scene import SOURCE_TYPES
from probdeblend.simulation import Camera, Cameras, Frame, Population
from probdeblend.simulation import stream as streams
from probdeblend.simulation.bank import Template, Templates, describe_shapes
from probdeblend.simulation.stream import SceneStream

STAR = SOURCE_TYPES.index("star")
CAMERA = replace(Camera.candels_f160w(), psf=torch.ones(1, 41, 41) / 41**2)
WIDE = replace(CAMERA, psf=Camera.candels_f160w().psf)


@dataclass(frozen=True)
class Points(Templates):
    """Templates of one pixel of light each, from the program's own draws: what a scene is made of, without its cost."""

    camera: Camera = WIDE
    count: int = 500

    def make(self, number):
        population = (self.pairs if self.camera.native else self.crowds).replace(
            max_difference=np.inf, layout="anywhere"
        )
        frame = Frame((128, 128), self.camera.pixel_scale, self.camera.blur)
        source = population.sample(self.count, frame, seed=100 + number, number=1)
        source = {name: value[:, 0] for name, value in source.items()}
        light = torch.zeros(self.count, 1, 128, 128, dtype=torch.half)
        light[..., 64, 64] = 4096.0
        ones, offset = torch.ones(self.count), torch.stack([source["x"], source["y"]]) % 1 - 0.5
        shape = describe_shapes(source, offset, torch.full((self.count,), torch.nan), self.camera.pixel_scale)
        tables = torch.zeros(self.count, 1), torch.full((self.count, 1, 6), -0.1)
        return Template(self.camera, light, *tables, shape, ones[:, None], 1e9 * ones, source)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(streams, "DROPPED", 0.0)


def batches(templates, numbers, **options):
    stream = SceneStream(templates, **({"batch_size": 48, "size": (96,), "bank": 2} | options))
    return [stream.batch(number) for number in numbers]


def joined(made, name):
    return torch.cat([getattr(batch, name) for batch in made])


def separation(x, y):
    return torch.hypot(x[:, 0] - x[:, 1], y[:, 0] - y[:, 1]).numpy()


def test_pairs_have_the_distribution_of_the_program(small, false_alarm):
    """Fluxes, their ratio, sizes and separations, by Kolmogorov-Smirnov tests."""
    made = batches(Points(camera=replace(WIDE, native=True)), range(0, 64, 8), pairs=1.0)
    population = Population.pairs()
    true = population.sample(3000, Frame((96, 96), 0.06, WIDE.blur), seed=9)
    flux, shape = joined(made, "log_flux")[:, :, 0, 1], joined(made, "shape")
    sky = float(WIDE.sky_rms)
    magnitude = 25.9463 - 2.5 * (flux + np.log(sky)) / np.log(10)
    assert kstest(magnitude[:, 0].numpy(), true["magnitude"][:, 0].numpy()).pvalue > false_alarm
    difference = [(v[:, 1] - v[:, 0]).numpy() for v in (magnitude, true["magnitude"])]
    assert kstest(*difference).pvalue > false_alarm
    assert kstest(separation(*shape[:, :, :2].unbind(-1)), separation(true["x"], true["y"])).pvalue > false_alarm
    radius = (true["half_light_radius"] * true["axis_ratio"].sqrt() / 0.06).log()
    assert kstest(shape[:, 0, 2].numpy(), radius[:, 0].numpy()).pvalue > false_alarm
    for axis, name in ((0, "x"), (1, "y")):
        assert kstest(shape[:, 0, axis].numpy(), true[name][:, 0].numpy()).pvalue > false_alarm


def test_crowds_have_the_distribution_of_the_program(small, false_alarm):
    """Five sources in each scene: signal-to-noise ratios, types, and distances to the nearest other."""
    population = Population.default().replace(number=(0.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    made = batches(Points(crowds=population), range(0, 40, 8), pairs=0.0)
    true = population.sample(600, Frame((96, 96), 0.06, WIDE.blur), seed=9)
    snr = joined(made, "log_flux")[:, :, 0, 1]
    assert kstest(snr.flatten().numpy(), true["ln_snr"].flatten().numpy()).pvalue > false_alarm
    kind = joined(made, "kind").flatten()
    assert binomtest(int((kind == STAR).sum()), len(kind), 0.15).pvalue > false_alarm
    place = joined(made, "shape")[:, :, :2], torch.stack([true["x"], true["y"]], -1)
    nearest = [(torch.cdist(p, p) + 1e3 * torch.eye(5)).amin(-1)[:, 0].numpy() for p in place]
    assert kstest(*nearest).pvalue > false_alarm


def test_the_bank_draws_sources_from_the_program(false_alarm):
    """Cameras of CANDELS see the galaxies of pairs; an own camera for each draw, as templates of one are alike."""
    templates = Templates(cameras=Cameras(native_fraction=1.0))
    drawn = [templates.draw(number) for number in range(30)]
    assert all(camera.native for camera, _ in drawn)
    free = Population.pairs().replace(max_difference=np.inf, largest=14.0)
    true = free.sample(4000, Frame((128, 128), 0.06, 3.0), seed=3, number=1)
    for name in ("magnitude", "half_light_radius", "axis_ratio", "sersic_quantile", "slope"):
        found = torch.cat([source[name] for _, source in drawn]).numpy()
        assert kstest(found, true[name][:, 0].numpy()).pvalue > false_alarm, name


@pytest.fixture(scope="module")
def real():
    return Templates(cameras=Cameras(native_fraction=0.5)).make(1)


def test_templates_are_what_the_camera_sees(real):
    light = real.light.float() / 4096
    number, bands = real.norm.shape
    assert light.shape == (number, bands, 128, 128)
    inside = light.sum((-2, -1))
    assert 0.95 < float(inside.median()) < 1.01
    torch.testing.assert_close(light.square().sum((-2, -1)).sqrt(), real.norm, rtol=5e-3, atol=0)
    peak = light[:, 0].flatten(1).argmax(1)
    middle = torch.stack([peak % 128, peak // 128], -1) - 64
    assert float((middle - real.shape[:, :2]).abs().median()) < 1
    star = real.source["source_type"] == STAR
    assert torch.equal(real.shape[:, 2].isnan(), star)
    assert ((real.auto > -1.5) & (real.auto < 0.1)).all()


def test_no_template_ends_in_visible_light(real):
    """As bright as it may be, a source has less than 0.3 sky rms in any pixel at the edge of its template."""
    light = real.light.float() / 4096
    inside = torch.zeros_like(light)
    inside[..., 2:-2, 2:-2] = light[..., 2:-2, 2:-2]
    assert ((light - inside).amax((1, 2, 3)) * real.brightest * (1 - 1e-3) <= 0.3).all()


def test_a_batch_depends_on_its_number_alone(small):
    templates = Points(count=20)
    first = batches(templates, [3, 0, 7], batch_size=4)
    again = batches(templates, [7, 3], batch_size=4)
    for one, other in ((first[0], again[1]), (first[2], again[0])):
        for value, same in zip(one, other, strict=True):
            assert torch.equal(value.nan_to_num(), same.nan_to_num())
    iterated = next(iter(SceneStream(templates, batch_size=4, size=(96,), bank=2, first=3)))
    assert torch.equal(iterated.image, first[0].image)
    other = SceneStream(templates, batch_size=4, size=(96,), bank=2, seed=1).batch(3)
    assert other.image.shape != first[0].image.shape or not torch.equal(other.image, first[0].image)


def test_crowded_batches_hold_fewer_scenes(small):
    for sources, scenes in ((1, 32), (4, 32), (6, 24), (14, 12), (40, 8)):
        crowds = Population.default().replace(number=(0.0,) * sources + (1.0,))
        (batch,) = batches(Points(count=20, crowds=crowds), [0], batch_size=32, pairs=0.0, size=(64,))
        assert len(batch.image) == scenes


def test_light_adds_up_to_the_image(small):
    """What is left over noise of unit variance: the image holds the listed light and the rest."""
    quiet = replace(WIDE, exposure=torch.tensor([np.inf]), noise_kernel=torch.ones(1, 1, 1))
    for batch in batches(Points(camera=quiet, count=20), range(6), batch_size=8, pairs=0.0):
        residual = (batch.image - (batch.light.sum(1) + batch.rest))[batch.good > 0]
        assert float(residual.std()) == pytest.approx(1, abs=0.02)
        assert batch.x.shape[1] >= batch.light.shape[1]
        assert batch.noise.shape == (8, 1, 5)


def test_the_heat_map_marks_sources_that_count(small):
    for batch in batches(Points(count=20), range(6), batch_size=8, pairs=0.0):
        listed = batch.light.shape[1]
        for scene in range(8):
            for place in batch.shape[scene, :, :2]:
                cell = (place / 2 + 0.25).floor().long()
                assert batch.heat[scene, 0, cell[1], cell[0]] == 1
        assert (batch.heat[:, 0] == 1).sum() <= 8 * (listed + 2)


def test_spurious_positions_lie_at_no_center(monkeypatch, small):
    monkeypatch.setattr(streams, "SPURIOUS", (0.0, 0.0, 1.0))
    monkeypatch.setattr(streams, "DROPPED", 1.0)
    made = [b for b in batches(Points(), range(6), pairs=0.0) if b.light.shape[1]]
    assert len(made) > 3
    for batch in made:
        real = batch.light.shape[1]
        row, column = (batch.heat[:, 0] > 0).nonzero(as_tuple=True)[1:]
        scene = (batch.heat[:, 0] > 0).nonzero(as_tuple=True)[0]
        for x, y in zip(batch.x[:, real:].T, batch.y[:, real:].T, strict=True):
            apart = torch.maximum((2 * column + 0.5 - x[scene]).abs(), (2 * row + 0.5 - y[scene]).abs())
            assert apart.min() > 4.9
