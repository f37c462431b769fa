"""Count networks are trained, tested, stored and loaded, and answer for stamps."""

import json
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from astropy import units as u
from safetensors import safe_open
from safetensors.torch import save_file
from test_counting import SpotStream

import probdeblend
from probdeblend.deblending import counts, weights
from probdeblend.deblending.counts import (
    count_stamps,
    count_table,
    default_counts,
    load_counts,
    marginal_central_flux,
    save_counts,
)
from probdeblend.deblending.deblender import Deblender, Description
from probdeblend.metrics.counts import count_reliability, count_scores
from probdeblend.networks.count import CountNetwork
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag
from probdeblend.refinement.guide import JointGuide
from probdeblend.refinement.guides import save_guide
from probdeblend.scene import Instrument
from probdeblend.simulation.prior import Prior
from probdeblend.training.counting import CROWDING, SETTINGS, report, train_default_counts, visible_galaxies
from probdeblend.training.fit import History

TRAINING = {"blends": 320, "steps": 60, "test_blends": 100, "progress": False}


def tiny_deblender(seed=0):
    settings = {"unet_filters": 8, "depth": 3, "first_filters": 4, "patch": 4, "hidden": 8}
    prior = Prior.default().describe()
    description = Description("Blend2Mask2Flux", "StudentTHead", settings, (100.0, 1e6), 2.0, prior, None, {})
    torch.manual_seed(seed)
    return Deblender(description.build(), Instrument.candels_f160w(), description, features=torch.randn(500, 8))


class Spots(SpotStream):
    """Spots in place of galaxies, which a tiny network can count."""

    made: ClassVar[list] = []

    def __init__(self, prior, instrument, *, seed):
        super().__init__()
        self.seed = seed
        self.made.append((prior, instrument, seed))

    def blend(self, number):
        return super().blend(number + 1000 * self.seed)


@pytest.fixture
def spots(monkeypatch):
    monkeypatch.setattr(counts, "SimulatedStream", Spots)
    monkeypatch.setattr(Spots, "made", [])


@pytest.fixture(scope="module")
def deblender():
    return tiny_deblender()


@pytest.fixture(scope="module")
def trained(deblender, tmp_path_factory):
    path = tmp_path_factory.mktemp("counts") / "counts.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "SimulatedStream", Spots)
        return path, train_default_counts(deblender, path, **TRAINING)


@pytest.fixture
def network(deblender):
    torch.manual_seed(1)
    return CountNetwork(deblender.network, **SETTINGS).eval()


def contents(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_what_was_tested_is_what_comes_back(deblender, trained):
    """The network in the file has the scores that were returned, on blends that it has not learned from."""
    path, (scores, by_separation) = trained
    network = load_counts(path, deblender)
    assert not network.training
    blends = [Spots(None, None, seed=1).blend(number) for number in range(2)]
    probability = np.concatenate([network.probability(blend.image / 2) for blend in blends])[:100]
    count, separation = (torch.cat(parts)[:100].numpy() for parts in zip(*map(visible_galaxies, blends), strict=True))
    again = count_scores(probability, count)
    for name in scores.meta:
        assert again.meta[name] == pytest.approx(scores.meta[name], rel=1e-3), name
    expected = count_reliability(probability, count, separation / deblender.instrument.fwhm)
    np.testing.assert_array_equal(by_separation["pairs"], expected["pairs"])
    np.testing.assert_allclose(by_separation["probability_two"], expected["probability_two"], rtol=1e-3)
    shares = np.tile(scores["observed"], (100, 1))
    assert scores.meta["log_loss"] < 0.75 * count_scores(shares, count).meta["log_loss"]


def test_the_file_says_how_it_was_trained(deblender, trained):
    path, (scores, _) = trained
    metadata, tensors = contents(path)
    assert (metadata["format"], metadata["version"]) == ("probdeblend count network", "1")
    described = json.loads(metadata["description"])
    assert described["encoder"] == deblender.encoder_digest
    assert described["settings"] == SETTINGS
    assert {name: described["training"][name] for name in ("blends", "steps", "seed")} == {
        "blends": 320,
        "steps": 60,
        "seed": 0,
    }
    assert described["training"]["test_accuracy"] == round(scores.meta["accuracy"], 4)
    assert described["training"]["command"] == "probdeblend train-counts"
    assert "temperature" in tensors
    assert not any(name.startswith("encoder") for name in tensors)


def test_same_seed_same_file(deblender, spots, tmp_path):
    state, files = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        path = tmp_path / f"{len(files)}.safetensors"
        train_default_counts(deblender, path, blends=290, steps=2, test_blends=10, seed=seed, progress=False)
        files.append(contents(path))
    (first, tensors), (second, same), (_, others) = files
    assert first == second
    assert all(torch.equal(tensors[name], same[name]) for name in tensors)
    assert not torch.equal(tensors["out.weight"], others["out.weight"])
    assert torch.equal(state, torch.get_rng_state())
    assert [seed for *_, seed in Spots.made] == [0, 1, 0, 1, 1, 2]  # learned from one stream, tested on another
    assert Spots.made[0][:2] == (replace(Prior.default(), crowding=CROWDING), deblender.instrument)


def test_no_file_without_a_network(deblender, spots, monkeypatch, tmp_path):
    output = tmp_path / "counts.safetensors"
    with pytest.raises(ValueError, match="blends must be enough for a batch of 256 and a tenth to validate on, got 9"):
        train_default_counts(deblender, output, blends=9)
    with pytest.raises(ValueError, match="blends must be at least 1, got 0"):
        train_default_counts(deblender, output, blends=290, steps=1, test_blends=0, progress=False)
    monkeypatch.setattr(counts, "train_counts", lambda *given, **options: History())
    with pytest.raises(ValueError, match="loss must stay finite, got inf"):
        train_default_counts(deblender, output)
    assert not list(tmp_path.iterdir())
    output.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="exists already"):
        train_default_counts(deblender, output)
    assert output.read_bytes() == b"mine"


@pytest.mark.slow
def test_training_on_galaxies(tmp_path):
    """With 1,000 simulated blends the log loss is less than half of that of the shares."""
    tables = train_default_counts(
        probdeblend.load(), tmp_path / "counts", blends=1000, steps=300, test_blends=300, progress=False
    )
    share = tables[0]["observed"]
    assert tables[0].meta["log_loss"] < -0.5 * (share * np.log(share)).sum()
    bins = tables[1]
    assert bins["pairs"].sum() > 50
    assert np.nanmean(bins["probability_two"][-3:]) > np.nanmean(bins["probability_two"][:2])


def rewritten(path, target, **changes):
    """A copy of a file with other metadata; None leaves an entry out."""
    metadata, tensors = contents(path)
    metadata = {name: value for name, value in (metadata | changes).items() if value is not None}
    save_file(tensors, target, metadata)
    return target


def test_files_that_do_not_fit(deblender, trained, tmp_path):
    path, other = trained[0], tiny_deblender(seed=5)
    digests = deblender.encoder_digest, other.encoder_digest
    message = "a count network on the encoder {}, got weights with the encoder {}: train one for".format(*digests)
    with pytest.raises(ValueError, match=message):
        load_counts(path, other)
    with pytest.raises(FileNotFoundError, match="none: no such count network"):
        load_counts(tmp_path / "none", deblender)
    (tmp_path / "bad").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="bad: not a safetensors file, or damaged"):
        load_counts(tmp_path / "bad", deblender)
    save_guide(JointGuide(deblender.network, pixel_scale=0.06), deblender, tmp_path / "guide", training={})
    newer = rewritten(path, tmp_path / "newer", version="2")
    for file in (tmp_path / "guide", newer):
        with pytest.raises(ValueError, match="not a count network of probdeblend, or one of another version than 1"):
            load_counts(file, deblender)


@pytest.mark.parametrize("description", [None, "{", "[]", "{}"])
def test_files_that_do_not_say_what_they_are(deblender, trained, tmp_path, description):
    file = rewritten(trained[0], tmp_path / "file", description=description)
    with pytest.raises(ValueError, match="a count network that does not say what it was built as"):
        load_counts(file, deblender)


@pytest.mark.parametrize("settings", [{"hidden": 64}, {"classes": 4}])
def test_tensors_that_do_not_fit(deblender, tmp_path, settings):
    network = CountNetwork(deblender.network, **SETTINGS | settings)
    save_counts(network, deblender, tmp_path / "x", training={})
    assert load_counts(tmp_path / "x", deblender).settings == network.settings
    network.settings = SETTINGS
    save_counts(network, deblender, tmp_path / "y", training={})
    with pytest.raises(ValueError, match="y: tensors do not fit what the file says of them"):
        load_counts(tmp_path / "y", deblender)
    network.settings = {"hidden": -1}
    save_counts(network, deblender, tmp_path / "z", training={})
    with pytest.raises(ValueError, match="z: a count network with settings that no network can have"):
        load_counts(tmp_path / "z", deblender)


def test_a_tensor_too_few(deblender, network, tmp_path):
    del network.temperature
    save_counts(network, deblender, tmp_path / "x", training={})
    with pytest.raises(ValueError, match="x: tensors do not fit what the file says of them"):
        load_counts(tmp_path / "x", deblender)


def test_the_default_is_that_of_the_package(deblender, trained, monkeypatch):
    path = trained[0]
    monkeypatch.setattr(counts, "files", lambda package: path.parent)
    (path.parent / "data").mkdir()
    with pytest.raises(FileNotFoundError, match=r"data.counts_f160w\.safetensors: no such count network"):
        default_counts(deblender)
    (path.parent / "data" / counts.DEFAULT).write_bytes(path.read_bytes())
    monkeypatch.setattr(weights, "load", lambda: deblender)
    image = torch.rand(2, 1, 128, 128)
    expected = load_counts(path, deblender).probability(image)
    for network in (default_counts(deblender), default_counts()):
        np.testing.assert_array_equal(network.probability(image), expected)


def test_the_report_shows_what_was_measured():
    probability = [[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.7, 0.3, 0.0], [0.0, 0.0, 1.0]]
    truth, separation = [1, 2, 2, 5], [np.nan, 1.2, 1.7, 0.5]
    lines = report(count_scores(probability, truth), count_reliability(probability, truth, separation)).splitlines()
    assert lines[0] == f"accuracy 0.750, expected calibration error {2.6 / 12:.3f}, 4 blends"
    assert lines[1].split() == ["low", "high", "pairs", "probability_two", "unrecognized"]
    assert [line.split() for line in lines[3:6]] == [
        ["0.0", "1.0", "0", "nan", "nan"],
        ["1.0", "1.5", "1", "0.900", "0.000"],
        ["1.5", "2.0", "1", "0.300", "1.000"],
    ]


def test_stamps_are_counted_in_any_form(network):
    blend = Spots(None, None, seed=3).blend(0)
    ratio = blend.image[:3] / 2
    expected = network.probability(ratio)
    pixels = blend.image[:3, 0].double().numpy()
    for image, rms in (
        (pixels, 2.0),
        (pixels.astype(">f4"), [2, 2, 2]),
        (pixels * u.electron, np.full((3, 128, 128), 2) * u.electron),
        (blend.image[:3], torch.full((3,), 2.0)),
    ):
        np.testing.assert_allclose(count_stamps(image, network, sky_rms=rms), expected, rtol=1e-4)
    np.testing.assert_allclose(count_stamps(pixels[0], network, sky_rms=2), expected[:1], rtol=1e-4)
    assert not np.allclose(count_stamps(pixels, network, sky_rms=20), expected, rtol=1e-2)


def test_bad_pixels_are_filled(network):
    pixels = Spots(None, None, seed=3).blend(0).image[:2, 0].double().numpy()
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


@pytest.mark.skipif(
    not (counts.files("probdeblend") / "data" / counts.DEFAULT).is_file(), reason="no count network ships"
)
def test_the_network_that_ships_counts_galaxies():
    """Most of the stamps of one galaxy, and of two that are apart, are told."""
    deblender = probdeblend.load()
    network = default_counts(deblender)
    blend = counts._stream(deblender, 77).blend(0)
    count, separation = (values.numpy() for values in visible_galaxies(blend))
    told = (count == 1) | (separation > 10)
    probability = count_stamps(blend.image, network, sky_rms=blend.sky_rms)
    assert (probability.argmax(1) == np.minimum(count, 3) - 1)[told].mean() > 0.7


def test_an_answer_for_two_where_there_are_not_two(deblender, monkeypatch):
    """The answer is the deblender's, with probabilities, and a flag where two galaxies are not likely."""
    monkeypatch.setattr(
        counts, "count_stamps", lambda image, network, sky_rms: np.array([[0.1, 0.8, 0.1], [0.3, 0.2, 0.5]])
    )
    asked = counts.CountingDeblender(deblender, None)
    image = np.random.default_rng(1).normal(size=(2, 128, 128))
    posterior, plain = (each(image, sky_rms=1.0, draws=16, passes=2) for each in (asked, deblender))
    np.testing.assert_array_equal(posterior.flux, plain.flux)
    flagged = posterior.flags.values & int(Flag.OTHER_COUNT)
    assert (flagged > 0).tolist() == [[False, False], [True, True]]
    np.testing.assert_array_equal(posterior.flags.values - flagged, plain.flags.values)
    assert posterior.dataset["count_probability"].values[1, 2] == 0.5
    np.testing.assert_allclose(posterior.anomaly, np.maximum(plain.anomaly.values, [0.4, 1.6]))
    assert asked.network is deblender.network
    assert asked.digest == deblender.digest
    assert asked.instrument is deblender.instrument
    with pytest.raises(ValueError, match="pixel_scale must be"):
        asked.check_pixel_scale(0.2)
