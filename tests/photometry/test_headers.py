"""Noise and data quality that go along with an image in other extensions of its file, as headers tell them."""

import numpy as np
import pytest
from astropy.io import fits

from probdeblend.photometry import open_mosaic, read_image

SHAPE = (12, 16)
FLAGS = (1 << np.arange(192) % 16).astype(np.int16).reshape(SHAPE)
JWST = {"TELESCOP": "JWST", "INSTRUME": "NIRCAM"}
UVIS = {"TELESCOP": "HST", "INSTRUME": "WFC3", "DETECTOR": "UVIS"}


def stored(path, extensions, *, primary=None, **cards):
    """Write extensions of ones, or as they are given by name and version."""
    hdus = [fits.PrimaryHDU(primary, fits.Header(cards))]
    for key, data in extensions.items():
        name, _, version = key.partition(",")
        hdus.append(fits.ImageHDU(np.ones(SHAPE, ">f4") if data is None else data, name=name, ver=int(version or 1)))
    fits.HDUList(hdus).writeto(path)
    return path


def bad_values(path, **options):
    """Values of the data quality whose pixels are bad, and what the notes say of it."""
    with open_mosaic(path, **options) as image:
        bad = np.ma.getmaskarray(image.data[:, :])
    return sorted({int(value) & 0xFFFF for value in FLAGS[bad]}), next(n for n in image.notes if "bad where" in n)


@pytest.mark.parametrize(
    ("cards", "dq", "bits", "words"),
    [
        (JWST, None, {0, 9}, "bit DO_NOT_USE or NON_SCIENCE"),
        (JWST, "DO_NOT_USE,SATURATED", {0, 1}, "bit DO_NOT_USE or SATURATED"),
        (JWST, "do_not_use + warm", {0, 12}, "bit DO_NOT_USE or WARM"),
        (JWST, ["SATURATED"], {1}, "bit SATURATED"),
        (JWST, "4096", {12}, "bit WARM"),
        (JWST, 6, {1, 2}, "bit SATURATED or JUMP_DET"),
        (JWST, "~64,32", set(range(16)) - {5, 6}, "any bit but PERSISTENCE or AD_FLOOR"),
        (JWST, 0, set(), "bit 0"),
        (UVIS, None, set(range(16)) - {4, 6}, "any bit but HOT or WARM"),
        (UVIS | {"DETECTOR": "IR"}, None, set(range(16)) - {4, 9}, "any bit but HOT or BADREF"),
        ({"INSTRUME": "ACS"}, None, set(range(16)) - {4, 6}, "any bit but HOT or WARM"),
        ({"INSTRUME": "ACS"}, "UNSTABLE", {5}, "bit UNSTABLE"),
        ({"INSTRUME": "GMOS-N"}, None, set(range(16)), "any bit"),
        ({}, "~1", set(range(1, 16)), "any bit but 1"),
    ],
)
def test_some_bits_of_the_data_quality_make_a_pixel_bad(tmp_path, cards, dq, bits, words):
    path = stored(tmp_path / "x.fits", {"SCI": None, "DQ": FLAGS}, **cards)
    bad, note = bad_values(path, dq=dq)
    assert bad == sorted(1 << bit for bit in bits)
    assert note == f"pixels are bad where DQ,1 of {path} has {words}"


@pytest.mark.parametrize("dq", ["DEAD", "LOST,64", "64,LOST", "64;32", "96,1", "~", 1.5, object()])
def test_bits_that_are_not_known_are_refused_with_those_that_are(tmp_path, dq):
    path = stored(tmp_path / "x.fits", {"SCI": None, "DQ": FLAGS}, **UVIS)
    opening = open_mosaic(path, dq=dq)
    with (
        pytest.raises(ValueError, match=r"dq must list bits as numbers or LOST, .*, USER, got"),
        opening,
    ):
        pass
    opening = open_mosaic(stored(tmp_path / "y.fits", {"SCI": None, "ERR": None}), dq=dq)
    with pytest.raises(ValueError, match=r"dq must be left out for an image without an extension DQ"), opening:
        pass


@pytest.mark.parametrize("quality", [FLAGS.astype(">f4"), FLAGS[:, :9], FLAGS[None, None], FLAGS.astype(np.uint16)])
def test_the_data_quality_is_of_whole_numbers_and_of_the_shape_of_the_image(tmp_path, quality):
    with open_mosaic(stored(tmp_path / "x.fits", {"SCI": None, "DQ": quality})) as image:
        assert np.ma.isMA(image.data[:, :]) == (quality.dtype == np.uint16)
        assert any("DQ,1 of" in note and "is not used" in note for note in image.notes) == (quality.dtype.kind == "f")


def test_a_mask_without_a_meaning_is_used_if_its_bits_are_named(tmp_path):
    path = stored(tmp_path / "x.fits", {"IMAGE": None, "MASK": FLAGS, "VARIANCE": None})
    with open_mosaic(path) as image:
        assert not np.ma.isMA(image.data[:, :])
    assert any("MASK,1 of" in note and "is not used" in note for note in image.notes)
    assert bad_values(path, dq=8)[0] == [8]
    byte = stored(tmp_path / "byte.fits", {"MASK": (FLAGS == 2).astype(np.uint8)}, primary=np.ones(SHAPE))
    assert bad_values(byte)[0] == [2]


@pytest.mark.parametrize(
    ("name", "cards", "value"),
    [
        ("ERR", {}, 4.0),
        ("RMS", {}, 4.0),
        ("VAR", {}, 2.0),
        ("VARIANCE", {"BUNIT": "adu2"}, 2.0),
        ("VAR", {"BUNIT": "kadu2"}, 2000.0),
        ("IVAR", {"BUNIT": "1 / adu2"}, 0.5),
        ("UNCERT", {"UTYPE": "StdDevUncertainty"}, 4.0),
        ("UNCERT", {"UTYPE": "VarianceUncertainty"}, 2.0),
        ("UNCERT", {"UTYPE": "InverseVariance"}, 0.5),
        ("ERR", {"BUNIT": "kadu"}, 4000.0),
        ("ERR", {"BUNIT": "Jy"}, None),
        ("ERR", {"BUNIT": "no unit"}, None),
        ("WHT", {}, None),
    ],
)
def test_noise_is_converted_as_its_name_and_unit_say(tmp_path, name, cards, value):
    path = stored(tmp_path / "x.fits", {"SCI": None, name: np.full(SHAPE, 4.0)})
    fits.setval(path, "BUNIT", value="adu", extname="SCI")
    for card, text in cards.items():
        fits.setval(path, card, value=text, extname=name)
    with open_mosaic(path) as image:
        assert (image.noise is None) == (value is None)
        if value is not None:
            np.testing.assert_allclose(image.noise[2:4, :], value, rtol=1e-12)
    wrong = [note for note in image.notes if "must be in adu, got" in note and note.endswith("so it is not used")]
    assert len(wrong) == (name == "ERR" and value is None)
    powers = [note for note in image.notes if "is taken to the power of" in note]
    assert len(powers) == (value in (2.0, 0.5, 2000.0))


def test_noise_and_data_quality_have_the_version_of_the_image(tmp_path):
    chips = {f"{name},{n}": np.full(SHAPE, n, np.int16) for n in (1, 2) for name in ("SCI", "ERR", "DQ")}
    with open_mosaic(f"{stored(tmp_path / 'x.fits', chips)}[SCI,2]", dq="2") as image:
        assert (image.noise[0:1, 0:1], image.data[0:1, 0:1].mask) == (2, True)
    assert image.notes == (f"pixels are bad where DQ,2 of {tmp_path}/x.fits has bit 2",)


def test_a_kind_chooses_among_the_extensions(tmp_path):
    path = stored(
        tmp_path / "x.fits", {"SCI": None, "AREA": None, "ERR": np.full(SHAPE, 4.0), "DQ": FLAGS, "WHT": None}
    )
    for kind, value in (("SCI", 1), ("ERR", 4), ("DQ", FLAGS)):
        image = read_image(path, kind=kind)
        np.testing.assert_array_equal(image.data, np.where((kind == "SCI") & (FLAGS != 0), np.nan, value))
        assert image.noise is None
    with pytest.raises(ValueError, match=r"hdu must be one of 1 or A,1 .*; 2 or B,1 .*, got None"):
        read_image(stored(tmp_path / "y.fits", {"A": None, "B": None}))
