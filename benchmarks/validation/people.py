"""The population, recovered from the posteriors of its galaxies."""

from __future__ import annotations

from benchmarks.plot_population import plot_population
from benchmarks.population import population_result, report
from benchmarks.validation.plan import Plan
from benchmarks.validation.section import Section, plain_rows

__all__ = ["population_section"]


def population_section(plan: Plan) -> Section:
    """Recover number counts and flux ratios of a population unlike that of the training.

    Parameters
    ----------
    plan
        What to run.

    Returns
    -------
    Section
        Table and figure.
    """
    table = population_result(plan.deblender, count=plan.population, **plan.sampling)
    return Section(
        "A population",
        [
            f"{plan.population} blends of a population unlike that of the training, recovered from their posteriors: "
            "each draw is weighted by the population over the training prior. Stacked medians and draws are histograms "
            "of the posteriors as they are.",
            *report(table).splitlines(),
        ],
        {"Bins": plain_rows(table)},
        {"Number counts and flux ratios": plot_population(table)},
    )
