"""Count networks are stored and loaded, and estimate the number of galaxies in stamps."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from astropy import units as u
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import stats
from tiny_weights import tiny_deblender

from probdeblend.deblending import CountingDeblender, count_stamps, default_counts
from probdeblend.deblending.counts import count_table, load_counts, marginal_central_flux, save_counts
from probdeblend.networks.count import CountNetwork
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag
from probdeblend.refinement.guide import JointGuide, save_guide
from probdeblend.simulation.prior import Prior
from probdeblend.training import Mixture

SETTINGS = {"hidden": 128, "dropout": 0.1, "classes": 3}


@pytest.fixture(scope="module")
def deblender():
    return tiny_deblender()


@pytest.fixture
def network(deblender):
    torch.manual_seed(1)
    return CountNetwork(deblender.network, **SETTINGS).eval()


@pytest.fixture
def stored(deblender, network, tmp_path):
    save_counts(network, deblender, tmp_path / "counts", training={"steps": 3})
    return tmp_path / "counts"


@pytest.fixture(scope="module")
def images():
    return 2 * torch.rand(3, 1, 128, 128, generator=torch.Generator().manual_seed(3))


def test_what_was_stored_comes_back(deblender, network, stored, images):
    again = load_counts(stored, deblender)
    assert not again.training
    np.testing.assert_array_equal(again.probability(images), network.probability(images))
    with safe_open(stored, framework="pt") as file:
        assert file.metadata()["format"] == "probdeblend count network"
        assert not any(name.startswith("encoder") for name in file.keys())  # noqa: SIM118


def rewritten(path, target, **changes):
    """A copy of a file with other metadata; None leaves an entry out."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata = {name: value for name, value in (metadata | changes).items() if value is not None}
    save_file(tensors, target, metadata)
    return target


def test_files_that_do_not_fit(deblender, stored, tmp_path):
    other = tiny_deblender(seed=5)
    digests = other.encoder_digest, deblender.encoder_digest
    message = "the count network must be trained on encoder {}, that of the weights, got {}".format(*digests)
    with pytest.raises(ValueError, match=message):
        load_counts(stored, other)
    with pytest.raises(FileNotFoundError, match="none: no such count network"):
        load_counts(tmp_path / "none", deblender)
    (tmp_path / "bad").write_bytes(stored.read_bytes()[:5000])
    with pytest.raises(ValueError, match="bad: not a safetensors file, or damaged"):
        load_counts(tmp_path / "bad", deblender)
    save_guide(JointGuide(deblender.network, pixel_scale=0.06), deblender, tmp_path / "guide", training={})
    with pytest.raises(ValueError, match="guide: must be a count network written by probdeblend, got another file"):
        load_counts(tmp_path / "guide", deblender)
    with pytest.raises(ValueError, match="newer: must be a count network of version 1, got version 2"):
        load_counts(rewritten(stored, tmp_path / "newer", version="2"), deblender)


@pytest.mark.parametrize("description", [None, "{", "[]", "{}"])
def test_files_without_a_description(deblender, stored, tmp_path, description):
    file = rewritten(stored, tmp_path / "file", description=description)
    with pytest.raises(ValueError, match="tensors must match the stored description of the count network"):
        load_counts(file, deblender)


@pytest.mark.parametrize("settings", [{"hidden": 64}, {"classes": 4}])
def test_tensors_that_do_not_fit(deblender, tmp_path, settings):
    network = CountNetwork(deblender.network, **SETTINGS | settings)
    save_counts(network, deblender, tmp_path / "x", training={})
    assert load_counts(tmp_path / "x", deblender).settings == network.settings
    network.settings = SETTINGS
    save_counts(network, deblender, tmp_path / "y", training={})
    with pytest.raises(ValueError, match="y: tensors must match the stored description of the count network"):
        load_counts(tmp_path / "y", deblender)
    network.settings = {"hidden": -1}
    save_counts(network, deblender, tmp_path / "z", training={})
    with pytest.raises(ValueError, match="z: tensors must match the stored description of the count network"):
        load_counts(tmp_path / "z", deblender)


def test_a_tensor_too_few(deblender, network, tmp_path):
    del network.temperature
    save_counts(network, deblender, tmp_path / "x", training={})
    with pytest.raises(ValueError, match="x: tensors must match the stored description of the count network"):
        load_counts(tmp_path / "x", deblender)


def test_stamps_are_counted_in_any_form(network, images):
    expected = network.probability(images / 2)
    pixels = images[:, 0].double().numpy()
    for image, rms in (
        (pixels, 2.0),
        (pixels.astype(">f4"), [2, 2, 2]),
        (pixels * u.electron, np.full((3, 128, 128), 2) * u.electron),
        (images, torch.full((3,), 2.0)),
    ):
        np.testing.assert_allclose(count_stamps(image, network, sky_rms=rms), expected, rtol=1e-4)
    np.testing.assert_allclose(count_stamps(pixels[0], network, sky_rms=2), expected[:1], rtol=1e-4)
    assert not np.allclose(count_stamps(pixels, network, sky_rms=0.02), expected, rtol=1e-2)


def test_the_network_that_ships_counts_galaxies():
    """It recognizes most pairs that are well apart, and most galaxies without a companion in their stamp."""
    network = default_counts()
    crowded = Mixture(replace(Prior.default(), crowding=(0.5, 0.5)))
    blend = crowded.stream(batch_size=32, seed=77).blend(0)
    apart = (blend.x[:, 1] - blend.x[:, 0]).hypot(blend.y[:, 1] - blend.y[:, 0]) > 10
    visible = (blend.mask.sum((2, 3)) > 30).all(1)
    single, pair = (blend.count == 1).numpy(), ((blend.count == 2) & apart & visible).numpy()
    found = count_stamps(blend.image, network, sky_rms=blend.sky_rms).argmax(1)
    assert pair.sum() > 5
    assert (found[single] == 0).mean() > 0.7
    assert (found[pair] == 1).mean() > 0.7


def test_bad_pixels_are_filled(network, images):
    pixels = images[:2, 0].double().numpy()
    expected = count_stamps(pixels, network, sky_rms=2)
    holes = pixels.copy()
    holes[:, 3, 5] = np.nan, np.inf
    np.testing.assert_allclose(count_stamps(holes, network, sky_rms=2), expected, atol=0.02)
    holes[1] = np.nan
    with pytest.raises(ValueError, match="image must have good pixels, got none in stamp 1"):
        count_stamps(holes, network, sky_rms=2)
    with pytest.raises(ValueError, match="image must hold stamps of 128 x 128 pixels"):
        count_stamps(pixels[:, :64], network, sky_rms=2)
    with pytest.raises(ValueError, match="sky_rms must be positive and finite, got 0"):
        count_stamps(pixels, network, sky_rms=0)


def pairs(unit):
    flux = np.random.default_rng(2).lognormal(size=(4, 50, 3, 2, 1))
    return Posterior.from_draws(flux, flux_kind="total", method="network", flux_unit=unit)


def test_a_table_of_counts():
    probability = np.array([[0.5, 0.3, 0.2], [1, 0, 0], [0, 0, 1]])
    table = count_table(probability)
    assert table.colnames == ["blend", "probability_1", "probability_2", "probability_3_or_more"]
    np.testing.assert_array_equal(table["blend"], [0, 1, 2])
    np.testing.assert_array_equal(np.column_stack([table[name] for name in table.colnames[1:]]), probability)
    assert count_table(probability[:, :2]).colnames[1:] == ["probability_1", "probability_2_or_more"]
    with pytest.raises(ValueError, match=r"probability must have the shape \(blend, class\), got \(3,\)"):
        count_table([0.5, 0.3, 0.2])


@pytest.mark.parametrize("unit", ["", "electron / s"])
def test_the_central_flux_whatever_the_number(unit):
    probability, posterior = np.array([[0.5, 0.3, 0.2], [1, 0, 0], [0, 0, 1]]), pairs(unit)
    table = count_table(probability, posterior, seed=4)
    draws = posterior.flux.values[..., 0].reshape(200, 3, 2)
    flux = marginal_central_flux(draws, probability, seed=4)
    np.testing.assert_array_equal(flux[:, 1], draws[:, 1].sum(1))
    np.testing.assert_array_equal(flux[:, 2], draws[:, 2, 0])
    for name, level in (("16", 0.16), ("50", 0.5), ("84", 0.84)):
        column = table[f"central_flux_{name}"]
        np.testing.assert_allclose(u.Quantity(column).value, np.quantile(flux, level, axis=0))
        assert str(getattr(column, "unit", None) or "") == unit
    assert table.meta["flux_kind"] == "total"
    with pytest.raises(ValueError, match=r"probability must have the shape \(3, class >= 2\), got \(2, 3\)"):
        count_table(probability[:2], posterior)


def test_an_answer_for_two_where_there_are_not_two(deblender):
    """The answer is the deblender's, with probabilities, and a flag where two galaxies are not likely."""
    probability = np.array([[0.1, 0.8, 0.1], [0.3, 0.2, 0.5]])
    counter = SimpleNamespace(probability=lambda image: probability, temperature=torch.ones(()))
    asked = CountingDeblender(deblender, counter)
    image = np.random.default_rng(1).normal(size=(2, 128, 128))
    posterior, plain = (each(image, sky_rms=1.0, draws=16, passes=2) for each in (asked, deblender))
    np.testing.assert_array_equal(posterior.flux, plain.flux)
    flagged = posterior.flags.values & int(Flag.OTHER_COUNT)
    assert (flagged > 0).tolist() == [[False, False], [True, True]]
    np.testing.assert_array_equal(posterior.flags.values - flagged, plain.flags.values)
    assert posterior.dataset["count_probability"].values[1, 2] == 0.5
    np.testing.assert_allclose(posterior.anomaly, np.maximum(plain.anomaly.values, [0.4, 1.6]))
    assert asked.network is deblender.network
    assert asked.instrument is deblender.instrument
    with pytest.raises(ValueError, match="pixel_scale must be"):
        asked.check_pixel_scale(0.2)


@pytest.mark.parametrize("single", [0.0, 0.3, 0.8, 1.0])
def test_marginal_flux_is_the_mixture(single, false_alarm):
    rng = np.random.default_rng(3)
    mean, covariance = [50.0, 20.0], [[16.0, -6.0], [-6.0, 9.0]]
    draws = rng.multivariate_normal(mean, covariance, (40_000, 1))
    flux = marginal_central_flux(draws, [[single, 0.7 * (1 - single), 0.3 * (1 - single)]], seed=5)
    assert flux.shape == (40_000, 1)
    means, variances = np.array([70.0, 50.0]), np.array([16 + 9 - 12, 16.0])
    share = np.array([single, 1 - single])
    center = share @ means
    variance = share @ (variances + (means - center) ** 2)
    fourth = share @ (3 * variances**2 + 6 * variances * (means - center) ** 2 + (means - center) ** 4)
    sigmas = stats.norm.isf(false_alarm / 2)
    assert abs(flux.mean() - center) < sigmas * np.sqrt(variance / 40_000)
    assert abs(flux.var() - variance) < sigmas * np.sqrt((fourth - variance**2) / 40_000)


def test_marginal_flux_of_certain_numbers_and_of_parts():
    draws = np.random.default_rng(0).lognormal(size=(50, 4, 2))
    probability = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.3, 0.2]])
    flux = marginal_central_flux(draws, probability)
    np.testing.assert_array_equal(flux[:, 0], draws[:, 0].sum(1))
    np.testing.assert_array_equal(flux[:, 1:3], draws[:, 1:3, 0])
    np.testing.assert_array_equal(marginal_central_flux(draws[:, :3], probability[:3]), flux[:, :3])
    assert not np.array_equal(marginal_central_flux(draws, probability, seed=1), flux)
    assert marginal_central_flux(draws[:, :0], probability[:0]).shape == (50, 0)


def test_arrays_that_do_not_fit():
    good = [[0.5, 0.5], [0.2, 0.8]]
    with pytest.raises(ValueError, match=r"draws must have the shape \(draw, blend, 2\), got \(5, 2, 3\)"):
        marginal_central_flux(np.ones((5, 2, 3)), good)
    with pytest.raises(ValueError, match=r"probability must have the shape \(3, class >= 2\), got \(2, 2\)"):
        marginal_central_flux(np.ones((5, 3, 2)), good)
