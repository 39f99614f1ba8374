"""Calls are read by the names of their arguments: none passes more than six by position."""

import ast
from pathlib import Path

import pytest

import monai_gmr

MOST = 6
PACKAGE = Path(monai_gmr.__file__).parent
# compiled kernels, whose arguments have no names where they are called
KERNELS = ("values_at_tap", "load_plane", "responses_of", "shell_total", "add_order", "call_kernel")


def is_kernel(function):
    """Whether a called function is a kernel, or one on a grid of a GPU's programs."""
    return isinstance(function, ast.Subscript) or getattr(function, "id", None) in KERNELS


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_call_passes_more_than_six_arguments_by_position(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    long = [f"{path}:{node.lineno}" for node in calls if len(node.args) > MOST and not is_kernel(node.func)]
    assert not long, long
