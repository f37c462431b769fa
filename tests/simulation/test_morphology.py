import numpy as np
import pytest
import torch
from scipy import special
from scipy.stats import binomtest, kstest, ttest_1samp

from probdeblend.scene import GALAXY_TYPES, SOURCE_TYPES
from probdeblend.simulation import Components
from probdeblend.simulation.morphology import MAX_COMPONENTS, source_components

COUNT = 4000
PIXEL_SCALE = 0.06


def sources(kind, count=COUNT, **changes):
    """Sources of one type, drawn by NumPy."""
    rng = np.random.default_rng(3)
    shape = (count,)
    values = {
        "half_light_radius": np.exp(rng.uniform(np.log(0.06), np.log(3.0), shape)),
        "sersic_quantile": rng.uniform(size=shape),
        "axis_ratio": rng.uniform(0.2, 1.0, shape),
        "angle": rng.uniform(0, np.pi, shape),
        "bulge_fraction": rng.uniform(0.02, 0.98, shape),
        "slope": rng.normal(1.0, 0.5, shape),
        "x": 63.5 + rng.uniform(-20, 20, shape),
        "y": 63.5 + rng.uniform(-20, 20, shape),
    }
    drawn = {name: torch.from_numpy(value).float() for name, value in values.items()}
    return drawn | {"source_type": torch.full(shape, SOURCE_TYPES.index(kind))} | changes


def light_and_slope(drawn, pixel_scale=PIXEL_SCALE, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return source_components(drawn, pixel_scale=pixel_scale, **options)


def light_of(drawn, pixel_scale=PIXEL_SCALE):
    return light_and_slope(drawn, pixel_scale)[0]


@pytest.fixture(scope="module", params=GALAXY_TYPES)
def made(request):
    drawn = sources(request.param)
    return request.param, drawn, light_of(drawn)


def test_flux_is_one(made):
    _, _, light = made
    torch.testing.assert_close((light.flux * light.present).sum(-1), torch.ones(COUNT), rtol=1e-5, atol=0)
    assert (light.flux >= 0).all()


def test_number_of_components(made):
    kind, _, light = made
    assert light.flux.shape == (COUNT, MAX_COMPONENTS)
    numbers = set(light.present.sum(-1).flatten().tolist())
    assert numbers == {"sph": {1}, "disk": {1, 2, 3, 7, 8}, "sphd": {2, 3, 8}, "irr": set(range(4, 11))}[kind]
    assert light.present[..., 0].all()


def test_values_are_in_range(made):
    _, _, light = made
    at = light.present
    assert (light.half_light_radius[at] > 0).all()
    assert (light.axis_ratio[at] > 0.19).all()
    assert (light.axis_ratio[at] <= 1).all()
    assert (light.sersic_index[at] >= 0.5).all()
    assert (light.sersic_index[at] <= 6).all()


@pytest.mark.parametrize(("kind", "low", "high"), [("sph", 1.5, 6.0), ("disk", 0.5, 1.8)])
def test_index_of_single_profiles(kind, low, high):
    drawn = sources(kind)
    light = light_of(drawn)
    whole = drawn["half_light_radius"] * drawn["axis_ratio"].sqrt()
    index = low + (high - low) * drawn["sersic_quantile"]
    single = ~light.present[:, 1]
    assert single.float().mean() > 0.5
    torch.testing.assert_close(light.sersic_index[single, 0], index[single])
    torch.testing.assert_close(light.half_light_radius[single, 0], whole[single])


@pytest.mark.parametrize("kind", ["disk", "irr"])
def test_disks_with_a_nucleus(false_alarm, kind):
    """Two fifths have one, in an exponential disk: less light than in bulges, and often elongated."""
    drawn = sources(kind)
    light = light_of(drawn)
    has = light.present[:, 1]
    assert binomtest(int(has.sum()), COUNT, 0.4).pvalue > false_alarm
    torch.testing.assert_close(light.flux[has, 0], 0.4 * drawn["bulge_fraction"][has])
    assert (light.sersic_index[has, 1] == 1).all()
    assert light.axis_ratio[has, 0].min() < 0.35
    assert (light.half_light_radius[has, 0] < light.half_light_radius[has, 1]).all()


def disk_of(light, name):
    """A value of the disk, which comes after the bulge or the nucleus, if there is one."""
    return getattr(light, name).gather(-1, light.present[..., 1:2].long())


def bulge_and_disk(light):
    """Bulges and disks of the galaxies whose disk is smooth, and which galaxies those are."""
    smooth = light.present.sum(-1) == 2
    names = ("flux", "half_light_radius", "sersic_index", "axis_ratio")
    return *(getattr(light, name)[smooth][:, :2].double().numpy() for name in names), smooth


def test_bulge_and_disk_share_the_flux_as_drawn():
    drawn = sources("sphd")
    light = light_of(drawn)
    torch.testing.assert_close(light.flux[..., 0] / (light.flux * light.present).sum(-1), drawn["bulge_fraction"])
    assert (light.half_light_radius[..., 0] < light.half_light_radius[..., 1]).all()
    assert (light.sersic_index[..., 1] == 1).all()
    torch.testing.assert_close(light.axis_ratio[..., 1], drawn["axis_ratio"])


def test_half_of_the_light_is_within_the_half_light_radius():
    """The curve of growth by SciPy, for bulge and disk of one axis ratio."""
    drawn = sources("sphd")
    flux, radius, index, _, smooth = bulge_and_disk(light_of(drawn))
    whole = (drawn["half_light_radius"] * drawn["axis_ratio"].sqrt())[smooth].double().numpy()[:, None]
    scale = special.gammaincinv(2 * index, 0.5)
    enclosed = flux * special.gammainc(2 * index, scale * (whole / radius) ** (1 / index))
    np.testing.assert_allclose(enclosed.sum(-1) / flux.sum(-1), 0.5, atol=1e-4)


@pytest.mark.slow
def test_half_light_radius_in_ellipses_of_the_disk(rng):
    """A bulge is rounder than its disk, which moves the half-light ellipse of the disk's shape by a few percent."""
    drawn = sources("sphd", count=200)
    *values, smooth = bulge_and_disk(light_of(drawn))
    whole = (drawn["half_light_radius"] * drawn["axis_ratio"].sqrt())[smooth].numpy()
    ratios = []
    for flux, radius, index, ratio, expected in zip(*values, whole, strict=True):
        part = (rng.random(20000) > flux[0] / flux.sum()).astype(int)
        n, turn = index[part], rng.uniform(0, 2 * np.pi, 20000)
        growth = special.gammaincinv(2 * n, rng.random(20000)) / special.gammaincinv(2 * n, 0.5)
        distance, rounder = radius[part] * growth**n, np.sqrt(ratio[part] / ratio[1])
        along, across = distance * np.cos(turn) / rounder, distance * np.sin(turn) * rounder
        ratios.append(np.median(np.hypot(along, across)) / expected)
    assert np.median(ratios) == pytest.approx(1, abs=0.02)
    assert np.mean(np.abs(np.array(ratios) - 1) < 0.1) > 0.85


def test_knots_lie_on_the_disk_and_within_reach():
    drawn = sources("irr")
    light = light_of(drawn)
    dx = (light.x - drawn["x"][..., None]) * PIXEL_SCALE
    dy = (light.y - drawn["y"][..., None]) * PIXEL_SCALE
    distance = torch.hypot(dx, dy)[light.present]
    assert (distance < 1.8001).all()
    assert (torch.hypot(dx, dy)[..., 0] < 1e-4).all()
    angle, ratio = drawn["angle"][..., None], drawn["axis_ratio"][..., None]
    major = dx * angle.cos() + dy * angle.sin()
    minor = (dy * angle.cos() - dx * angle.sin()) / ratio
    reach = 4 / 1.678 * disk_of(light, "half_light_radius") / ratio.sqrt()
    assert (torch.hypot(major, minor) <= reach * 1.01 + 1e-4)[light.present].all()


def test_knots_are_lopsided_to_no_preferred_side(false_alarm):
    light = light_of(
        sources(
            "irr",
            axis_ratio=torch.ones(
                COUNT,
            ),
        )
    )
    dx, dy = (value - value[..., :1] for value in (light.x, light.y))
    knots = light.flux * light.present
    total = knots[..., 2:].sum(-1)
    x, y = ((knots * shift).sum(-1) / total for shift in (dx, dy))
    turn = torch.atan2(y, x).flatten().numpy() / (2 * np.pi) + 0.5
    assert kstest(turn, "uniform").pvalue > false_alarm
    share = total / (total + disk_of(light, "flux")[..., 0])
    assert 0.05 <= float(share.min()) < float(share.max()) <= 0.35


@pytest.mark.parametrize("kind", ["disk", "sphd"])
def test_arms_and_patches_of_disks(false_alarm, kind):
    """How many disks have arms or a patch, how much light is in them, and where in the disk's plane they lie."""
    drawn = sources(kind)
    light = light_of(drawn)
    extra = light.present[..., 2:].sum(-1)
    for knots, share in ((6, 0.35), (1, 0.25)):
        assert binomtest(int((extra == knots).sum()), COUNT, share).pvalue > false_alarm
    moved = (light.flux * light.present)[..., 2:].sum(-1)
    moved = moved / (moved + disk_of(light, "flux")[..., 0])
    for knots, most in ((6, 0.3), (1, 0.25)):
        assert 0.05 <= float(moved[extra == knots].min()) < float(moved[extra == knots].max()) <= most + 1e-5
    radius, ratio, angle = (disk_of(light, name) for name in ("half_light_radius", "axis_ratio", "angle"))
    dx, dy = ((value - value[..., :1])[..., 2:] * PIXEL_SCALE for value in (light.x, light.y))
    major = (dx * angle.cos() + dy * angle.sin()) * ratio.sqrt() / radius
    minor = (dy * angle.cos() - dx * angle.sin()) / ratio.sqrt() / radius
    small = (radius / ratio.sqrt() < 1.0)[..., 0]
    distance = torch.hypot(major, minor)
    arms = distance[(extra == 6) & small][:, :6]
    assert 0.39 < float(arms.min()) < 0.5
    assert 1.3 < float(arms.max()) < 1.41
    assert (arms[:, 4:].mean(-1) > arms[:, :2].mean(-1)).all()
    assert float(distance[(extra == 1) & small][:, 0].min() + 1e-3) >= 0.2


def test_two_arms_lie_opposite_to_each_other(false_alarm):
    light = light_of(
        sources(
            "disk",
            axis_ratio=torch.ones(
                COUNT,
            ),
            half_light_radius=torch.full((COUNT,), 0.3),
        )
    )
    arms = light.present.sum(-1) == 7
    turn = torch.atan2(*((value - value[..., :1])[arms][:, 2:4] for value in (light.y, light.x)))
    apart = (turn[:, 1] - turn[:, 0]).remainder(2 * torch.pi) / torch.pi
    # The arms wind by less than a quarter turn between the two knots, to either side.
    assert ((apart > 0.5) & (apart < 1.5)).float().mean() > 0.6
    assert ttest_1samp(torch.sin(apart * torch.pi), 0).pvalue > false_alarm


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("kind", GALAXY_TYPES)
def test_any_number_of_blends(kind, count):
    light = light_of(sources(kind, count))
    assert isinstance(light, Components)
    assert len(light.flux) == count


def test_pixel_scale_moves_knots_alone():
    drawn = sources("irr", 50)
    fine, coarse = light_of(drawn), light_of(drawn, 0.12)
    torch.testing.assert_close(coarse.half_light_radius, fine.half_light_radius)
    shift = [light.x - drawn["x"][..., None] for light in (fine, coarse)]
    torch.testing.assert_close(shift[0], 2 * shift[1], atol=1e-3, rtol=1e-3)


def test_stars_are_points():
    light, slope = light_and_slope(sources("star", 50))
    assert (light.present.sum(-1) == 1).all()
    assert float(light.half_light_radius[:, 0].max()) < 0.02 * PIXEL_SCALE
    assert (light.axis_ratio[:, 0] == 1).all()
    torch.testing.assert_close(slope[:, 0], sources("star", 50)["slope"])


def test_smooth_galaxies_have_one_component():
    light, _ = light_and_slope(sources("sphd", 200), smooth=True)
    assert (light.present.sum(-1) == 1).all()
    index = light.sersic_index[:, 0]
    assert 1 < float(index.min()) < 2
    assert 3 < float(index.max()) < 4


def test_bulges_are_redder_than_disks_and_knots_bluer(false_alarm):
    """Slopes of components over that of the whole: 0.5 +- 0.3 for bulges, -0.4 +- 0.3 for all knots of a galaxy."""
    for kind, component, mean in (("sphd", 0, 0.5), ("irr", 2, -0.4)):
        drawn = sources(kind)
        light, slope = light_and_slope(drawn)
        assert light.present[:, component].all()
        offset = (slope[:, component] - drawn["slope"]).numpy()
        assert kstest((offset - mean) / 0.3, "norm").pvalue > false_alarm
    single = ~light.present[:, 1]
    torch.testing.assert_close(slope[single, 0], drawn["slope"][single])
    torch.testing.assert_close(slope[:, 2], slope[:, 4])
