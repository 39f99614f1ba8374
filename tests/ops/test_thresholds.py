"""Backend "auto" takes a device's kernels beyond what was measured to be faster, and only where a size repeats long enough."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from monai_gmr import set_backend
from monai_gmr.apps import crossovers as app
from monai_gmr.ops import backend as backends
from monai_gmr.ops.backend import prefers_channels_last, select_backend
from monai_gmr.ops.cpu import library as kernels
from monai_gmr.ops.cpu.backend import compiled_backend
from monai_gmr.ops.ring_conv import dense_ring_conv
from monai_gmr.ops.thresholds import (
    CROSSOVERS,
    FASTER,
    Point,
    Use,
    crossover,
    device_kind,
    least_of_neighbours,
    least_voxels,
    read_crossovers,
)
from monai_gmr.ops.triton.backend import triton_backend
from monai_gmr.utils import ConfigurationError


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0.01, 3)), max_size=6, unique_by=lambda pair: pair[0]))
def test_from_the_crossover_on_all_ratios_are_small(pairs):
    sizes, ratios = zip(*sorted(pairs)) if pairs else ((), ())
    least = least_voxels(sizes, ratios)
    beyond = [ratio for size, ratio in zip(sizes, ratios) if least is not None and size >= least]
    assert all(ratio <= FASTER for ratio in beyond)
    assert (least is None) == (not ratios or ratios[-1] > FASTER)


TABLE = {
    **{Point(2, 3, 8, 8): None, Point(2, 3, 32, 32): 1000, Point(2, 5, 8, 8): 100, Point(2, 5, 32, 32): 10},
    **{Point(2, 3, 8, 1): 7, Point(2, 3, 32, 1): 5, Point(2, 3, 8, 2): None, Point(2, 3, 32, 2): 50},
    **{Point(2, 3, 8, 4): 300, Point(2, 3, 32, 4): 30},
}


@pytest.mark.parametrize(
    ("kernel_size", "channels", "groups", "expected"),
    [
        ((3, 3), (32, 32), 1, 1000),
        ((3, 3), (32, 64), 1, 1000),
        ((3, 3), (16, 32), 1, None),
        ((5, 3), (16, 32), 1, None),
        ((5, 5), (16, 32), 1, 100),
        ((5, 5), (32, 40), 1, 10),
        ((9, 9), (8, 8), 1, 100),
        ((5, 5), (3, 32), 1, None),
        ((2, 2), (32, 32), 1, None),
        ((5, 5, 5), (32, 32), 1, None),
        # depthwise ones go by depthwise ones
        ((3, 3), (16, 16), 16, 7),
        ((3, 3), (64, 64), 64, 5),
        ((3, 3), (4, 4), 4, None),
        # a depthwise one of several outputs by both
        ((3, 3), (32, 64), 32, 50),
        ((3, 3), (32, 128), 32, 30),
        ((3, 3), (33, 33), 11, 50),
        ((3, 3), (8, 32), 2, 300),
        ((3, 3), (16, 32), 8, None),
        ((5, 5), (32, 32), 32, 5),
    ],
)
def test_all_neighbours_in_the_table_have_to_be_faster(kernel_size, channels, groups, expected):
    assert least_of_neighbours(TABLE, Use(kernel_size, channels, groups)) == expected


@pytest.fixture
def auto(monkeypatch):
    half = {torch.float16, torch.bfloat16}
    measured = {"cpu": {torch.float32}, "cuda": {torch.float32, *half}}
    monkeypatch.setattr(backends, "_waiting", backends.Waiting())

    def crossover(device, precision, use):
        return least_of_neighbours(TABLE, use) if precision in measured[device.type] else None

    monkeypatch.setattr(backends, "crossover", crossover)
    set_backend("auto")


def test_all_sizes_share_their_patience(auto, monkeypatch):
    seconds = 2 * 9 * 32 * 32 * 1600 * 3 / backends.DENSE_RATE["cpu"]
    monkeypatch.setenv(backends.PATIENCE_VARIABLE, str(2.5 * seconds))
    assert select_backend(torch.zeros(1, 32, 20, 20), (3, 3), (32, 32)) is dense_ring_conv
    assert backends._waiting.seconds == 0
    sizes = [(40, 40), (41, 40), (40, 41), (42, 42), (20, 20), (40, 40)]
    chosen = [select_backend(torch.zeros(1, 32, *size), (3, 3), (32, 32)) for size in sizes]
    assert chosen == [dense_ring_conv] * 3 + [compiled_backend, dense_ring_conv, compiled_backend]


@pytest.mark.parametrize(
    ("stride", "transposed", "groups", "expected"),
    [
        ((1, 1), False, 1, 1000),
        # what is left out along one axis costs "dense" less
        ((2, 2), False, 1, 70),
        ((1, 2), False, 1, 70),
        ((3, 1), False, 1, None),
        ((2, 2), True, 1, 90),
        ((2, 1), True, 1, 90),
        # without a stride it is a convolution
        ((1, 1), True, 1, 1000),
        ((2, 2), False, 2, None),
    ],
)
def test_strides_and_transposed_convolutions_go_by_their_own(auto, monkeypatch, stride, transposed, groups, expected):
    monkeypatch.setenv(backends.PATIENCE_VARIABLE, "0")
    table = {Point(2, 3, 32, 32): 1000, Point(2, 3, 32, 32, False, 2): 70, Point(2, 3, 32, 32, False, 2, True): 90}
    monkeypatch.setattr(backends, "crossover", lambda device, precision, use: least_of_neighbours(table, use))
    for length in (60, 70, 80, 90, 100, 999, 1000):
        chosen = select_backend(torch.zeros(1, 32, 1, length), (3, 3), (32, 32), stride, groups, transposed)
        faster = expected is not None and length >= expected
        assert chosen is (compiled_backend if faster else dense_ring_conv)


def test_a_harmonic_layer_with_a_stride_is_left_to_dense(auto, monkeypatch):
    monkeypatch.setenv(backends.PATIENCE_VARIABLE, "0")
    monkeypatch.setattr(backends, "crossover", lambda device, precision, use: 1)
    x = torch.zeros(1, 32, 40, 40)
    assert select_backend(x, (3, 3), (32, 32), (1, 1), angular=True) is compiled_backend
    assert select_backend(x, (3, 3), (32, 32), (1, 2), angular=True) is dense_ring_conv


@pytest.mark.parametrize(("transposed", "share"), [(False, 4), (True, 1)])
def test_of_a_stride_what_dense_computes_is_counted(auto, monkeypatch, transposed, share):
    monkeypatch.setenv(backends.PATIENCE_VARIABLE, "1000")
    monkeypatch.setattr(backends, "crossover", lambda device, precision, use: 1)
    select_backend(torch.zeros(1, 32, 40, 40), (3, 3), (32, 32), (2, 2), transposed=transposed)
    seconds = 2 * 9 * 32 * 32 * 1600 * 3 / backends.DENSE_RATE["cpu"]
    assert backends._waiting.seconds == pytest.approx(seconds / share)


def test_a_pass_without_gradients_counts_a_third(auto, monkeypatch):
    monkeypatch.setenv(backends.PATIENCE_VARIABLE, "1000")
    x = torch.zeros(1, 32, 40, 40)
    select_backend(x, (3, 3), (32, 32))
    trained = backends._waiting.seconds
    with torch.no_grad():
        select_backend(x, (3, 3), (32, 32))
    assert backends._waiting.seconds == pytest.approx(trained * 4 / 3)


def test_an_image_with_channels_last_has_crossovers_of_its_own(monkeypatch):
    table = {Point(2, 3, 8, 8): None, Point(2, 3, 8, 8, True): 1000}
    monkeypatch.setattr(backends, "_waiting", backends.Waiting())
    monkeypatch.setattr(backends, "crossover", lambda device, precision, use: least_of_neighbours(table, use))
    monkeypatch.setenv(backends.PATIENCE_VARIABLE, "0")
    set_backend("auto")
    x = torch.randn(1, 8, 40, 40)
    assert select_backend(x, (3, 3), (8, 8)) is dense_ring_conv
    assert select_backend(x.to(memory_format=torch.channels_last), (3, 3), (8, 8)) is compiled_backend
    # a net asks before its first layer, whatever it is given
    assert prefers_channels_last(x, (3, 3), (8, 8))
    assert prefers_channels_last(x[:, :1], (3, 3), (8, 8))
    assert not prefers_channels_last(x[..., :8], (3, 3), (8, 8))
    set_backend("dense")
    assert not prefers_channels_last(x, (3, 3), (8, 8))
    set_backend("auto")


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_only_float32_on_a_measured_device_is_compiled(auto, monkeypatch, device, dtype):
    monkeypatch.setenv(backends.PATIENCE_VARIABLE, "0")
    x = torch.zeros(1, 32, 40, 40, device=device, dtype=dtype)
    fast = device == "cpu" and dtype == torch.float32
    assert select_backend(x, (3, 3), (32, 32)) is (compiled_backend if fast else dense_ring_conv)
    with torch.autocast("cpu", torch.bfloat16):
        assert select_backend(x, (3, 3), (32, 32)) is dense_ring_conv


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_gpu_has_kernels_for_what_was_measured_on_it(auto, monkeypatch, dtype):
    monkeypatch.setenv(backends.PATIENCE_VARIABLE, "0")
    with FakeTensorMode():
        x = torch.zeros(1, 32, 40, 40, device="cuda", dtype=dtype)
    faster = dense_ring_conv if dtype == torch.float64 else triton_backend
    assert select_backend(x, (3, 3), (32, 32)) is faster
    assert select_backend(x[..., :8], (3, 3), (32, 32)) is dense_ring_conv
    # strides and harmonic layers were not
    assert select_backend(x, (3, 3), (32, 32), (2, 1)) is dense_ring_conv
    assert select_backend(x, (3, 3), (32, 32), angular=True) is dense_ring_conv
    assert not prefers_channels_last(x, (3, 3), (32, 32))


@pytest.mark.parametrize(("autocast", "faster"), [(torch.bfloat16, True), (torch.float16, False)])
def test_under_autocast_its_precision_counts(auto, monkeypatch, autocast, faster):
    monkeypatch.setenv(backends.PATIENCE_VARIABLE, "0")
    monkeypatch.setattr(
        backends, "crossover", lambda device, precision, use: 1 if precision == torch.bfloat16 else None
    )
    with FakeTensorMode():
        x = torch.zeros(1, 32, 40, 40, device="cuda")
    assert select_backend(x, (3, 3), (32, 32)) is dense_ring_conv
    # torch turns autocast on a GPU off where there is none
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", {"cuda": autocast}.get)
    assert select_backend(x, (3, 3), (32, 32)) is (triton_backend if faster else dense_ring_conv)
    assert select_backend(x.double(), (3, 3), (32, 32)) is dense_ring_conv


def test_a_gpu_is_waited_for_at_its_own_rate(auto, monkeypatch):
    monkeypatch.setenv(backends.PATIENCE_VARIABLE, "1")
    with FakeTensorMode():
        x = torch.zeros(1, 32, 40, 40, device="cuda")
    assert select_backend(x, (3, 3), (32, 32)) is dense_ring_conv
    on_gpu, backends._waiting.seconds = backends._waiting.seconds, 0.0
    select_backend(torch.zeros(1, 32, 40, 40), (3, 3), (32, 32))
    assert 0 < on_gpu < backends._waiting.seconds / 100


def test_gpus_go_by_their_model_and_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", {torch.device("cuda", 1): "NVIDIA A"}.get)
    assert device_kind(torch.device("cuda", 1), torch.bfloat16) == "cuda bfloat16 NVIDIA A"


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_devices_without_kernels_have_no_crossover(device):
    assert crossover(torch.device(device), torch.float32, Use((9, 9), (64, 64))) is None


def test_patience_that_is_no_number_is_one_sentence(auto, monkeypatch):
    monkeypatch.setenv(backends.PATIENCE_VARIABLE, "soon")
    with pytest.raises(ConfigurationError, match=r"^MONAI_GMR_PATIENCE=soon is no number: give seconds\.$"):
        select_backend(torch.zeros(1, 32, 40, 40), (3, 3), (32, 32))


@pytest.mark.parametrize("kind", json.loads(CROSSOVERS.read_text()))
def test_the_table_has_a_row_for_every_point_that_the_script_measures(kind):
    rows = json.loads(CROSSOVERS.read_text())[kind]["rows"]
    device, precision = kind.split()[:2]
    grid = app.GRIDS[device]
    assert precision in grid.precisions
    points = [Point(*(row[name] for name in Point._fields)) for row in rows]
    # groups and strides were not measured on every kind
    plain = [each for each in app.make_points(grid) if each.width_per_group == each.channels and each.stride == 1]
    assert points in (app.make_points(grid), plain)
    for point, row in zip(points, rows):
        shapes = list(app.sizes_of(point, grid))
        assert row["voxels"] == [shape[0] * shape[2] ** point.dims for shape in shapes]
        assert len(row["forward"]) == len(row["step"]) == len(shapes)
    for gradients in (False, True):
        table = read_crossovers(kind, gradients)
        assert set(table) == set(app.make_points(grid))
        assert any(table.values())


def test_a_cpu_that_was_not_measured_goes_by_what_holds_on_all_that_were():
    kinds = [kind for kind in json.loads(CROSSOVERS.read_text()) if kind.startswith("cpu float32 ")]
    others = [read_crossovers(kind) for kind in kinds]
    for point, least in read_crossovers("cpu float32 of tomorrow").items():
        sizes = [table[point] for table in others]
        assert least == (None if None in sizes else max(sizes))
    assert any(read_crossovers("cpu float32 of tomorrow").values())
    assert read_crossovers("cpu bfloat16 of tomorrow") == {}


def test_what_was_not_measured_on_a_cpu_goes_by_what_holds_on_all_where_it_was(tmp_path):
    a, b, c = Point(2, 3, 8, 8), Point(2, 3, 8, 1), Point(2, 5, 8, 8)
    rows = lambda **ratios: [  # noqa: E731
        {**point._asdict(), "voxels": [10, 99], "forward": [1.5, 1.5], "step": ratios[name]}
        for name, point in {"a": a, "b": b, "c": c}.items()
        if name in ratios
    ]
    fast, slow, large = [0.1, 0.1], [0.1, 1.1], [1.1, 0.1]
    kinds = {"cpu half X": rows(a=fast, b=large, c=fast), "cpu half Y": rows(a=large, c=slow)}
    kinds |= {"cuda half X": rows(a=fast), "cpu full X": rows(a=slow)}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({kind: {"rows": each} for kind, each in kinds.items()}))
    assert read_crossovers("cpu half X", path=path) == {a: 10, b: 99, c: 10}
    assert read_crossovers("cpu half Y", path=path) == {a: 99, b: 99, c: None}
    assert read_crossovers("cpu half Z", path=path) == {a: 99, b: 99, c: None}
    assert read_crossovers("cpu half X", gradients=False, path=path) == dict.fromkeys((a, b, c))
    assert read_crossovers("cuda half Z", path=path) == {a: 10}
    assert read_crossovers("cuda full X", path=path) == {}


OWN = device_kind(torch.device("cpu"), torch.float32)


@pytest.mark.skipif(kernels.load_kernels() is None, reason="no kernels were built")
def test_the_script_replaces_the_rows_of_its_device_only(tmp_path, capsys):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"cuda": {"rows": []}, OWN: {"rows": None}}))
    assert app.main(["--quick", "--repeats", "1", "--output", str(path)]) == 0
    content = json.loads(path.read_text())
    assert content["cuda"] == {"rows": []}
    rows = [(row["dims"], row["channels_last"], row["stride"], row["transposed"]) for row in content[OWN]["rows"]]
    kinds = [(1, False), (2, False), (2, True)]
    assert rows == [(dims, last, *kind) for kind in kinds for last in (False, True) for dims in (2, 3)]
    assert f"{OWN}\n2D k=3 C2: 64: " in capsys.readouterr().out
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU does not interpret")
def test_kernels_of_a_gpu_are_measured_in_each_precision(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    path = tmp_path / "table.json"
    monkeypatch.setitem(app.KERNELS, "cpu", "triton")
    monkeypatch.setitem(app.GRIDS, "cpu", app.GRIDS["cuda"])
    monkeypatch.setattr(app, "QUICK", app.QUICK._replace(windows={2: (3,)}, sizes={2: ((4, 1),)}))
    assert app.main(["--quick", "--repeats", "1", "--output", str(path)]) == 0
    content = json.loads(path.read_text())
    kinds = [device_kind(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
    assert list(content) == kinds
    assert all(ratio > 0 for kind in kinds for row in content[kind]["rows"] for ratio in row["forward"] + row["step"])


def test_there_is_no_table_where_kernels_do_not_run(tmp_path, monkeypatch, capsys):
    from monai_gmr.ops.cpu import backend as module

    path = tmp_path / "table.json"
    monkeypatch.setattr(module, "supports", lambda x: False)
    assert app.main(["--quick", "--output", str(path)]) == 2
    assert capsys.readouterr().err.endswith("crossovers: backend 'cpp' left its work to 'dense'.\n")
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repeats", "0"], "repeats=0 is out of range: give 1 or more."),
        (["--precisions", "float16"], "precision on cpu='float16' is unknown: use one of 'float32'."),
        (["--device", "mps"], "device=mps cannot be used: give cpu, cuda or cuda:NUMBER."),
    ],
)
def test_errors_of_use_are_one_sentence(options, message, capsys):
    assert app.main(options) == 2
    assert capsys.readouterr().err == f"crossovers: {message}\n"
