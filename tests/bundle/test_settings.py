"""One table refuses impossible values of settings, in every config, before data are read."""

import math
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism

from monai_gmr.bundle import check_values
from monai_gmr.bundle.overrides import check_settings
from monai_gmr.bundle.settings import TABLE
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.utils import ConfigurationError, find_configuration_error

BUNDLES = sorted(path for path in (Path(__file__).parents[2] / "bundles").iterdir() if path.is_dir())
CONFIGS = [folder / "configs" / f"{name}.yaml" for folder in BUNDLES for name in ("train", "evaluate", "inference")]
NAN, INF = math.nan, math.inf
# impossible values of each setting; settings with several axes are for a 3D network
IMPOSSIBLE = {
    "device": ["cuda:77", "gpu", "xla", None, ""],
    "spatial_dims": [0, 1, 4, 2.0, "3"],
    "in_channels": [0, -1, 1.5, True, None],
    "out_channels": [0, -2, "two"],
    "num_classes": [0, 2.5],
    "features": [[], [0, 4], [4, -1], [4, 2.5], 8, None],
    "layers": [[], [1, 0], 1],
    "width": [0, -4],
    "stem_stride": [0, 0.5],
    "stem_kernel_size": [0, -3],
    "kernel_sizes": [0, [], [3, 0], [[3, 3, 0]], "3"],
    "spacing": [[1, 1], [1, 1, 0], [1, 1, -1], [1, 1, NAN], 1.0],
    "voxel_size": [0, -1.0, NAN, [1, 1, 1], "1 mm"],
    "seed": [-1, 2**32, 0.5],
    "cache_rate": [-0.1, 1.5, NAN, "all", True],
    "num_workers": [-1, 1.5],
    "size": [0, -28],
    "spatial_size": [-1, 2.5],
    "margin": [-1, 0.5],
    "label_values": [[], [0.5], 3],
    "classes": [[], [-1], [0.5]],
    "cases": [0, -1, 2.5],
    "epochs": [0, -1, 1.5, INF, "3"],
    "val_interval": [0, -1],
    "batch_size": [0, -2, 2.5],
    "patch_size": [[16, 16], [16] * 4, [0, 16, 16], [16, -1, 16], [16.5, 16, 16], 0, 2.5, []],
    "samples_per_case": [0, -1],
    "learning_rate": [0, -1, NAN, INF, "fast"],
    "weight_decay": [-1, NAN, INF],
    "symmetry_strength": [-0.1, NAN, INF, "strong"],
    "anneal_epochs": [0, -1, 1.5],
    "anneal_strength": [-1, NAN, None],
    "anneal_power": [-1, INF],
    "anneal_by": ["kernel", None],
    "convert_weights": ["copy", None],
    "optimizer_name": ["adam", None],
    "select_by": ["f1", None],
    "augmentation": ["flips", None],
    "roi_size": [[16, 16], [16, 16, -2], [16.5] * 3, "all", 0.5],
    "angle_step": [-1, 400, NAN, INF, None],
    "num_group_elements": [0, -1, 1.5],
    "num_resamples": [-1, 0.5],
    "worst_cases": [-1, 0.5],
    "views_per_batch": [0, -1, 0.5],
    "reduction": ["mean", "", False],
    **{
        name: [1, None, "yes"]
        for name in ("amp", "resume", "tensorboard", "balanced_loss", "grey", "download", "multi_label")
    },
}
POSSIBLE = {
    "kernel_sizes": [None, 3, [3, 5, 5], [[3, 3, 1], [3, 3, 3]]],
    "roi_size": [None, 32, [32, 32, 32], [-1, 32, 32]],
    "spacing": [None, [1, 1.25, 3]],
    "voxel_size": [None, 1, 0.7],
    "learning_rate": [1e-9, 1],
    "cache_rate": [0, 0.5, 1],
    "cases": [None, 1],
    "num_group_elements": [None, 48],
    "angle_step": [0, 30, 22.5],
    "weight_decay": [0, 0.1],
    "symmetry_strength": [0, 0.2],
    "anneal_power": [0, 2.0],
    "patch_size": [[1, 16, 300], 16],
    "device": ["cpu", "meta", torch.device("cpu")],
    "classes": [None, [0, 3]],
    "seed": [0, 2**32 - 1],
    "reduction": [None, "argmax"],
}


def check(name, value, spatial_dims=3):
    if name == "spatial_dims":
        check_values(value)
    else:
        check_values(spatial_dims, **{name: value})


def test_every_setting_of_the_table_is_tried():
    assert set(IMPOSSIBLE) == set(TABLE)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_values_are_one_sentence(name):
    for value in IMPOSSIBLE[name]:
        with pytest.raises(ConfigurationError, match=rf"^{name}=.* cannot be used: give --{name} \w+") as caught:
            check(name, value)
        assert "\n" not in str(caught.value)
        assert "{" not in str(caught.value)


@pytest.mark.parametrize(("count", "devices"), [(0, "cpu"), (2, "cpu, cuda:0, cuda:1")])
def test_devices_that_are_there_are_named(count, devices, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(
        ConfigurationError, match=rf"^device='cuda:77' cannot be used: .* this machine, one of {devices}\.$"
    ):
        check_values(3, device="cuda:77")


@pytest.mark.parametrize("name", POSSIBLE)
def test_possible_values_pass(name):
    for value in POSSIBLE[name]:
        check(name, value)


def test_a_reduction_without_windows_is_refused():
    check_values(3, roi_size=[16, 16, 16], reduction="argmax")
    with pytest.raises(ConfigurationError, match="reduces windows and there are none: give --roi_size"):
        check_values(3, roi_size=None, reduction="argmax")


@pytest.mark.parametrize("name", ["patch_size", "roi_size"])
def test_patches_of_one_voxel_on_the_coarsest_level_are_refused(name):
    """Without this check, the network only fails after reading the cases, or after an epoch for windows."""
    network = GMRUNet(3, 1, 2, features=[4, 6, 8])
    for size, works in ((4, False), ([4, 4, 3], False), ([4, 5, 4], True)):
        sides = [size] * 3 if isinstance(size, int) else size
        with nullcontext() if works else pytest.raises(ConfigurationError, match="one voxel"):
            network(torch.zeros(1, 1, *sides))
        with nullcontext() if works else pytest.raises(ConfigurationError, match=f"give --{name} more than 4 voxels"):
            check_values(3, features=[4, 6, 8], **{name: size})
    check_values(3, features=[4, 6, 8], roi_size=[-1, 4, 4])


CONFIG = {
    "spatial_dims": 3,
    "angle_step": 30,
    "patch_size": [32, 32, 32],
    "cases": None,
    "learning_rate": 0.01,
    "factor": 2,
    "optimizer": {"lr": "@learning_rate", "factor": "@factor", "steps": "@steps"},
    "steps": 3,
    "initialize": [
        "$monai_gmr.bundle.check_values(@spatial_dims, angle_step=@angle_step, patch_size=@patch_size,\n  cases=@cases, "
        "learning_rate=@learning_rate)"
    ],
}


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        # the table's rule, not the type of the default
        ({"angle_step": 7.5}, ""),
        ({"patch_size": 16}, ""),
        ({"optimizer::lr": 1}, ""),
        ({"cases": 3, "patch_size": [16, 16], "spatial_dims": 2}, ""),
        ({"angle_step": "$30 / 4", "optimizer#lr": "@learning_rate"}, ""),
        ({"angle_step": None}, "angle_step=None cannot be used: give --angle_step a number from 0 to 360"),
        ({"cases": 0}, "cases=0"),
        ({"patch_size": [16, 16]}, "a list of 3"),
        ({"optimizer::lr": -1}, "optimizer::lr=-1 cannot be used: give --optimizer::lr a number above 0"),
        ({"optimizer#lr": "fast"}, "optimizer#lr='fast'"),
        # no rule for these
        ({"factor": 2.5}, "a whole number"),
        ({"optimizer::factor": -1, "optimizer::steps": "many"}, ""),
    ],
)
def test_the_rule_of_a_setting_holds_for_overrides_of_it(settings, refused):
    if not refused:
        check_settings(settings, CONFIG)
        return
    with pytest.raises(ConfigurationError, match=refused):
        check_settings(settings, CONFIG)


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("out_features", "did you mean --set network_def::out_features"),
        ("device", "did you mean --set network_def::device"),
        ("zzzz", "its ids are network_def, other"),
    ],
)
def test_the_hint_of_a_config_without_plain_settings_names_what_there_is(setting, hint):
    component = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}
    with pytest.raises(ConfigurationError, match=f"--set {setting} is not a setting of this config: {hint}"):
        check_settings({setting: 3}, {"other": {"in_features": 1}, "network_def": component}, prefix="--set ")


@pytest.mark.parametrize("name", ["patch_size", "spacing", "roi_size"])
def test_the_number_of_axes_is_the_networks(name):
    check(name, [16, 16], 2)
    with pytest.raises(ConfigurationError, match="a list of 2, one per axis"):
        check(name, [16, 16, 16], 2)


@pytest.mark.parametrize("backend", ["fast", "", "Dense"])
def test_an_unknown_backend_is_refused(backend, monkeypatch):
    monkeypatch.setattr("monai_gmr.ops.backend._forced", [])
    monkeypatch.setenv("MONAI_GMR_BACKEND", backend)
    with pytest.raises(ConfigurationError, match="MONAI_GMR_BACKEND"):
        check_values(3)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parts[-3][:9]}-{path.stem}")
def test_every_number_of_a_config_is_checked(path):
    """Every setting with a number, a switch or a list, or with a rule in the table, is passed to the check."""
    config = ConfigParser.load_config_file(path)
    configs = [config]
    if path.stem == "train":
        configs.append(ConfigParser.load_config_file(path.with_stem("multi_gpu_train")))
    plain = {name for name, value in config.items() if isinstance(value, (int, float, list)) or name in TABLE}
    # in_channels and num_classes of a classifier come from its data
    plain -= {"imports", "initialize", "run", "main_process", "in_channels", "num_classes", "handlers"}
    for one in configs:
        line = next(line for line in one["initialize"] if "check_values" in line)
        assert {name for name in plain if f"@{name}" not in line} == set()
        assert one["initialize"].index(line) == 1


@pytest.fixture(autouse=True)
def clean_process(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    # a workflow in Python has "." as its bundle_root
    monkeypatch.chdir(tmp_path)
    yield
    set_determinism(None)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parts[-3][:9]}-{path.stem}")
def test_a_config_refuses_before_it_reads_data(path, tmp_path):
    config = ConfigParser.load_config_file(path)
    names = sorted(set(IMPOSSIBLE) & set(config) - {"spatial_dims", "in_channels", "num_classes"})
    for name in ("num_workers", "amp", *names[:: max(1, len(names) // 3)]):
        settings = {name: IMPOSSIBLE[name][0], "dataset_dir": str(tmp_path / "nowhere"), "ckpt_dir": str(tmp_path)}
        workflow = ConfigWorkflow(str(path), workflow_type=None, logging_file=False, **settings)
        with pytest.raises(RuntimeError) as caught:
            workflow.initialize()
        assert str(find_configuration_error(caught.value)).startswith(f"{name}="), name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parts[-3][:9]}-{path.stem}")
def test_a_config_tries_its_folder_before_it_reads_data(path, tmp_path):
    (tmp_path / "file").touch()
    setting = "ckpt_dir" if path.stem == "train" else "output_dir"
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        settings = {setting: str(folder), "dataset_dir": str(tmp_path / "nowhere")}
        workflow = ConfigWorkflow(str(path), workflow_type=None, logging_file=False, **settings)
        with pytest.raises(RuntimeError) as caught:
            workflow.initialize()
        assert str(find_configuration_error(caught.value)).startswith(f"{setting}={folder} cannot be written")


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path.stem != "evaluate"], ids=lambda path: f"{path.parts[-3][:9]}-{path.stem}"
)
def test_a_folder_in_the_place_of_a_file_is_refused_before_data_are_read(path, tmp_path):
    setting, files = (
        ("ckpt_dir", ["latest.pt", "model.pt"]) if path.stem == "train" else ("output_dir", ["predictions.csv"])
    )
    for name in files:
        (tmp_path / name / name).mkdir(parents=True)
        settings = {setting: str(tmp_path / name), "dataset_dir": str(tmp_path / "nowhere")}
        workflow = ConfigWorkflow(str(path), workflow_type=None, logging_file=False, **settings)
        with pytest.raises(RuntimeError) as caught:
            workflow.initialize()
        message = str(find_configuration_error(caught.value))
        assert message.startswith(f"{tmp_path / name / name} is a folder and this run writes a file of that name")
        assert f"--{setting}" in message
