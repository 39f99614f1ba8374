"""The measurement of windows runs, and finds a quarter of MONAI's memory and the same labels at a small size, too."""

import window_memory


def test_it_prints_a_row_a_case(capsys):
    window_memory.main(["--quick"])
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].strip("|").split("|")]
    assert row[0] == "48³, roi 12, overlap 0.25"
    assert 0 < float(row[3]) <= 0.25
    assert row[5] == "0"
