"""Recover a population from posteriors."""

from __future__ import annotations

import click

from probdeblend.cli.options import FILE, finish, overwrite_option, refuse_existing, sampling_options, weights_option

__all__: list[str] = []  # what is here is used from the command line


@click.command()
@click.option("--count", type=click.IntRange(1), default=10_000, show_default=True, help="Blends to simulate.")
@sampling_options
@weights_option
@click.option("--output", type=FILE, default="population", show_default=True, help="Folder to write.")
@overwrite_option
def population(**options: object) -> None:
    """Recover number counts and flux ratios of a population that the network was not trained on.

    Blends of faint galaxies are simulated and deblended. Posteriors together tell how their magnitudes and flux
    ratios are distributed, with bands; histograms of medians, or of draws, do not. OUTPUT holds population.ecsv (a row
    a bin) and population.png.

    \b
    Example:
      probdeblend population --count 2000 --output counts
    """  # noqa: D301
    from benchmarks.plot_population import plot_population
    from benchmarks.population import population_result, report
    from probdeblend.deblending.weights import load

    refuse_existing(options["output"], overwrite=options["overwrite"])
    sampling = {name: options[name] for name in ("count", "draws", "passes", "seed")}
    table = population_result(load(options["weights"]), **sampling)
    finish(options, table, "population", report(table), figure=plot_population(table))
