"""Model cards: numbers of the weights file and of tables, what is not measured, and what is refused."""

import click
import numpy as np
import pytest
from astropy.table import Table
from click.testing import CliRunner

from benchmarks import model_card
from benchmarks._command import FILE, benchmark, digests, sized_option, weights_option
from benchmarks._shown import MEASURES, SHOWN
from benchmarks.model_card import card, main
from probdeblend.deblending import Deblender, Description, load


@pytest.fixture(scope="module")
def shipped():
    return load()


@pytest.fixture
def results(tmp_path):
    """Make a folder with the table of each benchmark that is named, which tells of weights."""

    def make(*names, **stated):
        for name in names:
            own = [shown for shown in SHOWN if shown.benchmark == name]
            columns = dict.fromkeys(column for shown in own for column in shown.columns)
            table = Table({column: [0.1234 + number] * len(own) for number, column in enumerate(columns)})
            for shown in own:
                if shown.rows is not None:
                    table[shown.rows[0]] = [one.rows[1][0] for one in own]
                table.meta |= dict.fromkeys(shown.meta, 0.5678)
            table.meta |= {"command": f"python -m benchmarks.{name} --count 7", "probdeblend": "1.2.3"} | stated
            (tmp_path / "results" / name).mkdir(parents=True)
            table.write(tmp_path / "results" / name / f"{name}.ecsv", format="ascii.ecsv")
        (tmp_path / "results").mkdir(exist_ok=True)
        return tmp_path / "results"

    return make


def changed(deblender, **training):
    """Return the same network with another record of its training."""
    description = Description(deblender.description.settings, training=training)
    other = Deblender(deblender.network, description)
    other.use(deblender.calibrator)
    return other


def test_tables_state_how_they_were_made(shipped, tmp_path):
    """The command is quoted without what says where files lie, and the table tells apart weights and calibrators."""

    @benchmark("pairs")
    @sized_option("--count", 2, 20, help="Pairs.")
    @click.option("--library", type=FILE)
    @click.option("--fold", type=int, multiple=True)
    @weights_option
    def main(run, count, library, fold, weights):
        with run.unfinished(deblender=shipped, count=count):
            run.write(Table({"count": [count]}))

    given = ["--full", "--library", str(tmp_path / "my library"), "--fold", "1", "--fold", "3", "--weights", "w"]
    answer = CliRunner().invoke(main, [*given, "--output", str(tmp_path / "out")], catch_exceptions=False)
    meta = Table.read(tmp_path / "out" / "pairs.ecsv").meta
    assert meta["command"] == "python -m benchmarks.pairs --library 'my library' --fold 1 --fold 3 --full"
    assert f"command: {meta['command']}" in answer.output
    assert {name: meta[name] for name in ("weights", "calibrator")} == digests(shipped)
    other = Deblender(shipped.network, shipped.description)
    assert digests(other) == {"weights": shipped.digest, "calibrator": "none"}


def test_what_the_weights_file_knows_is_there(shipped, results):
    text = card(shipped, results())
    low, high = (f"{value:.3g}" for value in shipped.description.fwhm)
    for part in (shipped.digest, f"{low} to {high} pixels", shipped.calibrator.fitted_on, "BSD-3-Clause"):
        assert part in text
    cameras = shipped.description.training["stream"]["templates"]["cameras"]
    assert "{:g} to {:g} arcsec".format(*cameras["seeing"]) in text
    assert f"{sum(value.numel() for value in shipped.network.parameters()):,}" in text


@pytest.mark.parametrize("name", dict.fromkeys(shown.benchmark for shown in SHOWN))
def test_numbers_of_every_table_appear(shipped, results, name):
    """Each column that is shown stands under its name, with the command and the numbers that the metadata hold."""
    text = card(shipped, results(name, **digests(shipped)))
    own = [shown for shown in SHOWN if shown.benchmark == name]
    columns = list(dict.fromkeys(column for shown in own for column in shown.columns))
    for shown in own:
        head = "| " + " | ".join(shown.columns).replace("_", "_<wbr>") + " |"
        row = text[text.index(head) :].splitlines()[2].strip("| ").split(" | ")
        assert row[-1] == f"{0.1234 + columns.index(shown.columns[-1]):.4f}"
        assert len(row) == len(shown.columns)
        assert all(f"{key}: 0.568" in text for key in shown.meta)
    assert f"`python -m benchmarks.{name} --count 7`, probdeblend 1.2.3" in text
    assert f"`{name}` was not measured" not in text


def test_meanings_are_of_what_is_shown():
    shown = {name for own in SHOWN for name in (*own.columns, *own.meta)}
    assert {name for names in MEASURES for name in names.split(", ")} <= shown


def test_a_table_that_is_missing_is_named(shipped, results):
    text = card(shipped, results("pairs", **digests(shipped)))
    assert "`pairs` was not measured" not in text
    assert "`psfs` was not measured; `python -m benchmarks.psfs --full` does." in text
    caveat = next(line for line in text.splitlines() if "Not measured, and so not known" in line)
    assert "`psfs`" in caveat
    assert "`pairs`" not in caveat


def test_what_is_not_known_of_a_source_is_left_empty(shipped, results):
    folder = results("pairs", **digests(shipped))
    path = folder / "pairs" / "pairs.ecsv"
    table = Table.read(path)
    table["mape"] = np.nan
    table.replace_column("method", ["one | two"])
    table.write(path, format="ascii.ecsv", overwrite=True)
    row = next(line for line in card(shipped, folder).splitlines() if "one / two" in line)
    assert "nan" not in row
    assert "|  |" in row


@pytest.mark.parametrize("kind", ["weights", "calibrator"])
def test_numbers_of_other_weights_are_refused(shipped, results, kind):
    folder = results("pairs", **digests(shipped) | {kind: "0123456789abcdef"})
    with pytest.raises(ValueError, match=rf"pairs.ecsv: must be measured with {kind} .*, got {kind} 0123456789abcdef"):
        card(shipped, folder)


def test_numbers_that_need_no_weights_are_taken(shipped, results):
    assert "`irregularity` was not measured" not in card(shipped, results("irregularity"))
    with pytest.raises(ValueError, match=r"pairs.ecsv: must hold weights, calibrator, got none; run python"):
        card(shipped, results("pairs"))


def test_folds_may_have_started_from_the_same_weights(shipped, results):
    """Weights trained on real galaxies may be shown with folds that began as they did, and the card says so."""
    folder = results("real_galaxies", weights="0123456789abcdef", calibrator="none")
    stream = {"galaxies": ["one", "two"]}
    text = card(changed(shipped, start="0123456789abcdef", stream=stream), folder)
    assert "They started from weights `0123456789abcdef`, as those of this card did" in text
    assert "Real galaxies in the training: 2." in text
    with pytest.raises(ValueError, match="must be measured with weights"):
        card(changed(shipped, start="another"), folder)


def test_weights_that_saw_the_galaxies_of_the_test_say_so(shipped, results):
    own = changed(shipped, stream={"galaxies": ["one", "two"]})
    text = card(own, results("real_galaxies", **digests(own)))
    assert "from which all rows start, saw 2 real galaxies in training, perhaps the tested ones too." in text


def test_an_unknown_training_and_no_calibrator(shipped, results):
    text = card(Deblender(shipped.network, Description(training={"stream": "my own"})), results())
    assert "| bands of the training | not recorded |" in text
    assert "There is no calibrator" in text
    assert "calibrator's sources" not in text


def test_a_damaged_table_is_one_sentence(shipped, results):
    folder = results("pairs")
    (folder / "pairs" / "pairs.ecsv").write_text("no table")
    with pytest.raises(ValueError, match=r"pairs.ecsv: must be a table that benchmarks.pairs wrote"):
        card(shipped, folder)


def test_the_command_writes_the_same_bytes_and_replaces_only_if_asked(results, tmp_path, shipped, monkeypatch):
    monkeypatch.setattr(model_card, "load", lambda _: shipped)
    folder, output = results("bands", **digests(shipped)), tmp_path / "card.md"
    given = ["--results", str(folder), "--output", str(output)]
    assert CliRunner().invoke(main, given).exit_code == 0
    first = output.read_bytes()
    refused = CliRunner().invoke(main, given)
    assert refused.exit_code == 1
    assert "exists" in refused.output
    assert CliRunner().invoke(main, [*given, "--overwrite"]).exit_code == 0
    assert output.read_bytes() == first == card(shipped, folder).encode()
    missing = CliRunner().invoke(main, ["--results", str(tmp_path / "none"), "--output", str(tmp_path / "new.md")])
    assert missing.exit_code == 1
    assert missing.output.strip().endswith("none: no such folder")
    assert not (tmp_path / "new.md").exists()
