"""Lone galaxies: cut out of a simulated mosaic whose galaxies are known, judged, kept, split and blended."""

from dataclasses import fields, replace
from types import SimpleNamespace

import galsim
import h5py
import numpy as np
import pytest
import torch
from astropy.table import Table
from scipy.stats import binomtest

from probdeblend.photometry.noise import correlated_noise
from probdeblend.photometry.sky import dilate
from probdeblend.scene import GALAXY_TYPES, STAMP_SIZE, Blend, Instrument
from probdeblend.simulation.galsim import simulate_mosaic
from probdeblend.simulation.prior import Prior
from probdeblend.surveys.aperture import fit_aperture_correction
from probdeblend.surveys.blends import PairRules, PairScene, blend_batch, pair_blends
from probdeblend.surveys.files import keep_table, read_library, write_library
from probdeblend.surveys.isolated import WINDOW, NotAloneError, cut_galaxy, measure_galaxy
from probdeblend.surveys.library import Library, Quality, describe_quality, identity_number, join
from probdeblend.surveys.reobserve import observe_real_galaxies, observe_stamps
from probdeblend.surveys.selection import Selection, cut_galaxies, library_of, morphological_type, positions


@pytest.fixture(scope="module")
def hst():
    return Instrument.candels_f160w()


@pytest.fixture(scope="module")
def correction(hst):
    return fit_aperture_correction(hst, count=256)


class ArrayMosaic:
    """A mosaic in memory."""

    name, wcs, zero_point, pixel_scale = "simulated", None, 25.9463, 0.06

    def __init__(self, image):
        self.image, self.shape = image, image.shape

    def window(self, x0, y0, width, height):
        padded = np.pad(self.image, 300, constant_values=np.nan)
        return padded[y0 + 300 : y0 + 300 + height, x0 + 300 : x0 + 300 + width]


@pytest.fixture(scope="module")
def field(hst):
    image, catalog = simulate_mosaic(60, (900, 900), prior=Prior.published(), instrument=hst, seed=4)
    return ArrayMosaic(image), catalog


@pytest.fixture(scope="module")
def library(field, hst, correction):
    cut = cut_galaxies(*field, instrument=hst, selection=Selection(23.5))
    return library_of(cut, origin="simulated", instrument=hst, correction=correction)


def made(count=12, *, identities=None, **changes):
    """A library of round Gaussian galaxies in white noise."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:STAMP_SIZE, :STAMP_SIZE] - 63.0
    flux = rng.uniform(50, 100, count)
    light = flux[:, None, None] * np.exp(-(x**2 + y**2) / (2 * 5.0**2)) / (2 * np.pi * 25)
    values = {
        "identity": np.array([f"g{i}" for i in range(count)] if identities is None else identities),
        "origin": np.full(count, "made"),
        "pixels": (light + 3e-3 * rng.normal(size=light.shape)).astype(np.float32),
        "segmentation": light > 9e-3,
        "sky_rms": np.full(count, 3e-3),
        "x": np.full(count, 63.0),
        "y": np.full(count, 63.0),
        "ra": np.full(count, np.nan),
        "dec": np.full(count, np.nan),
        "auto_flux": 0.95 * flux,
        "flux": flux,
        "flux_error": 0.02 * flux,
        "flux_kind": np.full(count, "corrected"),
        "half_light_radius": np.full(count, 0.35),
        "galaxy_type": np.full(count, 1),
        "quality": np.zeros(count, dtype=np.int64),
        "keep": np.ones(count, dtype=bool),
        "zero_point": np.full(count, 25.9463),
        "exposure": np.full(count, 3200.0),
    }
    return Library(**(values | changes))


# Cutting and measuring


def test_galaxies_of_a_mosaic_have_their_fluxes(library, field):
    """Those without a flag, by their number in the catalog: total flux to some percent, position to a pixel."""
    _, catalog = field
    rows = np.array([int(name.split(":")[1]) - 1 for name in library.identity])
    assert len(library) > 30
    good = library.keep
    assert 0.4 < good.mean() < 0.95
    ratio = np.log(library.flux / catalog["flux"][rows])[good]
    assert abs(np.median(ratio)) < 0.02
    assert 1.4826 * np.median(np.abs(ratio - np.median(ratio))) < 0.06
    pull = ratio * (library.flux / library.flux_error)[good]
    assert 1.4826 * np.median(np.abs(pull)) < 2.0


def test_galaxies_stand_in_the_middle_and_alone(library, hst):
    assert np.abs(library.x - 63.5).max() <= 2.5
    assert np.abs(library.y - 63.5).max() <= 2.5
    assert library.segmentation[:, 58:69, 58:69].any((1, 2)).all()
    for row in np.flatnonzero(library.keep)[:10]:
        sky = library.pixels[row][~library.footprint[row]]
        assert np.median(np.abs(sky)) * 1.4826 == pytest.approx(hst.sky_rms, rel=0.15)


def test_what_is_left_out_is_counted(field, hst):
    mosaic, catalog = field
    reasons = []
    kept = list(cut_galaxies(mosaic, catalog, instrument=hst, selection=Selection(22.0), report=reasons.append))
    assert len(kept) + len(reasons) == len(catalog)
    assert reasons.count("too faint") == (catalog["magnitude"] >= 22.0).sum()
    assert "too near the edge" in reasons
    moved = catalog.copy()
    moved["x"] += 5000
    reasons.clear()
    assert not list(cut_galaxies(mosaic, moved, instrument=hst, selection=Selection(30), report=reasons.append))
    assert set(reasons) == {"off the mosaic"}


@pytest.mark.slow
def test_without_a_catalog_the_same_galaxies_are_found(field, hst):
    mosaic, catalog = field
    found = [galaxy for _, galaxy, _ in cut_galaxies(mosaic, None, instrument=hst, selection=Selection(21.5))]
    bright = catalog[catalog["magnitude"] < 21.2]
    x, y = (np.array([getattr(g, name) + getattr(g, f"{name}0") for g in found]) for name in "xy")
    inside = (np.minimum(bright["x"], bright["y"]) > 40) & (np.maximum(bright["x"], bright["y"]) < 860)
    distance = np.hypot(x - np.array(bright["x"])[:, None], y - np.array(bright["y"])[:, None]).min(1)
    assert np.mean(distance[np.asarray(inside)] < 3) > 0.7


def test_same_seed_same_sky(field, hst):
    def first(seed):
        return next(iter(cut_galaxies(*field, instrument=hst, selection=Selection(21.0), seed=seed)))[1].pixels

    assert np.array_equal(first(1), first(1))


def window_with(hst, *galaxies, rms=None, seed=0):
    """A window of correlated noise with round Gaussian galaxies: x, y, flux, radius."""
    noise = correlated_noise((WINDOW, WINDOW), hst.noise_kernel, generator=torch.Generator().manual_seed(seed))
    image = (hst.sky_rms if rms is None else rms) * noise.double().numpy()
    y, x = np.mgrid[:WINDOW, :WINDOW]
    for x0, y0, flux, radius in galaxies:
        image += flux * np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * radius**2)) / (2 * np.pi * radius**2)
    return image


MIDDLE = WINDOW / 2


def cut(window, hst, **options):
    return cut_galaxy(window, MIDDLE, MIDDLE, instrument=hst, rng=np.random.default_rng(0), **options)


def test_a_lone_galaxy_has_no_flag(hst):
    galaxy = cut(window_with(hst, (MIDDLE, MIDDLE, 50, 4)), hst)
    assert describe_quality(galaxy.quality) == ""
    assert galaxy.auto_flux == pytest.approx(50, rel=0.03)
    assert galaxy.half_light_radius == pytest.approx(4 * 1.177, rel=0.1)


def test_a_neighbor_is_replaced_by_sky(hst):
    galaxy = cut(window_with(hst, (MIDDLE, MIDDLE, 50, 4), (MIDDLE + 45, MIDDLE, 80, 5)), hst)
    assert galaxy.quality == 0
    beyond = galaxy.pixels[:, 100:]
    assert beyond.std() == pytest.approx(hst.sky_rms, rel=0.15)
    shifted = np.corrcoef(beyond[:, 1:].ravel(), beyond[:, :-1].ravel())[0, 1]
    assert shifted == pytest.approx(0.52, abs=0.08)


@pytest.mark.parametrize(
    ("others", "flag"),
    [
        ([(MIDDLE + 16, MIDDLE, 40, 4)], Quality.NEIGHBOR),
        ([(MIDDLE + 7.8, MIDDLE, 40, 1.5)], Quality.DOUBLE),
    ],
)
def test_company_is_flagged(hst, others, flag):
    assert flag in Quality(cut(window_with(hst, (MIDDLE, MIDDLE, 50, 3), *others), hst).quality)


def test_lopsided_outskirts_are_flagged(hst):
    window = window_with(hst, (MIDDLE, MIDDLE, 60, 3), (MIDDLE + 10, MIDDLE, 30, 6))
    assert Quality.ASYMMETRIC in Quality(cut(window, hst).quality)


def test_missing_pixels_are_flagged(hst):
    window = window_with(hst, (MIDDLE, MIDDLE, 50, 4))
    window[108:112, 100:120] = np.nan
    assert Quality.MISSING in Quality(cut(window, hst).quality)
    far = window_with(hst, (MIDDLE, MIDDLE, 50, 4))
    far[50:54, 50:54] = np.nan
    assert cut(far, hst).quality == 0


def test_the_edge_is_flagged_where_the_galaxy_reaches_it(hst):
    for beyond, flag in ((100, True), (60, False)):
        window = window_with(hst, (MIDDLE, MIDDLE, 50, 4))
        window[:, :beyond] = np.nan
        assert (Quality.EDGE in Quality(cut(window, hst).quality)) is flag


def test_two_noise_levels_are_flagged(hst):
    window = window_with(hst, (MIDDLE, MIDDLE, 50, 4))
    window[:, WINDOW // 2 :] += window_with(hst, rms=6e-3, seed=1)[:, WINDOW // 2 :]
    assert Quality.TWO_NOISE_LEVELS in Quality(cut(window, hst).quality)
    rms = np.where(np.arange(WINDOW) < WINDOW // 2, 3e-3, 6.7e-3) * np.ones((WINDOW, 1))
    # A map that knows of them takes the difference out of the quarters, not out of the stamp.
    sheltered = window.copy()
    assert isinstance(cut(sheltered, hst, rms=rms).quality, int)


def test_nothing_there(hst):
    with pytest.raises(NotAloneError, match="no source within 8 pixels of the position"):
        cut(window_with(hst, (MIDDLE + 30, MIDDLE, 50, 4)), hst)
    with pytest.raises(NotAloneError, match="no sky around it"):
        cut(np.full((WINDOW, WINDOW), np.nan), hst)
    with pytest.raises(NotAloneError, match="too faint to be found at 3 times the sky noise"):
        measure_galaxy(np.zeros((STAMP_SIZE, STAMP_SIZE)), 3e-3, (63.5, 63.5))


def test_aperture_correction_follows_the_profile(correction):
    """Wings beyond the aperture: a concentrated galaxy misses more of its light than a disk."""
    values = {"sky_rms": 3e-3, "auto_flux": 100.0}
    disk = SimpleNamespace(half_light_radius=6.0, concentration=2.6, **values)
    spheroid = SimpleNamespace(half_light_radius=6.0, concentration=4.5, **values)
    assert 1.0 < correction.factor(disk) < correction.factor(spheroid) < 1.4
    assert 0 < correction.scatter < 0.05


def test_aperture_correction_needs_galaxies(hst):
    with pytest.raises(ValueError, match="at least 50 simulated galaxies must be found, got"):
        fit_aperture_correction(hst, count=20)


# Catalogs


def test_types_by_the_papers_probabilities():
    catalog = Table(
        {"p_sph": [0.9, 0.1, 0.9, 0.1, 0.5], "p_disk": [0.1, 0.9, 0.9, 0.85, 0.5], "p_irr": [0, 0, 0, 0.9, 0.5]}
    )
    kinds = [GALAXY_TYPES[kind] if kind >= 0 else None for kind in morphological_type(catalog, 0.8)]
    assert kinds == ["sph", "disk", "sphd", "irr", None]
    assert (morphological_type(Table({"x": [1, 2]}), 0.8) == -1).all()


def test_positions_need_columns_and_coordinates():
    mosaic = ArrayMosaic(np.zeros((300, 300)))
    with pytest.raises(ValueError, match="the catalog must have the columns x and y, or ra and dec, got magnitude"):
        positions(Table({"magnitude": [1.0]}), mosaic)
    with pytest.raises(ValueError, match="simulated: has no world coordinates, so the catalog must give x and y"):
        positions(Table({"ra": [1.0], "dec": [2.0]}), mosaic)


@pytest.mark.slow
def test_types_select(field, hst):
    mosaic, catalog = field
    typed = catalog.copy()
    for column, kinds in {"p_sph": ("sph", "sphd"), "p_disk": ("disk", "sphd"), "p_irr": ("irr",)}.items():
        typed[column] = np.isin(typed["type"], kinds).astype(float)
    typed["p_sph"][typed["type"] == "sph"] = 0.5
    reasons = []
    found = list(cut_galaxies(mosaic, typed, instrument=hst, selection=Selection(22.5), report=reasons.append))
    assert "no type is probable enough" in reasons
    for name, _, kind in found:
        assert GALAXY_TYPES[kind] == typed["type"][int(name.split(":")[1]) - 1] != "sph"


@pytest.mark.parametrize(
    ("values", "message"), [((np.nan, 0.8), "magnitude must be finite"), ((23.0, 1.0), "probability")]
)
def test_selections_that_are_none(values, message):
    with pytest.raises(ValueError, match=message):
        Selection(*values)


# The library


def test_a_split_separates_identities():
    names = np.array([f"g{i % 30}" for i in range(90)])
    whole = made(90, identities=names)
    parts = whole.split(seed=5)
    sets = [set(part.identity) for part in parts]
    assert [len(names) for names in made(600).split()] == pytest.approx([360, 120, 120], abs=50)
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    assert sum(len(part) for part in parts) == 90
    # The galaxies to test on are set aside first: they stay whatever becomes of the others, or is added.
    fewer = whole.select(whole.identity != sorted(sets[2])[0])
    assert set(fewer.split(seed=5)[2].identity) == sets[2] - {sorted(sets[2])[0]}
    assert set(fewer.split(seed=5)[0].identity) == sets[0]
    assert set(whole.split((0.4, 0.4, 0.2), seed=5)[2].identity) == sets[2]
    assert set(whole.split(seed=6)[2].identity) != sets[2]


def test_folds_test_each_galaxy_once():
    whole = made(24, identities=[f"g{i % 12}" for i in range(24)])
    folds = whole.folds(5)
    tested = [name for _, test in folds for name in set(test.identity)]
    assert sorted(tested) == sorted(set(whole.identity))
    assert all(not set(training.identity) & set(test.identity) for training, test in folds)


def test_libraries_that_cannot_be_split():
    with pytest.raises(ValueError, match="a part of the split has no galaxy, the library holds 2: use folds"):
        made(2).split()
    with pytest.raises(ValueError, match="the library must hold at least 5 galaxies to be split, got 2"):
        made(2).folds(5)
    with pytest.raises(ValueError, match=r"fractions must be positive and sum to 1, got \(0.5, 0.2\)"):
        made().split((0.5, 0.2))
    with pytest.raises(ValueError, match="count must be at least 2, got 1"):
        made().folds(1)


def test_one_place_in_the_sky_is_one_galaxy():
    ra, dec = np.array([53.1, 54.1, 55.1]), np.full(3, -27.8)
    first, second = (
        made(3, ra=ra, dec=dec),
        made(3, identities=["h0", "h1", "h2"], ra=ra + np.array([1e-4, 1e-3, 0]), dec=dec),
    )
    whole = join([first, second])
    # 1e-4 deg in right ascension are 0.32" here, within the radius; 1e-3 deg are not.
    assert whole.identity[0] == whole.identity[3]
    assert whole.identity[1] != whole.identity[4]
    assert whole.identity[2] == whole.identity[5]
    assert len(set(join([made(3), made(3, identities=["a", "b", "c"])]).identity)) == 6
    with pytest.raises(ValueError, match="libraries must hold at least one, got none"):
        join([])


def test_a_library_checks_its_fields():
    with pytest.raises(ValueError, match=r"flux must have shape \(12,\), got \(3,\)"):
        made(flux=np.ones(3))
    with pytest.raises(ValueError, match="flux_kind must be one of corrected, true, got 'isophotal'"):
        made(flux_kind=np.full(12, "isophotal"))
    with pytest.raises(ValueError, match="galaxy_type must be from -1 to 3"):
        made(galaxy_type=np.full(12, 4))
    assert np.isnan(made(flux=np.full(12, -1.0)).magnitude).all()


def test_a_library_comes_back_with_the_users_choice(tmp_path):
    whole = made(5, quality=np.array([0, 1, 6, 0, 0]), keep=np.array([True, False, False, True, True]))
    assert write_library(tmp_path, whole) == ["library.h5", "keep.csv"]
    again = read_library(tmp_path)
    for field in fields(Library):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(whole, field.name))
    table = Table.read(tmp_path / "keep.csv")
    assert table["reasons"][2] == "asymmetric outskirts; at the edge"
    text = (tmp_path / "keep.csv").read_text().splitlines()
    text[2] = text[2].replace(",no,", ",YES ,")
    (tmp_path / "keep.csv").write_text("\n".join(text))
    assert read_library(tmp_path).keep.tolist() == [True, True, False, True, True]


def test_libraries_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not a library of galaxies, it has no library.h5"):
        read_library(tmp_path)
    write_library(tmp_path, made(3))
    table = keep_table(made(3))
    for change, message in [
        (lambda t: t.remove_column("keep"), "the columns keep are missing"),
        (lambda t: t.remove_row(0), "must have a row for each of the library's 3 galaxies"),
        (lambda t: t.replace_column("keep", ["yes", "maybe", "no"]), "keep must be yes or no, got 'maybe'"),
    ]:
        wrong = table.copy()
        change(wrong)
        wrong.write(tmp_path / "keep.csv", format="ascii.csv", overwrite=True)
        with pytest.raises(ValueError, match=message):
            read_library(tmp_path)
    with h5py.File(tmp_path / "library.h5", "r+") as file:
        file.attrs["version"] = 9
    with pytest.raises(ValueError, match="a library of version 9, this probdeblend reads version 1"):
        read_library(tmp_path)
    (tmp_path / "library.h5").write_text("no")
    with pytest.raises(ValueError, match="not a library written by probdeblend, or damaged"):
        read_library(tmp_path)


# Blends of lone galaxies


def joined(batches):
    batches = list(batches)
    known = [f.name for f in fields(Blend) if getattr(batches[0], f.name) is not None]
    return Blend(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in known})


def test_a_blend_is_the_sum_of_its_galaxies(hst):
    blends = joined(pair_blends(made(), 40, instrument=hst, seed=2, rules=PairRules(dimming=0.0)))
    assert blends.image.shape == (40, 1, STAMP_SIZE, STAMP_SIZE)
    residual = blends.image[:, 0] - blends.isolated[:, :, 0].sum(1)
    light = blends.isolated[:, :, 0].sum((-2, -1))
    torch.testing.assert_close(light, blends.flux[..., 0], rtol=0.02, atol=0)
    outside = residual[(blends.isolated[:, :, 0] == 0).all(1)]
    assert float(outside.std()) == pytest.approx(3e-3, rel=0.03)
    assert float(residual[(blends.isolated[:, :, 0] != 0).any(1)].std()) < 3e-3


@pytest.mark.parametrize(("sky", "factor"), [("one", 1.0), ("both", 2**0.5)])
@pytest.mark.parametrize("dimming", [0.0, 2.0])
def test_the_sky_noise_is_what_the_blend_says(hst, sky, factor, dimming):
    """Also at the edges, which shifts of whole stamps would leave empty."""
    rules = PairRules(sky=sky, dimming=dimming)
    blends = joined(pair_blends(made(), 60, instrument=hst, rules=rules))
    torch.testing.assert_close(blends.sky_rms, torch.full((60,), factor * 3e-3), rtol=1e-5, atol=0)
    empty = (blends.isolated[:, :, 0] == 0).all(1)
    edges = torch.zeros_like(empty)
    edges[..., :3] = edges[..., -3:] = True
    for where in (empty, empty & edges):
        assert float(blends.image[:, 0][where].std()) == pytest.approx(factor * 3e-3, rel=0.03)


def test_truth_lies_where_the_galaxies_are(hst):
    blends = joined(pair_blends(made(), 50, instrument=hst, seed=5))
    grid = torch.arange(STAMP_SIZE, dtype=torch.float32)
    light = blends.isolated[:, :, 0].clamp(min=0.02) - 0.02
    inside = ((blends.x - 63.5).abs() < 45) & ((blends.y - 63.5).abs() < 45)
    for name, axis in (("x", -1), ("y", -2)):
        profile = light.sum(-2 if axis == -1 else -1)
        centroid = (profile * grid).sum(-1) / profile.sum(-1)
        torch.testing.assert_close(centroid[inside], getattr(blends, name)[inside], atol=0.3, rtol=0)
    assert ((blends.x[:, 0] - 63.5).abs() <= 1).all()
    assert ((blends.y[:, 0] - 63.5).abs() <= 1).all()
    magnitude = -2.5 * blends.flux[..., 0].log10()
    assert ((magnitude[:, 0] - magnitude[:, 1]).abs() < 2).all()
    assert (blends.identity[:, 0] != blends.identity[:, 1]).all()
    numbers = {identity_number(name) for name in made().identity}
    assert set(blends.identity.flatten().tolist()) <= numbers


def test_masks_turn_with_their_galaxies(hst):
    """A galaxy off the middle of its stamp, elongated: mask and light agree whatever the turn."""
    y, x = np.mgrid[:STAMP_SIZE, :STAMP_SIZE]
    light = 2.0 * np.exp(-((x - 60.0) ** 2 / 50 + (y - 66.0) ** 2 / 8))
    library = made(
        4,
        pixels=np.repeat(light[None].astype(np.float32), 4, 0),
        segmentation=np.repeat(light[None] > 0.5, 4, 0),
        x=np.full(4, 60.0),
        y=np.full(4, 66.0),
        sky_rms=np.full(4, 0.5 / 3),
    )
    blends = joined(pair_blends(library, 30, instrument=hst, rules=PairRules(dimming=0.0)))
    above = (blends.isolated[:, :, 0] > 0.5).float()
    agree = (above * blends.mask).sum((-2, -1)) / (above + blends.mask > 0).sum((-2, -1))
    assert float(agree.min()) > 0.9


def test_same_seed_same_blends_whatever_the_workers(hst):
    work = {"instrument": hst, "seed": 7, "batch_size": 4}
    alone, shared = (joined(pair_blends(made(), 10, workers=number, **work)) for number in (0, 2))
    for field in fields(Blend):
        first, second = getattr(alone, field.name), getattr(shared, field.name)
        assert first is second is None or torch.equal(first, second), field.name
    assert torch.equal(alone.image[8:], next(iter(pair_blends(made(), 10, first=2, **work))).image)
    assert not torch.equal(alone.image, joined(pair_blends(made(), 10, **(work | {"seed": 8}))).image)


def test_no_galaxy_nor_its_turned_copy_crosses_a_split(library, hst):
    """Identities of centrals and companions of training and test blends; then the pixels, turned in every way."""
    whole = library.select(library.keep)
    training, _, test = whole.split(seed=1)
    drawn = [joined(pair_blends(part, 60, instrument=hst, rules=PairRules(dimming=0.0))) for part in (training, test)]
    seen = [set(blends.identity.flatten().tolist()) for blends in drawn]
    assert not seen[0] & seen[1]
    assert seen[0] <= {identity_number(name) for name in training.identity}

    def prints(blends):
        """The sorted brightest pixels of each galaxy alone: the same for every turn, flip and shift."""
        light = blends.isolated[:, :, 0].flatten(0, 1).flatten(1)
        return {tuple(np.round(row, 5)) for row in light.sort(1, descending=True).values[:, :20].numpy()}

    assert len(prints(drawn[0])) <= len(training)
    assert not prints(drawn[0]) & prints(drawn[1])


@pytest.mark.slow
def test_crowded_stamps_say_how_many_galaxies_they_hold(hst, false_alarm):
    rules = PairRules(crowding=(0.3, 0.3, 0.2, 0.2))
    blends = joined(pair_blends(made(), 300, instrument=hst, rules=rules))
    there = torch.isfinite(blends.flux[..., 0])
    assert torch.equal(there.sum(1), blends.count)
    assert (blends.identity[~there] == -1).all()
    assert not blends.mask[~there].any()
    assert not blends.isolated[~there].any()
    assert binomtest(int((blends.count == 1).sum()), 300, 0.3).pvalue > false_alarm
    singles = joined(pair_blends(made(), 5, instrument=hst, rules=PairRules(crowding=(1.0,))))
    assert singles.flux.shape == (5, 2, 1)
    assert (singles.count == 1).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"separation": "far"}, "separation must be one of published"),
        ({"sky": "none"}, "sky must be 'one' or 'both', got 'none'"),
        ({"max_difference": 0.0}, "max_difference must be positive"),
        ({"dimming": -1.0}, "dimming must not be negative"),
        ({"crowding": (0.5, 0.4)}, "crowding must be up to 5 probabilities that sum to 1"),
    ],
)
def test_rules_that_are_none(values, message):
    with pytest.raises(ValueError, match=message):
        PairRules(**values)


def test_libraries_that_cannot_be_blended(hst):
    with pytest.raises(ValueError, match="the library must hold 2 galaxies to keep, with magnitudes, got 1"):
        pair_blends(made(3, keep=np.array([True, False, False])), 5, instrument=hst)
    bright = made(2, flux=np.array([1.0, 1000.0]))
    with pytest.raises(ValueError, match=r"the library must hold 2 galaxies within 2.0 mag of each other, found none"):
        list(pair_blends(bright, 5, instrument=hst))
    with pytest.raises(ValueError, match="must not be negative, got -1, 0 and 64"):
        pair_blends(made(), -1, instrument=hst)


def test_blends_of_a_batch_do_not_depend_on_its_size(hst):
    scene = PairScene.of(made(), hst, PairRules())
    whole, part = blend_batch(scene, 6, key=(1, 2)), blend_batch(scene, 3, key=(1, 2))
    assert torch.equal(whole.image[:3], part.image)


# Galaxies from elsewhere


def test_stamps_of_known_truth_are_observed_anew(hst):
    y, x = np.mgrid[:96, :96] - 47.5
    light = 400 * np.exp(-(x**2 + y**2) / (2 * 4.0**2)) / (2 * np.pi * 16)
    noise = np.random.default_rng(0).normal(size=light.shape)
    stamps = [light + level * noise for level in (0.01, 0.3)]
    reasons = []
    magnitude = 28.0 - 2.5 * np.log10(400)
    settings = {"pixel_scale": 0.06, "identity": "one", "instrument": hst, "report": reasons.append}
    found = list(observe_stamps(stamps, [magnitude] * 2, [28.0, 28.0], **settings))
    assert reasons == ["its own noise is more than the instrument's"]
    name, galaxy, kind, flux = found[0]
    assert (name, kind) == ("one", -1)
    assert flux == pytest.approx(10 ** (-0.4 * (magnitude - hst.zero_point)))
    assert galaxy.auto_flux == pytest.approx(flux, rel=0.05)
    sky = galaxy.pixels[~(np.hypot(*(np.mgrid[:128, :128] - 63.5)) < 30)]
    assert sky.std() == pytest.approx(hst.sky_rms, rel=0.1)


def test_cosmos_galaxies_are_observed_anew(hst, data_dir):
    """Fluxes by their magnitudes, and the noise of a CANDELS image all over the stamp."""
    catalog = galsim.RealGalaxyCatalog("real_galaxy_catalog.fits", dir=str(data_dir / "cosmos_f814w"))
    reasons = []
    found = list(observe_real_galaxies(catalog, instrument=hst, magnitude_limit=23.0, report=reasons.append))
    assert len(found) + len(reasons) == 100
    assert len(found) >= 5
    magnitude = dict(zip(map(str, catalog.ident), catalog.mag, strict=True))
    flagged = 0
    for name, galaxy, _ in found:
        wanted = 10 ** (-0.4 * (magnitude[name.split(":")[1]] - hst.zero_point))
        assert 0.75 < galaxy.auto_flux / wanted < 1.1
        flagged += bool(galaxy.quality & Quality.TWO_NOISE_LEVELS)
        sky = galaxy.pixels[dilate(galaxy.segmentation.astype(np.int32)) == 0].reshape(-1)
        assert np.median(np.abs(sky)) * 1.4826 == pytest.approx(hst.sky_rms, rel=0.06)
        # Around the galaxy, where its own old noise lies, as well.
        near = dilate(galaxy.segmentation.astype(np.int32), margin=14, growth=0.5) > 0
        ring = galaxy.pixels[near & (dilate(galaxy.segmentation.astype(np.int32)) == 0)]
        if not galaxy.quality:
            assert np.median(np.abs(ring - np.median(ring))) * 1.4826 == pytest.approx(hst.sky_rms, rel=0.25)
    assert flagged <= 1


def test_library_of_known_fluxes(hst, correction):
    galaxy = cut(window_with(hst, (MIDDLE, MIDDLE, 50, 4)), hst)
    rows = [("one", galaxy, -1)]
    known = library_of(rows, origin="x", instrument=hst, correction=correction, true_flux=[52.0])
    assert known.flux[0] == 52.0
    assert known.flux_kind[0] == "true"
    corrected = library_of(rows, origin="x", instrument=hst, correction=correction)
    assert corrected.flux[0] == pytest.approx(galaxy.auto_flux * correction.factor(galaxy))
    assert corrected.flux_error[0] > correction.scatter * corrected.flux[0] * 0.99
    assert len(library_of([], origin="x", instrument=hst, correction=correction)) == 0
    assert replace(corrected, keep=np.array([False])).keep.sum() == 0


def test_stamps_on_other_pixels_keep_the_noise_that_they_claim(hst):
    """Pixels half the size: the sum of four scatters twice as much as one."""
    y, x = np.mgrid[:256, :256] - 127.5
    light = 100 * np.exp(-(x**2 + y**2) / (2 * 8.0**2)) / (2 * np.pi * 64)
    stamp = light + 7e-4 * np.random.default_rng(0).normal(size=light.shape)
    settings = {"pixel_scale": 0.03, "identity": "one", "instrument": hst}
    magnitude = hst.zero_point - 2.5 * np.log10(100)
    _, galaxy, _, _ = next(iter(observe_stamps([stamp], [magnitude], [hst.zero_point], **settings)))
    sky = galaxy.pixels[np.hypot(*(np.mgrid[:128, :128] - 63.5)) > 30]
    assert galaxy.sky_rms == hst.sky_rms
    assert sky.std() == pytest.approx(hst.sky_rms, rel=0.1)


@pytest.mark.slow
def test_one_source_is_cut_out_once(field, hst):
    mosaic, catalog = field
    doubled = catalog.copy()
    doubled["x"] += 2.0
    twice = Table({name: np.concatenate([catalog[name], doubled[name]]) for name in ("x", "y", "magnitude")})
    reasons = []
    found = list(cut_galaxies(mosaic, twice, instrument=hst, selection=Selection(21.5), report=reasons.append))
    assert reasons.count("the same source as that of another row") >= len(found) - 1
    assert len(found) <= (catalog["magnitude"] < 21.5).sum()


def test_masks_are_at_three_times_the_noise_of_the_blend(hst):
    """However much a galaxy was dimmed."""
    blends = joined(pair_blends(made(), 40, instrument=hst, rules=PairRules(dimming=2.0)))
    ratio = blends.isolated[:, :, 0] / blends.sky_rms[:, None, None, None]
    edge = [torch.quantile(ratio[i, g][blends.mask[i, g]], 0.05) for i in range(40) for g in range(2)]
    assert float(torch.stack(edge).median()) == pytest.approx(3.0, abs=0.7)


def test_errors_hold_poisson_photons(hst):
    window = window_with(hst.replace(sky_rms=1e-6), (MIDDLE, MIDDLE, 1000.0, 4))[48:-48, 48:-48]
    galaxy = measure_galaxy(window, 1e-6, (63.5, 63.5), exposure=10.0, noise_factor=2.25)
    assert galaxy.flux_error == pytest.approx(np.sqrt(galaxy.auto_flux / 10.0), rel=1e-3)


def test_probabilities_of_types_come_together():
    with pytest.raises(ValueError, match="the catalog must have all of p_sph, p_disk, p_irr or none, it lacks p_disk"):
        morphological_type(Table({"p_sph": [0.9], "p_irr": [0.1]}), 0.8)


def test_a_digest_tells_libraries_apart():
    first = made(5)
    assert first.digest() == made(5).digest()
    assert first.digest() != first.select([0, 1, 2]).digest()
    assert first.digest() != replace(first, keep=np.arange(5) > 0).digest()
