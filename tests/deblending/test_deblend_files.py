"""Many images: each into a folder of its own, here or on a cluster; what is finished stays, whatever is killed."""

import os
import signal
import sys
from importlib.resources import files

import numpy as np
import pyarrow.dataset
import pytest
from astropy.io import fits
from astropy.table import QTable

from probdeblend.deblending import deblend_files, weights
from probdeblend.posterior import Posterior

KNOWN = {"psf": "candels_f160w", "sky_rms": 0.003, "gain": 3200.0, "draws": 32, "passes": 2}


@pytest.fixture
def images(tmp_path):
    """Four corners of the example that ships, by the folders that they are to be deblended into."""
    pixels = fits.getdata(files("probdeblend") / "data" / "example.fits")
    found = {}
    for number, part in enumerate((pixels[:96, :96], pixels[:96, -96:], pixels[-96:, :96], pixels[-96:, -96:])):
        fits.writeto(tmp_path / f"{number}.fits", part)
        found[tmp_path / "out" / str(number)] = tmp_path / f"{number}.fits"
    return found


def test_each_image_has_a_folder(images, tmp_path):
    """An image that fails costs itself alone, and what is finished stays as it is."""
    third = list(images)[2]
    pixels = images[third].read_bytes()
    images[third].write_bytes(b"damaged")
    answers = dict(deblend_files(images, table="parquet", **KNOWN))
    assert list(answers) == list(images)
    assert "2.fits: not a FITS file, or damaged" in str(answers.pop(third))
    assert not third.exists()
    for folder, catalog in answers.items():
        assert {path.name for path in folder.iterdir()} > {"catalog.parquet", "segmentation.fits", "field.png"}
        stored = QTable.read(folder / "catalog.parquet")
        np.testing.assert_array_equal(stored["flux"], catalog["flux"])
        assert stored.colnames == catalog.colnames  # no columns of masks: what is masked is NaN
        assert stored["flux"].unit == catalog["flux"].unit
        assert np.isnan(stored["mag"].value).all()
    images[third].write_bytes(pixels)
    again = dict(deblend_files(images, table="parquet", **KNOWN))
    assert [folder for folder, catalog in again.items() if catalog is not None] == [third]
    whole = pyarrow.dataset.dataset([str(folder / "catalog.parquet") for folder in images]).to_table()
    assert len(whole) == sum(map(len, answers.values())) + len(again[third])


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"postions": [[3, 4]]}, TypeError, "unexpected keyword argument 'postions'"),
        ({"table": "txt"}, ValueError, "table must be one of ecsv, csv, fits, fit, vot, parquet, got txt"),
        ({"table": "parquet"}, ImportError, "pyarrow"),
    ],
)
def test_what_is_wrong_for_every_image_is_told_before_the_first(images, monkeypatch, options, error, says):
    monkeypatch.setattr(weights, "load", lambda *_, **__: pytest.fail("no image can be deblended"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(error, match=says):
        next(deblend_files(images, **KNOWN | options))


def test_an_input_is_not_replaced(images, tmp_path):
    """Neither an image, nor one of the files that the options name."""
    (folder, image), *_ = images.items()
    (_, before), *_ = deblend_files({folder: image}, **KNOWN)
    options = KNOWN | {"positions": folder / "catalog.ecsv"}
    (_, error), *_ = deblend_files({folder: image}, overwrite=True, **options)
    assert "is not replaced, because it holds the input" in str(error)
    assert len(QTable.read(folder / "catalog.ecsv")) == len(before)


def test_bands_of_one_image(images, tmp_path, monkeypatch):
    seen = []

    class Fake:
        def __call__(self, bands, **options):
            seen.append((bands, options))
            flux = np.ones((1, 8, 1, len(bands)))
            return Posterior.from_draws(flux, scene=[0], group=[0], x=[3], y=[4], bands=("g", "r"))

    monkeypatch.setattr(weights, "load", lambda path, calibrator: Fake())
    bands = list(images.values())[:2]
    ((_, catalog),) = deblend_files({tmp_path / "both": bands}, seed=3)
    assert seen == [(bands, {"seed": 3})]
    assert {"flux_g", "flux_r"} < set(catalog.colnames)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:.*unclosed:pytest.PytestUnraisableExceptionWarning")
def test_a_killed_worker_loses_nothing(images):
    """Of two workers one is killed after the first image: all images are done, each once, and as in this process."""
    from dask.distributed import Client

    done = []
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        processes = list(client.run(os.getpid).values())
        for folder, catalog in deblend_files(images, client=client, **KNOWN):
            if not done:
                os.kill(processes[0], signal.SIGKILL)
            done.append(folder)
            assert isinstance(catalog, QTable)
    assert sorted(done) == sorted(images)
    (folder, image), *_ = images.items()
    ((_, here),) = deblend_files({folder.parent / "here": image}, **KNOWN)
    there = QTable.read(folder / "catalog.ecsv")
    np.testing.assert_allclose(there["flux"].value, here["flux"].value, rtol=1e-4)
