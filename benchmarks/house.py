"""The size of the package compared with its limits: lines, rooms, floors, names, modules, circles, commands."""

from __future__ import annotations

import ast
import configparser
import tokenize
from collections.abc import Iterator
from pathlib import Path

import click

__all__ = ["LIMITS", "code_lines", "measure"]

ROOT = Path(__file__).parent.parent
LIMITS = {
    "lines of code": 9000,  # without docstrings, comments and blank lines
    "lines": 18_000,
    "rooms": 13,  # twelve, and the private module for files
    "floors": 7,
    "public names": 150,
    "modules above 400 lines": 0,
    "rooms in a circle": 0,
    "commands": 12,
}
SPACE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(text: str) -> int:
    """Count the lines that hold code; a string that stands alone is documentation."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__):
        if token.type not in SPACE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def measure(root: Path = ROOT) -> dict[str, int]:
    """Measure the package in a folder that holds it beside its ``setup.cfg``, by the names of `LIMITS`."""
    package = root / "probdeblend"
    texts = {path.relative_to(package): path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lines = {path: text.count("\n") for path, text in texts.items()}
    rooms = {path.parts[0].removesuffix(".py") for path in texts} - {"__init__", "__main__"}
    faces = [path for path in texts if path.name == "__init__.py" or len(path.parts) == 1]
    cli = [node for path in trees if path.parts[0] == "cli" for node in ast.walk(trees[path])]
    return {
        "lines of code": sum(map(code_lines, texts.values())),
        "lines": sum(lines.values()),
        "rooms": len(rooms),
        "floors": len(_floors(root / "setup.cfg")),
        "public names": sum(len(set(_exported(trees[path]))) for path in faces),
        "modules above 400 lines": sum(number > 400 for number in lines.values()),
        "rooms in a circle": _in_a_circle(trees),
        "commands": sum(
            isinstance(node, ast.FunctionDef) and any(map(_is_command, node.decorator_list)) for node in cli
        ),
    }


def _floors(path: Path) -> list[str]:
    parser = configparser.ConfigParser()
    parser.read(path, encoding="utf-8")
    layers = parser["importlinter:contract:house"]["layers"].split("\n")
    return [layer for layer in layers if layer.strip() not in ("", "__main__")]


def _exported(tree: ast.Module) -> Iterator[str]:
    """Yield the names in ``__all__``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
            yield from ast.literal_eval(node.value)


def _is_command(decorator: ast.expr) -> bool:
    call = getattr(decorator, "func", None)
    return getattr(call, "attr", getattr(call, "id", "")) == "command"


def _in_a_circle(trees: dict[Path, ast.Module]) -> int:
    """Count the rooms that import themselves by way of others."""
    known: dict[str, set[str]] = {}
    for path, tree in trees.items():
        room = path.parts[0].removesuffix(".py")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == len(path.parts):
                found = {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
                known.setdefault(room, set()).update(found - {room})
    known.pop("__init__", None)
    for _ in known:
        known = {room: others.union(*(known.get(other, ()) for other in others)) for room, others in known.items()}
    return sum(room in others for room, others in known.items())


@click.command("python -m benchmarks.house")
def main() -> None:
    """Print the measures of the package beside their limits; exit status 1 where one is exceeded."""
    measured = measure()
    for name, limit in LIMITS.items():
        click.echo(f"{name:24} {measured[name]:6} of {limit:6}{'  exceeded' if measured[name] > limit else ''}")
    raise SystemExit(int(any(measured[name] > limit for name, limit in LIMITS.items())))


if __name__ == "__main__":
    main()
