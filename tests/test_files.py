"""Files that appear whole or not at all."""

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable, Table
from matplotlib.figure import Figure

from probdeblend._files import output_folder, read_tensors, write_catalog, write_pixels, write_table, write_tensors


def test_catalog_keeps_units_and_masks(tmp_path):
    table = QTable({"flux": [1.0, 2.0] * u.electron / u.s, "id": [1, 2]})
    table["flux"].info.description = "median of the posterior"
    path = tmp_path / "catalog.ecsv"
    write_catalog(table, path)
    back = QTable.read(path)
    assert back["flux"].unit == table["flux"].unit
    assert back["flux"].info.description == "median of the posterior"
    with pytest.raises(FileExistsError, match=r"catalog.ecsv: exists already"):
        write_catalog(table, path)
    write_catalog(table[:1], path, overwrite=True)
    assert len(QTable.read(path)) == 1


def test_a_table_with_its_figure(tmp_path):
    table, path = Table({"z": [1.0, 2.0]}, meta={"blends": 2}), tmp_path / "out"
    assert write_table(path, table, "march", figure=Figure()) == sorted(entry.name for entry in path.iterdir())
    assert Table.read(path / "march.ecsv").meta == {"blends": 2}
    assert (path / "march.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(FileExistsError, match="out: exists already"):
        write_table(path, table, "march", figure=Figure())
    with pytest.raises(FileExistsError, match=r"is no earlier output and is not replaced, it holds march\.png"):
        write_table(path, table, "march", overwrite=True)
    write_table(path, table[:1], "march", figure=Figure(), overwrite=True)
    assert len(Table.read(path / "march.ecsv")) == 1
    assert write_table(tmp_path / "bare", table, "refined") == ["refined.ecsv"]
    assert [entry.name for entry in (tmp_path / "bare").iterdir()] == ["refined.ecsv"]


def test_tensors_come_back(tmp_path):
    tensors, path = {"a": torch.rand(3, 2).T, "b": torch.ones(1, requires_grad=True)}, tmp_path / "tensors"
    write_tensors(path, tensors, {"format": "ours"})
    metadata, back = read_tensors(path, kind="network")
    assert metadata == {"format": "ours"}
    assert sorted(back) == ["a", "b"]
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    with pytest.raises(FileNotFoundError, match="none: no such network"):
        read_tensors(tmp_path / "none", kind="network")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="tensors: not a safetensors file, or damaged"):
        read_tensors(path, kind="network")


def test_masks(tmp_path, rng):
    mask, mask_std = rng.uniform(size=(2, 3, 2, 8, 8))
    corners = Table({"blend": [0, 1, 2], "x0": [4, -3, 9], "y0": [1, 2, 3]})
    path = tmp_path / "masks.fits"
    write_pixels(path, {"MASK": mask, "MASK_STD": mask_std}, corners, header=fits.Header({"CRVAL1": 53.1}))
    with fits.open(path) as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "MASK", "MASK_STD", "STAMPS"]
        assert hdus[0].header["CRVAL1"] == 53.1
        assert hdus["MASK"].data.dtype == np.dtype(">f4")
        np.testing.assert_allclose(hdus["MASK"].data, mask, rtol=1e-6)
        np.testing.assert_allclose(hdus["MASK_STD"].data, mask_std, rtol=1e-6)
        assert hdus["STAMPS"].data["x0"].tolist() == [4, -3, 9]
    with pytest.raises(FileExistsError, match=r"masks.fits: exists already"):
        write_pixels(path, {"MASK": mask, "MASK_STD": mask_std}, corners)
    with pytest.raises(ValueError, match=r"mask_std must have the axes .*, got shape \(3, 2, 8\)"):
        write_pixels(tmp_path / "x.fits", {"MASK": mask, "MASK_STD": mask_std[..., 0]}, corners)
    with pytest.raises(ValueError, match=r"mask must have the axes .* with 2 blends"):
        write_pixels(tmp_path / "x.fits", {"MASK": mask, "MASK_STD": mask_std}, corners[:2])


def test_output_folder_appears_whole(tmp_path):
    target = tmp_path / "runs" / "out"
    with output_folder(target) as folder:
        (folder / "catalog.ecsv").write_text("first")
        assert not target.exists()
    assert (target / "catalog.ecsv").read_text() == "first"
    with pytest.raises(FileExistsError, match="out: exists already"), output_folder(target):
        pytest.fail("must not get here")
    with output_folder(target, overwrite=True) as folder:
        (folder / "masks.fits").write_text("second")
        assert (target / "catalog.ecsv").exists()
    assert [entry.name for entry in target.iterdir()] == ["masks.fits"]
    assert [entry.name for entry in target.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("earlier", [False, True])
def test_output_folder_leaves_nothing_when_it_fails(tmp_path, earlier):
    target = tmp_path / "out"
    if earlier:
        target.mkdir()
        (target / "catalog.ecsv").write_text("earlier")

    def fail_halfway():
        with output_folder(target, overwrite=True) as folder:
            (folder / "catalog.ecsv").write_text("half")
            raise KeyError("halfway")

    with pytest.raises(KeyError, match="halfway"):
        fail_halfway()
    found = {str(entry.relative_to(tmp_path)) for entry in tmp_path.rglob("*")}
    assert found == ({"out", "out/catalog.ecsv"} if earlier else set())
    assert not earlier or (target / "catalog.ecsv").read_text() == "earlier"


def test_output_folder_never_replaces_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"no earlier output and is not replaced, it holds thesis.tex"):
        output_folder(tmp_path, overwrite=True).__enter__()
    with pytest.raises(FileExistsError, match=r"thesis.tex: is a file, not a folder, and is not replaced"):
        output_folder(tmp_path / "thesis.tex", overwrite=True).__enter__()
    with output_folder(tmp_path, overwrite=True, files=["thesis.tex"]) as folder:
        (folder / "new").touch()
    assert [entry.name for entry in tmp_path.iterdir()] == ["new"]
