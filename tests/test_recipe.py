import numpy as np
import pytest

from probdeblend import recipe
from probdeblend.io import write_blends
from probdeblend.prior import Prior
from probdeblend.scene import Instrument
from probdeblend.streams import SimulatedStream
from probdeblend.weights import load


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(recipe, "SETTINGS", {"unet_filters": 2, "depth": 2, "first_filters": 2, "hidden": 4})
    monkeypatch.setattr(recipe, "VALIDATION_BLENDS", 4)
    monkeypatch.setattr(recipe, "FAMILIAR_BLENDS", 8)


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


def test_checkpoint_in_the_way(tmp_path):
    (tmp_path / "w.safetensors.checkpoint").write_bytes(b"")
    with pytest.raises(FileExistsError, match="resume goes on from it, overwrite starts anew"):
        recipe.train_weights(tmp_path / "w.safetensors", steps=1, progress=False)
    with pytest.raises(ValueError, match="checkpoint must exist to resume from"):
        recipe.train_weights(tmp_path / "v.safetensors", steps=1, batch_size=4, resume=True, progress=False)
