# SPDX-License-Identifier: MPL-2.0
"""The subpackages import each other in one direction only."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import starsr

PACKAGE = Path(starsr.__path__[0])


def imported(path):
    """Return the subpackages of `starsr` that a file imports."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
    parts = (module.split(".") for module in modules)
    return {part[1] for part in parts if part[0] == "starsr" and len(part) > 1}


def test_subpackages_have_no_import_circle():
    folders = [p.parent for p in PACKAGE.glob("*/__init__.py")]
    graph = {
        folder.name: set().union(*map(imported, folder.rglob("*.py"))) - {folder.name}
        for folder in folders
    }
    # Raises `CycleError` for a circle.
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == {folder.name for folder in folders} and len(order) == 9
    assert order.index("data") < order.index("models") < order.index("training")
