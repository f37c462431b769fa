"""Run the report: section by section, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm

from benchmarks.validation.accurate import accuracy_section
from benchmarks.validation.calibrated import calibration_section
from benchmarks.validation.misfits import end_to_end_section, galsim_section, ladder_section
from benchmarks.validation.page import render_page
from benchmarks.validation.people import population_section
from benchmarks.validation.plan import Plan
from benchmarks.validation.real import real_section
from benchmarks.validation.section import Section, load_section, save_section
from probdeblend import __version__
from probdeblend._files import output_folder, unfinished_folder

__all__ = ["FILES", "SECTIONS", "validate"]

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


def validate(
    output: Path, plan: Plan, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> list[str]:
    """Make the report.

    Parameters
    ----------
    output
        Folder for the page and the file of numbers.
    plan
        What to run.
    resume
        Go on with the sections that an interrupted run kept beside the output, with ``.partial`` appended.
    overwrite
        Replace an earlier report, or drop what an interrupted run kept.
    progress
        Show a progress bar.

    Returns
    -------
    list of str
        Names of the files.

    Raises
    ------
    FileExistsError
        If the output exists and is not to be replaced, or an interrupted run's sections do.
    ValueError
        If there is nothing to resume, or it was another plan.
    """
    settings = {"probdeblend": __version__} | plan.describe()
    kept = unfinished_folder(output, settings, resume=resume, overwrite=overwrite)
    names = [name for name in SECTIONS if name != "real" or plan.library is not None]
    sections = {}
    for name in tqdm(names, desc="report", unit="section", disable=not progress):
        if load_section(kept, name) is None:
            save_section(kept, name, SECTIONS[name](plan))
        sections[name] = load_section(kept, name)
    with output_folder(output, overwrite=overwrite, files=FILES) as folder:
        (folder / FILES[0]).write_text(render_page(TITLE, sections, settings=settings), encoding="utf-8")
        numbers = {name: {"title": part.title, "tables": part.tables} for name, part in sections.items()}
        text = json.dumps({"settings": settings, "sections": numbers}, indent=1)
        (folder / FILES[1]).write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(kept)
    return list(FILES)
