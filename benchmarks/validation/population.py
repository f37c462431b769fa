"""The population, recovered from the posteriors of its galaxies."""

from __future__ import annotations

from benchmarks.population.figure import plot_population
from benchmarks.population.recovery import population_table, summarize
from benchmarks.validation.plan import Plan
from benchmarks.validation.section import Section, plain_rows

__all__ = ["population_section"]


def population_section(plan: Plan) -> Section:
    """Recover number counts and flux ratios of a population unlike that of the training."""
    table = population_table(plan.deblender, count=plan.population, cells=plan.cells, **plan.sampling)
    return Section(
        "A population",
        [
            f"{plan.population} blends of a population unlike that of the training, recovered from their posteriors: "
            "each draw is weighted by the population over the training prior. Stacked medians and draws are histograms "
            f"of the posteriors as they are. {table.meta['unused']} blends lie beyond the prior.",
        ],
        {"Estimates: the fraction in the wrong bin": plain_rows(summarize(table)), "Bins": plain_rows(table)},
        {"Number counts and flux ratios": plot_population(table)},
    )
