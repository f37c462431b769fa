"""Sets of scenes on disk: what goes in comes out, in complete shards, and interrupted runs are resumed."""

import json
from dataclasses import fields, replace

import h5py
import numpy as np
import pytest
import torch

from probdeblend.scene import Scene
from probdeblend.simulation import count_scenes, read_scenes, write_scenes

HALF = 2**-11  # relative rounding of a 16-bit float


def make_scenes(rng, count):
    """A batch with every field, each scene with 0 to 3 sources in two bands."""
    number = torch.from_numpy(rng.integers(0, 4, count))
    sources = int(number.sum())

    def floats(*shape):
        return torch.from_numpy(rng.uniform(1, 9, shape)).float()

    return Scene(
        image=torch.from_numpy(rng.normal(size=(count, 2, 12, 13))).float(),
        sky_rms=1e-3 * floats(count, 2),
        psf=floats(count, 2, 3, 3),
        pixel_scale=0.06,
        exposure=torch.full((count, 2), torch.inf),
        noise_kernel=floats(count, 2, 3, 3),
        wavelength=floats(count, 2),
        zero_point=(25.9463, 26.0),
        scene=torch.arange(count).repeat_interleave(number),
        flux=floats(sources, 2),
        auto_flux=torch.full((sources, 2), torch.nan),
        light=floats(sources, 2, 12, 13),
        source_type=torch.from_numpy(rng.integers(0, 5, sources)),
        identity=torch.from_numpy(rng.integers(0, 99, sources)),
        **{name: floats(sources) for name in ("x", "y", "half_light_radius", "axis_ratio", "angle")},
    )


def bare_scenes(count=2):
    return Scene(
        torch.zeros(count, 2, 12, 13, dtype=torch.float64), torch.ones(count, 2), torch.ones(count, 2, 1, 1), 0.06
    )


def same(found, expected, *, exact=False):
    for field in fields(Scene):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if not isinstance(other, torch.Tensor):
            assert one == other, field.name
            continue
        pixels = field.name in ("image", "light") and not exact
        tolerance = {"rtol": HALF, "atol": 1e-7} if pixels else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(one, other, equal_nan=True, **tolerance)


def test_a_set_comes_back(tmp_path, rng):
    path = tmp_path / "set"
    batches = [make_scenes(rng, count) for count in (7, 29, 20)]
    settings = {"seed": 3, "rule": "published"}
    assert write_scenes(path, iter(batches), settings=settings) == 56
    shards = ["scenes-00000000.h5", "scenes-00000007.h5", "scenes-00000036.h5"]
    assert sorted(entry.name for entry in path.iterdir()) == [".probdeblend.json", *shards, "settings.json"]
    assert json.loads((path / "settings.json").read_text(encoding="utf-8")) == settings
    assert count_scenes(path) == 56
    whole = read_scenes(path)
    same(whole, Scene.join(batches))
    for start, stop in [(0, 56), (30, 40), (36, 37), (3, 36), (56, 56), (5, 5)]:
        part = read_scenes(path, start, stop)
        assert len(part) == stop - start
        same(part, whole.select(slice(start, stop)), exact=True)
    assert len(read_scenes(path / shards[2])) == 20
    with h5py.File(path / shards[0]) as file:
        assert file["light"].dtype == np.float16
        assert file["image"].dtype == np.float16


def test_faint_wings_and_bright_peaks_survive_storage(tmp_path):
    pixels = torch.logspace(-4, 5, 64).reshape(1, 1, 8, 8) * 2e-3
    one = Scene(pixels, torch.tensor([[2e-3]]), torch.ones(1, 1, 1, 1), 0.06)
    write_scenes(tmp_path / "set", [one])
    found = read_scenes(tmp_path / "set").image
    torch.testing.assert_close(found, pixels, rtol=HALF, atol=2e-6 * 2e-3)
    with pytest.raises(ValueError, match=r"image must be below a million times the sky noise to be stored, got 1e\+07"):
        write_scenes(tmp_path / "bright", [replace(one, image=1e2 * pixels)])
    assert not list(tmp_path.glob("bright*"))


def test_a_set_without_truth(tmp_path):
    write_scenes(tmp_path / "set", [bare_scenes()])
    found = read_scenes(tmp_path / "set")
    assert found.scene is None
    assert torch.equal(found.noise_kernel, bare_scenes().noise_kernel)
    assert found.image.dtype == torch.float32


def test_sets_appear_whole(tmp_path, rng):
    path = tmp_path / "set"
    full, bare = make_scenes(rng, 2), replace(bare_scenes(), zero_point=(25.9463, 26.0))
    with pytest.raises(ValueError, match=r"batches must be alike, got psf \(2, 1, 1\) after \(2, 3, 3\)"):
        write_scenes(path, [full, bare])
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.partial"], "the whole shard is kept"
    with pytest.raises(ValueError, match="batches must hold at least one scene, got none"):
        write_scenes(path, [], overwrite=True)
    assert not list(tmp_path.iterdir())
    write_scenes(path, [full])
    with pytest.raises(FileExistsError, match=r"set: exists already"):
        write_scenes(path, [bare])
    write_scenes(path, [bare], overwrite=True)
    assert read_scenes(path).light is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_only_sets_are_replaced(tmp_path, rng):
    (tmp_path / "file").write_text("thesis")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("thesis")
    cases = [("file", "is a file, not a set"), ("folder", "is not replaced, because it holds thesis.tex")]
    for name, message in cases:
        with pytest.raises(FileExistsError, match=message):
            write_scenes(tmp_path / name, [make_scenes(rng, 2)], overwrite=True)
    assert (tmp_path / "folder" / "thesis.tex").exists()


def interrupted(path, batches, settings):
    """Write batches to a disk that is full after them."""

    def fill_disk():
        yield from batches
        raise OSError(28, "No space left on device", "set")

    with pytest.raises(OSError, match="No space left"):
        write_scenes(path, fill_disk(), settings=settings)


@pytest.mark.parametrize("callable_batches", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_interrupted_set_is_resumed(tmp_path, rng, callable_batches):
    """Complete shards stay; the resumed set is the one that was never interrupted."""
    batches = [make_scenes(rng, 1) for _ in range(5)]
    settings, path, partial = {"seed": 1}, tmp_path / "set", tmp_path / "set.partial"
    interrupted(path, batches[:3], settings)
    assert len(read_scenes(partial)) == 3
    (partial / ".scenes-00000003.h5.ab12.partial").touch()  # a killed run leaves such a file
    written = {"settings": settings}
    with pytest.raises(FileExistsError, match=r"set.partial: an interrupted run exists: resume"):
        write_scenes(path, batches, **written)
    with pytest.raises(ValueError, match=r"set.partial: must be resumed with the settings it was begun with"):
        write_scenes(path, batches, settings={"seed": 2}, resume=True)
    asked = []

    def later(first):
        asked.append(first)
        return batches[first:]

    assert write_scenes(path, later if callable_batches else batches, **written, resume=True) == 5
    assert asked == ([3] if callable_batches else [])
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]
    write_scenes(tmp_path / "straight", iter(batches), **written)
    assert {file.name for file in path.iterdir()} == {file.name for file in (tmp_path / "straight").iterdir()}
    for file in path.iterdir():
        assert file.read_bytes() == (tmp_path / "straight" / file.name).read_bytes()
    with pytest.raises(ValueError, match=r"there is nothing to resume: .*again.partial does not exist"):
        write_scenes(tmp_path / "again", batches, **written, resume=True)


def test_an_unfinished_set_that_is_complete_is_put_in_place(tmp_path, rng):
    batches = [make_scenes(rng, 1) for _ in range(4)]
    interrupted(tmp_path / "set", batches, {})
    assert write_scenes(tmp_path / "set", batches, resume=True) == 4
    assert count_scenes(tmp_path / "set") == 4


def test_an_unfinished_set_can_be_overwritten(tmp_path, rng):
    batches = [make_scenes(rng, 1) for _ in range(4)]
    interrupted(tmp_path / "set", batches, {})
    assert write_scenes(tmp_path / "set", batches[:3], overwrite=True) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_a_missing_shard_is_reported(tmp_path, rng):
    write_scenes(tmp_path / "set", [make_scenes(rng, 1) for _ in range(3)])
    (tmp_path / "set" / "scenes-00000001.h5").unlink()
    with pytest.raises(ValueError, match=r"scenes-00000000.h5: the next shard of the set is missing"):
        read_scenes(tmp_path / "set")
    (tmp_path / "set" / "scenes-00000000.h5").unlink()
    with pytest.raises(ValueError, match=r"set: must be a set of scenes .* got a folder without shards"):
        count_scenes(tmp_path / "set")


def test_later_shards_have_the_fields_of_the_first(tmp_path, rng):
    batches = [make_scenes(rng, 1), replace(make_scenes(rng, 1), auto_flux=None)]
    with pytest.raises(ValueError, match=r"batches must be alike, got auto_flux None after \(2,\)"):
        write_scenes(tmp_path / "set", batches)
    finer = replace(make_scenes(rng, 1), pixel_scale=0.03)
    with pytest.raises(ValueError, match=r"batches must be alike, got pixel_scale 0.03 after 0.06"):
        write_scenes(tmp_path / "other", [make_scenes(rng, 1), finer])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("psf", lambda values: values[:2], r"psf must begin with the axes \(3, 2\), got \(2, 2, 3, 3\)"),
        ("flux", lambda values: values[:, 0], "flux must have shape"),
        ("flux", lambda values: values + np.nan, "flux must be finite, or NaN where auto_flux is known"),
        ("flux", lambda values: values + np.inf, "flux must be finite, or NaN where auto_flux is known"),
        ("identity", lambda values: values + 0.5, "identity must be integers, got float64"),
        ("light", lambda values: np.full(values.shape, np.nan, values.dtype), "light must be finite"),
        ("scene", lambda values: values - 1, "scene must not decrease and be below 3"),
        ("wavelength", np.zeros_like, "wavelength must be positive"),
        ("image", lambda _: h5py.ExternalLink("other.h5", "image"), "image is not stored in it"),
        ("x", lambda _: h5py.SoftLink("/y"), "x is not stored in it"),
    ],
)
def test_what_a_set_holds_is_what_was_written(tmp_path, rng, name, change, message):
    write_scenes(tmp_path / "set", [make_scenes(rng, 3)])
    with h5py.File(tmp_path / "set" / "scenes-00000000.h5", "r+") as file:
        values = file[name][()]
        del file[name]
        file[name] = change(values)
    with pytest.raises(ValueError, match=rf"scenes-00000000.h5: must be a set of scenes .*{message}"):
        read_scenes(tmp_path / "set")


def test_total_fluxes_of_real_galaxies_may_be_unknown(tmp_path, rng):
    scenes = make_scenes(rng, 3)
    write_scenes(tmp_path / "set", [replace(scenes, flux=scenes.auto_flux, auto_flux=scenes.flux)])
    assert read_scenes(tmp_path / "set").flux.isnan().all()


def test_a_set_that_claims_more_than_it_holds(tmp_path, rng):
    write_scenes(tmp_path / "set", [make_scenes(rng, 3)])
    with h5py.File(tmp_path / "set" / "scenes-00000000.h5", "r+") as file:
        shape, kind = file["image"].shape[1:], file["image"].dtype
        del file["image"]
        file.create_dataset("image", (2**40, *shape), kind, chunks=(1, *shape))
    with pytest.raises(ValueError, match="image is not stored in it"):
        count_scenes(tmp_path / "set")


def test_files_that_are_not_sets(tmp_path, rng):
    path = tmp_path / "set"
    with pytest.raises(FileNotFoundError, match=r"set: no such set of scenes"):
        read_scenes(path)
    (tmp_path / "text.h5").write_text("no set")
    with pytest.raises(ValueError, match=r"text.h5: must be a set of scenes written by probdeblend, got another or"):
        count_scenes(tmp_path / "text.h5")
    h5py.File(tmp_path / "other.h5", "w").close()
    with pytest.raises(ValueError, match=r"other.h5: must be a set of scenes written by probdeblend, got another file"):
        read_scenes(tmp_path / "other.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: must be a set of scenes written by probdeblend, got a folder"):
        count_scenes(tmp_path / "empty")
    write_scenes(path, [make_scenes(rng, 3)])
    for start, stop in [(-1, 2), (2, 1), (0, 4)]:
        message = rf"start and stop must be from 0 to 3 and in order, got {start} and {stop}"
        with pytest.raises(ValueError, match=message):
            read_scenes(path, start, stop)
    with h5py.File(path / "scenes-00000000.h5", "r+") as file:
        file.attrs["version"] = 7
    with pytest.raises(ValueError, match=r"scenes-00000000.h5: must be a set of scenes of version 1, got version 7"):
        read_scenes(path)
