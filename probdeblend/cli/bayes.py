"""Check inference: refinement against its bound, and a companion that moves past its primary."""

from __future__ import annotations

import click

from .options import FILE, overwrite_option, refuse_existing, sampling_options, weights_option

__all__: list[str] = []  # what is here is used from the command line


@click.command("refine-check")
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Blends to draw and refine.")
@sampling_options
@weights_option
@click.option("--output", type=FILE, default="refined", show_default=True, help="Folder to write.")
@overwrite_option
def refine_check(**options: object) -> None:
    """Refine blends drawn from the generative model, and compare with the bound and with the network.

    Some seconds a blend. OUTPUT holds refined.ecsv (a row a method).

    \b
    Example:
      probdeblend refine-check --count 100 --draws 400 --output refined
    """  # noqa: D301
    from ..refinecheck import refine_check as check
    from ..refinecheck import report, write_refine_check
    from ..weights import load

    refuse_existing(options["output"], overwrite=options["overwrite"])
    settings = {name: options[name] for name in ("count", "draws", "passes", "seed")}
    table = check(load(options["weights"]), **settings)
    names = write_refine_check(options["output"], table, overwrite=options["overwrite"])
    click.echo(report(table))
    click.echo(f"written to {options['output']}: {', '.join(names)}")


@click.command()
@click.option("--noise-draws", type=click.IntRange(2), default=500, show_default=True, help="Images of each step.")
@sampling_options
@weights_option
@click.option("--output", type=FILE, default="march", show_default=True, help="Folder to write.")
@overwrite_option
def march(**options: object) -> None:
    """Move a companion past its primary, and compare errors of both fluxes with those quoted, SEP's beside.

    OUTPUT holds march.ecsv (a row a method, galaxy and step) and march.png.

    \b
    Example:
      probdeblend march --noise-draws 100 --output march
    """  # noqa: D301
    from ..marching import march as run
    from ..marching import report, write_march
    from ..weights import load

    refuse_existing(options["output"], overwrite=options["overwrite"])
    settings = {name: options[name] for name in ("noise_draws", "draws", "passes", "seed")}
    table = run(load(options["weights"]), **settings)
    names = write_march(options["output"], table, overwrite=options["overwrite"])
    click.echo(report(table))
    click.echo(f"written to {options['output']}: {', '.join(names)}")
