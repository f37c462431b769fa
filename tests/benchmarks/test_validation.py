"""The report: sections that are kept and gone on with, one page that needs nothing else, nothing half-written."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

import probdeblend
from benchmarks.validation import run
from benchmarks.validation.page import render_page
from benchmarks.validation.plan import Plan
from benchmarks.validation.run import validate
from benchmarks.validation.section import Section, load_section, plain_rows, save_section


def section(title="Numbers <&>"):
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    rows = [{"method": "a <b>", "bias": 0.123456789, "count": 3, "none": None}]
    return Section(title, ["First & last."], {"A table": rows}, {"A <picture>": figure})


@pytest.fixture(scope="module")
def deblender():
    return probdeblend.load()


@pytest.fixture
def quick(monkeypatch):
    """A report of two short sections, which count how often they are made."""
    made = []

    def make(name):
        def section_of(plan):
            made.append(name)
            return section(name)

        return section_of

    monkeypatch.setattr(run, "SECTIONS", {name: make(name) for name in ("accuracy", "real", "ladder")})
    return made


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
    assert "0.1235" in page


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


def test_a_report(tmp_path, deblender, quick):
    names = validate(tmp_path / "report", Plan.quick(deblender), progress=False)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["report"]
    assert sorted(entry.name for entry in (tmp_path / "report").iterdir()) == sorted(names)
    assert quick == ["accuracy", "ladder"]  # without a library, none of real galaxies
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert numbers["settings"]["network"] == deblender.digest
    assert numbers["sections"]["ladder"]["tables"]["A table"][0]["count"] == 3
    with pytest.raises(FileExistsError, match="report: exists already"):
        validate(tmp_path / "report", Plan.quick(deblender), progress=False)
    validate(tmp_path / "report", Plan.quick(deblender), overwrite=True, progress=False)


def test_an_interrupted_report_goes_on(tmp_path, deblender, quick, monkeypatch):
    plan = Plan.quick(deblender)

    def stop(plan):
        raise KeyboardInterrupt

    whole = dict(run.SECTIONS)
    monkeypatch.setattr(run, "SECTIONS", whole | {"ladder": stop})
    with pytest.raises(KeyboardInterrupt):
        validate(tmp_path / "report", plan, progress=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.partial"]
    monkeypatch.setattr(run, "SECTIONS", whole)
    with pytest.raises(FileExistsError, match="exists; resume goes on from it, overwrite starts anew"):
        validate(tmp_path / "report", plan, progress=False)
    with pytest.raises(ValueError, match="was begun with other settings, resume with those or overwrite it"):
        validate(tmp_path / "report", replace(plan, seed=2), resume=True, progress=False)
    validate(tmp_path / "report", plan, resume=True, progress=False)
    assert quick == ["accuracy", "ladder"]
    with pytest.raises(ValueError, match="there is nothing to resume"):
        validate(tmp_path / "other", plan, resume=True, progress=False)


def test_width_of_the_psf(deblender):
    """Measured on the drizzled PSF: 0.17 to 0.18 arcsec before the pixels of 0.06 arcsec."""
    assert 0.06 * deblender.instrument.fwhm == pytest.approx(0.185, abs=0.02)


@pytest.mark.slow
def test_every_section_is_made(tmp_path, deblender):
    """The whole report with very few blends."""
    few = {"accuracy": 64, "calibration": 150, "rung": 12, "galsim": 2, "population": 120, "steps": 2}
    plan = Plan.quick(deblender, **few, draws=100, passes=4)
    validate(tmp_path / "report", plan, progress=False)
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert set(numbers["sections"]) == set(run.SECTIONS) - {"real"}
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<img") >= 12
    assert not re.search(r'(src|href)="(https?:)?//', page)
    methods = {row["method"] for row in numbers["sections"]["accuracy"]["tables"]["Accuracy"]}
    assert {"network", "SEP, Kron", "SEP, Kron mirrored", "SEP, isophotal", "blend2mask2flux"} <= methods
