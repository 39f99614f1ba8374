"""A checkpoint describes its network: another network with equal names and shapes is refused in one sentence."""

import json
import shutil

import pytest
import torch
from ignite.engine import Engine
from monai.handlers import CheckpointLoader
from monai.networks.nets import DynUNet
from torch import nn

import monai_gmr
from monai_gmr.apps.bundles import main as bundles_command
from monai_gmr.apps.check_equivariance import load_weights
from monai_gmr.bundle import load_network
from monai_gmr.bundle.shipped import shipped_bundles
from monai_gmr.fingerprints import describe_cases
from monai_gmr.handlers import BestCheckpoint
from monai_gmr.networks import convert_to_gmr
from monai_gmr.networks.description import check_description, describe_network, write_description
from monai_gmr.networks.nets import GMRResNet, GMRUNet
from monai_gmr.networks.weights import read_checkpoint, state_of
from monai_gmr.utils import ConfigurationError


def unet(conv="gmr_harmonic", **arguments):
    return GMRUNet(2, 1, 3, features=[4, 8], conv=conv, **arguments)


def resnet(conv="gmr_harmonic", **arguments):
    arguments = {"num_classes": 2, "layers": [1, 1], "width": 8, **arguments}
    return GMRResNet(2, 1, conv=conv, **arguments)


def dynunet(**arguments):
    net = DynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[8, 8, 8])
    return convert_to_gmr(net, spatial_size=(16, 16), **arguments)


def harmonic(**arguments):
    return ("gmr_harmonic", arguments)


def group(*arguments):
    return ("group", dict(zip(("group", "filter"), arguments)))


# two networks whose parameters have the same names and shapes, and their first difference in the words of the sentence
PAIRS = {
    "harmonic and radial": (
        lambda: unet(),
        lambda: unet("gmr"),
        r"its stem\.0\.conv is GMRHarmonicConv2d of conv='gmr_harmonic', here GMRConv2d of conv='gmr'",
    ),
    "radial and harmonic": (lambda: resnet("gmr"), lambda: resnet(), "here GMRHarmonicConv2d of conv='gmr_harmonic'"),
    "one level": (lambda: unet(["gmr_harmonic", "gmr"]), lambda: unet(), r"its encoders\.0\.\S+ is GMRConv2d"),
    "orders": (
        lambda: unet(harmonic(orders=(0, 1))),
        lambda: unet(harmonic(orders=(0, 2))),
        r"has orders=\[0, 1\], here \[0, 2\]",
    ),
    "products": (
        lambda: unet(harmonic(orders=(0, 1))),
        lambda: unet(harmonic(orders=(0, 1), inner_products=False)),
        "has inner_products=True, here False",
    ),
    "rings": (
        lambda: resnet("gmr", rings="indexed"),
        lambda: resnet("gmr", rings="gaussian"),
        "has rings='indexed', here 'gaussian'",
    ),
    "spacing": (
        lambda: unet("gmr", spacing=(1, 1.1)),
        lambda: unet("gmr", spacing=(1.1, 1)),
        r"has spacing=\[1\.0, 1\.1\], here \[1\.1, 1\.0\]",
    ),
    "window": (
        lambda: unet(("gmr", {"num_rings": 3}), kernel_sizes=5),
        lambda: unet(("gmr", {"num_rings": 3}), kernel_sizes=7),
        r"has kernel_size=\[5, 5\], here \[7, 7\]",
    ),
    "group": (lambda: resnet(group("4")), lambda: resnet(group("2mm")), "has group="),
    "stride": (
        lambda: resnet(stem_stride=2),
        lambda: resnet(stem_stride=1),
        "its downsample is GMRDownsample, here not there",
    ),
    "activation": (lambda: unet(act="relu"), lambda: unet(act="elu"), "is ReLU, here ELU"),
    "a layer without parameters": (
        lambda: nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d(2)),
        lambda: nn.Sequential(nn.Conv2d(1, 1, 3)),
        "its 1 is MaxPool2d, here not there",
    ),
    "converted": (lambda: dynunet(conv="gmr_harmonic"), lambda: dynunet(conv="gmr"), "is GMRHarmonicConv2d of conv="),
}


def save(network, path):
    """Saves a network like the best network of a training."""
    saver = BestCheckpoint(path.parent, network, path.name)
    engine = Engine(lambda *_: None)
    engine.state.metrics, engine.state.key_metric_name = {"dice": 0.5}, "dice"
    engine.state.best_metric, engine.state.best_metric_epoch = 0.5, 1
    saver(engine)


def shapes(network):
    return {name: value.shape for name, value in network.state_dict().items()}


@pytest.mark.parametrize("case", PAIRS)
def test_another_network_of_equal_shapes_is_refused(case, tmp_path):
    make, make_other, difference = PAIRS[case]
    network, other = make(), make_other()
    assert shapes(network) == shapes(other)
    path = tmp_path / "model.pt"
    save(network, path)
    sentence = rf"model\.pt is of another network \(.*{difference}.*\): give the settings that it was trained with"
    before = {name: value.clone() for name, value in other.state_dict().items()}
    for load in (load_network, load_weights):
        with pytest.raises(ConfigurationError, match=sentence) as caught:
            load(other, path)
        assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    same = make()
    load_network(same, path)
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("case", PAIRS)
def test_the_file_is_a_state_dict_as_any_other(case, tmp_path):
    """torch and MONAI load the file as before, and files without a description are loaded as before."""
    make, make_other, _ = PAIRS[case]
    network, same, other = make(), make(), make_other()
    path = tmp_path / "model.pt"
    save(network, path)
    state = torch.load(path, weights_only=True)
    assert list(state) == list(network.state_dict())
    same.load_state_dict(state)
    CheckpointLoader(str(path), {"model": same})(Engine(lambda *_: None))
    # a loaded network does not keep the description
    assert not any("monai_gmr" in str(each) for each in same.state_dict()._metadata.values())
    for content in (dict(state), {"model": network.state_dict()}):
        torch.save(content, path)
        load_network(other, path)


SAME = {
    "dropout": (lambda: unet(dropout=0.3), lambda: unet()),
    "millimetres": (lambda: unet("gmr", spacing=(2, 2)), lambda: unet("gmr")),
    "annealed": (lambda: dynunet(conv="gmr_harmonic", weights="anneal"), lambda: dynunet(conv="gmr_harmonic")),
    "lists": (lambda: unet(harmonic(orders=[0, 1])), lambda: unet(harmonic(orders=(0, 1)))),
    "batch norms": (lambda: nn.SyncBatchNorm.convert_sync_batchnorm(resnet()), lambda: resnet()),
    "scripted": (lambda: torch.jit.script(unet().eval()), lambda: unet()),
    "in a distributed run": (lambda: nn.DataParallel(unet()), lambda: unet()),
}


@pytest.mark.parametrize("case", SAME)
def test_what_does_not_change_the_function_is_not_compared(case):
    network, other = (make() for make in SAME[case])
    state = write_description(network.state_dict(), network)
    check_description(state, other, "model.pt", "")
    check_description(write_description(other.state_dict(), other), network, "model.pt", "")


CONVS = ["plain", "sre", "gmr", "gmr_harmonic", harmonic(keeps="1"), group("4mm"), "partial"]


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_training_changes_no_description(conv):
    """Passes, modes, dtypes and a second network do not change descriptions either; descriptions can be written as JSON."""
    network = resnet(conv)
    before = describe_network(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()(torch.rand(2, 1, 17, 17)).sum().backward()
    optimizer.step()
    network.eval()(torch.rand(1, 1, 16, 16))
    assert (
        describe_network(network.double()) == before == describe_network(resnet(conv)) == json.loads(json.dumps(before))
    )


def test_what_a_later_version_adds_is_no_difference():
    network = unet()
    state = write_description(network.state_dict(), network)
    (written,) = (value["monai_gmr.network"] for value in state._metadata.values() if "monai_gmr.network" in value)
    written["stem.0.conv"]["tomorrow"] = 3
    del written["stem.0.conv"]["orders"]
    check_description(state, network, "model.pt", "")
    written["stem.0.conv"]["rings"] = "hard"
    with pytest.raises(ConfigurationError, match=r"its stem\.0\.conv has rings='hard', here 'gaussian'"):
        check_description(state, network, "model.pt", "")


def test_a_bundle_in_python(whole_bundle, tmp_path):
    root = shutil.copytree(whole_bundle, tmp_path / whole_bundle.name)
    save(unet(), root / "models" / "model.pt")
    settings = {"network_def::features": [4, 8]}
    monai_gmr.load_bundle(root, **settings, **{"network_def::conv": "gmr_harmonic"})
    with pytest.raises(ConfigurationError, match=r"nuclei_segmentation: .*model\.pt is of another network"):
        monai_gmr.load_bundle(root, **settings, **{"network_def::conv": "gmr"})


def test_weights_that_are_described_later(whole_bundle, tmp_path, capsys):
    """The command adds a description to a bundle's weights, and changes nothing else."""
    root = shutil.copytree(whole_bundle, tmp_path / whole_bundle.name)
    path = root / "models" / "model.pt"
    before = torch.load(path, weights_only=True)
    # init_bundle made the weights of a radial net, the default of GMRUNet
    other = {"network_def::conv": "gmr_harmonic"}
    for command in ("checksum", "describe"):
        monai_gmr.load_bundle(root, **other)
        assert bundles_command([command, str(root)]) == 0
    assert "is of a GMRUNet" in capsys.readouterr().out
    state = torch.load(path, weights_only=True)
    assert list(state) == list(before)
    assert all(torch.equal(state[name], value) for name, value in before.items())
    monai_gmr.load_bundle(root)
    with pytest.raises(ConfigurationError, match="of another network"):
        monai_gmr.load_bundle(root, **other)


@pytest.mark.parametrize("name", shipped_bundles())
def test_weights_that_ship_say_which_network_they_are_of(name):
    settings = {"kernel_sizes": 3} if name.startswith("medmnist3d") else {}
    with pytest.raises(ConfigurationError, match=r"another network \(.*conv='gmr_harmonic', here .*conv='gmr'\)"):
        monai_gmr.load_bundle(name, conv="gmr", **settings)


def test_metadata_stay_with_a_state_dict(tmp_path):
    torch.save({"model": nn.BatchNorm2d(2).state_dict()}, tmp_path / "model.pt")
    state = state_of(read_checkpoint(tmp_path / "model.pt"), "model.pt")
    assert state._metadata[""]["version"] == 2


def cases_in(folder, names=("a", "b"), length=3):
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"{name}.nii").write_bytes(b"0" * length)
    return [{"image": str(folder / f"{name}.nii"), "label": 1} for name in names]


def test_a_fingerprint_of_cases(tmp_path):
    """The fingerprint stays equal if the folder is moved, and differs for other names, sizes, numbers, labels or values."""
    first = describe_cases(cases_in(tmp_path / "first"))
    assert first == describe_cases(cases_in(tmp_path / "moved" / "first"))
    others = [
        cases_in(tmp_path / "names", ("a", "c")),
        cases_in(tmp_path / "sizes", length=4),
        cases_in(tmp_path / "fewer", ("a",)),
        [{**case, "label": 2} for case in cases_in(tmp_path / "labels")],
        [{"image": torch.zeros(2)}, {"image": torch.ones(2)}],
        [{"image": torch.zeros(2)}, {"image": torch.zeros(2)}],
    ]
    found = [first, *map(describe_cases, others)]
    assert len({each["fingerprint"] for each in found}) == len(found)
    assert describe_cases([])["cases"] == 0
