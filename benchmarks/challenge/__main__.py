"""The commands of the challenge: make the sets, write a baseline's submission, and score submissions."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks._command import FILE, Command, sized_option, weights_option

__all__ = ["main"]

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an earlier output.")


@click.group("python -m benchmarks.challenge")
def main() -> None:
    """Set others the task of deblending images whose truth you keep, and score what they find."""


@main.command(cls=Command, short_help="Make the sets.")
@click.argument("challenge", type=FILE)
@click.argument("truth", type=FILE)
@click.option("--full", is_flag=True, is_eager=True, help="Make the sets of the size that a challenge has.")
@sized_option("--train", 64, 4096, help="Scenes per camera to train on.")
@sized_option("--test", 16, 512, help="Scenes per camera in each of the two tests.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the training set and the public test."
)
@click.option("--hidden-seed", type=click.IntRange(0), help="Seed of the hidden test.  [default: random]")
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that simulate.")
@overwrite_option
def make(challenge: Path, truth: Path, full: bool, **given: int | bool | None) -> None:
    """Write the folder CHALLENGE to hand out, and the folder TRUTH to keep.

    Scenes of one to eight sources are seen by two cameras, one with a single band and one with three.
    """
    from benchmarks.challenge.sets import make_challenge, read_challenge

    make_challenge(challenge, truth, **given)
    tests = read_challenge(challenge).tests
    click.echo(f"written to {challenge}: {given['train']} scenes per camera to train on, and the tests")
    for name, about in tests.items():
        click.echo(f"  {name}: {about['scenes']} scenes per camera, images {about['images']}")
    click.echo(f"written to {truth}: their truth, and the seed of the hidden test")


@main.command(cls=Command, short_help="Write the submission of SEP or of the scene network.")
@click.argument("method", type=click.Choice(["sep", "network"]))
@click.argument("challenge", type=FILE)
@click.argument("submission", type=FILE)
@click.option("--test", type=click.Choice(["public", "hidden"]), default="public", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the draws.")
@weights_option
@overwrite_option
def baseline(method: str, challenge: Path, submission: Path, test: str, seed: int, **given: Path | bool | None) -> None:
    """Write what a METHOD finds in the images of CHALLENGE to the folder SUBMISSION.

    SEP submits Kron fluxes with its own errors, the scene network total fluxes.
    """
    from benchmarks.challenge.baselines import answer_scenes
    from benchmarks.challenge.sets import CAMERAS, read_challenge
    from benchmarks.challenge.submission import write_submission
    from probdeblend.deblending.sep import SepDeblender
    from probdeblend.deblending.weights import load

    opened = read_challenge(challenge)
    deblender, flux = (SepDeblender(), "auto") if method == "sep" else (load(given["weights"]), "total")
    answers = {
        camera: answer_scenes(deblender, opened.scenes(test, camera), flux=flux, seed=seed) for camera in CAMERAS
    }
    about = {"challenge": opened, "test": test, "method": method, "flux": flux}
    write_submission(submission, answers, **about, overwrite=given["overwrite"])
    sources = ", ".join(f"{len(answer.scene)} sources of {camera}" for camera, answer in answers.items())
    click.echo(f"written to {submission}: {sources}")


@main.command("score", cls=Command, short_help="Score submissions.")
@click.argument("truth", type=FILE)
@click.argument("submissions", type=FILE, nargs=-1, required=True)
@click.option("--output", type=FILE, help="ECSV table to write, too.")
@overwrite_option
def score_command(truth: Path, submissions: tuple[Path, ...], output: Path | None, overwrite: bool) -> None:
    """Score SUBMISSIONS by the folder TRUTH, one row per submission and camera.

    mape is in percent, bias_mag and nmad_mag in magnitudes; coverage_68 ought to be 0.68, and score_68, the interval
    score in ln flux, low.
    """
    from benchmarks._scenes import formatted
    from benchmarks.challenge.metric import score
    from benchmarks.challenge.sets import VERSION, read_challenge, read_truth
    from benchmarks.challenge.submission import read_submission
    from probdeblend._files import whole_file

    opened = read_challenge(truth, truth=True)
    rows = []
    for submission in (read_submission(path, opened) for path in submissions):
        for camera, answer in submission.answers.items():
            known = read_truth(opened, submission.test, camera)
            row = {"method": submission.method, "test": submission.test, "camera": camera, "flux": submission.flux}
            rows.append(row | score(answer, known, flux=submission.flux))
    table = formatted(rows)
    table.meta["challenge"] = VERSION
    if output is not None:
        with whole_file(output, overwrite=overwrite) as partial:
            table.write(partial, format="ascii.ecsv")
    click.echo("\n".join(table.pformat(max_width=-1, max_lines=-1)))


if __name__ == "__main__":
    main()
