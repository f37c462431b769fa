"""Check what the documentation promises against the tables that the benchmarks have written.

Each promise names a benchmark, a column of its table, the rows that it holds for, and the range that all of them must
be in. A table or a number that is not there leaves its promises open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from astropy.table import Table

from benchmarks._command import FILE, RESULTS

__all__ = ["PROMISES", "Promise", "check", "main"]

INFINITE = float("inf")


@dataclass(frozen=True)
class Promise:
    """A range that a column of a benchmark's table stays in, in the rows with the given values in other columns."""

    says: str
    benchmark: str
    column: str
    low: float = -INFINITE
    high: float = INFINITE
    rows: dict[str, object] = field(default_factory=dict)


PAIRS = {"method": "network, total, true positions"}
FOUND = {"method": "network, total, detected positions"}
PROMISES = (
    Promise("published pairs: mean error of the flux, percent", "pairs", "mape", high=6.4, rows=PAIRS),
    Promise("published pairs: scatter, mag", "pairs", "nmad_mag", high=0.057, rows=PAIRS),
    Promise("published pairs: 68 % interval of each flux", "pairs", "coverage_68", 0.65, 0.71, PAIRS),
    Promise("published pairs: 68 % region of both", "pairs", "joint_68", 0.65, 0.71, PAIRS),
    Promise("published pairs: 68 % interval of the total", "pairs", "total_68", 0.65, 0.71, PAIRS),
    Promise("published pairs: CPU seconds per pair", "pairs", "seconds", high=0.010, rows=FOUND),
    Promise("one to fourteen sources: 68 % interval of each flux", "crowding", "coverage_68", 0.65, 0.71),
    Promise("one to fourteen sources: 68 % region of a group", "crowding", "joint_68", 0.63, 0.73),
    Promise("one to fourteen sources: 68 % interval of its total", "crowding", "total_68", 0.63, 0.73),
    Promise("every PSF and noise: 68 % interval of each flux", "psfs", "coverage_68", 0.63, 0.73),
    Promise("three bands: scatter of colors one by one over joint", "bands", "gain", low=1.5, rows={"bands": "joint"}),
    Promise("three bands: 68 % interval of colors", "bands", "coverage_68", 0.65, 0.71, {"bands": "joint"}),
    Promise("detection: calibration error of existence", "detections", "meta:existence_ece", high=0.03),
    Promise("field: memory, GB", "field", "memory", high=4.0),
    Promise("field: fraction of the catalog that tiles do not change", "field", "same", low=1.0),
    Promise("field: largest change of a flux with the tiles, quoted errors", "field", "worst", high=0.01),
    Promise(
        "isolated galaxies: errors of the Kron flux over those quoted",
        "field",
        "meta:network - truth, scatter",
        0.9,
        1.1,
    ),
    Promise("isolated galaxies: difference from SEP over errors", "field", "meta:network - SEP, scatter", high=1.1),
    Promise("renderer: every profile within its limits", "render", "passed", low=1.0),
    Promise("refinement: agrees with the sampler", "references", "within", low=1.0),
)


def check(results: Path) -> Table:
    """Return one row per promise: its range, the least and largest value found, and whether it is ``kept``."""
    rows = []
    for promise in PROMISES:
        values = _values(promise, results / promise.benchmark / f"{promise.benchmark}.ecsv")
        row = {"promise": promise.says, "benchmark": promise.benchmark, "low": promise.low, "high": promise.high}
        found = {"least": np.nan, "largest": np.nan, "kept": "not measured"}
        if len(values):
            kept = values.min() >= promise.low and values.max() <= promise.high
            found = {"least": values.min(), "largest": values.max(), "kept": "yes" if kept else "no"}
        rows.append(row | found)
    table = Table(rows)
    for name in ("low", "high", "least", "largest"):
        table[name].info.format = ".4g"
    return table


def _values(promise: Promise, path: Path) -> np.ndarray:
    if not path.is_file():
        return np.zeros(0)
    table = Table.read(path)
    if promise.column.startswith("meta:"):
        values = np.array([table.meta.get(promise.column.removeprefix("meta:"), np.nan)], dtype=float)
    elif promise.column in table.colnames:
        chosen = np.ones(len(table), dtype=bool)
        for name, value in promise.rows.items():
            chosen &= np.asarray(table[name]) == value
        values = np.ma.filled(np.ma.asarray(table[promise.column], dtype=float), np.nan)[chosen]
    else:
        values = np.zeros(0)
    return values[np.isfinite(values)]


@click.command("python -m benchmarks.validation")
@click.option("--results", type=FILE, default=RESULTS, show_default=True, help="Folder with the benchmarks' outputs.")
def main(results: Path) -> None:
    """Check what the documentation promises against the tables in a folder; exit status 1 where a promise is broken.

    Each benchmark writes to a folder of its name there, by default and with --full at the size that is promised.
    """
    table = check(results)
    click.echo("\n".join(table.pformat(max_width=-1, max_lines=-1)))
    raise SystemExit(int((table["kept"] == "no").any()))


if __name__ == "__main__":
    main()
