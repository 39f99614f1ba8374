"""Arguments of another kind raise a one-sentence error: each argument of everything public is given impossible values."""

import importlib
import inspect
import math
import sys
from collections.abc import Collection, Hashable
from typing import get_type_hints

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from monai_gmr.annotations import Device, Seed, kind_of
from monai_gmr.data import PredictionLayout, make_phantom, medmnist_file, medmnist_flags
from monai_gmr.handlers import (
    AnnealRests,
    BestCheckpoint,
    LatestCheckpoint,
    SeedEpochs,
    SymmetryThresholdHandler,
    from_engine_in_ball,
)
from monai_gmr.inferers import GMRSlidingWindowInferer, SymmetryInferer, rotate_image
from monai_gmr.metrics import broken_symmetry, check_equivariance, equivariance_error
from monai_gmr.networks import convert_to_gmr, layers
from monai_gmr.networks.annealing import RestPenalty
from monai_gmr.networks.blocks import GMRConvolution, GMRResidualUnit, GMRResNetBlock
from monai_gmr.networks.nets import GMRResNet, GMRUNet
from monai_gmr.networks.symmetry_penalty import SymmetryThreshold
from monai_gmr.networks.utils import parameter_groups
from monai_gmr.rotation_report import PrepareBatchView
from monai_gmr.symmetry import (
    angle_views,
    group_views,
    make_views,
    random_views,
    rotation_matrix,
    transform_image,
)
from monai_gmr.transforms import (
    GridSymmetry,
    GridSymmetryd,
    LoadCased,
    RandGridSymmetry,
    RandGridSymmetryd,
    RotateAboutAxis,
    RotateAboutAxisd,
    check_image,
    check_label,
    rotation_transforms,
)
from monai_gmr.utils import ConfigurationError

# as YAML reads them, and an array
ODD_VALUES = [
    "3",
    "1e-4",
    "x",
    "",
    2.5,
    -0.5,
    math.nan,
    math.inf,
    -1,
    0,
    True,
    None,
    [],
    [1, 2, 3, 4],
    ["a", "b"],
    [None],
    {"a": 1},
    {"angles": True},
    np.array([1, 2]),
]
IMAGE = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
FIELDS = torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
CONV = {"in_channels": 2, "out_channels": 4, "kernel_size": 3}
GROUP_CONV = {"in_channels": 8, "out_channels": 8, "kernel_size": 3}


def on_image(made):
    return made(IMAGE)


def on_fields(made):
    return made(FIELDS)


def on_volume(made):
    return made({"image": IMAGE[0]})


def plain_net():
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(3, 2, 3, padding=1)
    )


def with_optimizer(net, name="net"):
    return {name: net, "optimizer": torch.optim.SGD(net.parameters(), lr=0.1)}


def annealed_net():
    return convert_to_gmr(plain_net(), weights="anneal")


def limited_net():
    return GMRUNet(2, 1, 2, features=(8, 8), conv=("gmr_harmonic", {"keeps": "4"}))


# the callable, valid arguments, and what to do with the result
CASES = [
    (layers.GMRConv2d, CONV, on_image),
    (layers.GMRHarmonicConv2d, CONV, on_image),
    (layers.SREConv2d, CONV, on_image),
    (layers.GMRConvTranspose2d, CONV, on_image),
    (layers.GMRCentredConv2d, CONV, on_image),
    (layers.GMRCentredHarmonicConv2d, CONV, on_image),
    (layers.GMRResizedConv2d, CONV | {"factors": (2, 2), "extent": (2, 2), "padding": 1}, on_image),
    (layers.PointGroupConv2d, GROUP_CONV | {"group": "4mm"}, on_fields),
    (layers.PointGroupConvTranspose2d, GROUP_CONV | {"group": "4mm"}, on_fields),
    (layers.PartialGroupConv2d, GROUP_CONV | {"group": "4mm"}, on_fields),
    (layers.PartialGroupElements, {"spatial_dims": 2, "group": "4mm"}, lambda made: made()),
    (layers.GMRAvgPool, {"spatial_dims": 2}, on_image),
    (layers.GMRMaxPool, {"spatial_dims": 2}, on_image),
    (layers.GMRDownsample, {"spatial_dims": 2}, on_image),
    (layers.GMRUpsample, {"spatial_dims": 2}, on_image),
    (layers.GMRInterpolate, {"scale_factor": (2, 2)}, on_image),
    (layers.GMRSubpixelMean, {"scale_factor": (2, 2)}, on_fields),
    (
        layers.PointGroupDense,
        {"in_features": 8, "out_features": 8, "group": "4mm", "spatial_dims": 2},
        lambda made: made(torch.ones(1, 8)),
    ),
    (layers.PointGroupDropout, {"spatial_dims": 2, "group": "4mm"}, on_fields),
    (layers.PointGroupNorm, {"spatial_dims": 2, "num_features": 8, "group": "4mm"}, on_fields),
    (layers.PointGroupPool, {"spatial_dims": 2, "group": "4mm"}, on_fields),
    (layers.PointGroupRestrict, {"spatial_dims": 2, "group": "4mm", "subgroup": "4"}, on_fields),
    (layers.set_temperature, {"net": plain_net(), "progress": 0.5}, None),
    (GMRConvolution, {"spatial_dims": 2, "in_channels": 2, "out_channels": 4}, on_image),
    (GMRResidualUnit, {"spatial_dims": 2, "in_channels": 2, "out_channels": 4}, on_image),
    (GMRResNetBlock, {"spatial_dims": 2, "in_channels": 2, "channels": 4, "kernel_size": 3}, on_image),
    (
        GMRResNet,
        {"spatial_dims": 2, "n_input_channels": 2, "num_classes": 3, "layers": (1, 1), "width": 8, "kernel_sizes": 3},
        lambda made: made(torch.cat([IMAGE, IMAGE])),
    ),
    (GMRUNet, {"spatial_dims": 2, "in_channels": 2, "out_channels": 3, "features": (8, 8)}, on_image),
    (convert_to_gmr, {"module": plain_net()}, on_image),
    (parameter_groups, {"net": plain_net(), "weight_decay": 0.1}, None),
    (SymmetryThreshold, with_optimizer(limited_net()) | {"strength": 0.1}, None),
    (RestPenalty, with_optimizer(annealed_net()), None),
    (GridSymmetry, {"element": "4+"}, lambda made: made(IMAGE[0])),
    (GridSymmetryd, {"keys": "image", "element": "4+"}, on_volume),
    (RandGridSymmetry, {}, lambda made: made(IMAGE[0])),
    (RandGridSymmetryd, {"keys": "image"}, on_volume),
    (RotateAboutAxis, {"angle": 30.0}, lambda made: made(IMAGE[0])),
    (RotateAboutAxisd, {"keys": "image", "angle": 30.0}, on_volume),
    (LoadCased, {"keys": "image", "spatial_dims": 2, "in_channels": 1}, None),
    (rotation_transforms, {"augmentation": "rotation", "keys": "image", "spatial_dims": 2}, None),
    (check_image, {"image": IMAGE[0], "spatial_dims": 2, "in_channels": 2}, None),
    (check_label, {"label": IMAGE[0, :1].round(), "out_channels": 2}, None),
    (SymmetryInferer, {}, lambda made: made(IMAGE, plain_net())),
    (GMRSlidingWindowInferer, {"roi_size": 4}, lambda made: made(IMAGE, plain_net())),
    (rotate_image, {"x": IMAGE, "matrix": rotation_matrix(2, 30.0)}, None),
    (equivariance_error, {"net": plain_net(), "x": IMAGE}, None),
    (check_equivariance, {"net": plain_net(), "spatial_size": (8, 8)}, None),
    (broken_symmetry, {"net": limited_net()}, None),
    (make_phantom, {"spatial_shape": (16, 16)}, None),
    (PrepareBatchView, {}, None),
    (BestCheckpoint, {"save_dir": "models", "network": plain_net()}, None),
    (LatestCheckpoint, {"save_dir": "models", "save_dict": {}}, None),
    (SymmetryThresholdHandler, with_optimizer(limited_net(), "network") | {"strength": 0.1, "output_dir": "out"}, None),
    (AnnealRests, with_optimizer(annealed_net(), "network") | {"epochs": 2}, None),
    (PredictionLayout, {"images": ["a.nii.gz"], "output_dir": "out"}, None),
    (medmnist_file, {"dataset_dir": "data", "flag": "bloodmnist"}, None),
    (medmnist_flags, {"spatial_dims": 2}, None),
    (SeedEpochs, {"seed": 0}, lambda made: made(Engine(lambda engine, batch: None))),
    (from_engine_in_ball, {"keys": "pred"}, lambda made: made([{"pred": IMAGE[0]}])),
    (make_views, {"spec": "group", "spatial_dims": 2}, None),
    (group_views, {"spatial_dims": 2}, None),
    (angle_views, {"spatial_dims": 2, "step": 30.0}, None),
    (random_views, {"count": 3, "spatial_dims": 2}, None),
    (rotation_matrix, {"spatial_dims": 2, "degrees": 30.0}, None),
    (transform_image, {"x": IMAGE, "matrix": rotation_matrix(2, 30.0)}, None),
]
# arguments whose odd values reach a user's function, or get a one-sentence error of MONAI: a key that no image has
PASSED_ON = {"keys", "with_coord"}


def answer(call, arguments, then):
    """``None``, or the unexpected outcome of a call."""
    try:
        made = call(**arguments)
        if then is not None:
            then(made)
    except ConfigurationError as error:
        return None if "\n" not in str(error) else repr(error)
    except Exception as error:
        return repr(error)
    return None


@pytest.mark.parametrize(("call", "arguments", "then"), CASES, ids=[case[0].__name__ for case in CASES])
@pytest.mark.filterwarnings("ignore")
def test_odd_values_end_in_a_sentence(call, arguments, then, tmp_path, monkeypatch):
    """Each argument with each odd value: the call works, or raises a ConfigurationError of one line."""
    monkeypatch.chdir(tmp_path)
    made = call(**arguments)
    if then is not None:
        then(made)
    named = [
        parameter.name
        for parameter in inspect.signature(call).parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    tracebacks = {
        f"{name}={value!r}": found
        for name in named
        if name not in PASSED_ON
        for value in ODD_VALUES
        if (found := answer(call, arguments | {name: value}, then)) is not None
    }
    assert tracebacks == {}


PUBLIC = ["networks.layers", "networks.blocks", "networks.nets", "transforms", "inferers", "handlers", "data"]
# with the arguments and errors of the corresponding class of torch or MONAI
OF_OTHERS = {"GMRInstanceNorm2d", "GMRInstanceNorm3d", "GMRADN", "SameGridWriter"}


def own_init(kind):
    """The class's ``__init__`` if it is from this library, or ``None``."""
    found = next(each for each in kind.__mro__ if "__init__" in vars(each))
    return vars(found)["__init__"] if found.__module__.startswith("monai_gmr.") else None


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_class_compares_its_arguments(package):
    """Classes that configs make refuse arguments of another kind: ``checked_arguments`` wraps their ``__init__``."""
    module = importlib.import_module(f"monai_gmr.{package}")
    classes = [each for name in module.__all__ if isinstance(each := getattr(module, name), type)]
    unchecked = [
        kind.__name__
        for kind in classes
        if kind.__name__ not in OF_OTHERS
        and not issubclass(kind, tuple)
        and (init := own_init(kind)) is not None
        and len(inspect.signature(init).parameters) > 1
        and inspect.unwrap(init) is init
    ]
    assert unchecked == []


def checked_functions():
    """All functions of imported modules of the library that check their arguments."""
    for name, module in list(sys.modules.items()):
        if name.startswith("monai_gmr."):
            for each in vars(module).values():
                if getattr(each, "__module__", None) == name:
                    function = vars(each).get("__init__") if isinstance(each, type) else each
                    if inspect.isfunction(function) and inspect.unwrap(function) is not function:
                        yield function


def test_all_annotations_can_be_read():
    """No annotation of a checked argument uses a name that is only imported for type checkers."""
    functions = list(checked_functions())
    assert len(functions) > 60
    for function in functions:
        get_type_hints(inspect.unwrap(function))


@pytest.mark.parametrize(
    ("hint", "right", "wrong", "words"),
    [
        (int, [1, -1, np.int64(2), torch.tensor(3)], [1.0, True, "1", None, [1]], "a whole number"),
        (float, [1, 0.5, np.float32(1), math.inf, torch.tensor(0.5)], [True, "1", 1j, [1.0]], "a number"),
        (bool, [True, False, np.True_, 0, 1, None, torch.tensor(True)], [2, "yes", 1.0], "True or False"),
        (
            int | list[int] | None,
            [1, [1, 2], (1, 2), range(2), np.arange(2), torch.arange(2), None],
            ["12", [1.5], {1: 2}, [None], np.array([0.5]), {1, 2}, {1: 2}.keys()],
            "a whole number, a list of whole numbers or None",
        ),
        (tuple[int, float], [(1, 0.5), [1, 2]], [(1,), (0.5, 1), 1], "a pair of a whole number and a number"),
        (dict[str, int], [{}, {"a": 1}], [{"a": "b"}, {1: 1}, ["a"]], "a dictionary of names to whole numbers"),
        (
            torch.device | str | None,
            ["cpu", torch.device("meta"), "cuda:7", None],
            ["gpu", 1.5, ["cpu"]],
            "a device, such",
        ),
        (Device, ["cpu", torch.device("meta")], ["cuda:99", "gpu", None], "a device of this machine"),
        (Seed, [0, np.uint64(3), 2**63 - 1], [-1, 2**63, 1.0, None], "a whole number from 0"),
        (Collection[Hashable] | Hashable, ["a", ["a"], {"a", "b"}, ("a", 1)], [[["a"]], {"a": 1}], ""),
        (torch.dtype, [torch.float16], ["float16", np.float32, None], "a torch.dtype"),
        (torch.nn.Module, [torch.nn.ReLU()], [torch.nn.ReLU, "relu"], "a torch.nn.Module"),
    ],
)
def test_values_of_an_annotation(hint, right, wrong, words):
    """A kind takes the numbers and lists of Python, NumPy and torch, and names what is possible."""
    kind = kind_of(hint)
    assert [kind.passes(value) for value in right] == [True] * len(right)
    assert [kind.passes(value) for value in wrong] == [False] * len(wrong)
    assert kind.one.startswith(words)


TURN = [[0.0, -1.0], [1.0, 0.0]]
# values that torch, MONAI or NumPy also take
TAKEN = {
    "no activation and no norm": lambda: GMRUNet(2, 1, 2, features=(4, 8), act=None, norm=None),
    "a NumPy dropout": lambda: GMRUNet(2, 1, 2, features=(4, 8), dropout=np.float32(0.1)),
    "no bias": lambda: layers.GMRConv2d(1, 2, 3, bias=None),
    "a matrix of lists": lambda: rotate_image(IMAGE, TURN),
    "a matrix of torch": lambda: transform_image(IMAGE, torch.tensor(TURN)),
    "a device of another machine": lambda: GMRSlidingWindowInferer(
        8, sw_device="cuda:99", device=torch.device("cuda:98")
    ),
    "a threshold as a float": lambda: GMRSlidingWindowInferer(8, cpu_thresh=1e6, cval=None, with_coord=None),
    "sizes in an array": lambda: check_equivariance(plain_net(), np.array([[8, 8], [8, 9]]), seed=np.uint64(3)),
    "keys in a set": lambda: GridSymmetryd({"image"}, "4+"),
    "a threshold beyond all": lambda: check_equivariance(plain_net(), 8, tolerance=math.inf),
}


@pytest.mark.parametrize("call", TAKEN.values(), ids=TAKEN)
def test_what_others_take_is_taken(call):
    """Values that torch, MONAI or NumPy accept for an argument are accepted."""
    call()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: GMRUNet(2, 1, 2, [*range(4, 40), "4"]),
            r"features\[36\]='4' is impossible: give a list of whole numbers",
        ),
        (lambda: GMRUNet(2, 1, 2, {4, 8}), r"features=\{8, 4\} is impossible: give a list of whole numbers"),
        (lambda: GMRUNet(3, 1, 2, (4, 8), kernel_sizes=[[3, 3], [3, 3]]), "kernel_size.* is impossible: give 3 whole"),
        (lambda: GMRUNet(2, 1, 2, (4, 8), dropout=1.5), "dropout=1.5 is impossible: give a number from 0 to 1"),
        (lambda: GMRConvolution(2, 1, 2, adn_ordering="XYZ"), "adn_ordering='XYZ' is impossible: give letters of A, D"),
        (
            lambda: convert_to_gmr(plain_net(), {3: 5.0}),
            "give one window of at least 1 for all, or windows for windows",
        ),
        (lambda: convert_to_gmr(plain_net(), include=torch.nn.ReLU()), r"ReLU\(\) is a module: give its name"),
        (
            lambda: RandGridSymmetryd("label", mirrored_labels=[[1, 2]]),
            "give the pairs of each key that is a label map",
        ),
        (
            lambda: RotateAboutAxis(30, dtype=torch.int32),
            r"dtype=torch.int32 is impossible: give a floating-point dtype",
        ),
        (
            lambda: RotateAboutAxis("3E1"),
            r"angle='3E1' is text, as YAML reads it: give a number, with a point as in 1.0e-4",
        ),
        (lambda: GMRSlidingWindowInferer("1e2"), "roi_size='1e2' is impossible: give whole numbers, such as 96"),
        (lambda: rotate_image(IMAGE, np.array([["0", "-1"], ["1", "0"]])), "give an orthogonal matrix of numbers"),
        (lambda: equivariance_error(plain_net(), IMAGE, angles=[math.inf]), "degrees=inf is not an angle"),
        (lambda: layers.GMRConv2d(2, 2, 3)(IMAGE.numpy()), "GMRConv2d was given ndarray: give a tensor"),
        (lambda: layers.GMRConv2d(2, 2, 3, spacing=(1, math.nan)), "give 2 voxel sizes above 0 in millimetres"),
        (
            lambda: layers.GMRConv2d(2, 2, 3, groups=torch.tensor(1, device="meta")),
            "groups=.* is impossible: give a whole",
        ),
    ],
)
def test_sentences_say_which_value_and_what_is_possible(call, sentence):
    """The sentence for a common mistake."""
    with pytest.raises(ConfigurationError, match=sentence):
        call()


def test_functions_that_compare_their_arguments_are_compiled():
    """The check is left out of a graph."""

    def step(x):
        layers.set_temperature(torch.nn.Identity(), 0.5)
        return x + 1

    assert torch.compile(step, fullgraph=True, backend="eager")(torch.zeros(1)) == 1


def test_names_of_arguments_are_pythons():
    """An unknown or missing argument raises Python's usual error."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'kernel'"):
        layers.GMRConv2d(1, 2, 3, kernel=5)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'kernel_size'"):
        layers.GMRConv2d(1, 2)
