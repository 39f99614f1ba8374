"""Evaluators of unchanged bundles: the same scores as the bundle's own run, no file changed, and one sentence on failure."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from monai.networks.nets import UNet

from monai_gmr.data import write_phantoms
from monai_gmr.networks.description import write_description
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.rotation_report.evaluator import open_evaluator
from monai_gmr.utils import ConfigurationError

OWN = Path(__file__).resolve().parents[2] / "bundles" / "volume_segmentation_gmr_unet"
LAYOUTS = {
    "evaluate": (["evaluate.yaml"], "evaluator"),
    "zoo": (["train.json", "evaluate.json"], "validate::evaluator"),
}


@pytest.fixture(autouse=True)
def clean_process(monkeypatch):
    """Restores the hook and the path, which bundles change."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "path", list(sys.path))


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inverts", [False, True])
def test_scores_are_those_of_the_bundles_own_run(foreign_bundle, layout, inverts):
    root = foreign_bundle(layout=layout, inverts=inverts)
    before = contents(root)
    opened = open_evaluator(root)
    opened.evaluator.run()
    assert contents(root) == before
    assert opened.inverts is inverts

    files, evaluator_id = LAYOUTS[layout]
    workflow = ConfigWorkflow(
        [str(root / "configs" / file) for file in files],
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(root),
    )
    workflow.run()
    own = workflow.parser.get_parsed_content(evaluator_id)
    assert opened.evaluator.state.metrics == own.state.metrics
    assert 0 < own.state.metrics["mean_dice"] < 1
    # files that the bundle itself would have written
    assert len(list((root / "eval").rglob("*.nii.gz"))) == 3


def test_our_own_bundle(tmp_path):
    write_phantoms(tmp_path, 1, 1, 2, (16, 17, 18), progress=False)
    torch.manual_seed(1)
    network = GMRUNet(3, 1, 4, features=(4, 6), conv="gmr_harmonic")
    torch.save({"model": network.state_dict()}, tmp_path / "model.pt")
    settings = {"checkpoint": str(tmp_path / "model.pt"), "features": [4, 6], "device": "cpu"}
    opened = open_evaluator(OWN, settings, dataset_dir=tmp_path)
    assert opened.parser.get_parsed_content("bundle_root") == str(OWN)
    assert len(opened.evaluator.data_loader.dataset) == 2
    for name, tensor in opened.evaluator.network.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name


def test_a_volume_that_does_not_load_keeps_no_dataset_from_being_made(foreign_bundle):
    root = foreign_bundle()
    (root / "data" / "image0.nii.gz").write_bytes(b"no volume")
    dataset = open_evaluator(root).evaluator.data_loader.dataset
    assert dataset[1]["image"].shape[0] == 1
    with pytest.raises(RuntimeError):
        dataset[0]


def test_the_checkpoint_is_read_once(foreign_bundle):
    root = foreign_bundle()
    opened = open_evaluator(root)
    weights = torch.load(root / "models" / "model.pt", weights_only=True)
    (root / "models" / "model.pt").unlink()
    opened.evaluator.run()
    for name, tensor in opened.evaluator.network.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_weights_of_another_network_of_equal_shapes_are_refused(foreign_bundle):
    """The file describes its network; MONAI's own handler loads it."""
    root = foreign_bundle()
    network = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=[4, 8], strides=[2], act="relu")
    state = write_description(network.state_dict(), network)
    for content in (state, {"model": state}):
        torch.save(content, root / "models" / "model.pt")
        open_evaluator(root, {"network_def::act": "relu"})
        with pytest.raises(
            ConfigurationError, match=r"model\.pt is of another network \(.*is ReLU, here ELU\): give ano"
        ):
            open_evaluator(root, {"network_def::act": "elu"})
    torch.save(dict(state), root / "models" / "model.pt")
    open_evaluator(root, {"network_def::act": "elu"})


def test_settings_reach_nested_ids_and_the_dataset_its_folder(foreign_bundle, tmp_path):
    root = foreign_bundle()
    shutil.copytree(root / "data", tmp_path / "elsewhere")
    shutil.rmtree(root / "data")
    settings = {"inferer::roi_size": [8, 8, 8], "inferer#overlap": "$1 / 2"}
    opened = open_evaluator(root, settings, dataset_dir=tmp_path / "elsewhere")
    assert opened.evaluator.inferer.roi_size == [8, 8, 8]
    assert opened.evaluator.inferer.overlap == 0.5
    assert opened.evaluator.data_loader.dataset.data[0]["image"].startswith(str(tmp_path / "elsewhere"))


def test_config_files_of_the_callers_choice(foreign_bundle, tmp_path, monkeypatch):
    root = foreign_bundle()
    (tmp_path / "over.yaml").write_text("inferer::overlap: 0.75\n")
    monkeypatch.chdir(tmp_path)
    for first in ("evaluate.yaml", "configs/evaluate.yaml", root / "configs" / "evaluate.yaml"):
        assert open_evaluator(root, config_file=[first, "over.yaml"]).evaluator.inferer.overlap == 0.75
    (root / "configs" / "evaluate.yaml").rename(root / "configs" / "inference.yaml")
    assert open_evaluator(root).evaluator.inferer.overlap == 0.25


def test_two_bundles_with_a_package_of_the_same_name(foreign_bundle):
    network = {"_target_": "scripts.nets.Net"}
    opened = {}
    for name in ("one", "two"):
        root = foreign_bundle(name, network_def=network, handlers=[])
        (root / "scripts").mkdir()
        (root / "scripts" / "__init__.py").touch()
        source = f"import torch\nclass Net(torch.nn.Conv3d):\n    name = {name!r}\n    def __init__(self): super().__init__(1, 2, 1)\n"
        (root / "scripts" / "nets.py").write_text(source)
        opened[name] = open_evaluator(root).evaluator
    assert {name: evaluator.network.name for name, evaluator in opened.items()} == {"one": "one", "two": "two"}
    opened["one"].run()


@pytest.mark.parametrize(
    ("layout", "changes", "options", "match"),
    [
        ("evaluate", {}, {"settings": {"chekpoint": "x"}}, "foreign: chekpoint is not a setting .* did you mean checkpoint?"),
        ("evaluate", {}, {"settings": {"dataset_dir::deep": 1}}, "dataset_dir::deep is not a setting .* which has no parts"),
        ("evaluate", {"overlap": 1}, {"settings": {"overlap": "much"}}, "overlap much cannot be used: give a whole number"),
        ("evaluate", {}, {"settings": {"checkpoint": "/none.pt"}}, "there is no checkpoint at /none.pt"),
        ("evaluate", {}, {"settings": {"network_def::channels": [2, 3]}}, "cannot be made .*size mismatch"),
        ("evaluate", {}, {"dataset_dir": "/nowhere"}, "cannot be made .*/nowhere"),
        ("evaluate", {"inferer": "@nothing"}, {}, "cannot be made .*`@nothing` is not defined"),
        ("evaluate", {"network_def": {"_target_": "scripts.None"}}, {}, "cannot be made .*scripts.None"),
        ("evaluate", {"evaluator": {"_target_": "torch.nn.ReLU"}}, {}, "evaluator is a ReLU: it must be"),
        ("evaluate", {}, {"config_file": "other.yaml"}, "there is no config file other.yaml in"),
        ("zoo", {"validate": {}}, {}, "no id evaluator or validate::evaluator: .* it has .*network_def"),
    ],
)  # fmt: skip
def test_what_cannot_be_opened_ends_in_one_sentence(foreign_bundle, layout, changes, options, match):
    root = foreign_bundle(layout=layout, **changes)
    if changes == {"validate": {}}:
        (root / "configs" / "evaluate.json").unlink()
    with pytest.raises(ConfigurationError, match=match) as caught:
        open_evaluator(root, **options)
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_bundles(foreign_bundle, tmp_path):
    with pytest.raises(ConfigurationError, match="there is no bundle"):
        open_evaluator(tmp_path / "none")
    with pytest.raises(ConfigurationError, match="is not a bundle"):
        open_evaluator(tmp_path)
    root = foreign_bundle(dataset_dir=None)
    config = yaml.safe_load((root / "configs" / "evaluate.yaml").read_text())
    config["images"] = config.pop("dataset_dir")
    (root / "configs" / "evaluate.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigurationError, match=r"none of the ids dataset_dir, .* images"):
        open_evaluator(root, dataset_dir=tmp_path)
    (root / "configs" / "evaluate.yaml").write_text("evaluator: [\n")
    with pytest.raises(ConfigurationError, match="cannot be read as a MONAI config"):
        open_evaluator(root)
    (root / "configs" / "evaluate.yaml").write_text(json.dumps({"my_evaluator": {"_target_": "torch.nn.ReLU"}}))
    with pytest.raises(ConfigurationError, match="evaluator=@ID"):
        open_evaluator(root)
    with pytest.raises(ConfigurationError, match="evaluator is a ReLU"):
        open_evaluator(root, {"evaluator": "@my_evaluator"})


def test_the_cause_stays_behind_the_sentence(foreign_bundle):
    with pytest.raises(ConfigurationError) as caught:
        open_evaluator(foreign_bundle(), dataset_dir="/nowhere")
    assert isinstance(caught.value.__cause__, RuntimeError)
