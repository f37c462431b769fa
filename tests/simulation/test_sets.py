"""Sets of blends on disk: what goes in comes out, in complete shards, and interrupted runs are resumed."""

import json
from dataclasses import fields, replace

import h5py
import numpy as np
import pytest
import torch

from probdeblend.scene import Blend, Instrument
from probdeblend.simulation import count_blends, read_blends, read_instrument, write_blends

HALF = 2**-11  # relative rounding of a 16-bit float


def make_blend(rng, count):
    """A batch with every truth field, of stamps whose width is no multiple of eight."""
    shape = (count, 2)
    flux = rng.uniform(1, 9, (*shape, 1))
    return Blend(
        image=torch.from_numpy(rng.normal(size=(count, 1, 12, 13))).float(),
        sky_rms=torch.from_numpy(rng.uniform(2e-3, 8e-3, count)).float(),
        flux=torch.from_numpy(flux).float(),
        auto_flux=torch.full((*shape, 1), torch.nan),
        mask=torch.from_numpy(rng.uniform(size=(*shape, 12, 13)) > 0.5),
        isolated=torch.from_numpy(rng.normal(size=(*shape, 1, 12, 13))).float(),
        x=torch.from_numpy(rng.uniform(size=shape)),
        y=torch.from_numpy(rng.uniform(size=shape)),
        galaxy_type=torch.from_numpy(rng.integers(0, 4, shape)),
        half_light_radius=torch.from_numpy(rng.uniform(size=shape)),
        exposure=torch.full((count,), torch.inf),
        count=torch.from_numpy(rng.integers(1, 3, count)),
        identity=torch.from_numpy(rng.integers(0, 99, shape)),
    )


@pytest.fixture
def instrument():
    psf = torch.zeros(3, 3)
    psf[1, 1] = 1
    return Instrument(0.06, psf, 25.9463, 3e-3, noise_kernel=torch.ones(3, 3))


def same(found, expected):
    for field in fields(Blend):
        pixels = field.name in ("image", "isolated")
        tolerance = {"rtol": HALF, "atol": 1e-7} if pixels else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(
            getattr(found, field.name), getattr(expected, field.name), equal_nan=True, **tolerance
        )


def test_a_set_comes_back(tmp_path, rng, instrument):
    path = tmp_path / "set"
    batches = [make_blend(rng, count) for count in (7, 1, *14 * [2], 20)]
    settings = {"seed": 3, "rule": "published"}
    assert write_blends(path, iter(batches), instrument=instrument, settings=settings) == 56
    shards = ["blends-00000000.h5", "blends-00000036.h5"]
    assert sorted(entry.name for entry in path.iterdir()) == [*shards, "settings.json"]
    assert json.loads((path / "settings.json").read_text(encoding="utf-8")) == settings
    assert count_blends(path) == 56
    whole = read_blends(path)
    same(whole, Blend.join(batches))
    for start, stop in [(0, 56), (30, 40), (36, 37), (3, 36), (56, 56), (5, 5)]:
        part = read_blends(path, start, stop)
        assert len(part) == stop - start
        for field in fields(Blend):
            expected = getattr(whole, field.name)[start:stop]
            torch.testing.assert_close(getattr(part, field.name), expected, rtol=0, atol=0, equal_nan=True)
    assert len(read_blends(path / shards[1])) == 20
    found = read_instrument(path)
    numbers = (found.pixel_scale, found.zero_point, found.sky_rms, found.exposure)
    assert numbers == (0.06, 25.9463, 3e-3, np.inf)
    torch.testing.assert_close(found.psf, instrument.psf)
    torch.testing.assert_close(found.noise_kernel, instrument.noise_kernel)
    with h5py.File(path / shards[0]) as file:
        assert file["mask"].dtype == np.uint8
        assert file["mask"].shape == (36, 2, 12, 2)
        assert file["image"].dtype == np.float16


def test_faint_wings_and_bright_peaks_survive_storage(tmp_path, instrument):
    rms = torch.tensor([2e-3])
    pixels = torch.logspace(-4, 5, 64).reshape(1, 1, 8, 8) * 2e-3
    write_blends(tmp_path / "set", [Blend(pixels, rms)], instrument=instrument)
    found = read_blends(tmp_path / "set").image
    torch.testing.assert_close(found, pixels, rtol=HALF, atol=2e-6 * 2e-3)
    with pytest.raises(ValueError, match=r"image must be below a million times the sky noise to be stored, got 1e\+07"):
        write_blends(tmp_path / "bright", [Blend(1e2 * pixels, rms)], instrument=instrument)
    assert not list(tmp_path.glob("bright*"))


def test_a_set_without_truth(tmp_path, instrument):
    path = tmp_path / "set"
    batch = Blend(torch.zeros(2, 1, 8, 8, dtype=torch.float64), torch.ones(2))
    write_blends(path, [batch], instrument=instrument.replace(noise_kernel=None))
    assert read_blends(path).flux is None
    assert read_blends(path).image.dtype == torch.float32
    assert read_instrument(path).noise_kernel is None


def test_sets_appear_whole(tmp_path, rng, instrument):
    path = tmp_path / "set"
    full, bare = make_blend(rng, 2), Blend(torch.zeros(2, 1, 12, 13), torch.ones(2))
    with pytest.raises(ValueError, match="batches must have the same fields, only some have auto_flux, count"):
        write_blends(path, [full, bare], instrument=instrument)
    with pytest.raises(ValueError, match="batches must hold at least one blend, got none"):
        write_blends(path, [], instrument=instrument)
    assert not list(tmp_path.iterdir())
    write_blends(path, [full], instrument=instrument)
    with pytest.raises(FileExistsError, match=r"set: exists already"):
        write_blends(path, [bare], instrument=instrument)
    write_blends(path, [bare], instrument=instrument, overwrite=True)
    assert read_blends(path).mask is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_only_sets_are_replaced(tmp_path, rng, instrument):
    (tmp_path / "file").write_text("thesis")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("thesis")
    for name, message in [("file", "is a file, not a set"), ("folder", r"is not a set of blends .* holds thesis.tex")]:
        with pytest.raises(FileExistsError, match=message):
            write_blends(tmp_path / name, [make_blend(rng, 2)], instrument=instrument, overwrite=True)
    assert (tmp_path / "folder" / "thesis.tex").exists()


def interrupted(path, batches, instrument, settings):
    """Write batches to a disk that is full after them."""

    def fill_disk():
        yield from batches
        raise OSError(28, "No space left on device", "set")

    with pytest.raises(OSError, match="No space left"):
        write_blends(path, fill_disk(), instrument=instrument, settings=settings)


@pytest.mark.parametrize("callable_batches", [True, False])
def test_an_interrupted_set_is_resumed(tmp_path, rng, instrument, callable_batches):
    """Complete shards stay; the resumed set is the one that was never interrupted."""
    batches = [make_blend(rng, 1) for _ in range(40)]
    settings, path, partial = {"seed": 1}, tmp_path / "set", tmp_path / "set.partial"
    interrupted(path, batches[:35], instrument, settings)
    assert len(read_blends(partial)) == 32
    (partial / ".blends-00000032.h5.ab12.partial").touch()  # a killed run leaves such a file
    written = {"instrument": instrument, "settings": settings}
    with pytest.raises(FileExistsError, match=r"set.partial: an interrupted run exists: resume"):
        write_blends(path, batches, **written)
    with pytest.raises(ValueError, match=r"set.partial: must be resumed with the settings it was begun with"):
        write_blends(path, batches, instrument=instrument, settings={"seed": 2}, resume=True)
    asked = []

    def later(first):
        asked.append(first)
        return batches[first:]

    assert write_blends(path, later if callable_batches else batches, **written, resume=True) == 40
    assert asked == ([32] if callable_batches else [])
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]
    write_blends(tmp_path / "straight", iter(batches), **written)
    assert {file.name for file in path.iterdir()} == {file.name for file in (tmp_path / "straight").iterdir()}
    for file in path.iterdir():
        assert file.read_bytes() == (tmp_path / "straight" / file.name).read_bytes()
    with pytest.raises(ValueError, match=r"there is nothing to resume: .*again.partial does not exist"):
        write_blends(tmp_path / "again", batches, **written, resume=True)


def test_an_unfinished_set_that_is_complete_is_put_in_place(tmp_path, rng, instrument):
    batches = [make_blend(rng, 1) for _ in range(16)]
    interrupted(tmp_path / "set", batches, instrument, {})
    assert write_blends(tmp_path / "set", batches, instrument=instrument, resume=True) == 16
    assert count_blends(tmp_path / "set") == 16


def test_an_unfinished_set_can_be_overwritten(tmp_path, rng, instrument):
    batches = [make_blend(rng, 1) for _ in range(16)]
    interrupted(tmp_path / "set", batches, instrument, {})
    assert write_blends(tmp_path / "set", batches[:3], instrument=instrument, overwrite=True) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_a_missing_shard_is_reported(tmp_path, rng, instrument):
    write_blends(tmp_path / "set", [make_blend(rng, 1) for _ in range(33)], instrument=instrument)
    (tmp_path / "set" / "blends-00000016.h5").unlink()
    with pytest.raises(ValueError, match=r"set: a shard is missing after blends-00000000.h5"):
        read_blends(tmp_path / "set")


def test_later_shards_have_the_fields_of_the_first(tmp_path, rng, instrument):
    batches = [*(make_blend(rng, 1) for _ in range(16)), replace(make_blend(rng, 1), auto_flux=None)]
    with pytest.raises(ValueError, match="batches must have the same fields, only some have auto_flux"):
        write_blends(tmp_path / "set", batches, instrument=instrument)


def test_files_that_are_not_sets(tmp_path, rng, instrument):
    path = tmp_path / "set"
    with pytest.raises(FileNotFoundError, match=r"set: no such set of blends"):
        read_blends(path)
    (tmp_path / "text.h5").write_text("no set")
    with pytest.raises(ValueError, match=r"text.h5: must be a set of blends written by probdeblend, got another file"):
        count_blends(tmp_path / "text.h5")
    h5py.File(tmp_path / "other.h5", "w").close()
    with pytest.raises(ValueError, match=r"other.h5: must be a set of blends written by probdeblend, got another file"):
        read_instrument(tmp_path / "other.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: must be a set of blends written by probdeblend, got a folder"):
        count_blends(tmp_path / "empty")
    write_blends(path, [make_blend(rng, 3)], instrument=instrument)
    for start, stop in [(-1, 2), (2, 1), (0, 4)]:
        message = rf"start and stop must be from 0 to 3 and in order, got {start} and {stop}"
        with pytest.raises(ValueError, match=message):
            read_blends(path, start, stop)
    with h5py.File(path / "blends-00000000.h5", "r+") as file:
        file.attrs["version"] = 7
    with pytest.raises(ValueError, match=r"blends-00000000.h5: must be a set of blends of version 1, got version 7"):
        read_blends(path)
