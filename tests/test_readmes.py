"""The READMEs' tables of equations: each file and function that they name is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def defined(path: Path) -> set[str]:
    """Names of the functions and classes in a file, methods also as Class.method."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
            names |= {f"{node.name}.{one.name}" for one in ast.iter_child_nodes(node) if hasattr(one, "name")}
    return names


@pytest.mark.parametrize("paper", ["crn", "crrn", "csflow", "memae", "riad"])
def test_equations_are_where_the_readme_says(paper):
    lines = (ROOT / paper / "README.md").read_text(encoding="utf-8").splitlines()
    first = lines.index("| equation | where |") + 2
    rows = lines[first : lines.index("", first)]
    assert len(rows) > 3
    for row in rows:
        words = re.findall("`([^`]+)`", row.split(" | ")[-1])
        files = [word for word in words if word.endswith(".py")]
        # A second file of the same folder is named without it.
        paths = [ROOT / paper / name for name in files]
        paths = [path if path.exists() else paths[0].with_name(path.name) for path in paths]
        assert paths and all(path.exists() for path in paths), row
        names = set().union(*map(defined, paths))
        assert all(word in names for word in words if word not in files), row
