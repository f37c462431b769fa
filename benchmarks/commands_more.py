"""Commands of benchmarks, to be put into their files."""

from __future__ import annotations

from pathlib import Path

import click

from probdeblend.cli.options import *


@click.command()
@click.option("--quick", is_flag=True, help="A few minutes, with wide bands.")
@click.option("--library", type=FILE, multiple=True, help="Lone real galaxies, for the sections on them.")
@weights_option
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Same seed, same report.")
@click.option("--output", type=FILE, default="validation", show_default=True, help="Folder to write.")
@resume_option
@overwrite_option
def validate(**options: object) -> None:
    """Make the validation report: one page with pictures, report.html, and every number, report.json.

    Accuracy beside SEP and the published networks, calibration before and after the calibrator, the ladder of
    misfits, real galaxies, GalSim, masks and the population. Without --quick it takes half an hour and more.

    \b
    Example:
      probdeblend validate --quick --output validation
    """  # noqa: D301
    from benchmarks.validation.plan import Plan
    from benchmarks.validation.run import validate as make_report
    from probdeblend.deblending.weights import load
    from probdeblend.surveys.collect import read_libraries

    libraries = options["library"]
    library = read_libraries(libraries) if libraries else None
    library = None if library is None else library.select(library.keep)
    make = Plan.quick if options["quick"] else Plan
    plan = make(load(options["weights"]), library=library, seed=options["seed"])
    names = make_report(options["output"], plan, resume=options["resume"], overwrite=options["overwrite"])
    click.echo(f"written to {options['output']}: {', '.join(names)}")


@click.command("fit-prior")
@click.argument("table", type=FILE)
@click.option("--output", type=FILE, default="prior.json", show_default=True, help="File to write.")
@seed_option
@overwrite_option
def fit_prior(table: Path, output: Path, seed: int, overwrite: bool) -> None:
    """Fit the prior of types, magnitudes and radii to the distinct galaxies in TABLE.

    TABLE is the published table of pairs of Boucaud et al. (2020) as CSV: its columns g1_id, g1_mag, g1_rad
    (pixels of 0.06 arcsec) and g1_type, and the same for g2, are used.

    \b
    Example:
      probdeblend fit-prior test_results.csv --output prior.json
    """  # noqa: D301
    from benchmarks.published import describe_fit, read_galaxies
    from probdeblend._files import whole_file

    with whole_file(output, overwrite=overwrite) as temporary:
        text, count = describe_fit(*read_galaxies(table), seed=seed)
        temporary.write_text(text, encoding="utf-8")
    click.echo(f"prior of {count} galaxies written to {output}")


@click.command("summarize-published")
@click.argument("table", type=FILE)
@click.option("--output", type=FILE, default="results.json", show_default=True, help="File to write.")
@overwrite_option
def summarize_published(table: Path, output: Path, overwrite: bool) -> None:
    """Measure the methods in TABLE, the published results of Boucaud et al. (2020), for `validate` to compare with.

    \b
    Example:
      probdeblend summarize-published test_results.csv --output results.json
    """  # noqa: D301
    import json

    from benchmarks.published import summarize_results
    from probdeblend._files import whole_file

    with whole_file(output, overwrite=overwrite) as temporary:
        results = summarize_results(table)
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for method, numbers in results.items():
        flux = numbers["pair"][0]
        rest = f"{flux['nmad_mag']:.3f} mag NMAD, {flux['outliers']:.2%} beyond 0.75 mag"
        click.echo(f"{method}: MAPE {flux['mape']:.1f} %, {rest}, {flux['detected']:.1%} detected")
    click.echo(f"written to {output}")


@click.command()
@click.argument("blends", type=FILE)
@click.option("--table", type=FILE, help="The published table of pairs.  [default: the prior fitted to it]")
@click.option("--output", type=FILE, default="inspection", show_default=True, help="Folder for the pictures.")
@overwrite_option
def inspect(blends: Path, table: Path | None, output: Path, overwrite: bool) -> None:
    """Say what BLENDS, a set, holds: counts, distributions beside the published ones, and a page of pictures.

    \b
    Example:
      probdeblend inspect test --output test-pictures
    """  # noqa: D301
    from benchmarks.training_sets import inspect_set, report, write_inspection

    refuse_existing(output, overwrite=overwrite)
    inspection = inspect_set(blends, table=table)
    names = write_inspection(output, inspection, overwrite=overwrite)
    click.echo(report(inspection))
    click.echo(f"written to {output}: {', '.join(names)}")


@click.command()
@click.argument("libraries", type=FILE, nargs=-1)
@click.option("--output", type=FILE, default="transfer", show_default=True, help="Folder to write.")
@click.option("--steps", type=click.IntRange(1), default=2000, show_default=True, help="Batches for each network.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Blends a batch.")
@click.option(
    "--count", type=click.IntRange(2), default=500, show_default=True, help="Blends of each source to test on."
)
@seed_option
@overwrite_option
def transfer(libraries: tuple[Path, ...], **options: object) -> None:
    """Train small networks on each source of blends and test each on every source, real ones from LIBRARIES.

    Run again after an interruption, it goes on with the networks that are trained.

    \b
    Example:
      probdeblend transfer lone cosmos vela
    """  # noqa: D301
    from benchmarks.transfer import report, transfer
    from probdeblend.surveys.collect import read_libraries

    library = read_libraries(libraries) if libraries else None
    output = options.pop("output")
    click.echo(report(transfer(output, library=library, **options)))
    click.echo(f"written to {output}: transfer.ecsv, transfer.png")


@click.command("train-labels")
@click.argument("data", type=FILE)
@click.argument("output", type=FILE, default="labels.safetensors")
@click.option("--steps", type=click.IntRange(1), default=5000, show_default=True, help="Number of batches.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Blends a batch.")
@seed_option
@resume_option
@overwrite_option
def train_labels(data: Path, output: Path, **options: object) -> None:
    """Train a fully convolutional network on DATA to tell background, each galaxy, and overlap, pixel by pixel.

    DATA is a set of pairs, such as `simulate --smooth --separation anywhere` writes.

    \b
    Example:
      probdeblend train-labels pairs
    """  # noqa: D301
    from benchmarks.labels import train_labels

    scores = train_labels(data, output, **options)
    click.echo("\n".join(scores.table().pformat()))
    click.echo(f"weights written to {output}")
