"""The report as one HTML page that needs nothing else: pictures inside, every name escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

from jinja2 import DictLoader, Environment

from benchmarks.validation.section import Section

__all__ = ["render_page"]

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1.5rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: .85rem; display: block; overflow-x: auto; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
th { background: #f4f4f4; } td:first-child, th:first-child { text-align: left; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption, caption { color: #555; text-align: left; }
nav a { margin-right: 1rem; }
</style></head>
<body><h1>{{ title }}</h1>
{% macro table(caption, rows) %}
<table><caption>{{ caption }}</caption>
<thead><tr>{% for name in rows | names %}<th>{{ name | replace("_", " ") }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}
<tr>{% for name in rows | names %}<td>{{ row.get(name) | cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table>
{% endmacro %}
{{ table("What was run", run) }}
<nav>{% for name, part in sections.items() %}<a href="#{{ name }}">{{ part.title }}</a>{% endfor %}</nav>
{% for name, part in sections.items() %}
<h2 id="{{ name }}">{{ part.title }}</h2>
{% for words in part.words %}<p>{{ words }}</p>{% endfor %}
{% for caption, rows in part.tables.items() %}{{ table(caption, rows) }}{% endfor %}
{% for caption, path in part.figures.items() %}
<figure><img alt="{{ caption }}" src="data:image/png;base64,{{ path | picture }}">
<figcaption>{{ caption }}</figcaption></figure>{% endfor %}
{% endfor %}
</body></html>
"""


def render_page(title: str, sections: Mapping[str, Section], *, settings: Mapping[str, object]) -> str:
    """Return the page of sections, by the name of their anchor, whose figures are PNG files; and of what was run."""
    environment = Environment(loader=DictLoader({"page": PAGE}), autoescape=True, trim_blocks=True)
    environment.filters |= {"cell": _cell, "picture": _picture, "names": _names}
    run = [{"setting": name, "value": value} for name, value in settings.items()]
    return environment.get_template("page").render(title=title, sections=sections, run=run)


def _names(rows: list[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _picture(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
