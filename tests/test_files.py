"""Files and folders that appear whole or not at all, runs that resume, and headers."""

import pytest
import torch

from probdeblend._files import (
    check_header,
    header,
    output_folder,
    read_tensors,
    unfinished_folder,
    whole_file,
    write_tensors,
)


def test_headers_state_kind_and_version():
    check_header(header("calibrator") | {"more": 1}, "calibrator", "c.json")
    with pytest.raises(ValueError, match=r"c\.json: must be a guide written by probdeblend, got another file"):
        check_header(header("calibrator"), "guide", "c.json")
    with pytest.raises(ValueError, match=r"c\.json: must be a guide of version 1, got version 2"):
        check_header(header("guide") | {"version": 2}, "guide", "c.json")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"

    def fail_halfway():
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise KeyError("halfway")

    with pytest.raises(KeyError, match="halfway"):
        fail_halfway()
    assert not list(tmp_path.iterdir())
    with whole_file(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    with pytest.raises(FileExistsError, match="file: exists already"), whole_file(path):
        pytest.fail("must not get here")
    with whole_file(path, overwrite=True) as temporary:
        temporary.write_text("new")
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["new"]


def test_tensors_come_back(tmp_path):
    tensors, path = {"a": torch.rand(3, 2).T, "b": torch.ones(1, requires_grad=True)}, tmp_path / "tensors"
    write_tensors(path, tensors, {"by": "us"}, kind="network")
    metadata, back = read_tensors(path, kind="network")
    assert metadata == header("network") | {"by": "us"}
    assert sorted(back) == ["a", "b"]
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    with pytest.raises(FileNotFoundError, match="none: no such network"):
        read_tensors(tmp_path / "none", kind="network")
    with pytest.raises(ValueError, match="tensors: must be a guide written by probdeblend, got another file"):
        read_tensors(path, kind="guide")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="tensors: not a safetensors file, or damaged"):
        read_tensors(path, kind="network")


FILES = ("catalog.ecsv", "masks.fits")


def test_output_folder_appears_whole(tmp_path):
    target = tmp_path / "runs" / "out"
    with output_folder(target, files=FILES) as folder:
        (folder / "catalog.ecsv").write_text("first")
        assert not target.exists()
    assert (target / "catalog.ecsv").read_text() == "first"
    with pytest.raises(FileExistsError, match="out: exists already"), output_folder(target, files=FILES):
        pytest.fail("must not get here")
    with output_folder(target, overwrite=True, files=FILES) as folder:
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
        with output_folder(target, overwrite=True, files=FILES) as folder:
            (folder / "catalog.ecsv").write_text("half")
            raise KeyError("halfway")

    with pytest.raises(KeyError, match="halfway"):
        fail_halfway()
    found = {str(entry.relative_to(tmp_path)) for entry in tmp_path.rglob("*")}
    assert found == ({"out", "out/catalog.ecsv"} if earlier else set())
    assert not earlier or (target / "catalog.ecsv").read_text() == "earlier"


def test_output_folder_never_replaces_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"because it holds thesis.tex, which no earlier run wrote"):
        output_folder(tmp_path, overwrite=True, files=FILES).__enter__()
    with pytest.raises(FileExistsError, match=r"thesis.tex: is a file, not a folder, and is not replaced"):
        output_folder(tmp_path / "thesis.tex", overwrite=True, files=FILES).__enter__()
    with output_folder(tmp_path, overwrite=True, files=["thesis.tex"]) as folder:
        (folder / "new").touch()
    assert [entry.name for entry in tmp_path.iterdir()] == ["new"]


def test_an_interrupted_run_goes_on_from_its_parts(tmp_path):
    output, settings = tmp_path / "out", {"seed": 1, "range": (0, 1)}
    kept = unfinished_folder(output, settings)
    (kept / "0.npz").write_text("done")
    again = unfinished_folder(output, settings, resume=True)
    assert again == kept
    assert (again / "0.npz").read_text() == "done"
    with pytest.raises(ValueError, match="must be resumed with the settings it was begun with"):
        unfinished_folder(output, settings | {"seed": 2}, resume=True)
    with pytest.raises(FileExistsError, match="resume continues it, overwrite starts over"):
        unfinished_folder(output, settings)
    assert not list(unfinished_folder(output, settings, overwrite=True).glob("*.npz"))
    with pytest.raises(ValueError, match="there is nothing to resume"):
        unfinished_folder(tmp_path / "other", settings, resume=True)
    output.touch()
    with pytest.raises(FileExistsError, match="out: exists already"):
        unfinished_folder(output, settings)
