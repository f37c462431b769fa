"""The package as a whole: its names, what importing it costs, and that contracts, docs and code agree."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from importlib.resources import files
from pathlib import Path

import pytest

import probdeblend

ROOT = Path(__file__).parents[1]
MODULES = sorted(module.name for module in pkgutil.walk_packages(probdeblend.__path__, "probdeblend."))


def run_python(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def layers():
    contracts = ConfigParser()
    contracts.read(ROOT / "setup.cfg")
    lines = contracts["importlinter:contract:house"]["layers"].split("\n")
    return [{room.strip() for room in line.split("|")} for line in lines if line.strip()]


def documented_layers():
    """Rooms of each floor in docs/layout.md, top to bottom."""
    text = (ROOT / "docs" / "layout.md").read_text()
    floors = {}
    for floor, room in re.findall(r"^\| (\d+) \| `(\w+)`", text, re.M):
        floors.setdefault(int(floor), set()).add(room)
    return [floors[floor] for floor in sorted(floors, reverse=True)]


def test_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert probdeblend.__version__ == project["version"]


def test_conda_recipe_needs_what_the_project_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    recipe = (ROOT / ".ci" / "recipe.yaml").read_text()
    assert f'version: "{project["version"]}"' in recipe
    run = recipe.partition("  run:\n")[2].partition("\n\n")[0]
    known = {"pytorch": "torch", "matplotlib-base": "matplotlib"}
    needed = dict(line.strip(" -").split(" ") for line in run.splitlines())
    needed = {known.get(name, name): version for name, version in needed.items()}
    assert needed.pop("python") == project["requires-python"]
    assert needed == {
        name: text.removeprefix(name) for text in project["dependencies"] for name in [re.split("[<>=]", text)[0]]
    }


def test_module_run_prints_the_version():
    assert probdeblend.__version__ in run_python("-m", "probdeblend", "--version")


@pytest.mark.parametrize("heavy", ["galsim", "matplotlib", "sep", "arviz"])
def test_import_is_light(heavy):
    code = f"import probdeblend, sys; print({heavy!r} in sys.modules)"
    assert run_python("-c", code).strip() == "False"


@pytest.mark.parametrize("name", probdeblend.__all__)
def test_public_name_resolves(name):
    assert getattr(probdeblend, name) is not None
    assert name in dir(probdeblend)


def test_public_names_stay_light():
    code = (
        "import sys, probdeblend\n"
        "for name in probdeblend.__all__: getattr(probdeblend, name)\n"
        "print({'galsim', 'matplotlib', 'arviz'} & set(sys.modules))"
    )
    assert run_python("-c", code).strip() == "set()"


def test_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'probdeblend' has no attribute 'deblend_everything'"):
        _ = probdeblend.deblend_everything


WITH_EXAMPLES = [name for name in MODULES if ">>> " in Path(importlib.util.find_spec(name).origin).read_text()]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_module_says_what_it_offers(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert [offered for offered in module.__all__ if not hasattr(module, offered)] == []


def test_types_are_shipped():
    assert files("probdeblend").joinpath("py.typed").is_file()


def test_layout_page_shows_the_contract():
    """The picture of the house in the docs and the contract that is checked are the same."""
    contract = [rooms - {"__main__"} for rooms in layers()]
    assert [rooms for rooms in contract if rooms] == documented_layers()


def test_conventions_page_lists_the_flags():
    text = (ROOT / "docs" / "conventions.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", text, re.M)
    assert [(name, int(bit)) for name, bit in rows] == [(flag.name, flag.value) for flag in probdeblend.Flag]


def test_api_page_documents_every_room():
    page = (ROOT / "docs" / "api.rst").read_text()
    rooms = {name for floor in layers() for name in floor} - {"__main__", "_files", "cli"}
    assert set(re.findall(r"^ {3}probdeblend\.(\w+)$", page, re.M)) == rooms
    names = re.findall(r"^ {3}~probdeblend\.(\w+)\.(\w+)$", page, re.M)
    assert {name for _, name in names} == set(probdeblend.__all__) - {"__version__"}
    assert all(
        getattr(importlib.import_module(f"probdeblend.{room}"), name) is getattr(probdeblend, name)
        for room, name in names
    )


def test_readme_commands_are_the_two_of_the_docs():
    """Continuous integration runs the first block of the README; the docs show the same."""
    block = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    assert block.splitlines() == [
        "python -m pip install . && probdeblend deblend",
        "python -m pip install '.[test]' && pytest",
    ]
    assert block in (ROOT / "docs" / "getting_started.md").read_text()


def test_pages_have_no_blanks():
    """What is to be filled in is written with two of these signs."""
    pages = [path for folder in ("docs", "tutorials") for path in (ROOT / folder).rglob("*.md")]
    assert len(pages) > 10
    assert not [path.name for path in pages if "@@" in path.read_text(encoding="utf-8")]
