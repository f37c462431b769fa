"""The command: recover a population that the network was not trained on."""

from __future__ import annotations

from pathlib import Path

from benchmarks._command import Run, benchmark, sized_option
from benchmarks.population.figure import plot_population
from benchmarks.population.recovery import CELLS, WIDE_CELLS, population_table, summarize
from probdeblend.cli.options import show
from probdeblend.cli.options import weights as weights_option
from probdeblend.deblending.weights import load

__all__ = ["main"]


@benchmark("population")
@sized_option("--count", 600, 10_000, help="Blends to simulate.")
@sized_option("--draws", 400, 1000, help="Posterior draws.")
@sized_option("--passes", 16, 32, least=0, help="Monte Carlo dropout passes; 0: none.")
@weights_option
def main(run: Run, weights: Path | None, count: int, **sampling: int) -> None:
    """Recover number counts and flux ratios of a population that the network was not trained on.

    Blends of faint galaxies are simulated and deblended. Their posteriors together tell how magnitudes and flux ratios
    are distributed, with bands; histograms of medians, or of draws, do not.
    """
    deblender = load(weights)
    with run.unfinished(deblender=deblender, count=count, **sampling) as kept:
        cells = CELLS if run.full else WIDE_CELLS
        table = population_table(deblender, count=count, cells=cells, kept=kept, seed=run.seed, **sampling)
        run.write(table, figure=plot_population(table))
        show(summarize(table))


if __name__ == "__main__":
    main()
