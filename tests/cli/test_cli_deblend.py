"""Deblend images from the command line."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable, Table
from commands import plane, refused, succeeded

from probdeblend.deblending import weights
from probdeblend.posterior import Posterior

EXAMPLE = files("probdeblend") / "data" / "example.fits"

RECORD = ".probdeblend.json"
FILES = {"catalog.ecsv", "segmentation.fits", "model.fits", "sources.reg", "field.png", RECORD}
FEW = ("--draws", 64, "--passes", 2)


@pytest.fixture
def image(tmp_path):
    """An image of two galaxies that overlap, with its unit, zero point and world coordinates."""
    rng, (rows, columns) = np.random.default_rng(1), np.mgrid[:128, :128]
    pixels = rng.normal(0, 3e-3, rows.shape)
    for x, y, flux in ((40, 40, 1.0), (50, 44, 0.6)):
        pixels += flux * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
    header = fits.Header({"BUNIT": "electron/s", "ABMAGZP": 25.9463})
    header.update(plane().to_header())
    fits.PrimaryHDU(pixels.astype(np.float32), header).writeto(tmp_path / "image.fits")
    return "image.fits"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "probdeblend-output"


def test_without_an_image_the_example_is_deblended(run, fake, output):
    text = succeeded(run("deblend", *FEW, "--seed", 7))
    assert {path.name for path in output.iterdir()} == FILES - {"field.png"}
    call = fake.calls[0]
    assert [path.name for path in call["image"]] == ["example.fits"]
    assert (call["psf"], call["sky_rms"], call["gain"]) == ("candels_f160w", [0.003], 3200.0)
    assert (call["draws"], call["passes"], call["seed"], call["calibrate"]) == (64, 2, 7, True)
    assert "fluxes are in electron / s\n" in text
    assert "the noise is taken as white\nthe sky is subtracted\n" in text
    assert text.endswith("written to probdeblend-output: catalog.ecsv, model.fits, segmentation.fits, sources.reg\n")
    catalog = QTable.read(output / "catalog.ecsv")
    np.testing.assert_allclose(catalog["flux"].value, [100, 50], atol=1)


def test_options_reach_the_deblender(run, fake, image, tmp_path):
    """One band or several, numbers or files; what is not given is left to the deblender."""
    Table({"x": [40.0], "y": [41.0]}).write(tmp_path / "sources.csv")
    succeeded(run("deblend", image, *FEW, "--output", "plain"))
    call = fake.calls[-1]
    for name in ("psf", "sky_rms", "positions", "mask", "zero_point", "gain", "wavelength"):
        assert call[name] is None, name
    assert call["tile"] == 512
    options = ["--psf", "a.fits", "--psf", "b.fits", "--rms", 0.1, "--rms", 0.2, "--zero-point", 25, "--zero-point", 26]
    options += ["--gain", 2, "--mask", "bad.fits", "--positions", "sources.csv", "--tile", 256, "--wavelength", 0.8]
    succeeded(run("deblend", image, image, *FEW, *options, "--no-calibrator"))
    call = fake.calls[-1]
    assert [str(path) for path in call["image"]] == [image, image]
    assert call["psf"] == ["a.fits", "b.fits"]
    assert (call["sky_rms"], call["zero_point"], call["wavelength"]) == ([0.1, 0.2], [25.0, 26.0], [0.8])
    assert (call["gain"], call["tile"], call["calibrate"]) == (2.0, 256, False)
    assert str(call["mask"]) == "bad.fits"
    assert call["positions"]["y"].tolist() == [41.0]
    succeeded(run("deblend", image, *FEW, "--rms", "rms.fits", "--output", "map"))
    assert fake.calls[-1]["sky_rms"] == "rms.fits"


def test_an_hdu_is_chosen(run, fake, image):
    Path(image).rename("two.fits")
    succeeded(run("deblend", "two.fits", *FEW, "--hdu", "SCI"))
    assert fake.calls[-1]["image"] == ["two.fits[SCI]"]


def test_an_earlier_output_stays_unless_it_is_to_be_replaced(run, fake, output):
    succeeded(run("deblend", *FEW))
    before = (output / "catalog.ecsv").read_bytes()
    refused(run("deblend", "--seed", 1), "probdeblend-output: exists already; --overwrite replaces it")
    assert (output / "catalog.ecsv").read_bytes() == before
    succeeded(run("deblend", "--overwrite", *FEW, "--seed", 1))
    assert (output / "catalog.ecsv").read_bytes() != before
    (output / "mine.txt").touch()
    refused(run("deblend", "--overwrite", *FEW), "is not replaced, because it holds mine.txt")


def test_each_image_is_deblended_by_itself(run, fake, image, output, monkeypatch):
    """With weights that are loaded once; one that fails does not keep others from their folders, which then stay."""
    Path("more").mkdir()
    for name in ("more/a.fits.gz", "b.fit"):
        fits.writeto(name, fits.getdata(image))
    loads, deblend = [], type(fake).__call__
    monkeypatch.setattr(weights, "load", lambda *_, **__: loads.append(0) or fake)

    def damaged(self, image, **options):
        if "b.fit" in str(image):
            raise ValueError("b.fit: not a FITS file, or damaged")
        return deblend(self, image, **options)

    monkeypatch.setattr(type(fake), "__call__", damaged)
    result = run("deblend", image, "more/a.fits.gz", "b.fit", *FEW, "--each")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "Error in probdeblend-output/b: b.fit: not a FITS file, or damaged",
        "Error: 1 of 3 images could not be deblended",
    ]
    lines = [f"2 sources written to probdeblend-output/{name}" for name in ("image", "a")]
    assert result.stdout.splitlines() == lines
    assert [[str(path) for path in call["image"]] for call in fake.calls] == [[image], ["more/a.fits.gz"]]
    assert len(loads) == 1
    monkeypatch.setattr(type(fake), "__call__", deblend)
    again = ("deblend", image, "more/a.fits.gz", "b.fit", *FEW, "--each", "--json")
    result = run(*again)
    assert result.stderr == "".join(f"probdeblend-output/{name}: finished already\n" for name in ("image", "a"))
    assert json.loads(succeeded(result))["output"] == "probdeblend-output/b"
    outputs = [json.loads(line)["output"] for line in succeeded(run(*again, "--overwrite")).splitlines()]
    assert outputs == [f"probdeblend-output/{name}" for name in ("image", "a", "b")]
    (output / "c").mkdir()
    Path("b.fit").rename("c.fits")
    result = run("deblend", "c.fits", "--each")
    assert "Error in probdeblend-output/c: probdeblend-output/c: exists already" in result.stderr
    refused(run("deblend", image, "--workers", 2, "--output", "two"), "workers must be 0 without each, got 2")
    refused(
        run("deblend", image, f"more/../{image}", "--each"),
        "images must have different names with each, got 1 of 2",
    )


@pytest.mark.parametrize("name", ["segmentation.fits", "images.fits", "model.fits"])
def test_an_input_is_never_replaced(run, fake, image, tmp_path, name):
    """Neither one that has the name of an output, nor an output of an earlier run."""
    (tmp_path / "data").mkdir()
    (tmp_path / image).rename(tmp_path / "data" / name)
    before = (tmp_path / "data" / name).read_bytes()
    refused(run("deblend", f"data/{name}", "--output", "data", "--overwrite"), f"because it holds {name}")
    assert [path.read_bytes() for path in (tmp_path / "data").iterdir()] == [before]
    succeeded(run("deblend", f"data/{name}", *FEW, "--output", "out"))
    again = ("--output", "out", "--overwrite")
    refused(run("deblend", "out/model.fits", *again), "because it holds the input out/model.fits")
    refused(run("deblend", f"data/{name}", "--rms", "out/model.fits", *again), "holds the input out/model.fits")
    refused(run("deblend", f"data/{name}", "--positions", "out/catalog.ecsv", *again), "the input out/catalog.ecsv")


def test_the_catalog_is_printed_as_json(run, fake, output):
    found = json.loads(succeeded(run("deblend", *FEW, "--json")))
    assert found["unit"] == "electron / s"
    assert found["files"] == ["catalog.ecsv", "model.fits", "segmentation.fits", "sources.reg"]
    assert found["notes"] == ["the noise is taken as white", "the sky is subtracted"]
    first, second = found["sources"]
    assert (first["label"], second["label"], first["x"], first["flags"]) == (1, 2, 60.0, "-")
    assert second["flux"] == pytest.approx(50, abs=1)


def test_what_is_printed_fits_a_terminal(run, fake, monkeypatch):
    """The columns that are most wanted, whatever is not known; JSON has all of them, and no NaN."""
    place = {"scene": [0, 0, 0], "group": [0, 0, 1], "x": [0.0, 1000, 2000], "y": [0.0, 1000, 2000]}
    known = {"existence": [np.nan] * 3, "flags": [0, 2, 4]}
    for bands, count in ((("",), 3), (("g", "r", "i"), 3), (("g", "r", "i"), 0)):
        flux = np.random.default_rng(2).normal(1e4, 10, (1, 9, 3, len(bands)))
        flux[:, :, 2] = np.nan
        answer = Posterior.from_draws(flux, flux, **place, columns=known, bands=bands, unit="electron / s")
        answer = answer.select(slice(count))
        monkeypatch.setattr(type(fake), "__call__", lambda *_, answer=answer, **__: answer)
        lines = succeeded(run("deblend", "--overwrite")).splitlines()
        table = lines[: lines.index("fluxes are in electron / s")]
        assert len(table) == 2 + count
        assert max(map(len, table)) <= 80
        assert {"label", "x", "y", *(f"flux{band and '_'}{band}" for band in bands)} <= set(table[0].split())
        found = json.loads(succeeded(run("deblend", "--overwrite", "--json")), parse_constant=pytest.fail)
        assert [row["existence"] for row in found["sources"]] == [None] * count
        assert all(f"correlation{band and '_'}{band}" in row for row in found["sources"] for band in bands)


@pytest.mark.parametrize("settings", [{"text.usetex": True}, {"font.size": -1}, {"backend": "module://nowhere"}])
def test_a_picture_does_not_depend_on_the_users_settings(run, drawing, image, output, monkeypatch, settings):
    import matplotlib as mpl

    for name, value in settings.items():
        monkeypatch.setitem(mpl.rcParams, name, value)
    succeeded(run("deblend", image, *FEW))
    assert (output / "field.png").stat().st_size > 5000
    assert {name: mpl.rcParams[name] for name in settings} == settings


def test_a_picture_that_fails_costs_nothing_else(run, drawing, image, output, monkeypatch):
    def fail(*_):
        raise RuntimeError("no font\nis found")

    monkeypatch.setattr("probdeblend.deblending.products.plot_field", fail)
    text = succeeded(run("deblend", image, *FEW))
    assert "catalog.ecsv, model.fits" in text
    assert "\nfield.png could not be drawn: no font is found\n" in text
    assert {path.name for path in output.iterdir()} == FILES - {"field.png"}
    text = succeeded(run("deblend", image, *FEW, "--each", "--output", "each"))
    assert text == "2 sources written to each/image; field.png could not be drawn: no font is found\n"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyError("CRPIX1"), "Error: unexpected KeyError: 'CRPIX1'"),
        (RuntimeError("shapes\n  differ"), "Error: unexpected RuntimeError: shapes differ"),
        (ValueError("name \x1b[31mred"), "name ?[31mred"),
        (OSError(28, "No space left on device"), "Error: no space left on device"),
        (MemoryError(), "Error: unexpected MemoryError"),
    ],
)
def test_every_error_is_one_sentence(run, fake, monkeypatch, error, says):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(type(fake), "__call__", fail)
    refused(run("deblend"), says)


def test_a_network_deblends_an_image(run, image, random_weights, output):
    """The real thing, but for what the network has learned: forced positions keep their order."""
    sky = plane().pixel_to_world([50, 40], [44, 40])
    Table({"ra": sky.ra.deg, "dec": sky.dec.deg}).write("sources.ecsv")
    options = ("--psf", "candels_f160w", "--weights", random_weights, "--positions", "sources.ecsv", "--save-draws")
    text = succeeded(run("deblend", image, *FEW, "--rms", 0.003, *options))
    assert {path.name for path in output.iterdir()} == FILES | {"draws.nc"}
    assert "taken as sky-subtracted" in text
    posterior = Posterior.open(output / "draws.nc")
    assert posterior.flux.shape == (2, 32, 2, 1)
    assert posterior.flux.attrs["unit"] == "electron / s"
    catalog = QTable.read(output / "catalog.ecsv")
    assert catalog["label"].tolist() == [1, 2]
    assert (catalog["flux"] > 0).all()
    assert catalog["x"][0] > catalog["x"][1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["missing.fits"], "missing.fits: no such file"),
        (["text.fits"], "not a FITS file"),
        (["image.fits", "--hdu", 5], "image.fits: hdu must be one of 0"),
        (["image.fits", "--psf", "missing.fits"], "missing.fits: no such file"),
        (["image.fits", "--psf", "oblong.fits"], "the PSF must be square, got shape (21, 25)"),
        (["image.fits", "--rms", "0"], "sky_rms must be positive and finite, got 0"),
        (["image.fits", "--rms", "1", "--rms", "x"], "rms must be a file or numbers, one per band, got 1, x"),
        (["image.fits", "--rms", "missing.fits"], "missing.fits: no such file"),
        (["image.fits", "--positions", "text.fits"], "text.fits: not a table of the kind that its name says"),
        (["image.fits", "--positions", "image.tbl"], "image.tbl: no such file"),
        (["image.fits", "--mask", "text.fits"], "text.fits: not a FITS file, or damaged"),
        (["image.fits", "--positions", "missing.csv"], "missing.csv: no such file"),
        (["image.fits", "--mask", "oblong.fits"], "mask must have the image's shape (128, 128), got (21, 25)"),
        (["image.fits", "--gain", "-1", "--psf", "candels_f160w"], "gain must be positive, got -1"),
        (["image.fits", "--gain", "nan"], "gain must be finite, got nan"),
        (["image.fits", "--calibrator", "c", "--no-calibrator"], "calibrator and no_calibrator are mutually exclusive"),
        (["image.fits", "other.fits"], "bands must have one shape, got (128, 128), (21, 25)"),
    ],
)
def test_input_that_is_refused(run, image, random_weights, tmp_path, options, says):
    (tmp_path / "text.fits").write_text("not an image")
    for name in ("oblong", "other"):
        fits.PrimaryHDU(np.ones((21, 25))).writeto(tmp_path / f"{name}.fits")
    refused(run("deblend", *options, "--weights", random_weights), says)
    assert {path.suffix for path in tmp_path.iterdir()} == {".fits"}


def test_weights_that_are_refused(run, image, tmp_path):
    refused(run("deblend", image, "--weights", "missing.safetensors"), "missing.safetensors: no such weights file")
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 100)
    refused(run("deblend", image, "--weights", "damaged.safetensors"), "not a safetensors file, or damaged")
    assert not list(tmp_path.glob("probdeblend-output"))


@pytest.mark.slow
def test_the_example_goes_through_the_weights_that_ship(run, output):
    succeeded(run("deblend", *FEW))
    catalog = QTable.read(output / "catalog.ecsv")
    with fits.open(EXAMPLE) as hdus, fits.open("probdeblend-output/model.fits") as written:
        assert written[0].data.shape == (1, *hdus[0].data.shape)
        truth = hdus["TRUTH"].data
    offset = np.hypot(*(catalog[name][:, None] - truth[name] for name in "xy"))
    assert (offset.min(1) < 2).mean() > 0.9
    assert (offset.min(0) < 2).mean() > 0.7
