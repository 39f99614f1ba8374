"""What the wheel holds, by setuptools' own reading of pyproject.toml, without a build: every module, kernel source and bundle.

``.ci/wheel`` builds it, installs it where nothing else is, and uses it.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import monai_gmr
from monai_gmr.bundle.shipped import shipped_files
from monai_gmr.packaging.index_readme import index_readme, write_readme

ROOT = Path(__file__).parents[2]
LARGEST_BYTES, LARGEST_FILE = 4_000_000, 500_000
# get_outputs: where a build would put modules and data
READ = """
import json, sys
from setuptools import Distribution
project = Distribution({"script_name": "setup.py"})
project.parse_config_files(["pyproject.toml"])
build = project.get_command_obj("build_py")
build.set_undefined_options("build")
build.build_lib = "lib"
build.ensure_finalized()
metadata = project.metadata
print(json.dumps({
    "files": build.get_outputs(include_bytecode=False),
    "version": metadata.get_version(),
    "description": metadata.get_long_description(),
    "type": metadata.long_description_content_type,
    "sources": [each.name for each in project.ext_modules],
}))
"""


@pytest.fixture(scope="module")
def wheel():
    """Files, version and description of the wheel."""
    write_readme(ROOT)
    run = subprocess.run([sys.executable, "-c", READ], cwd=ROOT, capture_output=True, text=True, check=False)
    if "must be valid exactly by one definition" in run.stderr:
        pytest.skip("setuptools below 77 does not know the licence's name")
    assert run.returncode == 0, run.stderr
    content = json.loads(run.stdout.splitlines()[-1])
    content["files"] = {Path(file).relative_to("lib").as_posix() for file in content["files"]}
    return content


def test_every_module_is_in_the_wheel(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "monai_gmr").rglob("*.py")}
    assert {file for file in wheel["files"] if file.endswith(".py") and "/bundles/" not in file} == modules


def test_bundles_are_those_that_are_copied(wheel):
    roots = [path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json")]
    expected = {f"monai_gmr/bundles/{root.name}/{file}" for root in roots for file in shipped_files(root)}
    assert {file for file in wheel["files"] if file.startswith("monai_gmr/bundles/")} == expected
    sizes = [path.stat().st_size for file in expected for path in [ROOT / file.removeprefix("monai_gmr/")]]
    assert sum(sizes) < LARGEST_BYTES
    assert max(sizes) < LARGEST_FILE


def test_thresholds_schema_changes_and_no_sources_are_in_the_wheel(wheel):
    data = {file for file in wheel["files"] if not file.startswith("monai_gmr/bundles/") and not file.endswith(".py")}
    page = {f"monai_gmr/rotation_report/templates/report.{kind}" for kind in ("css", "html.jinja", "js")}
    tables = {"monai_gmr/bundle/metadata_schema.json", "monai_gmr/ops/thresholds.csv"}
    assert data == {"monai_gmr/CHANGELOG.md", *tables, *page}
    assert len(wheel["sources"]) == 3


def test_the_version_stands_in_one_place(wheel):
    assert wheel["version"] == monai_gmr.__version__
    assert "version =" not in (ROOT / "pyproject.toml").read_text().partition("[tool.")[0]
    assert f"## {monai_gmr.__version__}\n" in (ROOT / "monai_gmr" / "CHANGELOG.md").read_text()
    assert monai_gmr.__version__ not in (ROOT / "README.md").read_text()


def test_no_link_of_the_description_is_relative(wheel):
    assert wheel["type"] == "text/markdown"
    assert wheel["description"].startswith("# monai_gmr")
    text = re.sub(r"```.*?```|`[^`\n]*`", "", wheel["description"], flags=re.DOTALL)
    assert [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("https://", "#"))] == []


def test_a_public_repository_gives_every_link_its_address():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = index_readme(readme, "https://example.org/us/it", "1.2")
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(pictures) == 2
    assert all(picture.startswith("https://example.org/us/it/raw/v1.2/bundles/") for picture in pictures)
    for link in re.findall(r"https://example.org/us/it/\w+/v1.2/([^)#]+)", text):
        assert (ROOT / link).is_file()
    blocks = [re.findall(r"```.*?```", page, flags=re.DOTALL) for page in (readme, text)]
    assert blocks[0] == blocks[1]
