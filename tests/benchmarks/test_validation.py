"""The report: sections that are kept and resumed, one page that needs nothing else, nothing half-written."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

import probdeblend
from benchmarks.validation.__main__ import SECTIONS, main, write_report
from benchmarks.validation.page import render_page
from benchmarks.validation.plan import FEW, Plan
from benchmarks.validation.section import Section, load_section, plain_rows, save_section


def section(title="Numbers <&>"):
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    rows = [{"method": "a <b>", "bias": 0.123456789, "count": 3, "none": None}]
    return Section(title, ["First & last."], {"A table": rows}, {"A <picture>": figure})


@pytest.fixture(scope="module")
def deblender():
    return probdeblend.load()


class Sections(dict):
    """Short sections, which count how often they are made, and may be interrupted."""

    def __init__(self, *, interrupted=None):
        super().__init__({name: lambda plan, name=name: self.make(name) for name in ("accuracy", "real", "ladder")})
        self.made, self.interrupted = [], interrupted

    def make(self, name):
        if name == self.interrupted:
            raise KeyboardInterrupt
        self.made.append(name)
        return section(name)


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]


def test_a_page_needs_nothing_else(tmp_path):
    save_section(tmp_path, "numbers", section())
    page = render_page("A <title>", {"numbers": load_section(tmp_path, "numbers")}, settings={"file": "<x>.fits"})
    parsed = Page()
    parsed.feed(page)
    assert {"h1", "h2", "table", "img", "nav"} <= set(parsed.tags)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in parsed.links)
    for text in ("A &lt;title&gt;", "Numbers &lt;&amp;&gt;", "a &lt;b&gt;", "A &lt;picture&gt;", "&lt;x&gt;.fits"):
        assert text in page
    assert "<b>" not in page
    assert "<td>0.1235</td>" in page
    assert "<td>-</td>" in page


def test_sections_come_back(tmp_path):
    assert load_section(tmp_path, "numbers") is None
    save_section(tmp_path, "numbers", section())
    again = load_section(tmp_path, "numbers")
    assert again.title == "Numbers <&>"
    assert again.tables["A table"][0]["bias"] == 0.123456789
    assert again.figures["A <picture>"].read_bytes().startswith(b"\x89PNG")


def test_rows_are_plain():
    rows = plain_rows([{"a": np.float32(1 / 3), "b": np.nan, "c": np.int64(2), "d": np.str_("x"), "e": True}])
    assert rows == [{"a": 0.33333, "b": None, "c": 2, "d": "x", "e": True}]
    assert json.dumps(rows)
    assert plain_rows([{"a": 1, "b": 2}], ["b", "c"]) == [{"b": 2}]


def test_a_report(tmp_path, deblender):
    output, sections = tmp_path / "report", Sections()
    write_report(output, Plan(deblender), sections=sections)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["report", "report.html", "report.json"]
    assert sections.made == ["accuracy", "ladder"]  # without a library, none of real galaxies
    numbers = json.loads((output / "report.json").read_text())
    assert numbers["settings"]["network"] == deblender.digest
    assert numbers["sections"]["ladder"]["tables"]["A table"][0]["count"] == 3
    with pytest.raises(FileExistsError, match="report: exists already"):
        write_report(output, Plan(deblender), sections=sections)
    write_report(output, Plan(deblender), sections=sections, overwrite=True)


def test_an_interrupted_report_is_resumed(tmp_path, deblender):
    output, plan, sections = tmp_path / "report", Plan(deblender), Sections(interrupted="ladder")
    with pytest.raises(KeyboardInterrupt):
        write_report(output, plan, sections=sections)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.partial"]
    with pytest.raises(FileExistsError, match="exists"):
        write_report(output, plan, sections=sections)
    with pytest.raises(ValueError, match="settings"):
        write_report(output, replace(plan, seed=2), sections=sections, resume=True)
    sections.interrupted = None
    write_report(output, plan, sections=sections, resume=True)
    assert sections.made == ["accuracy", "ladder"]
    with pytest.raises(ValueError, match="nothing to resume"):
        write_report(tmp_path / "other", plan, sections=sections, resume=True)


def test_width_of_the_psf(deblender):
    """Measured on the drizzled PSF: 0.17 to 0.18 arcsec before the pixels of 0.06 arcsec."""
    assert 0.06 * deblender.instrument.fwhm == pytest.approx(0.185, abs=0.02)


@pytest.mark.slow
def test_every_section_is_made(tmp_path, monkeypatch):
    """The whole report with very few blends."""
    few = {"accuracy": 64, "calibration": 150, "rung": 12, "galsim": 2, "population": 120, "steps": 2}
    few |= {"draws": 100, "passes": 4, "cells": (0.25, 0.5)}
    for name, value in few.items():
        monkeypatch.setitem(FEW, name, value)
    output = tmp_path / "report"
    answer = CliRunner().invoke(main, ["--output", str(output)], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    numbers = json.loads((output / "report.json").read_text())
    assert set(numbers["sections"]) == set(SECTIONS) - {"real"}
    page = (output / "report.html").read_text()
    assert page.count("<img") >= 12
    assert not re.search(r'(src|href)="(https?:)?//', page)
    methods = {row["method"] for row in numbers["sections"]["accuracy"]["tables"]["Accuracy"]}
    assert {"network", "SEP, Kron", "SEP, Kron mirrored", "SEP, isophotal", "blend2mask2flux"} <= methods
