import h5py
import numpy as np
import pytest
import xarray as xr
from astropy import units as u

from probdeblend.posterior import Posterior

DIMENSIONS = {"_Netcdf4Dimid", "_Netcdf4Coordinates"}  # attributes of which a version of h5netcdf writes some


def test_save_and_open(posterior, tmp_path):
    path = tmp_path / "draws.nc"
    posterior.save(path)
    again = Posterior.open(path)
    xr.testing.assert_identical(again.dataset, posterior.dataset)
    for label in (11, 5, 2):
        np.testing.assert_array_equal(again.mask(label).std, posterior.mask(label).std)
        np.testing.assert_array_equal(again.image(label).data, posterior.image(label).data)
    assert again.catalog()["flux_g"].unit == u.electron / u.s
    with pytest.raises(FileExistsError, match=r"draws.nc: exists already"):
        posterior.save(path)
    Posterior(posterior.select(0).dataset).save(path, overwrite=True)
    assert len(Posterior.open(path)) == 1
    assert Posterior.open(path).cutouts is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["draws.nc"]


def test_save_leaves_nothing_behind_when_it_fails(posterior, tmp_path):
    spoiled = Posterior(posterior.dataset.assign_attrs(note=object()))
    with pytest.raises(TypeError):
        spoiled.save(tmp_path / "draws.nc")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_behind(posterior, tmp_path):
    """A limit on the size of files stands for it; HDF5 itself would crash."""
    resource = pytest.importorskip("resource", reason="limits are POSIX's")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            posterior.save(tmp_path / "draws.nc")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_open_refuses_other_files(posterior, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.nc: no such file"):
        Posterior.open(tmp_path / "none.nc")
    text = tmp_path / "text.nc"
    text.write_text("flux\n1.0\n")
    with pytest.raises(ValueError, match=r"text.nc: must be a posterior .* got another or a damaged file"):
        Posterior.open(text)
    posterior.save(tmp_path / "whole.nc")
    cut = tmp_path / "cut.nc"
    cut.write_bytes((tmp_path / "whole.nc").read_bytes()[:4000])
    with pytest.raises(ValueError, match=r"cut.nc: must be a posterior .* got another or a damaged file"):
        Posterior.open(cut)
    xr.Dataset({"flux": ("x", np.ones(3))}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"other.nc: must be a posterior written by probdeblend, got another file"):
        Posterior.open(tmp_path / "other.nc")
    Posterior(posterior.dataset.assign_attrs(version=99)).save(tmp_path / "new.nc")
    with pytest.raises(ValueError, match=r"new.nc: must be a posterior of version \d+, got version 99"):
        Posterior.open(tmp_path / "new.nc")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("group", lambda values: values + 0.5, "group is not as it was written"),
        ("x", lambda values: np.full(values.shape, b"text"), "could not convert string to float"),
        ("label", np.zeros_like, "label must be positive and no two alike"),
        ("y", lambda values: values[:3], ""),
        ("flux", lambda _: h5py.SoftLink("/flux_auto"), "flux is not stored in it"),
    ],
)
def test_what_a_posterior_holds_is_what_was_written(posterior, tmp_path, name, change, message):
    posterior.save(tmp_path / "draws.nc")
    with h5py.File(tmp_path / "draws.nc", "r+") as file:
        attributes, values = dict(file[name].attrs), file[name][()]
        del file[name]
        file[name] = change(values)
        if isinstance(file.get(name, getlink=True), h5py.HardLink):
            file[name].attrs.update({key: attributes[key] for key in DIMENSIONS & attributes.keys()})
    with pytest.raises(ValueError, match=rf"draws.nc: must be a posterior .*{message}"):
        Posterior.open(tmp_path / "draws.nc")
