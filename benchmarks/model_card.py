"""Write a model card: what weights are for, what they were made of, and what was measured with them.

The sections are those of Mitchell et al. (2019, arXiv:1810.03993). All numbers come from the weights file and from the
tables that benchmarks have written. A benchmark without a table is named as not measured, and tables that were made
with other weights or another calibrator are refused.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import click
import numpy as np
from astropy.table import Table

from benchmarks._command import FILE, RESULTS, Command, digests, weights_option
from benchmarks._scenes import LEAST_SNR
from benchmarks._shown import MEASURES, SHOWN, Shown
from probdeblend import __version__
from probdeblend._files import readable, whole_file
from probdeblend.deblending.deblender import Deblender
from probdeblend.deblending.weights import load
from probdeblend.posterior.calibrator import MARGIN

__all__ = ["card", "main"]

ROOT = Path(__file__).parent.parent
UNKNOWN = "not recorded"
EDGES = ("low", "high", "fwhm")  # columns that print as they were given
Lines = Iterator[str]
Rows = Iterable[Sequence[str]]


def card(deblender: Deblender, results: Path) -> str:
    """Return a model card in Markdown.

    Parameters
    ----------
    deblender
        What the card is about.
    results
        Folder with the outputs of benchmarks.

    Returns
    -------
    str
        The card; the same for the same weights and tables.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If a table is damaged, lacks what is shown of it, or was made with other weights or another calibrator.
    """
    if not results.is_dir():
        raise FileNotFoundError(f"{results}: no such folder")
    tables = {shown.benchmark: _read(shown.benchmark, results) for shown in SHOWN}
    for shown in SHOWN:
        if (table := tables[shown.benchmark]) is not None:
            _check(shown, table, deblender, results)
    sections = {
        "Details": _details(deblender),
        "Intended use and limits": _limits(deblender),
        "Factors": _factors(deblender),
        "Metrics": _metrics(),
        "Evaluation data": _evaluation(tables),
        "Training data": _training(deblender),
        "Quantitative results": _results(tables, deblender),
        "Caveats": _caveats(tables, deblender),
    }
    text = [f"# Model card of weights {deblender.digest}"]
    text.append(
        "What these weights are for, what they were made of, and what was measured with them, in the sections of "
        "Mitchell et al. (2019, [arXiv:1810.03993](https://arxiv.org/abs/1810.03993)). Written by "
        "`python -m benchmarks.model_card`; every number is from the weights file or from a benchmark's table."
    )
    for title, lines in sections.items():
        text += [f"## {title}", *lines]
    return "\n\n".join(text) + "\n"


def _read(name: str, results: Path) -> Table | None:
    path = results / name / f"{name}.ecsv"
    if not path.exists():
        return None
    with readable(path, f"must be a table that benchmarks.{name} wrote"):
        return Table.read(path, format="ascii.ecsv")


def _check(shown: Shown, table: Table, deblender: Deblender, results: Path) -> None:
    """Refuse a table that lacks what is shown of it, or that was made with other weights."""
    path, name = results / shown.benchmark / f"{shown.benchmark}.ecsv", shown.benchmark
    chosen = [] if shown.rows is None else [shown.rows[0]]
    missing = [column for column in (*shown.columns, *chosen) if column not in table.colnames]
    stated = ("command", "probdeblend", *(digests(deblender) if shown.network else ()), *shown.meta)
    if missing := missing + [key for key in stated if key not in table.meta]:
        raise ValueError(f"{path}: must hold {', '.join(missing)}, got none; run python -m benchmarks.{name} again")
    if not shown.network or _of_folds(shown.benchmark, table, deblender):
        return
    for kind, own in digests(deblender).items():
        if (other := table.meta[kind]) != own:
            raise ValueError(f"{path}: must be measured with {kind} {own}, got {kind} {other}; measure these weights")


def _of_folds(benchmark: str, table: Table, deblender: Deblender) -> bool:
    """Return whether a table is of folds that were trained from the weights that these were trained from."""
    start = deblender.description.training.get("start")
    return benchmark == "real_galaxies" and start is not None and table.meta["weights"] == start


def _details(deblender: Deblender) -> Lines:
    training, settings = deblender.description.training, deblender.description.settings
    size = sum(value.numel() for value in deblender.network.parameters())
    known = digests(deblender)
    rows = [
        ("what", "scene network: an image of overlapping sources in, a posterior of their fluxes and masks out"),
        ("digest of the weights", f"`{known['weights']}`"),
        ("digest of the calibrator", f"`{known['calibrator']}`"),
        ("parameters", _number(size)),
        ("settings", ", ".join(f"{name} {value}" for name, value in settings.items()) or "those of the package"),
        ("made with", f"probdeblend {_number(training.get('probdeblend'))}, torch {_number(training.get('torch'))}"),
        ("this card", f"probdeblend {__version__}"),
        ("license", _license()),
    ]
    yield _table(("", ""), rows)
    yield "The documentation explains the network, its calibration and its flags; `CITATION.cff` says how to cite it."


def _license() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return f"{project['license']}, as the package"


def _limits(deblender: Deblender) -> Lines:
    description, fitted = deblender.description, deblender.calibrator
    yield (
        "For fluxes with errors, masks and deblended images of overlapping stars and galaxies in astronomical images, "
        "of any number of sources, in one band or several on one grid of pixels. Not for what is neither, such as "
        "trails, ghosts and saturated stars."
    )
    low, high = description.fwhm
    cameras, crowds, pairs = (
        _record(description.training, "stream", "templates", name) for name in ("cameras", "crowds", "pairs")
    )
    bands = cameras.get("bands")
    rows = [
        ("PSF, FWHM of a Gaussian of its noise-equivalent area", f"{_range((low, high))} pixels"),
        ("largest flux over the sky noise of a pixel", _number(math.exp(description.brightest))),
        ("PSFs of the training", _ranges((cameras.get("fwhm"), "pixels"), (cameras.get("seeing"), "arcsec"))),
        ("bands of the training", UNKNOWN if bands is None else _range((1, len(np.trim_zeros(bands, "b"))))),
        ("signal-to-noise ratio in the best band, of most sources", _ranges((crowds.get("snr"), ""))),
        ("AB magnitude of pairs in F160W", _ranges((pairs.get("magnitude_range"), ""))),
        ("largest half-light radius, major axis, in pixels", _number(crowds.get("largest"))),
        ("sources per scene", _numbers(crowds.get("number"))),
    ]
    if fitted is not None:
        (snr, size), (most_snr, most_size) = fitted.low, fitted.high
        rows.append(("estimated signal-to-noise ratio, of the calibrator's sources", _range((snr, most_snr))))
        rows.append(("half-light radius, of the calibrator's sources", f"{_range((size, most_size))} pixels"))
    yield _table(("limit", "value"), rows)
    yield (
        "A narrower PSF is smoothed to the least width, as far as its pixels allow, and a wider one is refused with "
        "advice on binning. Brighter sources have the flag `BRIGHT`, sources unlike the training `ANOMALY`, and those "
        f"beyond {MARGIN:g} times the range of the calibrator `OUTSIDE_CALIBRATION`. Depth counts through the "
        "signal-to-noise ratio, as images are seen in units of their sky noise, and through photon noise."
    )


def _factors(deblender: Deblender) -> Lines:
    yield "Accuracy and width of the error bars depend on the factors below."
    tested = {
        "number of sources, and how much light they share": ("crowding", "detections"),
        "signal-to-noise ratio": ("consistency", "detections"),
        "width of the PSF and correlation of the noise": ("psfs",),
        "bands": ("bands", "consistency"),
        "positions that are given or detected": ("pairs", "crowding"),
        "total or Kron flux": ("pairs",),
        "galaxies that are real, not simulated": ("real_galaxies", "irregularity", "consistency"),
        "images unlike the training": ("dropout",),
        "size of the image": ("field", "times"),
    }
    yield _table(("factor", "varied by"), [(name, ", ".join(f"`{of}`" for of in by)) for name, by in tested.items()])
    if deblender.calibrator is None:
        return
    maps = {kind: len(np.unique(np.asarray(given), axis=0)) for kind, given in deblender.calibrator.flux.items()}
    counts = ", ".join(f"{number} maps of {kind} fluxes" for kind, number in maps.items())
    yield (
        "The calibrator treats sources apart by whether their positions are given, number of bands, estimated "
        f"signal-to-noise ratio, number of sources in the group, contested light and size: {counts}."
    )


def _metrics() -> Lines:
    yield _table(("column", "meaning"), [(_code(names), meaning) for names, meaning in MEASURES.items()])
    yield (
        f"Sources with a signal-to-noise ratio below {LEAST_SNR:g} do not count, unless a row is about them. With n "
        "independent sources, a coverage p is known to the root of p (1 - p) / n; sources of one group are not."
    )


def _evaluation(tables: Mapping[str, Table | None]) -> Lines:
    yield (
        "Simulated scenes are drawn afresh, so that no training has seen them. Which real galaxies the weights have "
        "seen is said with the results."
    )
    measured = ("no", "yes")
    yield _table(
        ("benchmark", "images", "measured"),
        [(f"`{shown.benchmark}`", shown.data, measured[tables[shown.benchmark] is not None]) for shown in SHOWN],
    )


def _training(deblender: Deblender) -> Lines:
    training = deblender.description.training
    if not training:
        yield "The file does not say how the weights were trained."
    if "made" in training:
        yield f"As the file says: {_cell(training['made'])}."
    plain = {name: value for name, value in training.items() if isinstance(value, str | int | float) and name != "made"}
    if plain:
        yield _table(("record", "value"), [(f"`{name}`", _number(value)) for name, value in plain.items()])
    stream, templates = _record(training, "stream"), _record(training, "stream", "templates")
    if own := {name: templates[name] for name in ("pairs", "crowds") if name in templates}:
        yield (
            f"A fraction of {_number(stream.get('pairs'))} of the batches are pairs in CANDELS F160W at the depths of "
            "its mosaics, the others crowds of any camera:"
        )
        laws = {
            "sources per scene": lambda law: _numbers(law.get("number")),
            "fraction of stars": lambda law: _number(law.get("star_fraction")),
            "signal-to-noise ratio": lambda law: "from the magnitude" if law.get("snr") is None else _range(law["snr"]),
            "AB magnitude": lambda law: _ranges((law.get("magnitude_range"), "")),
            "scatter added to ln radius": lambda law: _number(law.get("size_scatter")),
            "largest half-light radius, pixels": lambda law: _number(law.get("largest")),
        }
        yield _table(("", *own), [(name, *map(law, own.values())) for name, law in laws.items()])
    if cameras := templates.get("cameras"):
        bands = ", ".join(f"{number} in {_number(part)}" for number, part in enumerate(cameras.get("bands", ()), 1))
        yield (
            f"A fraction of {_number(cameras.get('native_fraction'))} of the cameras are CANDELS F160W. Of the others, "
            f"{_number(cameras.get('white_fraction'))} have white noise, and the numbers of bands are {bands}."
        )
    if stream:
        yield f"Real galaxies in the training: {_number(len(stream.get('galaxies', ())))}."
    fitted = deblender.calibrator
    if fitted is not None:
        yield f"The calibrator was fitted on: {_cell(fitted.fitted_on) or UNKNOWN}."


def _results(tables: Mapping[str, Table | None], deblender: Deblender) -> Lines:
    yield (
        "All of this was measured with the weights and the calibrator of this card, unless it says otherwise. Where "
        "these are not the weights that ship, the commands need `--weights FILE`. They print more than is shown here."
    )
    for shown in SHOWN:
        yield f"### {shown.title}"
        name, table = shown.benchmark, tables[shown.benchmark]
        if table is None:
            yield f"`{name}` was not measured; `python -m benchmarks.{name} --full{shown.needs}` does."
            continue
        yield f"`{_cell(table.meta['command'])}`, probdeblend {table.meta['probdeblend']}: {shown.data}."
        chosen = table if shown.rows is None else table[np.isin(table[shown.rows[0]], shown.rows[1])]
        head = [column.replace("_", "_<wbr>") for column in shown.columns]  # where a narrow page may break the line
        yield _table(head, _rows(chosen, shown.columns))
        if shown.meta:
            yield "; ".join(f"{key}: {_number(table.meta[key])}" for key in shown.meta) + "."
        if name == "real_galaxies":
            yield _of_real(table, deblender)


def _of_real(table: Table, deblender: Deblender) -> str:
    """Return what the rows of real galaxies say of these weights."""
    galaxies = _record(deblender.description.training, "stream").get("galaxies", ())
    folds = "Rows `heads` and `calibrated` are weights and calibrators of each fold, made without its galaxies."
    if _of_folds("real_galaxies", table, deblender):
        start = f"They started from weights `{table.meta['weights']}`, as those of this card did"
        return f"{folds} {start}, which were not measured themselves."
    if galaxies:
        saw = f"saw {len(galaxies)} real galaxies in training, perhaps the tested ones too"
        return f"{folds} But the weights of this card, from which all rows start, {saw}."
    return f"{folds} Row `given` is of the weights of this card."


def _caveats(tables: Mapping[str, Table | None], deblender: Deblender) -> Lines:
    missing = [f"`{name}`" for name, table in tables.items() if table is None]
    galaxies = _record(deblender.description.training, "stream").get("galaxies", ())
    points = [
        "Coverage that is right on average is not right for every source: it differs in bins of what an image does not "
        "show, such as the true separation or the type.",
        "There is no calibrator: error bars are the network's own."
        if deblender.calibrator is None
        else "Error bars hold for sources like those that the calibrator was fitted on. Nothing is guaranteed for "
        "others; `probdeblend calibrate` fits a calibrator to your own images.",
        "That a source has no flag does not prove that its answer is right.",
        "Total fluxes of real galaxies are not known, so what is tested on them are Kron fluxes.",
    ]
    if not galaxies:
        points.append("No real galaxies are recorded in the training, which knows only what simulated ones have.")
    if missing:
        points.append(f"Not measured, and so not known: {', '.join(missing)}.")
    yield "\n".join(f"- {point}" for point in points)


def _record(record: Mapping, *path: str) -> Mapping:
    """Return a record inside nested ones, an empty one where there is none."""
    for name in path:
        record = record.get(name)
        if not isinstance(record, Mapping):
            return {}
    return record


def _rows(table: Table, columns: Sequence[str]) -> Rows:
    """Return the chosen columns as text, with the table's own formats."""
    cells = []
    for name in columns:
        column = table[name]
        if name in EDGES:
            column.info.format = "g"
        cells.append([_cell(text) for text in column.pformat(max_lines=-1, show_name=False, show_unit=False)])
    return ([("" if text in ("nan", "--") else text) for text in row] for row in zip(*cells, strict=True))


def _table(head: Sequence[str], rows: Rows) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: object) -> str:
    """Return text on one line, without what would end a cell of a table."""
    return " ".join(str(text).replace("|", "/").split()).rstrip(".")


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _number(value: object) -> str:
    """Return a number as it is read: whole ones in full, others to three digits."""
    if isinstance(value, bool | str) or value is None:
        return UNKNOWN if value is None else _cell(value)
    if isinstance(value, float) and math.isinf(value):
        return "no limit"
    return f"{value:,}" if isinstance(value, int) else f"{float(f'{value:.3g}'):,g}"


def _range(ends: Sequence[float]) -> str:
    low, high = map(_number, ends)
    return low if low == high else f"{low} to {high}"


def _ranges(*given: tuple[Sequence[float] | None, str]) -> str:
    return ", ".join(f"{UNKNOWN if ends is None else _range(ends)} {unit}".strip() for ends, unit in given)


def _numbers(probabilities: Sequence[float] | None) -> str:
    """Return the range of numbers that have a probability."""
    if probabilities is None:
        return UNKNOWN
    there = np.flatnonzero(probabilities)
    return _range((int(there[0]), int(there[-1])))


@click.command("python -m benchmarks.model_card", cls=Command)
@click.option("--results", type=FILE, default=RESULTS, show_default=True, help="Folder with the benchmarks' outputs.")
@click.option("--output", type=FILE, default="docs/model_card.md", show_default=True, help="File to write.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@weights_option
def main(results: Path, output: Path, overwrite: bool, weights: Path | None) -> None:
    """Write a model card of weights, with the numbers that benchmarks have written to a folder.

    Run the benchmarks with the same weights first. Those without a table are named as not measured.
    """
    with whole_file(output, overwrite=overwrite) as temporary:
        temporary.write_text(card(load(weights), results), encoding="utf-8")
    click.echo(f"written to {output}")


if __name__ == "__main__":
    main()
