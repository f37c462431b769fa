"""Libraries: their galaxies, folds, positions, files and lists of galaxies to keep."""

from collections import Counter
from dataclasses import fields

import h5py
import numpy as np
import pytest
from astropy.table import Table
from galaxies import galaxy

from probdeblend.surveys import Galaxy, fold_of, keep_table, read_library, write_library


def library(number=3, **changes):
    return [galaxy(i, **changes) for i in range(number)]


@pytest.fixture
def unseen(monkeypatch):
    """Contact sheets take longer than all else, and are not looked at."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: path.write_bytes(b""))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sky_rms": np.ones(3)}, r"sky_rms must have shape \(1,\), got \(3,\)"),
        ({"footprint": np.ones((8, 8), dtype=bool)}, r"pixels must have shape \(1, 8, 8\), got \(1, 80, 80\)"),
        ({"psf": np.ones((1, 4, 5))}, r"psf must be square, got shape \(4, 5\)"),
        ({"footprint": np.zeros((80, 80), dtype=bool)}, "footprint must hold finite pixels alone, got 0 of 0"),
        ({"pixels": np.full((1, 80, 80), np.nan)}, "footprint must hold finite pixels alone, got 0 of 472"),
        ({"pixel_scale": 0.0}, "pixel_scale and sky_rms must be positive, got 0.0 and"),
        ({"sky_rms": np.array([-1.0])}, r"pixel_scale and sky_rms must be positive, got 0.06 and \[-1.\]"),
    ],
)
def test_a_galaxy_checks_its_fields(changes, message):
    with pytest.raises(ValueError, match=message):
        galaxy(**changes)


def test_magnitudes_are_those_of_the_footprint():
    one = galaxy(bands=2, zero_point=np.array([25.0, np.nan]))
    light = one.pixels[0][one.footprint].sum()
    assert one.magnitude == pytest.approx([25 - 2.5 * np.log10(light), np.nan], nan_ok=True)
    assert np.isnan(galaxy(pixels=-one.pixels[:1]).magnitude).all()


def test_folds_depend_on_names_alone():
    names = [f"survey:{number}" for number in range(2000)]
    folds = Counter(map(fold_of, names))
    assert sorted(folds) == [0, 1, 2, 3, 4]
    assert all(340 < number < 460 for number in folds.values())  # 3.4 standard deviations
    assert [fold_of(name) for name in names[:5]] == [fold_of(name) for name in names][:5]
    assert {fold_of(name, 2) for name in names} == {0, 1}
    with pytest.raises(ValueError, match="folds must be positive, got 0"):
        fold_of("one", 0)


@pytest.mark.usefixtures("unseen")
def test_one_place_in_the_sky_is_one_galaxy(tmp_path):
    places = [(53.1, -27.8), (54.1, -27.8), (np.nan, np.nan)]
    # 1e-4 deg in right ascension are 0.32" here, within the radius; 1e-3 deg are not.
    moved = [(53.1001, -27.8), (54.101, -27.8), (np.nan, np.nan)]
    for name, own in (("a", places), ("h", moved)):
        galaxies = [galaxy(i, identity=f"{name}{i}", ra=ra, dec=dec) for i, (ra, dec) in enumerate(own)]
        write_library(tmp_path / name, galaxies)
    names = ["a0", "a1", "a2", "a0", "h1", "h2"]
    assert [one.identity for one in read_library(tmp_path / "a", tmp_path / "h")] == names
    assert [one.identity for one in read_library(tmp_path / "h", tmp_path / "a")] == [*names[3:], *names[:3]]


@pytest.mark.slow
def test_a_library_comes_back_with_the_users_choice(tmp_path):
    folder = tmp_path / "library"
    pixels = galaxy().pixels
    pixels[0, :3] = np.nan
    given = [
        galaxy(0, pixels=pixels),
        galaxy(1, bands=3, side=70, flags=("asymmetric", "missing pixels"), keep=False, ra=150.1, dec=2.2),
        galaxy(2, bands=2, sky_rms=np.array([1e-3, np.nan])),
    ]
    assert write_library(folder, given) == ["contact-001.png", "keep.csv", "library.h5"]
    again = read_library(folder)
    for one, other in zip(again, given, strict=True):
        for field in fields(Galaxy):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
    with pytest.raises(FileExistsError, match="library: exists already"):
        write_library(folder, given)
    assert Table.read(folder / "keep.csv")["reasons"][1] == "asymmetric; missing pixels"
    text = (folder / "keep.csv").read_text().splitlines()
    text[2] = text[2].replace(",no,", ",YES ,")
    (folder / "keep.csv").write_text("\n".join(text))
    assert all(one.keep for one in read_library(folder))


@pytest.mark.usefixtures("unseen")
def test_libraries_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not a library of galaxies, it has no library.h5"):
        read_library(tmp_path)
    path = tmp_path / "library"
    with pytest.raises(ValueError, match="galaxies must be at least one, got none"):
        write_library(path, [])
    write_library(path, library())
    table = keep_table(library())
    for change, message in [
        (lambda t: t.remove_column("keep"), "must have the columns identity and keep, and one row"),
        (lambda t: t.remove_row(0), "and one row per galaxy of the library, 3, in its order"),
        (lambda t: t.replace_column("keep", ["yes", "maybe", "no"]), "keep must be yes or no, got 'maybe'"),
    ]:
        wrong = table.copy()
        change(wrong)
        wrong.write(path / "keep.csv", format="ascii.csv", overwrite=True)
        with pytest.raises(ValueError, match=message):
            read_library(path)
    with h5py.File(path / "library.h5", "r+") as file:
        values = file["000001/psf"][()]
        del file["000001/psf"]
        file["000001/psf"] = values.astype(int)
    with pytest.raises(ValueError, match="must be a library written by probdeblend, got another or a damaged file"):
        read_library(path)
    with h5py.File(path / "library.h5", "r+") as file:
        file.attrs["version"] = 9
    with pytest.raises(ValueError, match="must be a library of version 1, got version 9"):
        read_library(path)
