import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import QTable, Table
from astropy.wcs import WCS
from click.testing import CliRunner

import probdeblend
from probdeblend.cli import main
from probdeblend.deblending import weights
from probdeblend.deblending.deblender import Deblender
from probdeblend.deblending.example import EXAMPLE_PATH, write_example
from probdeblend.deblending.inputs import noise_pixels, stamp_pixels
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import Instrument
from probdeblend.simulation.sets import count_blends, read_blends, read_instrument

COMMANDS = sorted(main.commands)
SHIPPED = Path(weights.__file__).parent / "data" / weights.DEFAULT
FILES = {"catalog.ecsv", "masks.fits", "blends.png"}


class FakeDeblender(Deblender):
    """The checks of the real one, without a network: two fluxes of 100 and 50 with an error of 1."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.instrument = Instrument.candels_f160w()
        self.calls = []
        self.calibrator = None
        self.flux_prior = None

    def forward(self, image, *, sky_rms, draws=1000, passes=32, seed=0, calibrate=True):
        pixels, unit = stamp_pixels(image)
        noise = noise_pixels(sky_rms, pixels)
        self.calls.append({"sky_rms": noise, "draws": draws, "passes": passes, "seed": seed})
        rng = np.random.default_rng(seed)
        mean = np.array([100.0, 50.0])[:, None]
        flux = mean + rng.normal(size=(max(passes, 1), draws // max(passes, 1), len(pixels), 2, 1))
        mask = np.full((len(pixels), 2, 128, 128), 0.25)
        position = np.full((len(pixels), 2), 63.5)
        named = {"mask": mask, "mask_std": mask / 5, "x": position, "y": position, "flux_unit": unit}
        named["doubt"] = np.full(len(pixels), 0.1)
        return Posterior.from_draws(flux, flux_kind="total", method="network", **named)


@pytest.fixture
def fake(monkeypatch):
    deblender = FakeDeblender()
    monkeypatch.setattr(weights, "load", lambda path=None, calibrator=None: deblender)
    return deblender


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def field(tmp_path, rng):
    """An image of four galaxies, two of which overlap."""
    rows, columns = np.mgrid[:200, :220]
    pixels = rng.normal(0, 3e-3, rows.shape)
    for x, y, flux in ((70, 80, 1.0), (83, 85, 0.6), (180, 40, 0.7), (150, 160, 0.5)):
        pixels += flux * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
    header = fits.Header({"BUNIT": "electron/s", "ABMAGZP": 25.9463})
    header.update(plane().to_header())
    fits.PrimaryHDU(pixels.astype(np.float32), header).writeto(tmp_path / "field.fits")
    return tmp_path / "field.fits"


def plane(scale=0.06):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150, 2], [100, 100]
    wcs.wcs.cd = np.diag([-scale / 3600, scale / 3600])
    return wcs


def stamp(path, pixels=None, *, scale=0.06):
    pixels = fits.getdata(EXAMPLE_PATH) if pixels is None else pixels
    fits.PrimaryHDU(pixels, plane(scale).to_header() if scale else None).writeto(path)
    return path


def refused(result, *parts):
    """The command ended with one sentence that holds `parts`."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    for part in parts:
        assert part in result.stderr


def test_help_is_quick():
    """Neither torch nor anything else that is heavy is imported for a page of help."""
    code = (
        "import sys\nfrom probdeblend.cli import main\n"
        "try: main(['deblend', '--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'galsim', 'astropy', 'numpy', 'matplotlib'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.endswith("set()\n")


def test_version(run):
    assert run("--version").output == f"probdeblend, version {probdeblend.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_page_shows_an_example(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example:\n    probdeblend {command}" in result.output


def test_the_documented_options_exist():
    text = (Path(__file__).parents[1] / "docs" / "getting_started.md").read_text()
    documented = {row.split("`")[1].split()[0] for row in text.splitlines() if row.startswith("| `--")}
    options = {name for option in main.commands["deblend"].params for name in option.opts}
    assert documented <= options


def test_example_is_what_its_function_writes(tmp_path):
    write_example(tmp_path / "example.fits")
    paths = (tmp_path / "example.fits", EXAMPLE_PATH)
    np.testing.assert_allclose(*map(fits.getdata, paths), rtol=1e-4, atol=1e-4)
    written, shipped = map(fits.getheader, paths)
    assert repr(written) == repr(shipped)
    assert EXAMPLE_PATH.stat().st_size < 100_000
    with pytest.raises(FileExistsError, match="exists already"):
        write_example(tmp_path / "example.fits")


def test_without_an_image_the_example_is_deblended(run, fake, tmp_path):
    result = run("deblend", "--draws", 64, "--passes", 4, "--seed", 7)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "probdeblend-output").iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["probdeblend-output"]
    assert fake.calls[0]["sky_rms"].item() == 3e-3
    assert fake.calls[0] | {"sky_rms": 0} == {"sky_rms": 0, "draws": 64, "passes": 4, "seed": 7}
    assert "electron / s" in result.output
    assert "sky rms of a pixel: 0.003" in result.output
    assert "written to probdeblend-output: blends.png, catalog.ecsv, masks.fits" in result.output
    catalog = QTable.read(tmp_path / "probdeblend-output" / "catalog.ecsv")
    assert catalog["flux"].unit == "electron / s"
    np.testing.assert_allclose(catalog["mag"].value, 25.9463 - 2.5 * np.log10([100, 50]), atol=0.02)
    np.testing.assert_allclose(catalog["ra"].value, 53.1227, atol=1e-6)
    np.testing.assert_allclose(catalog["dec"].value, -27.8051, atol=1e-6)


def test_an_earlier_output_stays_unless_it_is_to_be_replaced(run, fake, tmp_path):
    assert run("deblend", "--draws", 64).exit_code == 0
    before = (tmp_path / "probdeblend-output" / "catalog.ecsv").read_bytes()
    refused(run("deblend", "--seed", 1), "probdeblend-output: exists already; --overwrite replaces it")
    assert (tmp_path / "probdeblend-output" / "catalog.ecsv").read_bytes() == before
    assert run("deblend", "--overwrite", "--draws", 64, "--seed", 1).exit_code == 0
    assert (tmp_path / "probdeblend-output" / "catalog.ecsv").read_bytes() != before
    (tmp_path / "probdeblend-output" / "mine.txt").touch()
    refused(run("deblend", "--overwrite"), "is not replaced, it holds mine.txt")


def test_a_field_is_deblended(run, fake, field, tmp_path):
    result = run("deblend", field, "--draws", 64, "--output", "out/new", "--save-draws", "--no-background")
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out" / "new").iterdir()} == FILES | {"field.png", "draws.nc"}
    catalog = QTable.read(tmp_path / "out" / "new" / "catalog.ecsv")
    assert catalog["method"].tolist() == ["network", "network", "sep", "sep"]
    assert not catalog["mag"].mask.any()
    posterior = Posterior.open(tmp_path / "out" / "new" / "draws.nc")
    assert posterior.dataset.attrs["zero_point"] == 25.9463
    assert posterior.flux.attrs["unit"] == "electron / s"
    assert "single" in result.output
    assert "SEP's errors of lone sources are multiplied by" in result.output
    with fits.open(tmp_path / "out" / "new" / "masks.fits") as hdus:
        assert hdus["MASK"].data.shape == (1, 2, 128, 128)
        assert [hdus[0].header[f"CRVAL{axis}"] for axis in (1, 2)] == [150, 2]


def test_a_field_without_pairs_still_has_a_catalog(run, fake, field, tmp_path):
    with fits.open(field, mode="update") as hdus:
        hdus[0].data[:120, :130] = np.random.default_rng(1).normal(0, 3e-3, (120, 130))
        del hdus[0].header["ABMAGZP"]
    result = run("deblend", field, "--draws", 64)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "probdeblend-output").iterdir()} == {"catalog.ecsv", "field.png"}
    assert "no sources overlap: there are no masks" in result.output
    assert QTable.read(tmp_path / "probdeblend-output" / "catalog.ecsv")["mag"].mask.all()


def test_an_rms_map_is_scaled_unless_it_is_taken_as_it_is(run, fake, field, tmp_path):
    fits.PrimaryHDU(np.full((200, 220), 6e-3)).writeto(tmp_path / "rms.fits")
    result = run("deblend", field, "--draws", 64, "--rms", "rms.fits")
    assert "the rms map rms.fits was multiplied by 0." in result.output
    assert fake.calls[-1]["sky_rms"].item() == pytest.approx(3e-3, rel=0.05)
    result = run("deblend", field, "--draws", 64, "--rms", "rms.fits", "--rms-as-is", "--overwrite")
    assert "multiplied by 0." not in result.output
    assert fake.calls[-1]["sky_rms"].item() == pytest.approx(6e-3)
    assert run("deblend", field, "--draws", 64, "--rms", "4e-3", "--overwrite").exit_code == 0
    assert fake.calls[-1]["sky_rms"].item() == pytest.approx(4e-3)


def test_a_cube_of_stamps_has_its_noise_measured(run, fake, tmp_path):
    pixels = fits.getdata(EXAMPLE_PATH).astype(float)
    stamp(tmp_path / "cube.fits", np.stack([pixels, 2 * pixels]))
    assert run("deblend", "cube.fits", "--stamps", "--draws", 64, "--zero-point", 27).exit_code == 0
    measured = fake.calls[0]["sky_rms"].ravel()
    assert measured[0] == pytest.approx(3e-3, rel=0.1)
    assert measured[1] == pytest.approx(2 * measured[0], rel=1e-3)
    catalog = QTable.read(tmp_path / "probdeblend-output" / "catalog.ecsv")
    assert catalog["blend"].tolist() == [0, 0, 1, 1]
    assert "ra" not in catalog.colnames
    np.testing.assert_allclose(catalog["mag"].value[:2], 27 - 2.5 * np.log10([100, 50]), atol=0.02)


def test_a_map_for_stamps_is_scaled(run, fake, tmp_path):
    stamp(tmp_path / "stamp.fits")
    fits.PrimaryHDU(np.full((128, 128), 6e-3)).writeto(tmp_path / "rms.fits")
    assert run("deblend", "stamp.fits", "--stamps", "--draws", 64, "--rms", "rms.fits").exit_code == 0
    np.testing.assert_allclose(fake.calls[0]["sky_rms"], 3e-3, rtol=0.1)


def bad_image(path, kind):
    pixels = fits.getdata(EXAMPLE_PATH)
    if kind == "text":
        path.write_text("not an image")
    elif kind == "truncated":
        path.write_bytes(EXAMPLE_PATH.read_bytes()[:30_000])
    elif kind == "table":
        table = fits.BinTableHDU(Table({"a": [1]}))
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    elif kind == "two":
        fits.HDUList([fits.PrimaryHDU(pixels), fits.ImageHDU(pixels, name="MODEL")]).writeto(path)
    else:
        pixels = {
            "one axis": pixels[0],
            "cube": np.stack([pixels, pixels]),
            "zero": 0 * pixels,
            "nan": np.nan * pixels,
            "small": pixels[:96, :96],
            "empty sky": np.random.default_rng(0).normal(0, 3e-3, (200, 200)),
        }[kind]
        fits.PrimaryHDU(pixels, plane().to_header()).writeto(path)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("text", [], "not a FITS file"),
        ("truncated", [], "truncated"),
        ("table", [], "no HDU holds an image"),
        ("two", [], "choose one of the HDUs with an image: 0 PRIMARY (128 x 128), 1 MODEL (128 x 128)"),
        ("two", ["--hdu", 5], "HDU 5 holds no image"),
        ("one axis", [], "no HDU holds an image"),
        ("cube", [], "must have two dimensions (y, x), got shape (2, 128, 128)"),
        ("zero", [], "is zero"),
        ("nan", [], "no finite pixel"),
        ("zero", ["--stamps"], "is zero"),
        ("nan", ["--stamps"], "no finite pixel"),
        ("small", ["--stamps"], "stamps must have shape (128, 128) or (blend, 128, 128), got (96, 96)"),
        ("empty sky", [], "no source found"),
    ],
)
def test_images_that_are_refused(run, fake, tmp_path, kind, options, says):
    bad_image(tmp_path / "bad.fits", kind)
    refused(run("deblend", "bad.fits", *options), says)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.fits"]


@pytest.mark.parametrize("stamps", [[], ["--stamps"]])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rms", "0"], "rms must be positive and finite, got 0"),
        (["--rms", "-1"], "rms must be positive and finite, got -1"),
        (["--rms", "nan"], "rms must be positive and finite, got nan"),
        (["--rms", "wrong.fits"], "wrong.fits: the rms map must have the image's shape"),
        (["--rms", "missing.fits"], "missing.fits: no such file"),
        (["--psf", "oblong.fits"], "oblong.fits: the PSF must be square, got shape (21, 25)"),
        (["--psf", "large.fits"], "large.fits: the PSF must not be larger than a stamp of 128 pixels, got 129"),
        (["--psf", "negative.fits"], "negative.fits: the PSF must have a positive sum"),
        (["--psf", "wide.fits"], "psf must have the width that the weights were trained for"),
        (["--pixel-scale", "0.03"], 'pixel_scale must be 0.06" within 2%'),
        (["--zero-point", "inf"], "zero_point must be finite, got inf"),
    ],
)
def test_options_that_are_refused(run, fake, tmp_path, stamps, options, says):
    grid = np.hypot(*np.mgrid[-20:21, -20:21])
    arrays = {
        "wrong": np.ones((20, 20)),
        "oblong": np.ones((21, 25)),
        "large": np.ones((129, 129)),
        "negative": -np.exp(-(grid**2)),
        "wide": np.exp(-((grid / 8) ** 2)),
    }
    for name, array in arrays.items():
        fits.PrimaryHDU(array).writeto(tmp_path / f"{name}.fits")
    stamp(tmp_path / "image.fits")
    refused(run("deblend", "image.fits", *stamps, *options), says)
    assert {path.suffix for path in tmp_path.iterdir()} == {".fits"}


def test_an_exposure_must_be_positive(run, fake, field):
    refused(run("deblend", field, "--exposure", "-1"), "exposure must be positive, got -1")


def test_a_missing_image_or_pixel_scale_is_refused(run, fake, tmp_path):
    refused(run("deblend", "missing.fits"), "missing.fits: no such file")
    stamp(tmp_path / "bare.fits", scale=None)
    refused(run("deblend", "bare.fits", "--stamps"), "pixel_scale must be given with --pixel-scale")
    assert run("deblend", "bare.fits", "--stamps", "--pixel-scale", "0.06", "--draws", 64).exit_code == 0


def test_a_constant_stamp_needs_its_noise(run, fake, tmp_path):
    stamp(tmp_path / "flat.fits", np.ones((128, 128)))
    refused(run("deblend", "flat.fits", "--stamps"), "rms must be given for a stamp whose sky does not scatter")


def test_weights_that_are_refused(run, tmp_path):
    refused(run("deblend", "--weights", "missing.safetensors"), "missing.safetensors: no such weights file")
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 100)
    refused(run("deblend", "--weights", "damaged.safetensors"), "not a safetensors file, or damaged")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.safetensors"]


@pytest.mark.skipif(not SHIPPED.is_file(), reason="no weights ship with the package yet")
def test_the_example_goes_through_the_weights_that_ship(run, tmp_path):
    result = run("deblend", "--draws", 64, "--passes", 4)
    assert result.exit_code == 0, result.output
    catalog = QTable.read(tmp_path / "probdeblend-output" / "catalog.ecsv")
    assert len(catalog) == 2
    assert (catalog["flux"] > 0).all()


@pytest.mark.parametrize("renderer", ["galsim", "torch"])
def test_simulate_writes_a_set(run, tmp_path, renderer):
    options = ["--count", 3, "--seed", 5, "--renderer", renderer, "--separation", "public-code", "--exposure", "inf"]
    result = run("simulate", "set", *options, "--prior", "default", "--sky-rms", 0.004)
    assert result.exit_code == 0, result.output
    assert "3 blends written to set" in result.output
    assert count_blends(tmp_path / "set") == 3
    assert read_blends(tmp_path / "set").flux.shape == (3, 2, 1)
    instrument = read_instrument(tmp_path / "set")
    assert (instrument.sky_rms, instrument.exposure) == (0.004, np.inf)
    answer = run("simulate", "set", *options)
    assert answer.exit_code == 1
    assert "set: exists already; --overwrite replaces it" in answer.stderr


def test_simulate_refuses_what_makes_no_sense(run, tmp_path):
    refused(run("simulate", "set", "--resume"), "set.partial: no unfinished set to go on from")
    refused(run("simulate", "set", "--sky-rms", -1), "sky_rms must be positive, got -1")
    refused(run("simulate", "set", "--separation", "far"), "separation must be one of published, public-code")
    assert run("simulate", "set", "--count", 0).exit_code == 2
    assert not list(tmp_path.iterdir())


def test_train_hands_its_options_on(run, monkeypatch):
    from probdeblend.training import recipe

    seen = []
    monkeypatch.setattr(recipe, "train_weights", lambda output, **options: seen.append((output, options)))
    assert run("train").output == "weights written to weights.safetensors\n"
    assert run("train", "my.safetensors", "--steps", 10, "--resume", "--data", "set").exit_code == 0
    defaults = {"steps": 20_000, "batch_size": 16, "seed": 0, "source": None}
    defaults |= {"resume": False, "overwrite": False}
    assert seen[0] == (Path("weights.safetensors"), defaults)
    changed = {"steps": 10, "resume": True, "source": Path("set")}
    assert seen[1] == (Path("my.safetensors"), defaults | changed)


def test_retrain_hands_its_options_on(run, fake, monkeypatch):
    from probdeblend.training import recipe

    seen = []
    monkeypatch.setattr(recipe, "retrain_weights", lambda *given, **options: seen.append((given, options)))
    assert run("retrain", "my.safetensors", "--blends", 500, "--resume").output == "weights written to my.safetensors\n"
    ((trained, output), options) = seen[0]
    assert (trained, output) == (fake, Path("my.safetensors"))
    assert options == {"blends": 500, "steps": 60_000, "seed": 0, "resume": True, "overwrite": False}


def test_evaluate_prints_a_row_a_method(run, fake, tmp_path):
    assert run("simulate", "set", "--count", 4, "--renderer", "torch").exit_code == 0
    result = run("evaluate", "set", "--draws", 64, "--output", "accuracy.ecsv")
    assert result.exit_code == 0, result.output
    accuracy, by_doubt = result.stdout.split("The network by its doubt:")
    assert [row.split()[0] for row in accuracy.strip().splitlines()[-2:]] == ["network", "sep"]
    assert by_doubt.split()[:3] == ["low", "high", "blends"]
    assert Table.read(tmp_path / "accuracy.ecsv")["method"].tolist() == ["network", "sep"]
    refused(run("evaluate", "set", "--output", "accuracy.ecsv"), "accuracy.ecsv: exists already")
    refused(run("evaluate", "accuracy.ecsv"), "not a set of blends")


def test_render_check_says_where_a_limit_is_exceeded(run, monkeypatch):
    from benchmarks import render as rendercheck

    table = Table({"passed": [True, True]})
    monkeypatch.setattr(rendercheck, "render_check", lambda: table)
    monkeypatch.setattr(rendercheck, "tabulate", lambda table: "the table")
    monkeypatch.setattr(rendercheck, "scene_check", lambda count: f"{count} blends")
    assert run("render-check", "--scenes", 5).output == "the table\n5 blends\n"
    table["passed"][1] = False
    result = run("render-check")
    assert result.exit_code == 1
    assert result.stderr == "Error: limits exceeded for 1 of 2 profiles\n"


def test_fit_psf_writes_the_model(run, monkeypatch, tmp_path):
    from probdeblend.simulation import psf as optics

    model = optics.PsfModel()
    fit = optics.OpticsFit(model, 0.0, 0.0, 0.01, 0.001, (0.18, 0.181), {0.2: (0.5, 0.5)})
    monkeypatch.setattr(optics, "fit_psf", lambda image, pixel_scale: fit)
    fits.PrimaryHDU(model.draw(0.06, 31)).writeto(tmp_path / "psf.fits")
    result = run("fit-psf", "psf.fits", "--pixel-scale", 0.06, "--output", "out")
    assert result.exit_code == 0, result.output
    assert 'FWHM 0.181" (measured 0.180")' in result.output
    assert optics.read_psf(tmp_path / "out" / "psf_f160w.json") == model
    refused(run("fit-psf", "psf.fits", "--pixel-scale", 0.06, "--output", "out"), "out: exists already")
    refused(run("fit-psf", "missing.fits", "--pixel-scale", 0.06), "missing.fits: no such file")


def write_pairs(path, count=400):
    rng = np.random.default_rng(3)
    table = Table()
    for galaxy in (1, 2):
        table[f"g{galaxy}_id"] = rng.permutation(count)
        table[f"g{galaxy}_mag"] = 20 + rng.random(count)
        table[f"g{galaxy}_rad"] = rng.uniform(2, 9, count)
        table[f"g{galaxy}_type"] = rng.choice(["sph", "disk", "sphd", "irr"], count)
    table.write(path, format="ascii.csv")
    return table


def test_fit_prior_takes_distinct_galaxies_of_a_complete_table(run, tmp_path):
    table = write_pairs(tmp_path / "pairs.csv")
    assert run("fit-prior", "pairs.csv").output == "prior of 400 galaxies written to prior.json\n"
    prior = json.loads((tmp_path / "prior.json").read_text())
    assert prior["galaxies"] == 400
    assert prior["prior"]["magnitude_range"] == [20, 21]
    refused(run("fit-prior", "pairs.csv"), "prior.json: exists already")
    table.remove_columns(["g1_rad", "g2_type"])
    table.write(tmp_path / "less.csv", format="ascii.csv")
    refused(run("fit-prior", "less.csv", "--overwrite"), "less.csv: the table must", "it lacks g1_rad, g2_type")
    refused(run("fit-prior", "missing.csv", "--overwrite"), "missing.csv: no such file")


def test_fit_prior_makes_the_prior_that_ships(run, data_dir, tmp_path):
    assert run("fit-prior", data_dir / "boucaud2020" / "test_results.csv").exit_code == 0
    shipped = EXAMPLE_PATH.with_name("prior_boucaud2020.json")
    assert (tmp_path / "prior.json").read_text() == shipped.read_text()


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_an_interrupt_leaves_nothing(tmp_path):
    """Ctrl-C during a long command: no traceback, no partial file."""
    # A shell lets what it runs in the background ignore Ctrl-C, and children inherit that.
    heed = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    run = f"{heed}; runpy.run_module('probdeblend', run_name='__main__')"
    command = [sys.executable, "-c", run, "simulate", "set", "--count", "100000", "--renderer", "torch"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "Aborted!" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())
