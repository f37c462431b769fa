import math
from dataclasses import fields

import pytest
import torch

from probdeblend.scene import SCENE_FIELDS, SOURCE_FIELDS, SOURCE_TYPES, Scene, overlap_groups, seed_of


def scene(counts=(2, 0, 3), bands=1, size=8, **changes):
    """Scenes with these numbers of sources and all their truth."""
    scenes, sources = len(counts), sum(counts)
    values = {
        "image": torch.rand(scenes, bands, size, size),
        "pixel_scale": 0.06,
        "zero_point": (26.0,) * bands,
        "scene": torch.repeat_interleave(torch.arange(scenes), torch.tensor(counts, dtype=torch.long)),
        "light": torch.rand(sources, bands, size, size),
        "source_type": torch.randint(0, len(SOURCE_TYPES), (sources,)),
        "identity": torch.randint(0, 9, (sources,)),
    }
    values |= {name: torch.rand(scenes, bands) + 0.1 for name in ("sky_rms", "exposure", "wavelength")}
    values |= {name: torch.rand(scenes, bands, 3, 3) for name in ("psf", "noise_kernel")}
    values |= {name: torch.rand(sources, bands) for name in ("flux", "auto_flux")}
    values |= {name: torch.rand(sources) for name in ("x", "y", "half_light_radius", "axis_ratio", "angle")}
    return Scene(**(values | changes))


@pytest.mark.parametrize(("scenes", "counts"), [(0, ()), (1, (0,)), (3, (2, 0, 5))])
def test_scenes_of_any_number_of_sources(scenes, counts):
    made = scene(counts, bands=2)
    assert len(made) == scenes
    assert made.count.tolist() == list(counts)
    assert made.mask.shape == (sum(counts), 8, 8)
    assert len(Scene(torch.rand(scenes, 1, 8, 8), torch.ones(scenes, 1), torch.ones(scenes, 1, 1, 1), 0.06)) == scenes


def test_what_is_not_known_of_the_noise_is_taken_as_simple():
    bare = Scene(torch.rand(2, 3, 8, 8), torch.rand(2, 3) + 0.1, torch.ones(2, 3, 1, 1), 0.06)
    assert torch.equal(bare.noise_kernel, torch.ones(2, 3, 1, 1))
    assert bare.exposure.isinf().all()
    assert bare.wavelength.isnan().all()
    assert torch.equal(bare.photon, torch.zeros(2, 3))


def test_photon_noise_is_in_units_of_the_sky():
    """Light of one sky rms is 6 counts; sums over many pixels scatter twice as much as with white noise."""
    kernel = torch.tensor([[1.0, 1.0], [1.0, 1.0]])[None, None]
    made = scene((0,), sky_rms=torch.tensor([[3.0]]), exposure=torch.tensor([[2.0]]), noise_kernel=kernel)
    assert float(made.photon) == pytest.approx(1 / 24)


def test_a_mask_is_where_the_light_of_all_bands_exceeds_three_sky_rms():
    light = torch.zeros(1, 2, 8, 8)
    light[0, :, 1, 2] = torch.tensor([2.9, 0.0])
    light[0, :, 3, 4] = torch.tensor([2.2, 4.4])  # 2.2 and 2.2 sky rms: 3.1 together
    made = scene((1,), bands=2, light=light, sky_rms=torch.tensor([[1.0, 2.0]]))
    assert made.mask.nonzero().tolist() == [[0, 3, 4]]
    with pytest.raises(ValueError, match="light of each source must be known to tell its mask"):
        scene((1,), light=None).mask  # noqa: B018


def test_groups_are_friends_of_friends_within_a_scene():
    light = torch.zeros(6, 1, 8, 8)
    for source, columns in enumerate([(0, 3), (6, 8), (2, 5), (4, 7), (0, 3), (4, 6)]):
        light[source, 0, 2, slice(*columns)] = 9.0
    made = scene((4, 2), light=light, sky_rms=torch.ones(2, 1))
    assert made.group.tolist() == [0, 0, 0, 0, 1, 2]
    assert made.select(slice(1, 2)).group.tolist() == [0, 1]


@pytest.mark.parametrize(("index", "kept"), [(slice(1), [0]), (torch.tensor([0, 2]), [0, 2]), (slice(1, None), [1, 2])])
def test_select_keeps_scenes_with_their_sources(index, kept):
    made = scene((2, 1, 3))
    picked = made.select(index)
    own = torch.isin(made.scene, torch.tensor(kept))
    assert picked.scene.tolist() == [kept.index(number) for number in made.scene[own].tolist()]
    for name in SCENE_FIELDS:
        torch.testing.assert_close(getattr(picked, name), getattr(made, name)[kept])
    for name in SOURCE_FIELDS[1:]:
        torch.testing.assert_close(getattr(picked, name), getattr(made, name)[own])


def test_joined_scenes_are_one():
    whole = scene((1, 0, 4, 2))
    same = Scene.join([whole.select(slice(2)), whole.select(slice(2, None))])
    for field in fields(Scene):
        first, second = getattr(same, field.name), getattr(whole, field.name)
        assert torch.equal(first, second) if isinstance(second, torch.Tensor) else first == second
    bare = Scene(torch.rand(3, 1, 8, 8), torch.ones(3, 1), torch.ones(3, 1, 1, 1), 0.06)
    assert len(Scene.join(iter([bare, bare]))) == 6
    assert Scene.join([bare, bare]).flux is None


@pytest.mark.parametrize("name", [n for n in SCENE_FIELDS if n != "image"])
def test_what_belongs_to_scenes_has_their_axes(name):
    with pytest.raises(ValueError, match=rf"{name} must begin with the axes \(3, 1\), got \(2,"):
        scene((1, 2, 1), **{name: getattr(scene((1, 2, 1)), name)[:2]})


@pytest.mark.parametrize("name", SOURCE_FIELDS[1:])
def test_what_belongs_to_sources_has_their_shape(name):
    with pytest.raises(ValueError, match=rf"{name} must have shape \(4.*\), got \(2,"):
        scene((1, 2, 1), **{name: getattr(scene((1, 2, 1)), name)[:2]})


def test_sources_are_ordered_by_scene():
    for order in ([1, 0], [0, 2]):
        with pytest.raises(ValueError, match="scene must not decrease and be below 2"):
            scene((1, 1), scene=torch.tensor(order))


def test_images_have_four_axes():
    with pytest.raises(ValueError, match=r"image must have the axes \(scene, band, y, x\), got shape \(3, 8, 8\)"):
        Scene(torch.rand(3, 8, 8), torch.ones(3, 1), torch.ones(3, 1, 1, 1), 0.06)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_sky_noise_must_be_positive_and_finite(wrong):
    with pytest.raises(ValueError, match=f"sky_rms must be positive and finite, got {wrong}"):
        scene((1, 1), sky_rms=torch.tensor([[1.0], [wrong]]))


def test_groups_by_overlap():
    overlap = torch.zeros(5, 5)
    for first, second, pixels in ((0, 3, 5.0), (3, 4, 2.0), (1, 2, 0.5)):
        overlap[first, second] = overlap[second, first] = pixels
    assert overlap_groups(overlap) == [[0, 3, 4], [1], [2]]
    assert overlap_groups(overlap, link=0.1) == [[0, 3, 4], [1, 2]]
    assert overlap_groups(overlap, most=2) == [[0, 3], [1], [2], [4]], "the strongest link counts first"
    assert overlap_groups(torch.zeros(0, 0)) == []


def test_seeds_differ_and_fit_torch():
    seeds = [seed_of(1, 2), seed_of(2, 1), seed_of(1), seed_of(1, 2, 3)]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 2) == seeds[0]
