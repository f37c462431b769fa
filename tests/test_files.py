"""Files and folders that appear whole or not at all, runs that resume, and headers."""

import contextlib
import errno
import os
from pathlib import Path

import pytest
import torch
from astropy.table import Table

from probdeblend._files import (
    check_header,
    header,
    output_folder,
    put_in_place,
    read_table,
    read_tensors,
    unfinished_folder,
    whole_file,
    write_tensors,
)


def listed(folder):
    """Names of what a user sees in a folder, and of what an interrupted run may leave."""
    return sorted(entry.name for entry in folder.iterdir() if entry.name != ".probdeblend.json")


def write_output(target, *, catalog="first", **options):
    with output_folder(target, **options) as folder:
        (folder / "catalog.ecsv").write_text(catalog)
    return target


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
    with pytest.raises(FileExistsError, match="is a folder, not a file, and is not replaced"):
        whole_file(tmp_path, overwrite=True).__enter__()


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


def test_a_hole_is_no_file(tmp_path):
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"a": torch.zeros(2)}, {}, kind="weights file")
    os.truncate(path, 2**33)
    with pytest.raises(ValueError, match=r"w.safetensors: must hold what it has room for, got a weights file that is"):
        read_tensors(path, kind="weights file")
    (tmp_path / "list.csv").write_text("x,y\n1,2\n")
    os.truncate(tmp_path / "list.csv", 2**33)
    with pytest.raises(ValueError, match=r"list.csv: must hold what it has room for"):
        read_table(tmp_path / "list.csv")


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
    assert listed(target) == ["masks.fits"]
    assert [entry.name for entry in target.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("earlier", [False, True])
def test_output_folder_leaves_nothing_when_it_fails(tmp_path, earlier):
    target = tmp_path / "out"
    if earlier:
        write_output(target, catalog="earlier")

    def fail_halfway():
        with output_folder(target, overwrite=True) as folder:
            (folder / "catalog.ecsv").write_text("half")
            raise KeyError("halfway")

    with pytest.raises(KeyError, match="halfway"):
        fail_halfway()
    assert listed(tmp_path) == (["out"] if earlier else [])
    assert not earlier or listed(target) == ["catalog.ecsv"]
    assert not earlier or (target / "catalog.ecsv").read_text() == "earlier"


def test_nothing_is_replaced_but_what_an_earlier_run_wrote(tmp_path, monkeypatch):
    """Whatever its name: a file of the user's, a folder, and an output that the user has changed."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(
        FileExistsError, match=r"holds thesis.tex, which no earlier run .*: move it away, or choose another"
    ):
        write_output(tmp_path, overwrite=True)
    with pytest.raises(FileExistsError, match=r"thesis.tex: is a file, not a folder, and is not replaced"):
        write_output(tmp_path / "thesis.tex", overwrite=True)
    for number, change in enumerate(
        [
            lambda folder: (folder / "catalog.ecsv").write_text("edited"),
            lambda folder: (folder / "notes").mkdir(),
            lambda folder: (folder / ".probdeblend.json").unlink(),
        ]
    ):
        target = write_output(tmp_path / f"out{number}")
        change(target)
        before = listed(target)
        with pytest.raises(FileExistsError, match=f"out{number}: is not replaced, because it holds "):
            write_output(target, overwrite=True)
        assert listed(target) == before
    target = write_output(tmp_path / "own")
    with monkeypatch.context() as patch:
        patch.chdir(target)
        for name in (".", "..", target):
            with pytest.raises(FileExistsError, match="holds the working folder, and is not replaced: choose another"):
                write_output(name, overwrite=True)
            with pytest.raises(FileExistsError, match="holds the working folder, and is not replaced: choose another"):
                interrupt(name, {}, overwrite=True)
    given = [target / "catalog.ecsv"]
    with pytest.raises(FileExistsError, match=r"own: is not replaced, because it holds the input .*catalog.ecsv"):
        output_folder(target, overwrite=True, inputs=given).__enter__()


def test_what_appears_during_a_run_is_not_replaced(tmp_path):
    """Another run to the same place, and a file that the user puts into an earlier output."""

    def run(target, meanwhile, **options):
        with output_folder(target, **options) as folder:
            (folder / "catalog.ecsv").write_text("second")
            meanwhile()

    with pytest.raises(FileExistsError, match=r"twice: exists already"):
        run(tmp_path / "twice", lambda: write_output(tmp_path / "twice"))
    target = write_output(tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"out: is not replaced, because it holds mine.txt"):
        run(target, (target / "mine.txt").touch, overwrite=True)
    assert listed(tmp_path) == ["out", "twice"]
    assert [(tmp_path / name / "catalog.ecsv").read_text() for name in ("out", "twice")] == ["first"] * 2

    def write_twice():
        with whole_file(tmp_path / "file") as temporary:
            temporary.write_text("second")
            (tmp_path / "file").write_text("first")

    with pytest.raises(FileExistsError, match=r"file: exists already"):
        write_twice()
    assert (tmp_path / "file").read_text() == "first"
    assert listed(tmp_path) == ["file", "out", "twice"]


@pytest.mark.parametrize("at_once", [True, False])
def test_the_earlier_output_is_replaced_by_the_system_or_in_steps(tmp_path, monkeypatch, at_once):
    """Whichever the file system can; where the new one cannot have its name, the earlier one has it."""
    if not at_once:
        monkeypatch.setattr("ctypes.CDLL", lambda _: None)
    target = write_output(tmp_path / "out")
    write_output(target, catalog="second", overwrite=True)
    assert (target / "catalog.ecsv").read_text() == "second"
    if not at_once:
        rename = Path.rename

        def refuse(path, other):
            if path.suffix == ".partial" and other == target and (path / "catalog.ecsv").read_text() == "third":
                raise OSError(errno.ENOSPC, "No space left on device")
            return rename(path, other)

        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(OSError, match="No space left"):
            write_output(target, catalog="third", overwrite=True)
        assert (target / "catalog.ecsv").read_text() == "second"
    assert listed(tmp_path) == ["out"]


def test_links_are_followed(tmp_path):
    """A user's output may be a link to a larger disk: what it leads to is written, and the link stays."""
    (tmp_path / "disk").mkdir()
    for name in ("out", "file", "run"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    for text, options in {"first": {}, "second": {"overwrite": True}}.items():
        write_output(tmp_path / "out", catalog=text, **options)
        with whole_file(tmp_path / "file", **options) as temporary:
            temporary.write_text(text)
        with unfinished_folder(tmp_path / "run", {}, **options) as kept:
            assert kept == tmp_path / "disk" / "run.partial"
            put_in_place(kept, tmp_path / "run", **options)
        assert (tmp_path / "disk" / "out" / "catalog.ecsv").read_text() == text
        assert (tmp_path / "disk" / "file").read_text() == text
        assert listed(tmp_path / "disk") == ["file", "out", "run"]
    assert all((tmp_path / name).is_symlink() for name in ("out", "file", "run"))


def test_tables_are_read_by_the_format_that_their_name_states(tmp_path):
    table = Table({"x": [1.5, 2.0], "y": [3.0, 4.0]})
    for name, form in {"a.ecsv": "ascii.ecsv", "a.csv": "ascii.csv", "a.fits": "fits", "a.vot": "votable"}.items():
        table.write(tmp_path / name, format=form)
        assert read_table(tmp_path / name)["x"].tolist() == [1.5, 2.0]
    (tmp_path / "far.vot").write_text(
        (tmp_path / "a.vot").read_text().split("<DATA>")[0]
        + '<DATA><BINARY2><STREAM href="https://example.org/rows"/></BINARY2></DATA></TABLE></RESOURCE></VOTABLE>'
    )
    (tmp_path / "text.fits").write_text("x y")
    (tmp_path / "a.txt").write_text("x y")
    for name, says in {
        "far.vot": r"not a table of the kind that its name says \(its rows are in another file\)",
        "text.fits": "not a table of the kind that its name says",
        "a.txt": r"must be a table whose name ends with one of \.ecsv, \.csv, \.fits, \.fit, \.vot",
    }.items():
        with pytest.raises(ValueError, match=f"{name}: {says}"):
            read_table(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none.csv: no such file"):
        read_table(tmp_path / "none.csv")


def interrupt(output, settings, *, part=None, **options):
    """Interrupt a run that has finished a part, or none."""
    with contextlib.suppress(KeyboardInterrupt), unfinished_folder(output, settings, **options) as kept:
        if part is not None:
            (kept / part).touch()
        raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_from_its_parts(tmp_path):
    output, settings = tmp_path / "out", {"seed": 1, "range": (0, 1)}
    interrupt(output, settings, part="0.npz")
    for changed, options, says in [
        (settings | {"seed": 2}, {"resume": True}, "must be resumed with the settings it was begun with"),
        (settings, {}, "resume continues it, overwrite starts over"),
    ]:
        with pytest.raises((ValueError, FileExistsError), match=says):
            interrupt(output, changed, **options)
    with unfinished_folder(output, settings, resume=True) as kept:
        assert listed(kept) == ["0.npz", "settings.json"]
    assert listed(tmp_path) == []
    interrupt(output, settings, part="0.npz")
    with unfinished_folder(output, settings, overwrite=True) as kept:
        assert listed(kept) == ["settings.json"]
    with pytest.raises(ValueError, match="there is nothing to resume"):
        interrupt(tmp_path / "other", settings, resume=True)
    output.touch()
    with pytest.raises(FileExistsError, match="out: exists already"):
        interrupt(output, settings)


def test_a_run_without_a_finished_part_leaves_nothing(tmp_path):
    interrupt(tmp_path / "out", {})
    assert not list(tmp_path.iterdir())


def test_only_the_parts_of_an_interrupted_run_are_dropped(tmp_path):
    (tmp_path / "out.partial").mkdir()  # as a run that is killed at once might leave it
    with unfinished_folder(tmp_path / "out", {}) as kept:
        assert listed(kept) == ["settings.json"]
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"new.partial: is not replaced, because it holds thesis.tex"):
        interrupt(tmp_path / "new", {}, overwrite=True)
    assert listed(tmp_path / "new.partial") == ["thesis.tex"]
    assert listed(tmp_path) == ["new.partial"]
