"""Tests of the benchmark: counts, times and memory are right, and candidates that cannot run are listed, not raised."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from monai_gmr.apps import benchmark_measure as app
from monai_gmr.apps import timing
from monai_gmr.apps.benchmark import main
from monai_gmr.apps.benchmark_cases import FULL, GROUPS, Candidate, Case, RingConvolution, make_cases
from monai_gmr.apps.benchmark_measure import (
    Notes,
    device_of,
    make_input,
    measure_case,
    runs_kernels,
)
from monai_gmr.apps.benchmark_table import COLUMNS, add_ratios, draw_rows, format_missing, format_rows, is_drawn
from monai_gmr.apps.timing import interleave, processor_name
from monai_gmr.ops import backend as backends
from monai_gmr.ops import get_backend
from monai_gmr.ops.backend import Backend
from monai_gmr.ops.cpu.library import load_kernels

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def backend_as_before():
    yield
    backends.set_backend("auto")


class FakeTime:
    """A clock with which every call takes as long as its function says."""

    def __init__(self, monkeypatch):
        self.now, self.called = 0.0, []
        monkeypatch.setattr(timing, "seconds_of", self.timer)
        monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: self.now))

    def runs(self, **seconds):
        return {name: lambda n=name, s=each: (self.called.append(n), s)[1] for name, each in seconds.items()}

    def timer(self, run):
        seconds = run()
        self.now += seconds
        return seconds


def test_functions_alternate_in_random_orders(monkeypatch):
    fake = FakeTime(monkeypatch)
    times = interleave(fake.runs(a=1.0, b=2.0, c=3.0), 40)
    assert times == {"a": [1.0] * 40, "b": [2.0] * 40, "c": [3.0] * 40}
    rounds = ["".join(each) for each in zip(*[iter(fake.called)] * 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) == 6
    again = FakeTime(monkeypatch)
    interleave(again.runs(a=1.0, b=2.0, c=3.0), 40)
    assert again.called == fake.called


@pytest.mark.parametrize(("repeats", "seconds", "rounds"), [(10, 0, 3), (2, 0, 2), (10, 25, 6), (10, 1000, 10)])
def test_no_round_begins_after_the_time_once_there_are_three(repeats, seconds, rounds, monkeypatch):
    times = interleave(FakeTime(monkeypatch).runs(a=2.0, b=3.0), repeats, seconds)
    assert [len(each) for each in times.values()] == [rounds] * 2


def test_nothing_to_time():
    assert interleave({}, 5, 1.0) == {}


def test_processor_name(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Chip 5\n\nprocessor\t: 1\nmodel name\t: Chip 5\n")
    assert processor_name(file) == "Chip 5"
    assert processor_name(tmp_path / "none")


def case_of(*candidates, group="ring_conv", shape=(1, 2, 5, 5)):
    return Case(group, "case", "float32", shape, candidates)


def plain(kernel_size, name="plain"):
    return Candidate(name, None, lambda: nn.Conv2d(2, 2, kernel_size, padding=kernel_size // 2, bias=False))


def ours(backend, kernel_size=5):
    return Candidate("ring_conv", backend, lambda: RingConvolution(2, 2, kernel_size))


def test_rows_are_medians_and_ratios(monkeypatch):
    medians = [(2.0, 6.0), (1.0, 4.0), (0.5, 1.0)]

    def fake(runs, *_):
        chosen = {index: dict(zip(("forward", "step"), pair)) for index, pair in enumerate(medians)}
        return {(i, part): [chosen[i][part] * f for f in (9, 1, 0.1)] for i, part in runs}

    monkeypatch.setattr(app, "interleave", fake)
    case = case_of(ours("dense"), plain(5), plain(3, "plain k=3"))
    dense, same, small = measure_case(case, CPU, Notes())
    assert (dense["forward"], dense["step"], dense["rounds"]) == (2.0, 6.0, 3)
    assert (dense["forward_over_plain"], dense["step_over_plain"], dense["step_over_plain_3"]) == (2.0, 1.5, 6.0)
    assert (same["step_over_dense"], small["forward_over_plain"]) == (4 / 6, 0.5)
    assert dense["memory"] > 0
    assert dense["memory_over_plain"] == dense["memory"] / same["memory"]


def test_plain_of_window_3_is_both_references():
    base = {"forward": 1.0, "step": 2.0, "memory": 3}
    rows = [{**base, "method": "ring_conv", "backend": "dense"}, {**base, "method": "plain", "backend": None}]
    assert all(row["step_over_plain_3"] == row["step_over_plain"] == 1.0 for row in add_ratios(rows))


def test_a_layer_is_compared_with_its_own_dense_backend():
    def row(method, backend, step):
        return {"method": method, "backend": backend, "forward": 1.0, "step": step, "memory": 1}

    rows = [row("A", "dense", 2.0), row("A", "fast", 1.0), row("B", "dense", 8.0), row("B", "fast", 2.0)]
    rows += [row("plain", None, None)]
    found = add_ratios(rows)
    assert [line["step_over_dense"] for line in found] == [1.0, 0.5, 1.0, 0.25, None]
    assert {line["step_over_plain"] for line in found} == {None}


def test_candidates_that_cannot_run_are_listed_and_the_others_measured(monkeypatch):
    def fails(message):
        def make():
            raise RuntimeError(message)

        return make

    class Broken(nn.Conv2d):
        def forward(self, x):
            raise ValueError("two\nlines")

    class Lazy(Backend):
        name = "lazy"

    class Own(Backend):
        name = "own"

        def supports(self, call):
            return True

        def conv(self, call, x, kernel):
            with torch.profiler.record_function("monai_gmr::own"):
                dense = (kernel.weight @ kernel.basis)[:, :, kernel.shells.flatten()]
                dense = dense.reshape(*kernel.weight.shape[:2], *kernel.shells.shape)
                return torch.nn.functional.conv2d(x, dense, kernel.bias, padding=tuple(call.padding))

    for backend in (Lazy(), Own()):
        monkeypatch.setitem(backends._BACKENDS, backend.name, backend)
    monkeypatch.setattr(backends, "_forced", [])
    broken = [Candidate("no room", None, fails("out of memory")), Candidate("broken", None, lambda: Broken(2, 2, 3))]
    rows = measure_case(case_of(*broken, ours("lazy"), ours("own"), plain(5)), CPU, Notes(), repeats=1)
    assert [row["reason"] for row in rows[:2]] == ["out of memory", "two lines"]
    assert "dense" in rows[2]["reason"]
    assert [row["step"] is None for row in rows] == [True, True, True, False, False]
    text = format_rows(rows)
    assert [len(line.split()) - 1 for line in text.splitlines() if line.startswith("  broken")] == [len(COLUMNS)]
    assert format_missing(rows).splitlines()[:2] == [
        "-  no room: out of memory (1 of 1 rows)",
        "-  broken: two lines (1 of 1 rows)",
    ]


def test_reason_of_a_fallback_is_what_the_library_logged():
    notes = Notes()
    notes.messages += ["backend 'fast' is not used: no GPU.", "other"]
    assert notes.about("fast") == "backend 'fast' is not used: no GPU."
    assert notes.about("slow") is None


@pytest.mark.skipif(load_kernels() is None, reason="no kernels were built")
def test_kernels_are_recognised():
    net, x = RingConvolution(2, 2, 3), torch.rand(1, 2, 4, 4)
    for backend, expected in (("cpp", True), ("dense", False)):
        backends.set_backend(backend)
        assert runs_kernels(lambda: net(x)) is expected
    assert not runs_kernels(lambda: nn.Conv2d(2, 2, 3)(x))


@pytest.mark.parametrize("dims", [2, 3])
def test_input_of_the_operation_lies_channels_last_where_asked(dims):
    case = case_of(shape=(2, 3, *(4,) * dims))
    assert make_input(case, CPU, True).stride()[1] == 1
    assert make_input(case, CPU, False).is_contiguous()
    assert torch.equal(make_input(case, CPU, True), make_input(case, CPU, False))


def test_cases_of_a_full_run():
    cases = make_cases(["ring_conv", "layers", "nets"], [2, 3], ["dense", "triton"])
    names = [case.name for case in cases if case.group == "ring_conv"]
    assert names[:2] == ["2D B8 C64 64x64 k=3", "2D B8 C64 64x64 k=5"]
    assert len(names) == sum(len(each.windows) for each in FULL.operation + FULL.harmonic)
    assert names[-3] == "3D B1 C32 48x48x48 k=5, groups 32"
    labels = [candidate.label for candidate in cases[1].candidates]
    assert labels == ["dense", "triton", "plain", "plain k=3"]
    assert all(case.precision == "float32" for case in cases)
    large = make_cases(["ring_conv"], [3], ["dense"], on_cuda=True, precisions=["bfloat16", "tf32"])
    volumes = [case for case in large if case.shape[-1] >= 96]
    sizes = {(c, n, k) for c in (32, 64) for n in (96, 128) for k in ("k=5", "k=7", "k=3,", "k=5,")}
    assert {(case.shape[1], case.shape[-1], case.name.split()[4]) for case in volumes} == sizes
    assert [case.precision for case in large] == sorted(case.precision for case in large)
    assert {case.precision for case in volumes} == {"tf32", "bfloat16"}


def test_quick_run_writes_table_numbers_and_picture(tmp_path, capsys):
    threads, backend = torch.get_num_threads(), get_backend()
    options = ["--quick", "--repeats", "3", "--backends", "dense", "--threads", "1"]
    # every group in one precision; the others run in tests/measurements/test_gpu.py
    options += ["--precisions", "bfloat16"]
    assert main([*options, "--output", str(tmp_path)]) == 0
    assert (torch.get_num_threads(), get_backend()) == (threads, backend)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["benchmark.json", "benchmark.md", "benchmark.png"]
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert {"processor", "cores", "threads", "gpu", "torch", "date"} <= set(content["machine"])
    assert content["machine"]["threads"] == 1
    assert {row["group"] for row in content["rows"]} == set(GROUPS)
    assert {row["precision"] for row in content["rows"]} == {"bfloat16"}
    assert [row["reason"] for row in content["rows"] if row["reason"]] == []
    assert all(row["step"] > row["forward"] * 0.1 for row in content["rows"] if row["group"] != "test_time")
    once, often = (
        next(row for row in content["rows"] if row["group"] == "test_time" and row["method"] == method)
        for method in ("plain", "plain, 48 views")
    )
    assert often["forward"] > 5 * once["forward"]
    assert (often["step"], often["memory"] > 0) == (None, True)
    assert (tmp_path / "benchmark.png").read_bytes()[:4] == b"\x89PNG"
    text = capsys.readouterr().out
    header, *lines = [line for line in text.splitlines() if line.startswith("  ")]
    assert "forward ms" in header
    assert len(lines) == len(content["rows"])
    # right-aligned: every column ends where its title ends
    assert {len(line) for line in lines} == {len(header)}


def test_a_gpu_without_a_number_is_the_first(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("cuda", "cuda:1"):
        assert device_of(name) == torch.device(name)
    # torch raises if a device has no index
    assert chosen == [0, 1]


def test_cases_are_chosen_by_their_titles(tmp_path, capsys):
    options = ["ring_conv", "--quick", "--repeats", "1", "--backends", "dense", "--output", str(tmp_path)]
    assert main([*options, "--cases", "3D B1 C4 6x6x6 k=3, float32"]) == 0
    rows = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert {row["case"] for row in rows} == {"3D B1 C4 6x6x6 k=3"}
    assert main([*options, "--cases", "k=11"]) == 2
    assert "there is no case of ['ring_conv'] with dims=[2, 3] and cases=['k=11']" in capsys.readouterr().err


def test_triton_takes_part_where_it_can_run(tmp_path):
    triton = pytest.importorskip("triton")
    options = ["ring_conv", "--dims", "2", "--quick", "--repeats", "1"]
    assert main([*options, "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    measured = [row["step"] is not None for row in rows if row["backend"] == "triton"]
    assert measured == [bool(triton.knobs.runtime.interpret)] * 2


def test_picture_of_many_backends_leaves_out_what_is_not_measured(tmp_path):
    rows = []
    for index, (method, backend) in enumerate([("ring_conv", f"b{i}") for i in range(6)] + [("plain", None)]):
        row = {"group": "ring_conv", "case": "k=5", "dims": 2, "precision": "float32", "method": method}
        row |= {"backend": backend, "label": backend or method, "forward": 1.0, "step": 1.0 + index, "memory": 1}
        rows.append(row | ({"forward": None, "step": None} if index == 2 else {}))
    rows = add_ratios(rows)
    assert sum(map(is_drawn, rows)) == 5
    draw_rows(rows, tmp_path / "new" / "picture.png", "a machine")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["ring"], "group='ring' is unknown"),
        (["--backends", "fast"], "backend='fast' is unknown"),
        (["--dims", "4"], "dims=4 is unknown"),
        (["--precisions", "float8"], "precision='float8' is unknown"),
        (["--repeats", "0"], "repeats=0 is out of range"),
        (["--threads", "-1"], "threads=-1 is out of range"),
        (["--seconds", "nan"], "seconds=nan is out of range"),
        (["--device", "abacus"], "device=abacus cannot be used"),
        (["--device", "cuda:99"], "device=cuda:99 is not there"),
    ],
)
def test_errors_of_use_are_one_sentence(options, message, tmp_path, capsys):
    assert main([*options, "--quick", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"benchmark: {message}")
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    options = ["layers", "--dims", "2", "--quick", "--repeats", "1", "--backends", "dense"]
    assert main([*options, "--output", str(tmp_path / "file" / "out")]) == 2
    assert "benchmark: " in capsys.readouterr().err.splitlines()[-1]
