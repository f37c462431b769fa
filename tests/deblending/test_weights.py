import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.nddata import NDData
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_weights import tiny_deblender

from probdeblend.deblending import deblend, load
from probdeblend.deblending.deblender import Deblender, Description
from probdeblend.deblending.weights import save
from probdeblend.posterior.calibrator import Calibrator
from probdeblend.posterior.flags import Flag
from probdeblend.scene import Instrument
from probdeblend.simulation.conditions import Conditions
from probdeblend.simulation.prior import Prior
from probdeblend.training import Mixture

OPTIONS = {"draws": 64, "passes": 4}


@pytest.fixture(scope="module")
def deblender():
    description = Description(
        architecture="Blend2Mask2Flux",
        head="StudentTHead",
        settings={"unet_filters": 2, "depth": 2, "first_filters": 2, "hidden": 8},
        flux_range=(100.0, 1e6),
        max_difference=2.0,
        prior=Prior.default().describe(),
        conditions=Conditions(),
        training={"steps": 0},
    )
    torch.manual_seed(0)
    network = description.build()
    features = torch.randn(500, 8)
    return Deblender(network, Instrument.candels_f160w(), description, features=features)


@pytest.fixture(scope="module")
def blend():
    stream = Mixture(prior=Prior.published()).stream(batch_size=3, seed=8)
    return stream.blend(0)


@pytest.fixture(scope="module")
def shipped():
    return load()


def test_shipped_weights_answer(shipped, blend):
    posterior = shipped(blend.image, sky_rms=blend.sky_rms)
    assert posterior.flux.dims == ("chain", "draw", "blend", "galaxy", "band")
    assert posterior.flux.attrs["flux_kind"] == "total"
    assert posterior.mask.shape == (3, 2, 128, 128)
    assert posterior.flux_covariance.shape == (3, 1, 2, 2)
    assert len(posterior.summary()) == 6
    assert (posterior.flux > 0).all()


def test_one_call_deblends_with_the_weights_that_ship(shipped, blend):
    stamp, rms = blend.image[0, 0].numpy(), float(blend.sky_rms[0])
    options = {"sky_rms": rms, "draws": 64, "passes": 4, "seed": 3, "calibrate": False}
    np.testing.assert_array_equal(deblend(stamp, **options).flux, shipped(stamp, **options).flux)
    with pytest.raises(ValueError, match="image must hold stamps of 128 x 128 pixels"):
        deblend(stamp[:64], sky_rms=rms)


def test_the_weights_that_ship_state_what_they_were_trained_on(shipped):
    description = shipped.description
    assert description.conditions == Conditions()
    assert Prior.parse(description.prior) == Prior.default()
    assert shipped.digest == "ffdfcb894e9d68f8"
    fluxes = 10 ** (-0.4 * (np.array(Prior.default().magnitude_range) - shipped.instrument.zero_point))
    np.testing.assert_allclose(description.flux_range, (fluxes.min() / 8e-3, fluxes.max() / 2e-3))


@pytest.mark.parametrize(("sky_rms", "zero_point"), [((2e-3, 8e-3), 25.9463), ((0.1, 0.3), 30.0)])
def test_the_flux_prior_is_that_of_the_training(deblender, tmp_path, sky_rms, zero_point):
    """Its depths and zero point are those that the file states, not those of the default conditions."""
    training = {"source": "simulated stream"}
    described = replace(deblender.description, conditions=Conditions(sky_rms=sky_rms), training=training)
    instrument = deblender.instrument.replace(zero_point=zero_point)
    other = Deblender(deblender.network, instrument, described, features=torch.randn(500, 8))
    save(other, tmp_path / "w.safetensors")
    again = load(tmp_path / "w.safetensors")
    assert again.description == described
    assert again.flux_prior == Prior.default().flux_prior(sky_rms, zero_point)
    assert deblender.flux_prior is None


def test_save_and_load_give_the_same_draws(tmp_path, deblender, blend):
    save(deblender, tmp_path / "w.safetensors")
    again = load(tmp_path / "w.safetensors")
    first = deblender(blend.image, sky_rms=blend.sky_rms, **OPTIONS)
    second = again(blend.image, sky_rms=blend.sky_rms, **OPTIONS)
    assert np.array_equal(first.flux, second.flux)
    assert np.array_equal(first.mask, second.mask)
    assert again.description == deblender.description
    assert torch.equal(again.instrument.psf, deblender.instrument.psf)


def test_every_kind_of_image_gives_the_same_answer(deblender, blend):
    stamp = blend.image[0, 0].numpy().astype(np.float64)
    rms = float(blend.sky_rms[0])
    expected = deblender(stamp, sky_rms=rms, **OPTIONS).flux.values
    images = [
        torch.from_numpy(stamp),
        stamp.astype(">f8"),
        stamp[None],
        stamp[None, None],
        np.ma.array(stamp, mask=np.zeros(stamp.shape, bool)),
        NDData(stamp),
        u.Quantity(stamp, "electron / s"),
    ]
    for image in images:
        posterior = deblender(image, sky_rms=rms, **OPTIONS)
        assert np.array_equal(posterior.flux.values, expected)
    assert posterior.flux.attrs["unit"] == "electron / s"
    for noise in (
        np.array([rms]),
        np.full((128, 128), rms),
        np.full((1, 128, 128), rms),
        u.Quantity(rms, "electron / s"),
    ):
        assert np.array_equal(deblender(images[-1], sky_rms=noise, **OPTIONS).flux.values, expected)


def test_units_carry_through(deblender, blend):
    base = deblender(blend.image, sky_rms=blend.sky_rms, **OPTIONS)
    scaled = deblender(1000 * blend.image.double(), sky_rms=1000 * blend.sky_rms.double(), **OPTIONS)
    assert np.allclose(scaled.flux, 1000 * base.flux, rtol=1e-3)


def test_variances_add_up(deblender, blend):
    posterior = deblender(blend.image, sky_rms=blend.sky_rms, draws=4000, passes=8)
    within = posterior.dataset["flux_variance_within"]
    between = posterior.dataset["flux_variance_between"]
    total = posterior.flux.var(("chain", "draw"))
    assert np.allclose(within + between, total, rtol=0.1)


def test_bad_pixels_are_flagged_and_filled(deblender, blend):
    stamp = blend.image[0, 0].numpy().copy()
    rms = float(blend.sky_rms[0])
    few, many = stamp.copy(), stamp.copy()
    few[5:8, 5:8] = np.nan
    many[:20] = np.nan
    answer = deblender(np.stack([stamp, few, many]), sky_rms=rms, **OPTIONS)
    assert np.isfinite(answer.flux).all()
    flags = answer.flags.values
    assert not (flags[:2] & Flag.BAD_PIXELS).any()
    assert (flags[2] & Flag.BAD_PIXELS).all()
    central = stamp.copy()
    x, y = (round(float(value)) for value in (answer.dataset["x"][0, 0], answer.dataset["y"][0, 0]))
    central[y, x] = np.nan
    assert deblender(central, sky_rms=rms, **OPTIONS).flags.values[0, 0] & Flag.BAD_CENTER


def test_flags_of_unusual_stamps(deblender, blend):
    noise = np.random.default_rng(0).normal(size=(128, 128))
    flags = deblender(noise, sky_rms=1.0, **OPTIONS).flags.values
    assert (flags & Flag.OUTSIDE_PRIOR).any()
    deblender.feature_limit.fill_(0.0)
    assert (deblender(noise, sky_rms=1.0, **OPTIONS).flags.values & Flag.UNFAMILIAR).all()
    deblender.feature_limit.fill_(1e9)
    rows, columns = np.indices((128, 128))
    far = 100 * np.exp(-np.hypot(rows - 63.5, columns - 80) / 3)
    middle = 100 * np.exp(-np.hypot(rows - 63.5, columns - 64) / 3)
    flags = deblender(np.stack([noise + far, noise + middle]), sky_rms=1.0, **OPTIONS).flags.values
    assert (flags[0] & Flag.OFF_CENTER).all()
    assert not (flags[1] & Flag.OFF_CENTER).any()


def test_anomaly_is_above_one_where_flags_are(deblender, blend):
    """It is the larger of both distances over their limits: 1 at the limit of a flag."""
    posterior = deblender(blend.image, sky_rms=blend.sky_rms, **OPTIONS)
    anomaly = posterior.anomaly.values
    assert anomaly.shape == (len(blend),)
    odd = (posterior.flags.values & int(Flag.UNFAMILIAR | Flag.OFF_CENTER)).any(1)
    np.testing.assert_array_equal(anomaly > 1, odd)
    deblender.feature_limit.fill_(1e-8)
    assert (deblender(blend.image, sky_rms=blend.sky_rms, **OPTIONS).anomaly.values > 1).all()
    assert posterior.summary()["anomaly"][1] == anomaly[0]


def test_positions(deblender, blend):
    posterior = deblender(blend.image, sky_rms=blend.sky_rms, **OPTIONS)
    x, y = (posterior.dataset[name].values[:, 0] for name in ("x", "y"))
    distance = np.hypot(x - blend.x[:, 0].numpy(), y - blend.y[:, 0].numpy())
    assert float(np.median(distance)) < 1


@pytest.mark.parametrize(
    ("image", "rms", "message"),
    [
        (np.zeros((64, 64)), 1.0, "image must hold stamps of 128 x 128 pixels, got shape"),
        (
            np.zeros((1, 2, 128, 128)),
            1.0,
            r"image must have the one band that the weights were trained for, got 2",
        ),
        (np.full((128, 128), np.nan), 1.0, "image must have good pixels, got none in stamp 0"),
        (np.zeros((128, 128)), 0.0, "sky_rms must be positive and finite, got 0"),
        (np.zeros((128, 128)), -1.0, "sky_rms must be positive and finite, got -1"),
        (np.zeros((128, 128)), np.nan, "sky_rms must be positive and finite, got nan"),
        (
            np.zeros((128, 128)),
            np.ones(3),
            "sky_rms must be a number, one for each of the 1 blends, or a map",
        ),
        (np.zeros((128, 128)), np.full((128, 128), -2.0), "sky_rms must be positive and finite, got -2"),
    ],
)
def test_bad_input(deblender, image, rms, message):
    with pytest.raises(ValueError, match=message):
        deblender(image, sky_rms=rms, **OPTIONS)


def test_words_are_no_image(deblender):
    with pytest.raises(TypeError, match="image must be an array of numbers"):
        deblender(np.array([["a"]]), sky_rms=1.0)


def test_instrument_checks(deblender):
    deblender.check_pixel_scale(0.0601)
    with pytest.raises(ValueError, match=r'pixel_scale must be 0\.06" within 2%'):
        deblender.check_pixel_scale(0.04)
    psf = deblender.instrument.psf.numpy()
    deblender.check_psf(psf)
    wide = np.outer(*[np.exp(-0.5 * (np.arange(-32, 33) / 3) ** 2)] * 2)
    with pytest.raises(ValueError, match="psf must have the width that the weights were trained for"):
        deblender.check_psf(wide)


def test_damaged_and_foreign_files(tmp_path, deblender):
    path = tmp_path / "w.safetensors"
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        load(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match="not a safetensors file, or damaged"):
        load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="must be a weights file written by probdeblend, got another file"):
        load(path)
    save(deblender, path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata | {"version": "99"})
    with pytest.raises(ValueError, match="must be a weights file of version 1, got version 99"):
        load(path)
    other = json.loads(metadata["description"])
    other["settings"]["hidden"] = 16
    save_file(tensors, path, metadata | {"description": json.dumps(other)})
    with pytest.raises(ValueError, match="tensors must match the stored description of the weights file"):
        load(path)
    with pytest.raises(ValueError, match="architecture must be one of Blend2Flux, Blend2Mask2Flux, got Oracle"):
        Description("Oracle", "StudentTHead", {}, (1.0, 2.0), 2.0, None, None, {}).build()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a safetensors file, or damaged"):
        load(path)


@pytest.mark.gpu
def test_gpu_gives_the_same_answer(blend):
    deblender = load()
    here = deblender(blend.image, sky_rms=blend.sky_rms, **OPTIONS)
    there = deblender.to("cuda")(blend.image, sky_rms=blend.sky_rms, **OPTIONS)
    assert np.allclose(here.flux, there.flux, rtol=2e-2)


@pytest.fixture(scope="module")
def calibrator(deblender):
    """Fitted to made-up truths: all fluxes are twice what the network says."""
    stream = Mixture(prior=Prior.published()).stream(batch_size=50, seed=9)
    batch = stream.blend(0)
    posterior = deblender(batch.image, sky_rms=batch.sky_rms, **OPTIONS)
    truth = 2 * np.median(posterior.draws("blend", "galaxy", "band"), -1)
    return Calibrator.fit(posterior, truth, least=100, fitted_on="made-up truths")


@pytest.fixture
def calibrated(deblender, calibrator):
    deblender.use(calibrator)
    yield deblender
    deblender.calibrator = None


def test_a_calibrator_is_applied_by_default(calibrated, blend):
    repaired = calibrated(blend.image, sky_rms=blend.sky_rms, **OPTIONS)
    raw = calibrated(blend.image, sky_rms=blend.sky_rms, calibrate=False, **OPTIONS)
    assert repaired.dataset.attrs["calibrated"] == "made-up truths"
    assert "calibrated" not in raw.dataset.attrs
    ratio = repaired.flux.median(("chain", "draw")) / raw.flux.median(("chain", "draw"))
    np.testing.assert_allclose(ratio, 2, rtol=0.2)


def test_a_calibrator_travels_with_the_weights(calibrated, calibrator, blend, tmp_path):
    save(calibrated, tmp_path / "w.safetensors")
    again = load(tmp_path / "w.safetensors")
    assert again.calibrator == calibrator
    options = {"sky_rms": blend.sky_rms} | OPTIONS
    np.testing.assert_array_equal(again(blend.image, **options).flux, calibrated(blend.image, **options).flux)


def test_another_calibrator_may_be_loaded(deblender, calibrator, blend, tmp_path):
    save(deblender, tmp_path / "w.safetensors")
    calibrator.save(tmp_path / "c.json")
    assert load(tmp_path / "w.safetensors").calibrator is None
    assert load(tmp_path / "w.safetensors", calibrator=tmp_path / "c.json").calibrator == calibrator
    save(tiny_deblender(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"posterior must have network .*, which the calibrator was fitted to"):
        load(tmp_path / "other.safetensors", calibrator=tmp_path / "c.json")
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file"):
        load(tmp_path / "other.safetensors", calibrator=tmp_path / "none.json")


def test_shipped_weights_are_calibrated(shipped):
    assert shipped.calibrator is not None
    assert shipped.calibrator.mask is not None
    assert dict(shipped.calibrator.summary().iterrows())["marginal coverage"].startswith("within 2/")
