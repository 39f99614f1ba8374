"""The page's table of converted networks is what the command makes."""

import re
from pathlib import Path

import pytest
import torch
from conversion_table import CASES, HEAD, cells_of, generators, main, make_pair, measure

from monai_gmr.symmetry import generate_group, point_group

PAGE = (Path(__file__).parents[2] / "monai_gmr" / "networks" / "README.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("<!-- conversion -->")[2].partition("<!-- end of conversion -->")[0].strip()
LINES = [[cell.strip() for cell in row.split("|")[1:-1]] for row in TABLE.splitlines()]
ROWS = {(cells[0], cells[1]): cells for cells in LINES if cells[1] in ("2D", "3D")}
QUICK_3D = ("UNet", "AutoEncoder")
SIZES = slice(2, 5)
SMALLEST = 1e-8


def test_the_page_has_a_row_for_each_network():
    assert LINES[0] == HEAD
    assert set(ROWS) == {(name, f"{dims}D") for name in CASES for dims in (2, 3)}


@pytest.mark.parametrize(("net", "dims"), list(ROWS))
def test_what_the_page_calls_exact(net, dims):
    after = [float(cell.split(" → ")[1]) for cell in ROWS[net, dims][SIZES] if cell]
    assert all(error < SMALLEST for error in after) is CASES[net].symmetric
    assert (float(ROWS[net, dims][5]) < 1e-5) is CASES[net].symmetric


@pytest.mark.parametrize(("net", "dims"), [(n, 2) for n in CASES] + [(n, 3) for n in QUICK_3D])
def test_rows_are_remade(net, dims):
    """At all sizes for two networks, for the others at the one that most cannot take before."""
    labels = ("even", "odd", "mixed") if net in QUICK_3D else ("even" if CASES[net].fixed else "mixed",)
    cells = cells_of(measure(net, dims, brief=True, labels=labels))
    written = ROWS[net, f"{dims}D"]
    assert cells[6] == written[6]
    pairs = [(remade, old) for remade, old in zip(cells[SIZES], written[SIZES]) if remade]
    assert len(pairs) == len(labels)
    for remade, old in pairs:
        assert remade.count("→") == old.count("→")
        for one, two in zip(remade.split(" → "), old.split(" → ")):
            numbers = [float(each) for each in (one, two) if re.match(r"\d", each)]
            # rounding differs from processor to processor; what is exact does not
            assert len(numbers) == 2 or one == two
            assert len({number < SMALLEST for number in numbers}) <= 1


@pytest.mark.parametrize("dims", [2, 3])
def test_generators_generate_the_group(dims):
    assert len(generate_group(generators(dims))) == len(point_group(dims))


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    assert main(["--dims", "2", "--nets", "AutoEncoder", "--output", str(tmp_path / "table.md")]) == 0
    assert (tmp_path / "table.md").read_text(encoding="utf-8").strip() in capsys.readouterr().out


def test_pairs_repeat_with_their_seed():
    one, two = (make_pair("AutoEncoder", 2)[1].state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
