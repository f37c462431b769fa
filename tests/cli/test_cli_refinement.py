"""The flags of `deblend` that ask for more than the network: refinement and counting."""

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import QTable
from click.testing import CliRunner
from commands import FakeDeblender, plane, refused, stamp

from probdeblend.cli import main
from probdeblend.deblending import counts, weights
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag
from probdeblend.refinement import guide, refiner
from probdeblend.scene import Instrument

HST = Instrument.candels_f160w()


class FakeRefiner:
    """Remembers what it was built with; its answers hold images of the galaxies."""

    built: list = []  # noqa: RUF012

    def __init__(self, deblender, guide, *, instrument):
        self.deblender = deblender
        self.built.append((deblender, instrument))

    def __call__(self, image, **settings):
        dataset = self.deblender(image, **settings).dataset
        pixels = dataset["mask"].dims, dataset["mask"].values
        return Posterior(dataset.assign(image=pixels, image_std=pixels))


@pytest.fixture
def built(monkeypatch):
    deblender = FakeDeblender()
    monkeypatch.setattr(weights, "load", lambda path=None, calibrator=None: deblender)
    monkeypatch.setattr(guide, "default_guide", lambda deblender: None)
    monkeypatch.setattr(refiner, "Refiner", FakeRefiner)
    monkeypatch.setattr(FakeRefiner, "built", [])
    return FakeRefiner.built


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stamp(tmp_path / "stamp.fits")

    def invoke(*arguments):
        options = ("--stamps", "--refine", "--draws", 64, "--output", "out", "--overwrite")
        return CliRunner().invoke(main, [str(part) for part in ("deblend", "stamp.fits", *options, *arguments)])

    return invoke


def test_the_image_says_what_the_model_is(run, built, tmp_path):
    """PSF, exposure and zero point reach the refiner as it wants them; images of the galaxies are written."""
    wide = np.pad(HST.psf.numpy(), 1)
    fits.PrimaryHDU(wide).writeto(tmp_path / "psf.fits")
    result = run("--zero-point", 31.4, "--exposure", 21, "--psf", "psf.fits")
    assert result.exit_code == 0, result.output
    _, instrument = built[-1]
    assert (instrument.zero_point, instrument.exposure) == (31.4, 21)
    assert isinstance(instrument.psf, torch.Tensor)
    assert instrument.psf.dtype == torch.float32
    assert instrument.fwhm == pytest.approx(HST.fwhm, rel=0.01)
    with fits.open(tmp_path / "out" / "images.fits") as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "IMAGE", "IMAGE_STD", "STAMPS"]
    assert run("--zero-point", HST.zero_point).exit_code == 0
    assert built[-1][1].exposure == HST.exposure


def test_refuses_to_refine(run, built, tmp_path):
    """Another zero point without its exposure, and fields, whose neighbors have been replaced by sky."""
    refused(run("--zero-point", 31.4), "exposure must be given with --exposure", "(25.9463), got None for 31.4")
    rng = np.random.default_rng(1)
    fits.PrimaryHDU(rng.normal(0, 3e-3, (200, 200)), plane().to_header()).writeto(tmp_path / "field.fits")
    result = CliRunner().invoke(main, ["deblend", "field.fits", "--refine", "--zero-point", str(HST.zero_point)])
    refused(result, "refine must be given with --stamps, got a field")
    assert not built


def test_stamps_are_counted(run, built, tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "default_counts", lambda deblender: "of the package")
    monkeypatch.setattr(counts, "load_counts", lambda path, deblender: str(path))
    monkeypatch.setattr(counts, "count_stamps", lambda image, counter, sky_rms: np.array([[0.2, 0.3, 0.5]]))
    for more, counter in (((), "of the package"), (("--counts", "mine"), "mine")):
        assert run("--zero-point", HST.zero_point, "--count", *more).exit_code == 0
        asked, _ = built[-1]
        assert asked.counter.endswith(counter)
        flags = QTable.read(tmp_path / "out" / "catalog.ecsv")["flags"]
        assert (flags & int(Flag.OTHER_COUNT)).all()
