"""Weights files: what is written is read again, and whatever does not fit is said in a sentence."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_weights import PSF, QUICK, noise_of, untrained

from probdeblend.deblending import Deblender, Description, deblend, load, save
from probdeblend.networks.dropout import kept_units
from probdeblend.posterior import Calibrator, Posterior
from probdeblend.scene import Scene

GIVEN = {"psf": PSF, "sky_rms": 1.0, **QUICK}


@pytest.fixture
def deblender():
    return untrained(seed=3)


@pytest.fixture(scope="module")
def calibrator():
    """Fitted to truths that are larger than what the posterior says."""
    rng = np.random.default_rng(5)
    count, one = 300, torch.ones(300, 1)
    number, place = np.arange(count), np.full(count, 4.0)
    flux = np.exp(rng.uniform(2, 8, count))
    draws = flux[:, None] * np.exp(0.3 * rng.normal(size=(1, 50, count, 1)))
    known = {"half_light_radius": place, "contested": place / 40, "existence": place / 5, "sky_rms": one.numpy()}
    posterior = Posterior.from_draws(draws, draws, scene=number, group=number, x=place, y=place, pixel_scale=1.0,
                                     columns=known)  # fmt: skip
    truth = torch.from_numpy(2 * flux * np.exp(0.3 * rng.normal(size=count)))[:, None]
    places = {name: torch.from_numpy(place) for name in "xy"}
    scene = Scene(torch.zeros(count, 1, 9, 9), one, one[..., None, None], 1.0, scene=torch.from_numpy(number), **places,
                  flux=truth, auto_flux=truth)  # fmt: skip
    return Calibrator.fit([(posterior, scene, number)], least=100, fitted_on="made-up truths")


def test_one_call_deblends_with_the_weights_that_ship(shipped, image):
    options = GIVEN | {"seed": 3, "calibrate": False}
    np.testing.assert_array_equal(deblend(image, **options).flux, shipped(image, **options).flux)
    with pytest.raises(TypeError, match="unexpected keyword"):
        deblend(image, pixels=3)


def test_the_weights_that_ship_state_what_they_were_trained_on(shipped):
    description = shipped.description
    low, high = description.fwhm
    assert low < 2.5
    assert high > 4.0
    assert description.brightest > np.log(1e4)
    assert description.training["steps_done"] > 0
    assert shipped.digest == load().digest
    assert all(value.dtype == torch.float32 for value in shipped.state_dict().values())


def test_save_and_load_give_the_same_draws(deblender, image, places, tmp_path):
    changed = Description(settings={"dropout": 0.1}, fwhm=(1.5, 7.0), brightest=11.0, training={"steps": 3})
    other = Deblender(deblender.network, changed, tokens=torch.randn(300, 96))
    save(other, tmp_path / "w.safetensors")
    again = load(tmp_path / "w.safetensors")
    assert again.description == changed
    assert again.digest == other.digest
    first, second = (one(image, positions=places, **GIVEN) for one in (other, again))
    np.testing.assert_allclose(np.log(first.flux), np.log(second.flux), atol=1e-4)
    np.testing.assert_allclose(first.dataset["anomaly"], second.dataset["anomaly"], rtol=1e-3)


def test_a_digest_tells_weights_apart(deblender):
    assert deblender.digest == untrained(seed=3).digest
    assert deblender.digest != untrained(seed=4).digest


def test_damaged_and_foreign_files(deblender, tmp_path):
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
    fitting = "tensors must match the stored description of the weights file"
    other = json.loads(metadata["description"]) | {"settings": {"unknown": 1}}
    save_file(tensors, path, metadata | {"description": json.dumps(other)})
    with pytest.raises(ValueError, match=fitting):
        load(path)
    finite = r"numbers must be finite, got NaN or infinity"
    save_file(tensors | {"token_limit": torch.tensor(torch.nan)}, path, metadata)
    with pytest.raises(ValueError, match=finite):
        load(path)
    for change in ({"brightest": float("nan")}, {"fwhm": [1.7, float("inf")]}, {"settings": {"dropout": float("nan")}}):
        save_file(tensors, path, metadata | {"description": json.dumps(json.loads(metadata["description"]) | change)})
        with pytest.raises(ValueError, match=finite):
            load(path)
    description = json.loads(metadata["description"])
    for change in (
        {"fwhm": [6.0, 1.7]},
        {"brightest": True},
        {"settings": {"dynamic": 3}},
        {"training": [1]},
    ):
        save_file(tensors, path, metadata | {"description": json.dumps(description | change)})
        with pytest.raises(ValueError, match=fitting):
            load(path)
    for change in ({"token_mean": torch.zeros(96, 1)}, {"token_limit": torch.tensor(3)}):
        save_file(tensors | change, path, metadata)
        with pytest.raises(ValueError, match=fitting):
            load(path)
    save_file({name: value for name, value in tensors.items() if name != "token_mean"}, path, metadata)
    with pytest.raises(ValueError, match=fitting):
        load(path)
    save_file(tensors, path, {name: text for name, text in metadata.items() if name != "description"})
    with pytest.raises(ValueError, match=fitting):
        load(path)
    save_file(tensors, path, metadata)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a safetensors file, or damaged"):
        load(path)


@pytest.mark.parametrize(("read", "precision"), [(False, torch.bfloat16), (True, torch.float64)])
def test_settings_of_torch_and_numpy_do_not_matter(deblender, tmp_path, read, precision):
    """Default precision and device, mixed precision, training mode and error state; the answer has the same bits."""
    image, given = noise_of((64, 64)) + 9 * (noise_of((64, 64), 2) > 3), GIVEN | {"positions": [[30, 30], [36, 33]]}
    given |= {"gain": 3.3}
    right = deblender(image, **given).flux
    save(deblender, tmp_path / "w.safetensors")
    try:
        torch.set_default_dtype(precision)
        with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16), np.errstate(all="raise"):
            kept_units.cache_clear()
            found = (load(tmp_path / "w.safetensors") if read else deblender.train())(image, **given).flux
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found, right)


def test_weights_of_another_precision_are_refused(deblender, image):
    with pytest.raises(TypeError, match=r"in single precision, as \.float\(\) brings them, got torch\.float64"):
        deblender.double()(image, **GIVEN)
    with pytest.raises(TypeError, match=r"got torch\.float16"):
        deblender.half().scenes(Scene(torch.zeros(1, 1, 32, 32), torch.ones(1, 1), torch.ones(1, 1, 3, 3), 1.0))


def test_descriptions_are_kept_as_text():
    description = Description(settings={"dropout": 0.2}, training={"steps": 7, "command": "train"})
    assert Description.parse(description.describe()) == description
    assert Description.parse(replace(description, fwhm=(2.0, 3.5)).describe()).fwhm == (2.0, 3.5)


def test_a_calibrator_is_applied_by_default(deblender, calibrator, image, places):
    deblender.use(calibrator)
    repaired = deblender(image, positions=places, **GIVEN)
    raw = deblender(image, positions=places, calibrate=False, **GIVEN)
    assert "calibrated" in repaired.dataset.attrs
    assert "calibrated" not in raw.dataset.attrs
    ratio = repaired.flux.median(("chain", "draw")) / raw.flux.median(("chain", "draw"))
    assert (ratio > 1.3).all()
    order = [4, 2, 0, 1, 5, 3]
    np.testing.assert_array_equal(
        deblender(image, positions=places[order], **GIVEN).flux, repaired.flux.values[:, :, order]
    )
    assert len(deblender(noise_of((60, 60)), **GIVEN).catalog()) == 0


def test_a_calibrator_travels_with_the_weights(deblender, calibrator, image, places, tmp_path):
    deblender.use(calibrator)
    save(deblender, tmp_path / "w.safetensors")
    again = load(tmp_path / "w.safetensors")
    assert again.calibrator.describe() == calibrator.describe()
    calibrated = again(image, positions=places, **GIVEN)
    raw = again(image, positions=places, calibrate=False, **GIVEN)
    assert not np.isclose(calibrated.flux, raw.flux).all()


def test_another_calibrator_may_be_loaded(deblender, calibrator, tmp_path):
    save(deblender, tmp_path / "w.safetensors")
    calibrator.save(tmp_path / "c.json")
    assert load(tmp_path / "w.safetensors").calibrator is None
    found = load(tmp_path / "w.safetensors", calibrator=tmp_path / "c.json").calibrator
    assert found.describe() == calibrator.describe()
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file"):
        load(tmp_path / "w.safetensors", calibrator=tmp_path / "none.json")


@pytest.mark.gpu
def test_a_gpu_gives_the_same_answer(image, places):
    here = load()(image, positions=places, **GIVEN)
    there = load().to("cuda")(image, positions=places, **GIVEN)
    np.testing.assert_allclose(np.log(here.flux), np.log(there.flux), atol=2e-2)
