"""Backend "auto" uses a device's kernels from the measured thresholds; unmeasured processors use the largest threshold."""

import platform

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from monai_gmr import set_backend
from monai_gmr.apps import benchmark_thresholds as app
from monai_gmr.apps.benchmark import main
from monai_gmr.ops import backend as backends
from monai_gmr.ops.backend import prefers_channels_last, select_backend
from monai_gmr.ops.call import Call, Orders
from monai_gmr.ops.cpu import library as kernels
from monai_gmr.ops.thresholds import (
    FASTER,
    Point,
    Row,
    least_of_neighbours,
    least_voxels,
    merge_rows,
    processor_of,
    read_thresholds,
    threshold,
    thresholds_of,
)


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0.01, 3)), max_size=6, unique_by=lambda pair: pair[0]))
def test_from_the_threshold_on_all_ratios_are_small(pairs):
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
        # depthwise convolutions use depthwise rows
        ((3, 3), (16, 16), 16, 7),
        ((3, 3), (64, 64), 64, 5),
        ((3, 3), (4, 4), 4, None),
        # a depthwise convolution with several outputs uses both
        ((3, 3), (32, 64), 32, 50),
        ((3, 3), (32, 128), 32, 30),
        ((3, 3), (33, 33), 11, 50),
        ((3, 3), (8, 32), 2, 300),
        ((3, 3), (16, 32), 8, None),
        ((5, 5), (32, 32), 32, 5),
    ],
)
def test_all_neighbours_in_the_table_have_to_be_faster(kernel_size, channels, groups, expected):
    assert least_of_neighbours(TABLE, Call(kernel_size, channels, groups=groups)) == expected


# 32 channels
ORDERS = Orders((16, 8), (0, 8), (0, 2))


@pytest.fixture
def auto(monkeypatch):
    half = {torch.float16, torch.bfloat16}
    measured = {"cpu": {torch.float32}, "cuda": {torch.float32, *half}}

    def threshold(call):
        if call.device.type not in measured or call.precision not in measured[call.device.type]:
            return None
        return least_of_neighbours(TABLE, call)

    monkeypatch.setattr(backends, "threshold", threshold)
    set_backend("auto")


def chosen(x, channels=(32, 32), **more):
    """The name of the backend that runs a convolution of an input."""
    return select_backend(Call.of_input(x, (3, 3), channels, **more)).name


needs_kernels = pytest.mark.skipif(kernels.load_kernels() is None, reason="no kernels were built")


@needs_kernels
def test_the_same_call_takes_the_same_backend_from_the_first_on(auto):
    sizes = [(40, 40), (20, 20), (40, 40), (10, 99), (10, 101), (40, 40)]
    names = [chosen(torch.zeros(1, 32, *size)) for size in sizes]
    assert names == ["cpp", "dense", "cpp", "dense", "cpp", "cpp"]


@needs_kernels
@pytest.mark.parametrize(
    ("stride", "transposed", "groups", "expected"),
    [
        ((1, 1), False, 1, 1000),
        # "dense" gains from skipping voxels along one axis, too
        ((2, 2), False, 1, 70),
        ((1, 2), False, 1, 70),
        ((3, 1), False, 1, None),
        ((2, 2), True, 1, 90),
        ((2, 1), True, 1, 90),
        # without a stride it is an ordinary convolution
        ((1, 1), True, 1, 1000),
        ((2, 2), False, 2, None),
    ],
)
def test_strides_and_transposed_convolutions_go_by_their_own(auto, monkeypatch, stride, transposed, groups, expected):
    table = {Point(2, 3, 32, 32): 1000, Point(2, 3, 32, 32, False, 2): 70, Point(2, 3, 32, 32, False, 2, True): 90}
    monkeypatch.setattr(backends, "threshold", lambda call: least_of_neighbours(table, call))
    for length in (60, 70, 80, 90, 100, 999, 1000):
        x = torch.zeros(1, 32, 1, length)
        faster = expected is not None and length >= expected
        name = chosen(x, stride=stride, groups=groups, transposed=transposed, padding=(1, 1))
        assert name == ("cpp" if faster else "dense")


@needs_kernels
def test_a_harmonic_layer_with_a_stride_is_left_to_dense(auto, monkeypatch):
    monkeypatch.setattr(backends, "threshold", lambda call: 1)
    x = torch.zeros(1, 32, 40, 40)
    assert chosen(x, angular=True, orders=ORDERS) == "cpp"
    assert chosen(x, angular=True, orders=ORDERS, stride=(1, 2)) == "dense"


@needs_kernels
def test_an_image_with_channels_last_has_thresholds_of_its_own(monkeypatch):
    table = {Point(2, 3, 8, 8): None, Point(2, 3, 8, 8, True): 1000}
    monkeypatch.setattr(backends, "threshold", lambda call: least_of_neighbours(table, call))
    set_backend("auto")
    x = torch.randn(1, 8, 40, 40)
    assert chosen(x, (8, 8)) == "dense"
    assert chosen(x.to(memory_format=torch.channels_last), (8, 8)) == "cpp"
    # a net checks before its first layer, for every input format
    assert prefers_channels_last(x, (3, 3), (8, 8))
    assert prefers_channels_last(x[:, :1], (3, 3), (8, 8))
    assert not prefers_channels_last(x[..., :8], (3, 3), (8, 8))
    with set_backend("dense"):
        assert not prefers_channels_last(x, (3, 3), (8, 8))
    # the harmonic convolutions of a net use their own rows
    table |= {Point(2, 3, 8, 8, True, angular=True): 2000}
    assert not prefers_channels_last(x, (3, 3), (8, 8), harmonic=True)
    assert prefers_channels_last(torch.cat([x, x]), (3, 3), (8, 8), harmonic=True)


@needs_kernels
@pytest.mark.parametrize("kind", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_only_float32_on_a_measured_device_runs_in_kernels(auto, kind, dtype):
    x = torch.zeros(1, 32, 40, 40, device=kind, dtype=dtype)
    fast = kind == "cpu" and dtype == torch.float32
    assert chosen(x) == ("cpp" if fast else "dense")
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen(x) == "dense"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_gpu_has_kernels_for_what_was_measured_on_it(auto, dtype):
    pytest.importorskip("triton")
    if not torch.backends.cuda.is_built():
        pytest.skip("torch is built without CUDA")
    with FakeTensorMode():
        x = torch.zeros(1, 32, 40, 40, device="cuda", dtype=dtype)
    assert chosen(x) == ("dense" if dtype == torch.float64 else "triton")
    assert chosen(x[..., :8]) == "dense"
    # strides and harmonic layers were not measured
    assert chosen(x, stride=(2, 1)) == "dense"
    assert chosen(x, angular=True, orders=ORDERS) == "dense"
    assert not prefers_channels_last(x, (3, 3), (32, 32))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, 500),
        ({"groups": 2}, None),
        ({"stride": (1, 2)}, None),
        # used by no layer
        ({"orders": None}, None),
    ],
)
def test_harmonic_layers_on_a_gpu_go_by_rows_of_their_own(auto, monkeypatch, more, expected):
    """Their rows are found by channels, not by responses; radial rows do not apply to them."""
    pytest.importorskip("triton")
    if not torch.backends.cuda.is_built():
        pytest.skip("torch is built without CUDA")
    table = {Point(2, 3, 32, 32): 1, Point(2, 3, 32, 32, angular=True): 500, Point(2, 3, 128, 128, angular=True): None}
    monkeypatch.setattr(backends, "threshold", lambda call: least_of_neighbours(table, call))
    known = {"angular": True, "orders": ORDERS} | more
    for length in (499, 500):
        with FakeTensorMode():
            x = torch.zeros(1, 32, 1, length, device="cuda")
        # 32 channels have 48 responses
        name = chosen(x, (32, 48), padding=(1, 1), **known)
        assert name == ("triton" if expected is not None and length >= expected else "dense")
        assert chosen(x, padding=(1, 1)) == "triton"


def test_harmonic_layers_on_a_cpu_go_by_their_rows_and_without_them_by_the_radial_ones():
    """On some processors, radial kernels of a small window are slower than "dense", but harmonic ones take a fifth of its time."""
    radial = {Point(2, 3, 32, 32): None, Point(2, 3, 32, 16): 70}
    own = {Point(2, 3, 32, 32, angular=True): 500}
    known = {"angular": True, "orders": ORDERS}
    assert least_of_neighbours(radial | own, Call((3, 3), (32, 48), **known)) == 500
    assert least_of_neighbours(own, Call((3, 3), (32, 48), **known)) == 500
    assert least_of_neighbours(radial | own, Call((3, 3), (32, 96), groups=2, **known)) == 70
    for table in (radial | own, radial):
        assert least_of_neighbours(table, Call((3, 3), (32, 32))) is None
    assert least_of_neighbours(radial, Call((3, 3), (32, 48), **known)) is None


@pytest.mark.parametrize("processor", sorted({row.processor for row in read_thresholds() if row.device == "cpu"}))
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("dims", "channels", "voxels"), [(3, 12, 32**3), (3, 16, 32**3), (2, 16, 2**16), (2, 24, 2**16)]
)
def test_the_table_knows_that_harmonic_layers_of_small_windows_are_faster_in_kernels(
    processor, last, dims, channels, voxels
):
    """With rows of radial layers, whose kernels are slower than "dense" in 2D, they took up to seven times as long."""
    table = thresholds_of("cpu", processor, "float32", True)
    orders = Orders((channels // 2, channels // 4, channels // 4), (0, 0, 0), (0, *((2, 2) if dims == 2 else (3, 5))))
    sizes = (3,) * dims, (channels, orders.num_responses())
    least = least_of_neighbours(table, Call(*sizes, angular=True, orders=orders, channels_last=last))
    assert least is not None
    assert least <= voxels
    if (dims, last) == (2, False):
        radial = least_of_neighbours(table, Call((3, 3), (channels, channels), channels_last=last))
        assert radial is None or radial > least


@pytest.mark.parametrize("processor", sorted({row.processor for row in read_thresholds() if row.device == "cpu"}))
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("channels", [128, 512])
def test_wide_harmonic_layers_on_small_images_take_kernels(processor, gradients, channels):
    """The deepest stage of a ResNet18: with rows of up to 32 channels only, it ran on "dense" in 3.4 times the kernels' time."""
    table = thresholds_of("cpu", processor, "float32", gradients)
    orders = Orders((channels // 2, channels // 4, channels // 4), (0, 0, 0), (0, 2, 2))
    least = least_of_neighbours(table, Call((5, 5), (channels, orders.num_responses()), angular=True, orders=orders))
    assert least is not None
    assert least <= 16 * 4 * 4


@pytest.mark.parametrize("kind", app.GRIDS)
def test_harmonic_layers_are_measured_at_every_window(kind):
    points = app.make_points(app.GRIDS[kind])
    assert {(p.dims, p.kernel_size) for p in points if p.angular} == {(p.dims, p.kernel_size) for p in points}
    assert not any(p.angular and (p.stride > 1 or p.width_per_group < p.channels) for p in points)


@pytest.mark.parametrize(("autocast", "faster"), [(torch.bfloat16, True), (torch.float16, False)])
def test_under_autocast_its_precision_counts(auto, monkeypatch, autocast, faster):
    pytest.importorskip("triton")
    monkeypatch.setattr(backends, "threshold", lambda call: 1 if call.precision == torch.bfloat16 else None)
    with FakeTensorMode():
        x = torch.zeros(1, 32, 40, 40, device="cuda")
    assert chosen(x) == "dense"
    # torch disables autocast for GPUs if there is none
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", {"cuda": autocast}.get)
    assert chosen(x) == ("triton" if faster else "dense")
    assert chosen(x.double()) == "dense"


def test_gpus_go_by_their_model(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", {torch.device("cuda", 1): "NVIDIA A"}.get)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert processor_of(torch.device("cuda", 1)) == "NVIDIA A"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert processor_of(torch.device("cuda", 1)) == "no GPU"


@pytest.mark.parametrize("kind", ["mps", "meta"])
def test_devices_without_kernels_have_no_threshold(kind):
    assert threshold(Call((9, 9), (64, 64), device=torch.device(kind))) is None


def test_a_block_has_its_own_backend():
    with set_backend("dense"):
        with set_backend("cpp"):
            assert backends.get_backend() == "cpp"
        assert backends.get_backend() == "dense"
    with pytest.raises(RuntimeError), set_backend("cpp"):
        raise RuntimeError
    assert backends.get_backend() == "auto"


KINDS = sorted({row[:3] for row in read_thresholds()})
OPTIONAL = {
    "groups": lambda point: point.width_per_group < point.channels,
    "strides": lambda point: point.stride > 1 and not point.transposed,
    "transposed": lambda point: point.transposed,
    "harmonic": lambda point: point.angular,
    "12 and 24 channels": lambda point: point.channels in (12, 24) and not point.angular,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_has_a_row_for_every_point_that_the_command_measures(kind):
    device, _, precision = kind
    grid = app.GRIDS[device]
    assert precision in grid.precisions
    points = [row.point for row in read_thresholds() if row[:3] == kind]
    # some points were not measured on every kind of processor
    left = {name for name, is_of in OPTIONAL.items() if not any(map(is_of, points))}
    assert points == [p for p in app.make_points(grid) if not any(OPTIONAL[name](p) for name in left)]
    for gradients in (False, True):
        table = thresholds_of(*kind, gradients)
        assert set(table) == set(app.make_points(grid))
        assert any(table.values())


@pytest.fixture
def x86(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    thresholds_of.cache_clear()
    yield
    thresholds_of.cache_clear()


def test_a_cpu_that_was_not_measured_goes_by_what_holds_on_all_that_were(x86):
    others = [thresholds_of(*kind, True) for kind in KINDS if kind[0] == "cpu" and kind[2] == "float32"]
    for point, least in thresholds_of("cpu", "of tomorrow", "float32", True).items():
        sizes = [table[point] for table in others]
        assert least == (None if None in sizes else max(sizes))
    assert any(thresholds_of("cpu", "of tomorrow", "float32", True).values())
    assert thresholds_of("cpu", "of tomorrow", "bfloat16", True) == {}


def test_other_cpus_than_x86_take_their_own_thresholds_alone(x86, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert processor_of(torch.device("cpu")).startswith("aarch64 ")
    assert thresholds_of("cpu", processor_of(torch.device("cpu")), "float32", True) == {}


def test_what_was_not_measured_on_a_cpu_goes_by_what_holds_on_all_where_it_was(x86, tmp_path):
    a, b, c = Point(2, 3, 8, 8), Point(2, 3, 8, 1), Point(2, 5, 8, 8, True)
    kinds = {("cpu", "X", "half"): {a: 10, b: 99, c: 10}, ("cpu", "Y", "half"): {a: 99, c: None}}
    d = Point(3, 3, 8, 8, angular=True)
    kinds |= {("cuda", "X", "half"): {a: 10, d: 20}, ("cuda", "Y", "half"): {a: 30}, ("cpu", "X", "full"): {a: None}}
    path, steps = tmp_path / "table.csv", True
    rows = [Row(*kind, point, None, step) for kind, table in kinds.items() for point, step in table.items()]
    path.write_text(merge_rows(path, rows))
    assert read_thresholds(path) == rows
    assert thresholds_of("cpu", "X", "half", steps, path) == {a: 10, b: 99, c: 10}
    assert thresholds_of("cpu", "Y", "half", steps, path) == {a: 99, b: 99, c: None}
    assert thresholds_of("cpu", "Z", "half", steps, path) == {a: 99, b: 99, c: None}
    assert thresholds_of("cpu", "X", "half", False, path) == dict.fromkeys((a, b, c))
    # the same on a GPU
    assert thresholds_of("cuda", "X", "half", steps, path) == {a: 10, d: 20}
    assert thresholds_of("cuda", "Z", "half", steps, path) == {a: 30, d: 20}
    assert thresholds_of("cuda", "X", "full", steps, path) == {}


OWN = ("cpu", processor_of(torch.device("cpu")), "float32")


@needs_kernels
def test_the_command_replaces_the_rows_of_its_device_only(tmp_path, capsys):
    path, other = tmp_path / "table.csv", Row("cuda", "A", "float32", Point(2, 3, 8, 8), None, 5)
    path.write_text(merge_rows(path, [other, Row(*OWN, Point(2, 99, 8, 8), None, None)]))
    assert main(["thresholds", "--quick", "--repeats", "1", "--output", str(path)]) == 0
    first, *rows = read_thresholds(path)
    assert first == other
    assert {row[:3] for row in rows} == {OWN}
    points = [(row.point.dims, row.point.channels_last, *row.point[5:]) for row in rows]
    kinds = [(1, False, False), (2, False, False), (2, True, False), (1, False, True)]
    assert points == [(dims, last, *kind) for kind in kinds for last in (False, True) for dims in (2, 3)]
    assert f"{' '.join(OWN)}\n2D k=3 C2: 64: " in capsys.readouterr().out
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("options", [["--layers", "radial"], ["--layers", "harmonic"], ["--dims", "2"]])
def test_rows_keep_their_places(tmp_path, monkeypatch, options):
    path, points = tmp_path / "table.csv", app.make_points(app.GRIDS["cpu"])
    path.write_text(merge_rows(path, [Row(*OWN, each, 7, 7) for each in points]))
    monkeypatch.setattr(app, "measure_ratios", lambda *a: (0.1, 0.1))
    assert main(["thresholds", *options, "--output", str(path)]) == 0
    rows = read_thresholds(path)
    assert [row.point for row in rows] == points
    assert {row.forward == 7 for row in rows} == {False, True}


def test_rows_of_layers_that_are_not_measured_stay(tmp_path, monkeypatch, capsys):
    path, old = tmp_path / "table.csv", {False: Point(2, 99, 8, 8), True: Point(2, 99, 8, 8, angular=True)}
    monkeypatch.setattr(app, "measure_ratios", lambda *a: (0.1, 0.1))
    for layer, angular in (("radial", False), ("harmonic", True)):
        path.write_text(merge_rows(path, [Row(*OWN, each, 7, 7) for each in old.values()]))
        assert main(["thresholds", "--quick", "--repeats", "1", "--layers", layer, "--output", str(path)]) == 0
        points = [row.point for row in read_thresholds(path)]
        assert old[not angular] in points
        assert old[angular] not in points
        assert {each.angular for each in points if each.kernel_size == 3} == {angular}
    assert main(["thresholds", "--quick", "--layers", "plain", "--output", str(path)]) == 2
    assert "layers='plain' is unknown: use one of 'radial', 'harmonic'." in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU does not interpret")
def test_kernels_of_a_gpu_are_measured_in_each_precision(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    path = tmp_path / "table.csv"
    monkeypatch.setitem(app.KERNELS, "cpu", "triton")
    monkeypatch.setitem(app.GRIDS, "cpu", app.GRIDS["cuda"])
    monkeypatch.setattr(app, "QUICK", app.QUICK._replace(windows={2: (2,)}, sizes={2: ((4, 1),)}, strided=()))
    measured, original = [], app.measure_ratios
    monkeypatch.setattr(app, "measure_ratios", lambda *a: measured.append(original(*a)) or measured[-1])
    assert main(["thresholds", "--quick", "--repeats", "1", "--output", str(path)]) == 0
    assert list(dict.fromkeys(row.precision for row in read_thresholds(path))) == ["float32", "float16", "bfloat16"]
    assert all(ratio > 0 for ratios in measured for ratio in ratios)
    assert {row.point.angular for row in read_thresholds(path)} == {False, True}


def test_an_interrupted_run_keeps_its_rows_and_those_that_it_has_not_reached(tmp_path, monkeypatch, capsys):
    path, calls = tmp_path / "table.csv", []
    old = [Row(*OWN, Point(dims, 3, 2, 2, last), 7, 7) for dims in (2, 3) for last in (False, True)]
    path.write_text(merge_rows(path, old))

    def measure(point, *others):
        calls.append(point)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return 0.1, 2.0

    monkeypatch.setattr(app, "measure_ratios", measure)
    run = ["thresholds", "--quick", "--repeats", "1", "--output", str(path)]
    assert main([*run, "--dims", "3", "2"]) == 130
    assert [(row.point.dims, row.point.channels_last, row.forward, row.step) for row in read_thresholds(path)] == [
        *((2, True, 7, 7), (3, True, 7, 7)),
        *((3, False, 64, None), (2, False, 64, None)),
    ]
    monkeypatch.setattr(app, "measure_ratios", lambda *a: (2.0, 2.0))
    assert main([*run, "--dims", "3"]) == 0
    rows = read_thresholds(path)
    assert [row.forward for row in rows if row.point.dims == 2] == [7, 64]
    assert {row.forward for row in rows if row.point.dims == 3} == {None}
    assert main([*run, "--dims", "4"]) == 2
    assert "dims=4 is unknown" in capsys.readouterr().err


def test_there_is_no_table_where_kernels_do_not_run(tmp_path, monkeypatch, capsys):
    path = tmp_path / "table.csv"
    monkeypatch.setattr(kernels, "load_kernels", lambda: None)
    assert main(["thresholds", "--quick", "--output", str(path)]) == 2
    assert capsys.readouterr().err.endswith("benchmark: backend 'cpp' left its work to 'dense'.\n")
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
    assert main(["thresholds", *options]) == 2
    assert capsys.readouterr().err == f"benchmark: {message}\n"
