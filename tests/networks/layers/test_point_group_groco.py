"""Group convolutions and pools compared with GroCo: the same groups, filters, outputs and paddings."""

from pathlib import Path

import numpy as np
import pytest
import torch

from monai_gmr.networks.layers import (
    PointGroupConv2d,
    PointGroupConv3d,
    PointGroupConvTranspose2d,
    PointGroupPool,
)
from monai_gmr.symmetry import PointGroup, symmetric_padding, transform_grid
from monai_gmr.utils import ConfigurationError

REFERENCE = Path(__file__).parents[2] / "reference" / "groco.npz"
# PMh mirrors the first axis of an image, PMw the second; D4h and D4 turn about the third of a volume
PLANE = {"P4M": "4mm", "P4": "4", "P2MM": "2mm", "PMh": ("m", 0), "PMw": ("m", 1), "P2": "2", "P1": "1"}
SPACE = {"Oh": "m-3m", "O": "432", "D4h": ("4/mmm", 2), "D4": ("422", 2)}


@pytest.fixture(scope="module")
def groco():
    with np.load(REFERENCE) as file:
        return {name: torch.as_tensor(file[name]) for name in file.files}


def ordered(groco, name):
    """The group of a name, and the index of each element in GroCo's list, found from its action on an image."""
    dims = 2 if name in PLANE else 3
    group = PointGroup.from_name((PLANE | SPACE)[name], dims)
    moved = groco[f"moved_{dims}"][groco[f"elements_{name}"]]
    found = [transform_grid(groco[f"image_{dims}"], element) for element in group.elements]
    places = [[i for i, theirs in enumerate(moved) if torch.equal(theirs, image)] for image in found]
    assert sorted(place for each in places for place in each) == list(range(group.order))
    return group, torch.tensor([place for each in places for place in each])


ONTO = [("P4M", name) for name in PLANE if name != "P4M"] + [("Oh", name) for name in SPACE if name != "Oh"]
LAYERS = [
    ("lift", "P4M", "P4M", {"padding": 1}),
    ("regular", "P4M", "P4M", {"padding": 1}),
    ("strided", "P4M", "P4M", {"stride": 2}),
    ("even", "P4M", "P4M", {"stride": 2}),
    ("transposed", "P4M", "P4M", {"stride": 2}),
    ("lift_3d", "Oh", "Oh", {"padding": 1}),
    *((f"onto_{name}", group, name, {"padding": 1} if group == "P4M" else {}) for group, name in ONTO),
    ("regular_3d", "D4", "D4", {"padding": 1}),
]


@pytest.mark.parametrize(("name", "group", "subgroup", "options"), LAYERS, ids=[each[0] for each in LAYERS])
def test_filters_and_answers_are_those_of_groco(groco, name, group, subgroup, options):
    """Our weights are the rows of its filter at the identity; all other rows and the outputs then agree."""
    (whole, columns), (part, rows) = ordered(groco, group), ordered(groco, subgroup)
    theirs, x, transposed = groco[f"{name}_filter"].double(), groco[f"{name}_input"], name == "transposed"
    lifts = theirs.shape[3] == 1
    columns = torch.tensor([0]) if lifts else columns
    kernel = theirs[:, rows][:, :, :, columns]
    window = kernel.shape[4:]
    channels = x.shape[1] * len(columns), kernel.shape[0] * len(rows)
    ends = {"in_group": "1" if lifts else None, "out_group": part}
    kind = PointGroupConvTranspose2d if transposed else {2: PointGroupConv2d, 3: PointGroupConv3d}[len(window)]
    layer = kind(*channels, window, **options, group=whole, **({} if transposed else ends)).double()
    # of a transposed layer the filter is that of its adjoint
    kernel = kernel.transpose(0, 2).transpose(1, 3) if transposed else kernel
    layer.weight.data.copy_(kernel[:, 0].flatten(2))
    layer.bias.data.copy_(groco[f"{name}_bias"])
    assert torch.allclose(layer.dense_kernel(), kernel.flatten(0, 1).flatten(1, 2), atol=1e-6)
    expected = groco[f"{name}_output"][:, :, rows].flatten(1, 2).double()
    assert torch.allclose(layer(x[:, :, columns].flatten(1, 2).double()), expected, atol=1e-5)


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize(("group", "subgroup"), ONTO)
def test_pools_are_those_of_groco_with_its_representatives(groco, group, subgroup, reduce):
    """Both reduce the elements h k to h, with k in representatives of the cosets; ours are a subgroup if there is one."""
    (whole, columns), (part, rows) = ordered(groco, group), ordered(groco, subgroup)
    name = f"{'average' if reduce == 'mean' else reduce}_{subgroup}"
    x, theirs = groco[f"{name}_input"], groco[f"{name}_output"]
    pool = PointGroupPool(x.dim() - 3, whole, part, reduce=reduce)
    representatives = (columns[:, None] == groco[f"representatives_{subgroup}"]).nonzero()[:, 0]
    cosets = torch.tensor(whole.products[np.ix_(whole.positions(part), representatives)])
    assert cosets.shape == pool.cosets.shape
    pool.cosets = cosets
    assert torch.allclose(pool(x[:, :, columns].flatten(1, 2)), theirs[:, :, rows].flatten(1, 2))


def test_a_symmetric_padding_exists_where_groco_pads(groco):
    """Its paddings are the smallest exact ones not below "valid" and "same"; ours, nearest to half the window, lies between them."""
    for (k, s, n), shortest in np.ndenumerate(groco["sizes"][0].numpy()):
        longest, window, stride, size = int(groco["sizes"][1, k, s, n]), k + 1, s + 1, n + 7
        assert (shortest > 0) == (longest > 0)
        if shortest:
            padding = symmetric_padding(size, window, stride)
            assert shortest <= (size + 2 * padding - window) // stride + 1 <= longest
        else:
            with pytest.raises(ConfigurationError, match="no padding"):
                symmetric_padding(size, window, stride)
