from dataclasses import replace

import numpy as np
import pytest
import torch

from probdeblend.deblending.deblender import Deblender
from probdeblend.deblending.weights import load
from probdeblend.scene import Instrument
from probdeblend.simulation.conditions import Conditions
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.sets import write_blends
from probdeblend.training import recipe
from probdeblend.training.fit import Schedule, fit_tensors
from probdeblend.training.streams import Mixture, SimulatedStream


def shrink(patch):
    patch.setattr(recipe, "SETTINGS", {"unet_filters": 2, "depth": 2, "first_filters": 2, "hidden": 4})
    patch.setattr(recipe, "VALIDATION_BLENDS", 4)
    patch.setattr(recipe, "FAMILIAR_BLENDS", 8)
    patch.setattr(recipe, "BATCH", 64)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    shrink(monkeypatch)


def test_training_writes_weights_that_load(tmp_path):
    path = tmp_path / "w.safetensors"
    trained = recipe.train_weights(path, steps=2, batch_size=4, progress=False)
    again = load(path)
    assert again.description == trained.description
    assert again.description.training["steps_done"] == 2
    assert sorted(item.name for item in tmp_path.iterdir()) == ["w.safetensors"]
    stamp = np.random.default_rng(0).normal(size=(128, 128))
    options = {"sky_rms": 1.0, "draws": 8, "passes": 2}
    assert np.allclose(trained(stamp, **options).flux, again(stamp, **options).flux, rtol=1e-4)
    with pytest.raises(FileExistsError):
        recipe.train_weights(path, steps=2, batch_size=4, progress=False)


def test_training_on_a_stored_set(tmp_path):
    instrument = Instrument.candels_f160w()
    stream = SimulatedStream(Prior.default(), instrument, batch_size=40, seed=2)
    write_blends(tmp_path / "set", [stream.blend(0)], instrument=instrument)
    trained = recipe.train_weights(
        tmp_path / "w.safetensors", steps=2, batch_size=4, source=tmp_path / "set", progress=False
    )
    assert trained.description.training["source"] == "set"
    kept = stream.blend(0)
    ratio = kept.flux[..., 0] / kept.sky_rms[:, None]
    np.testing.assert_allclose(trained.description.flux_range, (float(ratio.min()), float(ratio.max())), rtol=1e-6)
    assert trained.description.conditions is trained.description.prior is trained.flux_prior is None


def test_the_file_states_what_the_network_was_trained_on(tmp_path):
    """Not the default instrument, prior and conditions: a deeper image, other magnitudes, another zero point."""
    prior = replace(Prior.published(), magnitude_range=(19.0, 22.0), max_difference=1.0)
    conditions = Conditions(sky_rms=(1e-4, 4e-4), exposure=(100.0, 200.0), psf_growth=(1.0, 1.2), psf_shear=0.05)
    mixture = Mixture(prior, Instrument.candels_f160w().replace(zero_point=24.0), conditions)
    path = tmp_path / "w.safetensors"
    recipe.train_weights(path, steps=2, batch_size=4, source=(mixture, mixture), progress=False)
    again = load(path)
    described = again.description
    assert described.conditions == conditions
    assert Prior.parse(described.prior) == prior
    assert described.max_difference == 1.0
    brightest, faintest = (10 ** (0.4 * (24.0 - magnitude)) for magnitude in (19.0, 22.0))
    np.testing.assert_allclose(described.flux_range, (faintest / 4e-4, brightest / 1e-4))
    assert again.flux_prior == prior.flux_prior((1e-4, 4e-4), 24.0)
    new = recipe.retrain_weights(again, tmp_path / "new.safetensors", **OPTIONS)
    assert new.description.conditions == conditions
    assert load(tmp_path / "new.safetensors").flux_prior == again.flux_prior


def test_checkpoint_in_the_way(tmp_path):
    (tmp_path / "w.safetensors.checkpoint").write_bytes(b"")
    with pytest.raises(FileExistsError, match="resume goes on from it, overwrite starts anew"):
        recipe.train_weights(tmp_path / "w.safetensors", steps=1, progress=False)
    with pytest.raises(ValueError, match="checkpoint must exist to resume from"):
        recipe.train_weights(tmp_path / "v.safetensors", steps=1, batch_size=4, resume=True, progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("first") / "w.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        return recipe.train_weights(path, steps=2, batch_size=4, progress=False)


OPTIONS = {"blends": 100, "steps": 3, "progress": False}


def test_retraining_keeps_the_encoder_alone(trained, tmp_path):
    path = tmp_path / "new.safetensors"
    new = recipe.retrain_weights(trained, path, **OPTIONS)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["new.safetensors"]
    before, after = trained.network.state_dict(), new.network.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("unet.", "cnn.convolutions."))}
    assert new.encoder_digest == trained.encoder_digest
    assert new.digest != trained.digest
    again = load(path)
    assert again.description == new.description
    assert again.digest == new.digest
    made = again.description.training
    assert made["command"] == "probdeblend retrain"
    assert made["encoder"] == trained.description.training
    assert (made["close_fraction"], made["steps_done"]) == (0.1, 3)
    assert again.description.close_fraction == 0.1
    assert trained.description.close_fraction == 0
    assert again.description.encoder_close_fraction == 0
    assert replace(again.description, training={"close_fraction": 0.3}).encoder_close_fraction == 0.3
    assert again.flux_prior is not None
    with pytest.raises(FileExistsError, match="exists already"):
        recipe.retrain_weights(trained, path, **OPTIONS)


def test_same_seed_same_weights_interrupted_or_not(trained, tmp_path, monkeypatch):
    whole, other = (recipe.retrain_weights(trained, tmp_path / f"{n}", seed=n, **OPTIONS).digest for n in (0, 1))
    encode, seen = recipe._encode, []

    def breaks(network, stream, number):
        if number == 1 and not seen:
            seen.append(number)
            raise KeyboardInterrupt
        return encode(network, stream, number)

    monkeypatch.setattr(recipe, "_encode", breaks)
    with pytest.raises(KeyboardInterrupt):
        recipe.retrain_weights(trained, tmp_path / "again", **OPTIONS)
    assert not (tmp_path / "again").exists()
    with pytest.raises(ValueError, match="was begun with other settings"):
        recipe.retrain_weights(trained, tmp_path / "again", seed=1, resume=True, **OPTIONS)
    resumed = recipe.retrain_weights(trained, tmp_path / "again", resume=True, **OPTIONS).digest
    assert resumed == whole != other


def test_what_cannot_be_retrained(trained, tmp_path):
    with pytest.raises(ValueError, match="blends must be enough for a batch of 64 and a tenth to validate on, got 9"):
        recipe.retrain_weights(trained, tmp_path / "new", blends=9)
    described = replace(trained.description, training=trained.description.training | {"source": "set"})
    other = Deblender(
        trained.network, trained.instrument, described, familiar=(torch.zeros(4), torch.eye(4), torch.ones(()))
    )
    message = "weights must be trained on the simulated stream to be retrained on it, got ones from set"
    with pytest.raises(ValueError, match=message):
        recipe.retrain_weights(other, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_retraining_finds_what_features_say(trained):
    """Of blends whose log-fluxes are their features, the loss goes from that of a guess to that of knowing."""
    torch.manual_seed(0)
    network = replace(trained.description, head="TotalRatioHead").build()
    network.cnn.dense = torch.nn.Identity()
    loss = recipe.ReadoutLikelihood(network)
    known = torch.randn(400, 4)
    data = known, torch.zeros(400, 2), loss.head.division(known[:, :2]).detach()
    before = float(loss(*data).detach())
    fit_tensors(loss, data, schedule=Schedule(400, learning_rate=0.03), batch_size=64, progress=False)
    assert float(loss(*data).detach()) < before - 5
