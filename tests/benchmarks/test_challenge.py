"""The challenge kit: sets that repeat bit by bit, submissions whose form is checked, and scores that fall where due."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.table import Table
from click.testing import CliRunner
from scipy import stats

from benchmarks.challenge import (
    LEVELS,
    Answer,
    Challenge,
    Truth,
    make_challenge,
    read_challenge,
    read_submission,
    read_truth,
    score,
    write_submission,
)
from benchmarks.challenge.__main__ import main
from benchmarks.challenge.metric import coverage_score, detection_score, flux_score
from benchmarks.challenge.sets import CAMERAS, SIDE
from probdeblend.deblending.sep import SepDeblender
from probdeblend.scene import seed_of

SCENES, NUMBER = 3, 2
QUANTILES = stats.norm.ppf(LEVELS)
EXACT = {"mape": 0, "bias_mag": 0, "nmad_mag": 0, "outliers": 0, "score_68": 0, "score_95": 0}
EXACT |= dict.fromkeys(("completeness", "purity", "coverage_68", "coverage_95", "iou"), 1)


def known(bands):
    """Sources 40 pixels apart, whose fluxes and masks are all different."""
    sources = SCENES * NUMBER
    number, place = np.divmod(np.arange(sources), NUMBER)
    flux = np.exp(np.arange(sources * bands).reshape(sources, bands) / 5)
    mask = np.zeros((sources, SIDE, SIDE), dtype=bool)
    for source, pixels in enumerate(mask):
        pixels[12 * source : 12 * source + 10, :6] = True
    positions = (20.0 + 40 * place, np.full(sources, 50.0))
    return Truth(number, *positions, {"total": flux, "auto": 0.9 * flux}, np.full_like(flux, 50.0), mask)


def perfect(truth, flux="total"):
    """The truth as an answer, with intervals of no width."""
    masks = [truth.mask[truth.scene == number] for number in range(int(truth.scene.max()) + 1)]
    return Answer(truth.scene, truth.x, truth.y, np.repeat(truth.flux[flux][..., None], len(LEVELS), -1), masks)


TRUTH = known(1)
ANSWER = perfect(TRUTH)
CHALLENGE = Challenge("unused", {"public": {"scenes": SCENES, "images": "0123"}})


def worse(answer, **changes):
    """Names of the scores that are not those of a perfect answer."""
    found = score(replace(answer, **changes), TRUTH)
    return {name for name, value in EXACT.items() if found[name] != pytest.approx(value, abs=1e-12)}, found


@pytest.fixture
def submitted(tmp_path):
    answers = {name: perfect(known(len(bands) or 1)) for name, (bands, _) in CAMERAS.items()}
    write_submission(tmp_path / "mine", answers, challenge=CHALLENGE, test="public", method="mine")
    return tmp_path / "mine"


def test_a_perfect_submission_scores_perfectly(submitted):
    read = read_submission(submitted, CHALLENGE)
    assert (read.method, read.test, read.flux) == ("mine", "public", "total")
    for name, (bands, _) in CAMERAS.items():
        found = score(read.answers[name], known(len(bands) or 1))
        assert found.pop("sources") == SCENES * NUMBER
        assert found == pytest.approx(EXACT, abs=1e-12)


def test_wrong_fluxes_and_the_wrong_kind():
    names, found = worse(ANSWER, flux=1.3 * ANSWER.flux)
    assert names == {"mape", "bias_mag", "coverage_68", "coverage_95", "score_68", "score_95"}
    assert found["mape"] == pytest.approx(30)
    assert found["bias_mag"] == pytest.approx(-2.5 * np.log10(1.3))
    assert found["coverage_95"] == 0
    assert score(ANSWER, TRUTH, flux="auto")["mape"] == pytest.approx(100 / 9)
    assert worse(ANSWER, flux=3 * ANSWER.flux)[1]["outliers"] == 1


def test_shuffled_masks():
    names, found = worse(ANSWER, masks=[masks[::-1] for masks in ANSWER.masks])
    assert names == {"iou"}
    assert found["iou"] == 0


def test_sources_that_are_missed_false_or_too_faint_to_count():
    first = TRUTH.scene == 0
    kept = {name: getattr(ANSWER, name)[~first] for name in ("scene", "x", "y", "flux")}
    names, found = worse(ANSWER, **kept, masks=[ANSWER.masks[0][:0], *ANSWER.masks[1:]])
    assert names == {"completeness", "mape", "outliers", "iou"}
    third = {"completeness": 2 / 3, "mape": 100 / 3, "outliers": 1 / 3, "iou": 2 / 3}
    assert {name: found[name] for name in names} == pytest.approx(third)
    assert worse(ANSWER, x=ANSWER.x + 4.9)[0] == set()
    names, found = worse(ANSWER, x=ANSWER.x + 5.1 * first)
    assert names == {"completeness", "purity", "mape", "outliers", "iou"}
    assert found["purity"] == pytest.approx(2 / 3)
    faint = replace(TRUTH, snr=np.where(first[:, None], 4.9, 50.0))
    for answer in (ANSWER, replace(ANSWER, flux=np.where(first[:, None, None], 9e9, ANSWER.flux))):
        found = score(answer, faint)
        assert found.pop("sources") == 4
        assert found == pytest.approx(EXACT, abs=1e-12)


def test_nothing_found(tmp_path):
    none = [np.zeros((0, SIDE, SIDE))] * SCENES
    nothing = {
        name: Answer(*np.zeros((3, 0)), np.zeros((0, len(of) or 1, 5)), none) for name, (of, _) in CAMERAS.items()
    }
    write_submission(tmp_path / "none", nothing, challenge=CHALLENGE, test="public", method="none")
    found = score(read_submission(tmp_path / "none", CHALLENGE).answers["f160w"], TRUTH)
    assert (found["completeness"], found["mape"], found["outliers"], found["iou"]) == (0, 100, 1, 0)
    assert np.isnan([found[name] for name in ("purity", "nmad_mag", "coverage_68", "score_95")]).all()
    assert np.isnan(detection_score(np.zeros(0, int), np.zeros(0, bool), found=0)["completeness"])


@pytest.mark.parametrize("cast", [bool, np.int8, np.uint8, np.int64, np.float16, np.float64])
@pytest.mark.parametrize("inside", [1, 0.7])
def test_overlap_of_masks_of_any_type(cast, inside):
    """Eight of ten rows, and no others: booleans, integers and probabilities all have an IoU of 0.8."""
    masks = [np.where(own, inside, 0.3 if np.dtype(cast).kind == "f" else 0) for own in ANSWER.masks]
    masks = [own.astype(cast) if np.dtype(cast).kind == "f" else np.ceil(own).astype(cast) for own in masks]
    for scene in range(SCENES):
        for place in range(NUMBER):
            masks[scene][place, 12 * (NUMBER * scene + place) + 8 :] = 0
    assert score(replace(ANSWER, masks=masks), TRUTH)["iou"] == pytest.approx(0.8)


def test_sources_in_any_order():
    """Rows of scenes may be mixed; the masks of a scene are in the order of its rows."""
    order = np.array([5, 0, 2, 4, 3, 1])
    columns = {name: getattr(ANSWER, name)[order] for name in ("scene", "x", "y", "flux")}
    masks = [TRUTH.mask[order][TRUTH.scene[order] == number] for number in range(SCENES)]
    assert worse(ANSWER, **columns, masks=masks)[0] == set()


def test_scores_of_intervals():
    """Of the right width, half of it, and twice: coverage follows, and the score is best where the width is right."""
    rng = np.random.default_rng(0)
    true, sd = np.ones((20_000, 1)), 0.1
    error = sd * rng.normal(size=true.shape)
    found = {}
    for factor in (0.5, 1, 2):
        found[factor] = coverage_score(np.exp(error[..., None] + factor * sd * QUANTILES), true)
        for percent, ends in ((68, QUANTILES[[1, 3]]), (95, QUANTILES[[0, 4]])):
            expected = np.diff(stats.norm.cdf(factor * ends))[0]
            assert found[factor][f"coverage_{percent}"] == pytest.approx(expected, abs=0.015)
    assert found[0.5]["score_95"] > found[1]["score_95"] < found[2]["score_95"]
    assert found[0.5]["score_68"] > found[1]["score_68"] < found[2]["score_68"]


def test_the_interval_score_is_width_and_penalty():
    quantiles = np.exp([[[-0.4, -0.2, 0.0, 0.1, 0.3]], [[np.nan] * 5]])
    found = coverage_score(quantiles, np.exp([[0.2], [0.0]]))
    assert found["score_68"] == pytest.approx(0.3 + 2 / 0.32 * 0.1)
    assert found["score_95"] == pytest.approx(0.7)
    assert (found["coverage_68"], found["coverage_95"]) == (0, 1)


def test_bands_in_which_a_source_is_faint_do_not_count():
    estimate, true = np.array([[1.0, 7.0], [2.0, 2.0]]), np.array([[1.0, np.nan], [4.0, 2.0]])
    assert flux_score(estimate, true)["mape"] == pytest.approx(50 / 3)
    estimate[1] = np.nan
    assert flux_score(estimate, true)["outliers"] == pytest.approx(2 / 3)


def header(**changes):
    def change(folder):
        file = folder / "submission.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def catalog(**columns):
    """Replace columns of the catalog of the first camera; None removes one."""

    def change(folder):
        table = Table.read(folder / "f160w.ecsv")
        for name, values in columns.items():
            if values is None:
                table.remove_column(name)
            else:
                table[name] = values
        table.write(folder / "f160w.ecsv", overwrite=True)

    return change


def masks(**scenes):
    """Replace masks of scenes of the first camera; None removes them."""

    def change(folder):
        with np.load(folder / "f160w.npz") as stored:
            kept = dict(stored) | {name[1:]: values for name, values in scenes.items()}
        np.savez(folder / "f160w.npz", **{name: own for name, own in kept.items() if own is not None})

    return change


SHAPE = (NUMBER, SIDE, SIDE)
WRONG = {
    "version": (header(challenge=2), "must answer version 1 of the challenge, got 2"),
    "format": (header(format="else"), "must be a submission written by probdeblend"),
    "test": (header(test="train"), "test must be public or hidden, got train"),
    "flux": (header(flux="peak"), "flux must be total or auto, got peak"),
    "images": (header(images="4567"), "must answer the images 0123 of the public test, got others"),
    "json": (lambda folder: (folder / "submission.json").write_text("{"), "another or a damaged file"),
    "list": (lambda folder: (folder / "submission.json").write_text("[]"), "another or a damaged file"),
    "catalog": (lambda folder: (folder / "ground.ecsv").unlink(), "no such file"),
    "column": (catalog(flux_16=None), "must have the column flux_16, got only scene, x, y, flux_025, flux"),
    "finite": (catalog(x=[1, 2, np.nan, 4, 5, 6]), "x must be one finite number per row, got nan in row 2"),
    "masked": (
        catalog(y=np.ma.array([1.0, 2, 3, 4, 5, 6], mask=[0, 1, 0, 0, 0, 0])),
        "y must be one finite number per row, got nan in row 1",
    ),
    "text": (catalog(y=list("abcdef")), "y must be numbers"),
    "scene": (catalog(scene=[0, 0, 1, 1, 2, 3]), "scene must be a whole number from 0 to 2, got 3"),
    "whole": (catalog(scene=[0, 0.5, 1, 1, 2, 2]), "scene must be a whole number from 0 to 2, got 0.5"),
    "order": (catalog(flux_025=[9.0] * 6), "quantiles of a flux must not decrease, got row 0"),
    "no masks": (lambda folder: (folder / "f160w.npz").unlink(), "no such file of masks"),
    "no archive": (lambda folder: (folder / "f160w.npz").write_bytes(b"x"), "must be a file of numpy.savez"),
    "missing": (masks(s1=None), "must hold masks of all 3 scenes, got none of scene 1$"),
    "more missing": (masks(s1=None, s2=None), "got none of scene 1 and 1 others"),
    "number": (masks(s2=np.ones((1, SIDE, SIDE))), r"scene 2 must have shape \(2, 96, 96\), got \(1, 96, 96\)"),
    "size": (masks(s0=np.ones((2, 9, 9))), r"scene 0 must have shape \(2, 96, 96\), got \(2, 9, 9\)"),
    "nan": (masks(s0=np.full(SHAPE, np.nan)), "masks of scene 0 must be booleans or finite numbers"),
    "complex": (masks(s0=np.full(SHAPE, 1j)), "masks of scene 0 must be booleans or finite numbers"),
    "objects": (masks(s0=np.full(SHAPE, None)), "must be a file of numpy.savez without objects"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_submission_is_said_in_one_sentence(submitted, case):
    change, sentence = WRONG[case]
    change(submitted)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        read_submission(submitted, CHALLENGE)


def test_what_is_written_is_checked(tmp_path):
    answers = dict.fromkeys(CAMERAS, ANSWER)
    with pytest.raises(ValueError, match=r"flux of ground must have shape \(6, 3, 5\), got \(6, 1, 5\)"):
        write_submission(tmp_path / "mine", answers, challenge=CHALLENGE, test="public", method="mine")
    with pytest.raises(ValueError, match="test must be public or hidden, got train"):
        write_submission(tmp_path / "mine", {}, challenge=CHALLENGE, test="train", method="mine")
    assert not list(tmp_path.iterdir())


def test_truth_is_kept_apart(tmp_path):
    with pytest.raises(ValueError, match="truth must be apart from the images"):
        make_challenge(tmp_path / "set", tmp_path / "set" / "truth", train=1, test=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("challenge")
    make_challenge(folder / "set", folder / "truth", train=1, test=2, hidden_seed=5)
    return folder


def shards(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.glob("**/*.h5"))}


@pytest.mark.slow
def test_the_same_seeds_give_the_same_files(made, tmp_path):
    first = {name: shards(made / name) for name in ("set", "truth")}
    for hidden, same in ((5, True), (6, False)):
        make_challenge(tmp_path / "set", tmp_path / "truth", train=1, test=2, hidden_seed=hidden, overwrite=True)
        for name, before in first.items():
            again = shards(tmp_path / name)
            assert list(again) == list(before)
            assert {path.parts[0] for path in again if again[path] != before[path]} == (set() if same else {"hidden"})
    assert len(first["set"]) == 6
    assert len(first["truth"]) == 4


@pytest.mark.slow
def test_images_have_no_truth_and_truth_belongs_to_them(made):
    challenge, truth = read_challenge(made / "set"), read_challenge(made / "truth", truth=True)
    assert challenge.tests == truth.tests
    for test in challenge.tests:
        for camera, (bands, _) in CAMERAS.items():
            (images,), (scenes,) = challenge.scenes(test, camera), truth.scenes(test, camera)
            assert torch.equal(images.image, scenes.image)
            assert images.image.shape == (2, len(bands) or 1, SIDE, SIDE)
            assert images.scene is images.x is images.flux is images.light is None
            assert ((scenes.count >= 1) & (scenes.count <= 8)).all()
            answer = perfect(read_truth(truth, test, camera))
            assert {name: score(answer, read_truth(truth, test, camera))[name] for name in EXACT} == pytest.approx(
                EXACT
            )
    (train,) = challenge.scenes("train", "ground")
    assert train.light is not None
    assert "hidden_seed" not in json.loads((made / "set" / "challenge.json").read_text())
    assert json.loads((made / "truth" / "truth.json").read_text())["hidden_seed"] == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text | {"challenge": 0}, "must be of version 1 of the challenge, got 0"),
        (
            lambda text: text | {"format": "probdeblend truth of a challenge"},
            "must be a challenge written by probdeblend",
        ),
        (
            lambda text: text | {"checksums": text["checksums"] | {"public/ground/scenes-00000000.h5": "0"}},
            "got another for public/ground/scenes-00000000.h5",
        ),
        (lambda text: text | {"checksums": {}}, "got another for hidden/f160w/scenes-00000000.h5"),
    ],
)
def test_a_set_that_is_not_as_it_was_made_is_refused(made, change, sentence):
    file = made / "set" / "challenge.json"
    before = file.read_text()
    file.write_text(json.dumps(change(json.loads(before))))
    try:
        with pytest.raises(ValueError, match=sentence):
            read_challenge(made / "set")
    finally:
        file.write_text(before)


@pytest.mark.slow
def test_baselines_and_scores_from_the_command_line(made, tmp_path, weights):
    run = CliRunner().invoke
    folders = [str(tmp_path / name) for name in ("sep", "network")]
    for folder, settings in zip(folders, ([], ["--weights", str(weights)]), strict=True):
        method = folder.rsplit("/", 1)[1]
        done = run(main, ["baseline", method, str(made / "set"), folder, "--test", "hidden", *settings])
        assert done.exit_code == 0, done.output
    done = run(main, ["score", str(made / "truth"), *folders, "--output", str(tmp_path / "scores.ecsv")])
    assert done.exit_code == 0, done.output
    table = Table.read(tmp_path / "scores.ecsv")
    assert table["method"].tolist() == ["sep"] * 2 + ["network"] * 2
    assert set(table["test"]) == {"hidden"}
    assert table["flux"].tolist() == ["auto"] * 2 + ["total"] * 2
    assert 0 < table["completeness"][0] <= 1
    challenge = read_challenge(made / "set")
    (scenes,) = challenge.scenes("hidden", "f160w")
    catalog = read_submission(folders[0], challenge).answers["f160w"]
    expected = SepDeblender().scenes(scenes, seed=seed_of(0, 0)).catalog()
    np.testing.assert_array_equal(catalog.x, expected["x"])
    np.testing.assert_array_equal(catalog.flux[:, 0, 1:4].T, [expected[f"flux_auto_{level}"] for level in (16, 50, 84)])
    (tmp_path / "sep" / "ground.npz").unlink()
    done = run(main, ["score", str(made / "truth"), *folders])
    assert done.exit_code == 1
    assert done.output == f"Error: {tmp_path}/sep/ground.npz: no such file of masks\n"
