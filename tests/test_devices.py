"""What a GPU must show is selected by a mark, only where there is a GPU."""

from pathlib import Path

import pytest
import torch

pytest_plugins = ["pytester"]
CONFTEST = Path(__file__).with_name("conftest.py")


@pytest.mark.parametrize("available", [False, True])
@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "other"]], ids=",".join)
def test_the_marks_select_the_devices(pytester, monkeypatch, available, devices):
    monkeypatch.setenv("TEST_DEVICE", devices[-1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8"))
    pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\nmarkers = ["gpu", "rehearsal"]\naddopts = "--strict-markers"\n'
    )
    pytester.makepyfile(test_some="def test_on(device):\n    pass\n\n\ndef test_without():\n    pass\n")
    folder = pytester.mkdir("triton")
    (folder / "test_kernels.py").write_text("def test_kernel():\n    pass\n", encoding="utf-8")

    items, _ = pytester.inline_genitems("-p", "no:cacheprovider")
    marked = {item.nodeid: {mark.name for mark in item.iter_markers()} & {"gpu", "rehearsal"} for item in items}
    kernels = {"gpu", "rehearsal"} if available else {"rehearsal"}
    expected = {f"test_some.py::test_on[{device}]": {"rehearsal"} for device in devices}
    expected |= {"test_some.py::test_without": set()}
    expected |= {"test_some.py::test_on[cuda]": {"gpu"}} if available else {}
    assert marked == expected | {"triton/test_kernels.py::test_kernel": kernels}
