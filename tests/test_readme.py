"""What the README shows runs."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
LINKS = re.findall(r"\]\((?!https?:)([^)#]+)\)", PROSE)
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_python_of_the_readme_runs(block):
    exec(compile(BLOCKS[block], f"README.md block {block}", "exec"), {})


def test_there_are_examples_and_both_commands():
    assert len(BLOCKS) >= 2
    assert README.count("<!-- command: ") == 2


@pytest.mark.parametrize("link", LINKS)
def test_links_lead_to_files(link):
    assert (Path(__file__).parents[1] / link).exists()


BUNDLES = Path(__file__).parents[1] / "bundles"
TABLES = [*BUNDLES.glob("*/docs/study/table.md"), *BUNDLES.glob("*/docs/rotation/*/rotation_report.md")]


@pytest.mark.parametrize("table", sorted(TABLES), ids=str)
def test_rows_of_studies_and_reports_are_in_the_readme(table):
    rows = [line for line in table.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) > 2
    assert [row for row in rows if row not in README.splitlines()] == []
