"""Libraries: their splits, positions, files and lists of galaxies to keep."""

from dataclasses import fields, replace

import h5py
import numpy as np
import pytest
from astropy.table import Table
from libraries import made

from probdeblend.surveys import Library, keep_table, read_library, write_library
from probdeblend.surveys.stamps import join


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
    assert set(whole.split(seed=6)[2].identity) != sets[2]


def test_libraries_that_cannot_be_split():
    with pytest.raises(ValueError, match="library must hold galaxies for each of 3 parts, got 2 in all"):
        made(2).split()


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
    with pytest.raises(ValueError, match=r"auto_flux must have shape \(12,\), got \(3,\)"):
        made(auto_flux=np.ones(3))
    with pytest.raises(ValueError, match="galaxy_type must be from -1 to 3"):
        made(galaxy_type=np.full(12, 4))
    assert np.isnan(made(auto_flux=np.full(12, -1.0)).magnitude).all()


def test_a_library_comes_back_with_the_users_choice(tmp_path):
    folder = tmp_path / "library"
    whole = made(5, quality=np.array([0, 1, 10, 0, 0]), keep=np.array([True, False, False, True, True]))
    assert write_library(folder, whole) == ["library.h5", "keep.csv", "contact-001.png"]
    again = read_library(folder)
    with pytest.raises(FileExistsError, match="library: exists already"):
        write_library(folder, whole)
    for field in fields(Library):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(whole, field.name))
    table = Table.read(folder / "keep.csv")
    assert table["reasons"][2] == "asymmetric; missing pixels"
    text = (folder / "keep.csv").read_text().splitlines()
    text[2] = text[2].replace(",no,", ",YES ,")
    (folder / "keep.csv").write_text("\n".join(text))
    assert read_library(folder).keep.tolist() == [True, True, False, True, True]


def test_libraries_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not a library of galaxies, it has no library.h5"):
        read_library(tmp_path)
    path = tmp_path / "library"
    write_library(path, made(3))
    table = keep_table(made(3))
    for change, message in [
        (lambda t: t.remove_column("keep"), "the columns keep are missing"),
        (lambda t: t.remove_row(0), "must have one row per galaxy of the library, 3, in its order"),
        (lambda t: t.replace_column("keep", ["yes", "maybe", "no"]), "keep must be yes or no, got 'maybe'"),
    ]:
        wrong = table.copy()
        change(wrong)
        wrong.write(path / "keep.csv", format="ascii.csv", overwrite=True)
        with pytest.raises(ValueError, match=message):
            read_library(path)
    with h5py.File(path / "library.h5", "r+") as file:
        file.attrs["version"] = 9
    with pytest.raises(ValueError, match="must be a library of version 1, got version 9"):
        read_library(path)
    (path / "library.h5").write_text("no")
    with pytest.raises(ValueError, match="must be a library written by probdeblend, got another or a damaged file"):
        read_library(path)


def test_a_digest_tells_libraries_apart():
    first = made(5)
    assert first.digest() == made(5).digest()
    assert first.digest() != first.select([0, 1, 2]).digest()
    assert first.digest() != replace(first, keep=np.arange(5) > 0).digest()
