"""The command: run the report section by section, so that an interrupted run can be resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import click
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark
from benchmarks.validation.accuracy import accuracy_section
from benchmarks.validation.calibration import calibration_section
from benchmarks.validation.galaxies import real_section
from benchmarks.validation.misfits import end_to_end_section, galsim_section, ladder_section
from benchmarks.validation.page import render_page
from benchmarks.validation.plan import FEW, Plan
from benchmarks.validation.population import population_section
from benchmarks.validation.section import Section, load_section, save_section
from probdeblend import __version__
from probdeblend._files import output_folder, unfinished_folder
from probdeblend.cli.options import FILE
from probdeblend.cli.options import weights as weights_option
from probdeblend.deblending.weights import load
from probdeblend.surveys import read_library

__all__ = ["FILES", "SECTIONS", "main", "write_report"]

FILES = ("report.html", "report.json")
TITLE = "Validation of probdeblend"
SECTIONS: dict[str, Callable[[Plan], Section]] = {
    "accuracy": accuracy_section,
    "calibration": calibration_section,
    "ladder": ladder_section,
    "real": real_section,
    "galsim": galsim_section,
    "masks": end_to_end_section,
    "population": population_section,
}


def write_report(
    output: Path,
    plan: Plan,
    *,
    sections: dict[str, Callable[[Plan], Section]] = SECTIONS,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Make the report's sections, or take those that an interrupted run has kept, and write page and numbers."""
    settings = {"probdeblend": __version__} | plan.describe()
    kept = unfinished_folder(output, settings, resume=resume, overwrite=overwrite)
    made = {}
    for name, make in tqdm(sections.items(), desc="report", unit="section"):
        if name == "real" and plan.library is None:
            continue
        if load_section(kept, name) is None:
            save_section(kept, name, make(plan))
        made[name] = load_section(kept, name)
    with output_folder(output, overwrite=overwrite, files=FILES) as folder:
        (folder / FILES[0]).write_text(render_page(TITLE, made, settings=settings), encoding="utf-8")
        numbers = {name: {"title": part.title, "tables": part.tables} for name, part in made.items()}
        text = json.dumps({"settings": settings, "sections": numbers}, indent=1)
        (folder / FILES[1]).write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(kept)


@benchmark("validation")
@click.option("--library", type=FILE, multiple=True, help="Isolated real galaxies, for the sections on them.")
@weights_option
def main(run: Run, library: tuple[Path, ...], weights: Path | None) -> None:
    """Write the validation report: one page with pictures, report.html, and every number, report.json.

    Accuracy beside SEP and the published networks, calibration before and after the calibrator, the ladder of misfits,
    real galaxies, GalSim, masks and the population. With --full it takes half an hour and more.
    """
    galaxies = read_library(*library) if library else None
    galaxies = galaxies and galaxies.select(galaxies.keep)
    plan = Plan(load(weights), library=galaxies, seed=run.seed, **({} if run.full else FEW))
    write_report(run.output, plan, resume=run.resume, overwrite=run.overwrite)
    click.echo(f"written to {run.output}: {', '.join(FILES)}")


if __name__ == "__main__":
    main()
