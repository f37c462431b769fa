"""The report as one HTML page that needs nothing else: pictures inside, every name escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from benchmarks.validation.section import Section

__all__ = ["render_page"]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1.5rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: .85rem; display: block; overflow-x: auto; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
th { background: #f4f4f4; } td:first-child, th:first-child { text-align: left; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption, caption { color: #555; text-align: left; }
nav a { margin-right: 1rem; }
"""


def render_page(title: str, sections: Mapping[str, Section], *, settings: Mapping[str, object]) -> str:
    """Write the page.

    Parameters
    ----------
    title
        Its title.
    sections
        Sections by the name of their anchor; their figures are PNG files.
    settings
        What was run, by name.

    Returns
    -------
    str
        HTML.
    """
    links = "".join(f'<a href="#{escape(name)}">{escape(part.title)}</a>' for name, part in sections.items())
    run = [{"setting": name, "value": value} for name, value in settings.items()]
    body = [f"<h1>{escape(title)}</h1>", _table("What was run", run), f"<nav>{links}</nav>"]
    for name, section in sections.items():
        body.append(f'<h2 id="{escape(name)}">{escape(section.title)}</h2>')
        body += [f"<p>{escape(words)}</p>" for words in section.words]
        body += [_table(caption, rows) for caption, rows in section.tables.items()]
        body += [_figure(caption, path) for caption, path in section.figures.items()]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{"".join(body)}</body></html>\n'


def _table(caption: str, rows: Sequence[Mapping[str, object]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(row.get(name))}</td>' for name in names)}</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>\n"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _figure(caption: str, path: Path) -> str:
    picture = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{picture}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>\n"
