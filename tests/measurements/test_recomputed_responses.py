"""The measurement of recomputed responses runs, restores what it sets, and compares a layer that keeps them with one that does not."""

import recomputed_responses
import torch

from monai_gmr import get_backend, set_backend
from monai_gmr.networks.layers import make_convolution
from monai_gmr.ops import dense_harmonic


def test_it_prints_a_row_a_case(capsys):
    before = dense_harmonic.KEPT_BYTES
    recomputed_responses.main(["--quick"])
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert [float(row[1]) > 0 for row in cells] == [True] * 4
    assert [row[2] == "-" for row in cells] == [False, False, False, True]
    assert (dense_harmonic.KEPT_BYTES, get_backend()) == (before, "auto")


def test_responses_are_kept_where_asked(monkeypatch):
    monkeypatch.setattr(dense_harmonic, "KEPT_BYTES", 0)
    layer, x = make_convolution("gmr_harmonic", 2, 2, 4, 3), torch.randn(1, 2, 5, 5)
    with set_backend("dense"):
        for keeps in (False, True):
            with recomputed_responses.kept_responses(keeps):
                assert ("SlabBySlab" in type(layer(x).grad_fn).__name__) != keeps
