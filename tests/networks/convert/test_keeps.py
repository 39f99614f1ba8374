"""Converted nets keep the named group, and learn what lies beyond it."""

import pytest
import torch
from monai.networks.nets import SegResNet, UNet

from monai_gmr.metrics import broken_symmetry, equivariance_error
from monai_gmr.networks import convert_to_gmr
from monai_gmr.networks.layers import GMRHarmonicConv2d
from monai_gmr.networks.symmetry_penalty import symmetry_parameters
from monai_gmr.symmetry import kept_group, point_group

NETS = {
    "UNet": lambda dims: UNet(dims, 1, 2, (16, 32), (2,), num_res_units=1),
    "SegResNet": lambda dims: SegResNet(dims, init_filters=16, blocks_down=(1, 1), blocks_up=(1,)),
}


@pytest.mark.parametrize(("dims", "keeps"), [(2, ("m", "x")), (2, "rotations"), (3, "mm2")])
@pytest.mark.parametrize("name", list(NETS))
def test_a_converted_net_keeps_the_named_group_and_no_more(name, dims, keeps):
    torch.manual_seed(0)
    net = convert_to_gmr(NETS[name](dims), conv=("gmr_harmonic", {"keeps": keeps}))
    x, whole = torch.randn(1, 1, *((20, 17) if dims == 2 else (9, 8, 10))), point_group(dims)
    assert equivariance_error(net, x, whole).worst < 1e-5
    for parameter in symmetry_parameters(net):
        torch.nn.init.normal_(parameter, std=0.3)
    errors = equivariance_error(net, x)
    assert errors.worst < 1e-5
    assert len(errors.group.views) == kept_group(keeps, dims).order
    assert equivariance_error(net, x, whole).worst > 1e-2
    assert broken_symmetry(net).errors.max() > 0.1


def test_a_table_of_no_elements_is_printed():
    layer = GMRHarmonicConv2d(1, 4, 3, keeps="1")
    assert "(network)" in str(broken_symmetry(layer, group="1"))
