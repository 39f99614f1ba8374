"""Packages of the library import one way: no two import each other, over whatever others."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "monai_gmr"


def imported(tree):
    """The modules of the library that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            # from monai_gmr import ops
            yield from [f"{node.module}.{name.name}" for name in node.names if node.module] + [node.module or ""]
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def test_no_packages_import_each_other():
    packages = {path.stem for path in ROOT.iterdir()} - {"__init__"}
    graph = {name: set() for name in packages}
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for module in imported(ast.parse(path.read_text(encoding="utf-8"))) if own in packages else ():
            library, _, name = module.partition(".")
            if library == "monai_gmr" and (package := name.split(".")[0]) in packages - {own}:
                graph[own].add(package)
    assert graph["rotation_report"] >= {"bundle", "symmetry"}
    # raises where there is a circle, and names it
    assert set(TopologicalSorter(graph).static_order()) >= packages
