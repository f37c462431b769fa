"""A section of the report: words, tables and figures, and how it is kept between runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.table import Table
from matplotlib.figure import Figure

from probdeblend._files import whole_file

__all__ = ["Section", "load_section", "plain_rows", "save_section"]

DIGITS = 5


@dataclass(frozen=True, eq=False)
class Section:
    """A section of the report: title and paragraphs, and by caption rows of tables and figures, PNG once saved."""

    title: str
    words: list[str]
    tables: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    figures: dict[str, Figure | Path] = field(default_factory=dict)


def plain_rows(table: Table | Iterable[Mapping[str, object]], columns: Iterable[str] | None = None) -> list[dict]:
    """Return rows that JSON can hold, of some columns: numbers to five digits, None for NaN."""
    rows = [{name: row[name] for name in table.colnames} for row in table] if isinstance(table, Table) else list(table)
    names = None if columns is None else list(columns)
    return [{name: _plain(row[name]) for name in (names or row) if name in row} for row in rows]


def _plain(value: object) -> object:
    if value is None or isinstance(value, str):
        return value if value is None else str(value)
    if np.ma.is_masked(value):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    number = float(value)
    return float(f"{number:.{DIGITS}g}") if np.isfinite(number) else None


def save_section(folder: Path, name: str, section: Section) -> None:
    """Keep a section; its JSON is written last, so that a section that has one is complete."""
    pictures = {}
    for number, (caption, figure) in enumerate(section.figures.items()):
        pictures[caption] = f"{name}-{number}.png"
        figure.savefig(folder / pictures[caption], dpi=90)
    text = {"title": section.title, "words": section.words, "tables": section.tables, "figures": pictures}
    with whole_file(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(text, indent=1), encoding="utf-8")


def load_section(folder: Path, name: str) -> Section | None:
    """Read a section that an earlier run has kept; None where there is none."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    figures = {caption: folder / file for caption, file in kept["figures"].items()}
    return Section(kept["title"], kept["words"], kept["tables"], figures)
