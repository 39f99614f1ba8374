"""The page's table of what is exact has a row for each net that the command measures, with its parameters."""

from pathlib import Path

import pytest
from exactness_table import HEAD, KINDS, NETS

PAGE = (Path(__file__).parents[2] / "monai_gmr" / "networks" / "README.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("<!-- exactness -->")[2].partition("<!-- end of exactness -->")[0].strip()
LINES = [[cell.strip() for cell in row.split("|")[1:-1]] for row in TABLE.splitlines()]
ROWS = {(cells[0], cells[1]): cells for cells in LINES[2:]}


def test_the_page_has_a_row_for_each_net():
    assert LINES[0] == HEAD
    assert list(ROWS) == [(net, kind) for net, *_ in NETS for kind in KINDS]


@pytest.mark.parametrize(("name", "dims", "make", "arguments"), NETS)
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_those_of_the_net(name, dims, make, arguments, kind):
    net = make(dims, **KINDS[kind], **arguments)
    assert ROWS[name, kind][2] == f"{sum(p.numel() for p in net.parameters()):,}"


@pytest.mark.parametrize(("net", "kind"), list(ROWS))
def test_what_the_page_calls_exact(net, kind):
    assert all(float(error) < 1e-5 for error in ROWS[net, kind][3:6]) is (kind != "plain")
