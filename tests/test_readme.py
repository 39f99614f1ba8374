"""What the pages show runs, their commands and names exist, their links lead to files, and their tables are those of the bundles."""

import contextlib
import importlib
import io
import itertools
import re
import runpy
import shlex
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("monai_gmr/*/README.md")),
    ROOT / "bundles" / "README.md",
    *sorted(ROOT.glob("bundles/*/docs/README.md")),
]
PAGES = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in FILES}
README = PAGES["README.md"]
MOST_BYTES, LONGEST_LINE, LARGEST_PICTURE = 10_000, 140, 150_000

PROSE = {page: re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL) for page, text in PAGES.items()}
LINKS = [(page, link) for page, text in PROSE.items() for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)]
PYTHON = [
    (page, block) for page, text in PAGES.items() for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
]


def _commands(text):
    """Command lines of fenced and indented blocks, and of the first column of tables; continued lines are one."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    blocks += re.findall(r"^    (?:.*\\\n)*.*$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    blocks += re.findall(r"^\| `(python [^`]*)`", text, flags=re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.search(r"python -m |python tests/|torchrun ", line)]


COMMANDS = sorted({(page, line) for page, text in PAGES.items() for line in _commands(text)})
OURS = [(page, line) for page, line in COMMANDS if "-m monai_gmr." in line]
BUNDLES = [(page, line) for page, line in COMMANDS if "-m monai.bundle run" in line]
NAMES = sorted(
    {(page, name) for page, text in PAGES.items() for name in re.findall(r"(?<!-m )\bmonai_gmr(?:\.\w+)+", text)}
)


def _words(line):
    """The words of a command, without comment and ellipsis."""
    return [word for word in shlex.split(line, comments=True) if word != "..."]


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[f"{page}-{i}" for i, (page, _) in enumerate(PYTHON)])
def test_python_of_the_pages_runs(page, block):
    exec(compile(block, page, "exec"), {})


def test_there_are_examples_and_both_commands():
    assert sum(page == "README.md" for page, _ in PYTHON) >= 3
    assert README.count("<!-- command: ") == 2


def test_the_first_page_is_short():
    assert len(README.encode()) <= MOST_BYTES
    assert [line for line in README.splitlines() if len(line) > LONGEST_LINE] == []
    assert "<details" not in README
    assert len(re.findall(r"^\|---", README, flags=re.MULTILINE)) == 1


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_pages_are_short_outside_of_tables(page):
    lines = [line for line in PAGES[page].splitlines() if not line.startswith(("|", "!["))]
    assert [line for line in lines if len(line) > LONGEST_LINE] == []


def test_pictures_of_the_first_page_are_small():
    """Package indexes show them by addresses that a build writes: tests/packaging."""
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert len(pictures) == 2
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < LARGEST_PICTURE


def _anchors(page):
    headings = re.findall(r"^#+ (.*)$", PROSE[page], flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_lead_to_files(page, link):
    path, _, anchor = link.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists()
    assert not anchor or anchor in _anchors(str(file.resolve().relative_to(ROOT)))


@pytest.mark.parametrize(("page", "name"), NAMES)
def test_names_of_the_pages_exist(page, name):
    parts = name.split(".")
    if parts[-1] == "NAME":
        return
    for length in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.import_module(".".join(parts[:length]))
            break
    for part in parts[length:]:
        found = getattr(found, part)


MODULES = sorted({(page, name) for page, text in PAGES.items() for name in re.findall(r"`([\w/]+\.py)`", text)})


@pytest.mark.parametrize(("page", "name"), MODULES)
def test_modules_of_the_pages_exist(page, name):
    files = [file for folder in ("monai_gmr", "tests") for file in (ROOT / folder).rglob("*.py")]
    assert any(f"/{name}" in file.as_posix() for file in files)


def _help(module, monkeypatch):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with contextlib.redirect_stdout(io.StringIO()) as text, pytest.raises(SystemExit):
        runpy.run_module(module, run_name="__main__")
    return text.getvalue()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(("page", "line"), OURS)
def test_commands_of_the_library_have_their_options(page, line, monkeypatch):
    words = _words(line)
    module = words[words.index("-m") + 1]
    if module.endswith(".NAME"):
        return
    text = _help(module, monkeypatch)
    options = {word for word in words if word.startswith("--")}
    assert options <= set(re.findall(r"--[\w-]+", text))
    # what is to be run, such as "nets"; not the user's files and folders
    first = itertools.takewhile(lambda word: not word.startswith("--"), words[words.index("-m") + 2 :])
    assert {word for word in first if re.fullmatch(r"[a-z_]+", word)} <= set(re.findall(r"\w+", text))


@pytest.mark.parametrize("line", sorted({line for _, line in COMMANDS if "python tests/" in line}))
def test_scripts_of_the_pages_exist(line):
    assert (ROOT / next(word for word in _words(line) if word.startswith("tests/"))).is_file()


@pytest.mark.parametrize(("page", "line"), BUNDLES)
def test_settings_of_bundle_commands_are_in_their_configs(page, line):
    words = _words(line.replace("&&", ""))
    given = words[words.index("--config_file") + 1]
    files = yaml.safe_load(given) if given.startswith("[") else [given]
    folder = (ROOT / page).parent.parent / "configs"
    if not folder.is_dir():
        folder = ROOT / "bundles" / "volume_segmentation_gmr_unet" / "configs"
    paths = [ROOT / file if file.startswith("bundles/") else folder / Path(file).name for file in files]
    ids = {key for path in paths for key in yaml.safe_load(path.read_text(encoding="utf-8"))}
    settings = {word[2:].split("::")[0] for word in words if word.startswith("--")}
    assert settings - {"config_file", "standalone", "nnodes=1", "nproc_per_node=2"} <= ids


def _pages_script():
    spec = spec_from_file_location("pages", ROOT / "tests" / "measurements" / "pages.py")
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_tables_are_those_of_the_bundles():
    for page, marked in _pages_script().tables().items():
        for mark, table in marked.items():
            assert PAGES[page].partition(f"<!-- {mark} -->\n")[2].partition(f"\n<!-- end of {mark} -->")[0] == table
    assert README.partition("<!-- first page -->")[2].partition("<!-- end of")[0].count("\n| ") <= 1 + 8


def test_the_first_picture_has_the_full_circle_of_every_net():
    """Three seeds and, in 3D, three axes at each angle; at 0 degrees the image is upright for all axes."""
    script = _pages_script()
    scores = script.scores_by_angle()
    assert {run[1:] for run in scores} == set(script.NETS)
    for (data, *_), angles in scores.items():
        counts = {angle: len(values) for angle, values in angles.items()}
        axes = 3 if "3D" in script.DATA[data][0] else 1
        assert counts == {angle: 3 * (1 if angle in (0, 360) else axes) for angle in range(0, 361, 30)}


TABLES = [*ROOT.glob("bundles/*/docs/study/table.md"), *ROOT.glob("bundles/*/docs/rotation/*/rotation_report.md")]


def test_the_first_sentence_has_the_falls_of_the_table():
    """How much the scores of the harmonic and the plain networks fall between upright images and other angles."""
    rows = re.findall(r"^\| [^|]*, [23]D \|.*$", README, flags=re.MULTILINE)
    scores = [[cell.split("/") for cell in row.split("|") if "/" in cell] for row in rows]
    falls = {column: [float(row[column][0]) - float(row[column][1]) for row in scores] for column in (2, 0)}
    ranges = [f"by {min(each):.3f} to {max(each):.3f}".replace("0.", ".") for each in falls.values()]
    assert len(rows) == 6
    assert re.findall(r"by \.\d+ to \.\d+", " ".join(README.partition("![")[0].split())) == ranges


@pytest.mark.parametrize("table", sorted(TABLES), ids=str)
def test_rows_of_studies_and_reports_are_on_the_page_of_the_bundles(table):
    rows = [line for line in table.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) > 2
    assert [row for row in rows if row not in PAGES["bundles/README.md"].splitlines()] == []
