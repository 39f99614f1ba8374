"""rotation_report.yaml and test_time.yaml are the same in every bundle, and work over any bundle's config."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow, run
from monai.utils import set_determinism

from monai_gmr.bundle.command_line import check_overrides
from monai_gmr.data import write_phantoms
from monai_gmr.inferers import SymmetryInferer
from monai_gmr.networks.nets import GMRResNet, GMRUNet

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
SEGMENTATION = BUNDLES / "volume_segmentation_gmr_unet" / "configs"
CLASSIFICATION = [BUNDLES / f"medmnist{dims}d_classification_gmr_resnet" / "configs" for dims in (2, 3)]
OVERLAYS = ("rotation_report.yaml", "test_time.yaml")


@pytest.fixture(autouse=True)
def clean_process(monkeypatch):
    """Restores the seeds, the hook and the path after a run in this process."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    set_determinism(None)


@pytest.fixture
def phantoms(tmp_path):
    """Settings of the segmentation bundle: tiny phantoms, and an untrained network."""
    write_phantoms(tmp_path / "data", 1, 1, 2, (16, 17, 18), progress=False)
    torch.manual_seed(0)
    network = GMRUNet(3, 1, 4, features=(4, 6), conv="plain")
    torch.save(network.state_dict(), tmp_path / "model.pt")
    places = {"dataset_dir": str(tmp_path / "data"), "checkpoint": str(tmp_path / "model.pt"), "device": "cpu"}
    return {**places, "features": [4, 6], "conv": "plain"}


@pytest.fixture
def blobs(tmp_path):
    """Settings of a classification bundle, with its 2D or 3D images."""

    def make(spatial_dims):
        random, arrays = np.random.default_rng(0), {}
        for section in ("train", "val", "test"):
            images = random.integers(0, 255, (4, *[8] * spatial_dims), dtype=np.uint8)
            arrays |= {f"{section}_images": images, f"{section}_labels": np.arange(4, dtype=np.uint8)[:, None] % 2}
        np.savez(tmp_path / "blobs.npz", **arrays)
        shape = {"layers": [1, 1], "width": 4, "kernel_sizes": 3}
        network = GMRResNet(spatial_dims, 1, num_classes=2, stem_stride=2, stem_kernel_size=5, conv="plain", **shape)
        # different enough for the average to matter
        network.fc.weight.data *= 100
        torch.save(network.state_dict(), tmp_path / "model.pt")
        places = {"dataset_dir": str(tmp_path), "flag": "blobs.npz", "checkpoint": str(tmp_path / "model.pt")}
        return {**places, **shape, "device": "cpu", "spatial_size": 0, "conv": "plain"}

    return make


def files(*paths):
    return [str(path) for path in paths]


def read_table(folder):
    with open(folder / "rotation_table.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def spreads(folder, family="group"):
    return {row["metric"]: float(row["spread"]) for row in read_table(folder) if row["family"] == family}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_bundle_has_the_same_overlay(name):
    texts = {(folder / name).read_bytes() for folder in (SEGMENTATION, *CLASSIFICATION)}
    assert len(texts) == 1


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("config", ["evaluate", "inference", "train"])
def test_overlays_take_no_id_of_a_bundle(name, config):
    own = set(yaml.safe_load((SEGMENTATION / name).read_text(encoding="utf-8"))) - {"run", "evaluator::inferer"}
    for folder in (SEGMENTATION, *CLASSIFICATION):
        assert not own & set(yaml.safe_load((folder / f"{config}.yaml").read_text(encoding="utf-8")))


def test_their_settings_pass_the_guard():
    config = str(files(SEGMENTATION / "evaluate.yaml", *(SEGMENTATION / name for name in OVERLAYS)))
    settings = ["--report_views", "['432',{'angles':45}]", "--report_average", "all", "--report_cases", "3"]
    settings += ["--test_time_views", "432", "--rotation_report::evaluator", "@validate::evaluator"]
    check_overrides(["--config_file", config, *settings])


def test_every_setting_of_the_report_is_used():
    config = yaml.safe_load((SEGMENTATION / "rotation_report.yaml").read_text(encoding="utf-8"))
    settings = {f"@{name}" for name in config if name.startswith("report_")}
    assert settings == set(config["rotation_report"].values()) - {"@evaluator", config["rotation_report"]["_target_"]}


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_averaged_probabilities_do_not_depend_on_how_the_images_lie(blobs, tmp_path, spatial_dims):
    folder = CLASSIFICATION[spatial_dims - 2]
    config = files(folder / "inference.yaml", folder / "test_time.yaml")
    settings = {**blobs(spatial_dims), "output_dir": str(tmp_path), "logging_file": False}
    rows = []
    for rotate in (False, True):
        if rotate:
            arrays = dict(np.load(tmp_path / "blobs.npz"))
            arrays["test_images"] = np.flip(np.rot90(arrays["test_images"], axes=(1, spatial_dims)), 2)
            np.savez(tmp_path / "blobs.npz", **arrays)
        run(config_file=config, test_time_views_per_batch=8, **settings)
        table = np.genfromtxt(tmp_path / "predictions.csv", delimiter=",", skip_header=1)
        rows.append(table[:, -2:])
    assert rows[0].shape == (4, 2)
    assert np.ptp(rows[0][:, 0]) > 1e-3
    np.testing.assert_allclose(rows[0], rows[1], atol=2e-5)


def test_averaged_segmentation(phantoms, tmp_path):
    config = files(SEGMENTATION / "inference.yaml", SEGMENTATION / "test_time.yaml")
    run(config_file=config, output_dir=str(tmp_path), test_time_views="222", logging_file=False, **phantoms)
    predictions = sorted(tmp_path.glob("*_seg.nii.gz"))
    assert [nibabel.load(path).shape for path in predictions] == [(16, 17, 18)] * 2


def test_test_time_over_a_bundle_that_knows_nothing_of_it(foreign_bundle):
    root = foreign_bundle(layout="evaluate")
    config = files(root / "configs" / "evaluate.yaml", SEGMENTATION / "test_time.yaml")
    settings = {"bundle_root": str(root), "test_time_views": "222", "test_time_reduce": "vote"}
    workflow = ConfigWorkflow(config, workflow_type="infer", logging_file=False, **settings)
    workflow.run()
    evaluator = workflow.parser.get_parsed_content("evaluator")
    assert isinstance(evaluator.inferer, SymmetryInferer)
    assert len(evaluator.inferer.matrices(3)) == 4
    assert evaluator.inferer.inferer.roi_size == [16, 16, 16]
    assert 0 <= evaluator.state.metrics["mean_dice"] <= 1
    # the bundle's own imports and initialize are kept
    assert workflow.parser["imports"] == ConfigParser.load_config_file(config[0])["imports"]


def test_report_and_average_together(phantoms, tmp_path):
    config = files(SEGMENTATION / "evaluate.yaml", *(SEGMENTATION / name for name in OVERLAYS))
    options = {"report_dir": str(tmp_path / "out"), "report_views": "m", "report_num_resamples": 10, "cases": 1}
    run(config_file=config, test_time_views="m", report_worst_cases=0, **options, **phantoms, logging_file=False)
    assert all(spread < 1e-3 for spread in spreads(tmp_path / "out").values())


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_report_of_a_classification(blobs, tmp_path, spatial_dims):
    folder = CLASSIFICATION[spatial_dims - 2]
    config = files(folder / "evaluate.yaml", folder / "rotation_report.yaml")
    options = {"report_dir": str(tmp_path / "out"), "report_views": ["m", {"random": 1}], "report_num_resamples": 10}
    run(config_file=config, **options, **blobs(spatial_dims), logging_file=False)
    assert {"auc", "balanced_accuracy"} <= {row["metric"] for row in read_table(tmp_path / "out")}


@pytest.mark.parametrize("inverts", [False, True])
def test_upright_images_have_the_scores_of_the_bundles_own_run(foreign_bundle, inverts):
    root = foreign_bundle(inverts=inverts)
    config = files(root / "configs" / "evaluate.yaml", SEGMENTATION / "rotation_report.yaml")
    own = ConfigWorkflow(config[:1], workflow_type="infer", logging_file=False, bundle_root=str(root))
    own.run()
    frame = "upright" if inverts else "rotated"
    options = {"report_views": "m", "report_frame": frame, "report_in_ball": False, "report_num_resamples": 10}
    run(config_file=config, bundle_root=str(root), logging_file=False, **options)
    rows = [row for row in read_table(root / "rotation_report") if row["family"] == "upright"]
    score = next(float(row["mean"]) for row in rows if row["metric"] == "mean_dice")
    assert score == pytest.approx(own.parser.get_parsed_content("evaluator").state.metrics["mean_dice"], abs=1e-6)


def test_report_of_a_bundle_of_the_model_zoo_as_typed_in_a_terminal(foreign_bundle, tmp_path, forked_python):
    root = foreign_bundle(layout="zoo")
    config = files(
        root / "configs" / "train.json", root / "configs" / "evaluate.json", SEGMENTATION / "rotation_report.yaml"
    )
    command = [forked_python, "-m", "monai.bundle", "run", "--config_file", str(config), "--bundle_root", str(root)]
    command += ["--report_views", "m", "--report_cases", "1", "--report_num_resamples", "10", "--report_name", "net"]
    command += ["--rotation_report::evaluator", "@validate::evaluator", "--report_worst_cases", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = {"capture_output": True, "text": True, "env": environment, "cwd": tmp_path, "timeout": 240}
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 0, done.stderr
    assert "mean_dice" in spreads(root / "rotation_report")
