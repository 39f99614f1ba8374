"""The segmentation bundle trains, resumes, evaluates and predicts on tiny phantoms, and refuses what it cannot do."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run
from monai.utils import set_determinism
from PIL import Image

from monai_gmr.bundle import GMRWorkflow
from monai_gmr.data import write_phantoms
from monai_gmr.files import LOCK_NAME
from monai_gmr.metrics import equivariance_error
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.utils import find_configuration_error

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "volume_segmentation_gmr_unet"
CONFIGS = BUNDLE / "configs"
NETWORK = {"features": [4, 6]}
SMALL = {**NETWORK, "patch_size": [16, 16, 16], "samples_per_case": 1, "val_interval": 1}


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 4, 2, 2, (16, 17, 18), progress=False)
    return str(folder)


@pytest.fixture(autouse=True)
def clean_process(monkeypatch):
    """Restores the seeds, the hook and the settings after a run in this process."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield
    set_determinism(None)


def run_config(name, **settings):
    run(config_file=str(CONFIGS / f"{name}.yaml"), logging_file=False, **settings)


@pytest.fixture(scope="module")
def trained_on(dataset_dir, tmp_path_factory):
    """A function that maps a device to a directory with the checkpoints of a two-epoch training on it."""

    @cache
    def train(device):
        folder = str(tmp_path_factory.mktemp("trained"))
        places = {"dataset_dir": dataset_dir, "ckpt_dir": folder, "output_dir": folder, "device": device}
        run_config("train", epochs=2, **places, **SMALL)
        return folder

    return train


@pytest.fixture
def trained(trained_on):
    """Directory with the checkpoints of a two-epoch training."""
    return trained_on("cpu")


def command_line(*arguments, python, wait=True):
    """Runs ``python -m monai.bundle run`` as in a terminal, in a directory outside the repository."""
    command = [python, "-m", "monai.bundle", "run", "--config_file", str(CONFIGS / "train.yaml")]
    command += [str(argument) for argument in arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": "/"}
    # as many threads as here, so that both sum in the same order
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment.pop("MONAI_GMR_TRACEBACK", None)
    process = subprocess.Popen(command, env=environment, **options)
    return process if not wait else (process, *process.communicate(timeout=240))


@pytest.mark.parametrize(("name", "kind"), [("train", "train"), ("evaluate", "eval"), ("inference", "infer")])
def test_monai_finds_all_properties(name, kind, dataset_dir, trained):
    workflow = GMRWorkflow(
        str(CONFIGS / f"{name}.yaml"),
        workflow_type=kind,
        logging_file=False,
        dataset_dir=dataset_dir,
        ckpt_dir=trained,
        **NETWORK,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert workflow.bundle_root == str(BUNDLE)


def sentence(name, **settings):
    """Returns the one sentence with which a run ends; MONAI wraps it."""
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_config(name, **settings)
    found = str(find_configuration_error(caught.value))
    assert "\n" not in found
    return found


def test_labels_of_other_values_are_trained_and_scored_as_classes(dataset_dir, trained, tmp_path):
    """Results equal those for labels that hold class indices."""
    shutil.copytree(dataset_dir, tmp_path / "data")
    for path in (tmp_path / "data").glob("labelsT*/*"):
        image = nib.load(path)
        stored = np.array([0, 1, 4, 200], np.uint8)[np.asarray(image.dataobj)]
        nib.save(nib.Nifti1Image(stored, image.affine), path)
    places = {"dataset_dir": str(tmp_path / "data"), "ckpt_dir": str(tmp_path), "device": "cpu"}
    options = {"label_values": [0, 1, 4, 200], **places}
    run_config("train", epochs=2, output_dir=str(tmp_path), **options, **SMALL)
    found, expected = (torch.load(Path(folder) / "model.pt", weights_only=True) for folder in (tmp_path, trained))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    few = {"angle_step": 0, "num_group_elements": 2, "worst_cases": 0, "num_resamples": 0, **NETWORK}
    run_config("evaluate", output_dir=str(tmp_path / "own"), **options, **few)
    run_config("evaluate", output_dir=str(tmp_path / "indices"), **{**places, "dataset_dir": dataset_dir}, **few)
    rows = [(tmp_path / name / "rotation_table.csv").read_text(encoding="utf-8") for name in ("own", "indices")]
    assert rows[0] == rows[1]
    assert "--label_values" in sentence("train", **places, output_dir=str(tmp_path), **SMALL)


@pytest.mark.parametrize("name", ["evaluate", "inference"])
def test_weights_of_another_convolution_are_refused(name, dataset_dir, trained, tmp_path):
    """The purely radial net has the same names and shapes."""
    places = {"dataset_dir": dataset_dir, "ckpt_dir": trained, "output_dir": str(tmp_path), "device": "cpu"}
    found = sentence(name, conv="gmr", **places, **NETWORK)
    assert re.search(r"model\.pt is of another network \(.*conv='gmr_harmonic', here .*conv='gmr'\): give the ", found)
    assert {path.name for path in tmp_path.iterdir()} <= {LOCK_NAME}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"conv": "gmr"}, r"is of another network \(.*conv='gmr_harmonic', here .*conv='gmr'\)"),
        ({"seed": 1}, "is of a training with seed=0, here 1: give --seed 0, give another --ckpt_dir"),
        (
            {"dataset_dir": "fewer"},
            r"is of a training on other data \(4 and 2 cases, here 3 and 2\): give another --ckpt",
        ),
        ({"dataset_dir": "moved"}, None),
    ],
)
def test_a_training_resumes_as_the_one_that_it_was(settings, said, dataset_dir, trained, tmp_path):
    """Refuses another network, other data or another seed; the folder of the data can have moved."""
    places = {"dataset_dir": dataset_dir, "ckpt_dir": str(tmp_path / "ckpt"), "output_dir": str(tmp_path / "out")}
    shutil.copytree(trained, places["ckpt_dir"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "ckpt").glob("*.pt")}
    if "dataset_dir" in settings:
        folder = shutil.copytree(dataset_dir, tmp_path / settings["dataset_dir"])
        lists = json.loads((folder / "dataset.json").read_text())
        lists["training"] = lists["training"][: 3 if said else None]
        (folder / "dataset.json").write_text(json.dumps(lists))
        settings = {"dataset_dir": str(folder)}
    settings = {**places, "device": "cpu", **SMALL, **settings}
    if said is None:
        run_config("train", epochs=3, **settings)
        assert torch.load(tmp_path / "ckpt" / "latest.pt", weights_only=True)["trainer"]["max_epochs"] == 3
        return
    assert re.search(rf"latest\.pt {said}.*--resume False to start anew", sentence("train", epochs=3, **settings))
    assert {path.name: path.read_bytes() for path in (tmp_path / "ckpt").glob("*.pt")} == before


def test_the_page_has_results():
    assert "## Results" in (BUNDLE / "docs" / "README.md").read_text()


def test_network_settings_are_the_same_in_every_config():
    configs = [ConfigParser.load_config_file(CONFIGS / f"{name}.yaml") for name in ("train", "evaluate", "inference")]
    for key in (
        "network_def",
        "network",
        "in_channels",
        "out_channels",
        "conv",
        "features",
        "kernel_sizes",
        "rings",
        "spacing",
    ):
        assert configs[0][key] == configs[1][key] == configs[2][key], key


def test_training_leaves_a_best_and_a_latest_checkpoint(trained_on, device):
    trained = trained_on(device.type)
    latest = torch.load(Path(trained) / "latest.pt", weights_only=True)
    assert set(latest) == {"model", "optimizer", "lr_scheduler", "trainer", "best", "made_with"}
    assert latest["trainer"]["max_epochs"] == 2
    assert latest["made_with"]["seed"] == 0
    assert [each["cases"] for each in latest["made_with"]["cases"]] == [4, 2]
    assert (Path(trained) / "model.pt").is_file()


def test_evaluation_ends_in_a_table_that_does_not_move_on_the_grid(dataset_dir, trained_on, tmp_path, capsys, device):
    places = {"dataset_dir": dataset_dir, "ckpt_dir": trained_on(device.type), "output_dir": str(tmp_path)}
    # the whole group once; else four elements, seven with other families
    elements, views = (48, 48) if device.type == "cpu" else (4, 7)
    run_config("evaluate", device=device.type, angle_step=60, num_group_elements=elements, **places, **NETWORK)
    with open(tmp_path / "rotation_table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    group = [row for row in rows if row["family"] == "group"]
    scores = [row for row in group if row["metric"] != "equivariance_error"]
    assert {row["metric"] for row in scores} == {"mean_dice_in_ball", "mean_dice"}
    # one voxel that float rounding moves across a border changes the Dice of a small volume by less than this
    assert all(int(row["views"]) == views and float(row["spread"]) < 2e-3 for row in scores)
    assert all(float(row["worst"]) < 1e-5 for row in group if row["metric"] == "equivariance_error")
    assert (tmp_path / "rotation_table.png").is_file()
    assert re.search("mean_dice_in_ball +group", capsys.readouterr().out)


def test_predictions_are_labels_in_the_geometry_of_the_image(dataset_dir, trained_on, tmp_path, device):
    trained, options = trained_on(device.type), {"device": device.type, **NETWORK}
    run_config("inference", dataset_dir=dataset_dir, ckpt_dir=trained, output_dir=str(tmp_path), **options)
    images = sorted((Path(dataset_dir) / "imagesTr").glob("*.nii.gz"))[-2:]
    for image in images:
        prediction = nib.load(tmp_path / image.name.replace(".nii.gz", "_seg.nii.gz"))
        assert prediction.shape == (16, 17, 18)
        np.testing.assert_allclose(prediction.affine, nib.load(image).affine)
        assert prediction.get_data_dtype() == np.uint8
    folder = tmp_path / "from_folder"
    run_config("inference", input=str(images[0].parent), ckpt_dir=trained, output_dir=str(folder), **options)
    assert len(list(folder.glob("*_seg.nii.gz"))) == 8


def test_pictures_become_pictures_of_classes(tmp_path):
    """In 2D a PNG is predicted as a PNG of its size, with the same classes as the same image as NIfTI."""
    settings = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "features": [4, 6]}
    torch.manual_seed(0)
    torch.save(GMRUNet(**settings, conv="gmr_harmonic").state_dict(), tmp_path / "model.pt")
    pixels = np.random.default_rng(0).integers(256, size=(20, 28), dtype=np.uint8)
    for folder in ("pictures", "nifti"):
        (tmp_path / folder).mkdir()
    Image.fromarray(pixels).save(tmp_path / "pictures" / "a.png")
    # a reader of pictures puts the columns first
    nib.save(nib.Nifti1Image(pixels.T, np.eye(4)), tmp_path / "nifti" / "a.nii.gz")
    for folder in ("pictures", "nifti"):
        places = {"input": str(tmp_path / folder), "output_dir": str(tmp_path / f"{folder}_out")}
        run_config("inference", ckpt_dir=str(tmp_path), **places, **settings)
    found = np.asarray(Image.open(tmp_path / "pictures_out" / "a_seg.png"))
    assert found.dtype == np.uint8
    assert len(np.unique(found)) > 1
    expected = np.asarray(nib.load(tmp_path / "nifti_out" / "a_seg.nii.gz").dataobj)
    np.testing.assert_array_equal(found, expected.reshape(28, 20).T)


def test_a_killed_training_resumes_and_ends_like_an_uninterrupted_one(dataset_dir, tmp_path, caplog, forked_python):
    epochs = 16
    settings = {**SMALL, "dataset_dir": dataset_dir, "epochs": epochs, "output_dir": str(tmp_path)}
    broken, whole = tmp_path / "broken" / "latest.pt", tmp_path / "whole" / "latest.pt"
    arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
    process = command_line(*arguments, "--ckpt_dir", broken.parent, python=forked_python, wait=False)
    deadline = time.monotonic() + 200
    while not broken.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = torch.load(broken, weights_only=True)["trainer"]["iteration"] // 2
    assert 0 < done < epochs
    with caplog.at_level("INFO", logger="monai_gmr"):
        run_config("train", **settings, ckpt_dir=str(broken.parent))
        assert f"after epoch {done} of {epochs}" in caplog.text
        caplog.clear()
        run_config("train", **settings, ckpt_dir=str(whole.parent))
        assert "Resumed" not in caplog.text
    found, expected = (torch.load(path, weights_only=True) for path in (broken, whole))
    assert found["trainer"]["iteration"] == expected["trainer"]["iteration"] == 2 * epochs
    for best in (found["best"], expected["best"]):
        # each epoch once, with its score; only the times can differ
        seconds = [(row.pop("seconds"), row.pop("processor_seconds", 1)) for row in best["history"]]
        assert np.min(seconds) > 0
    assert found["best"] == expected["best"]
    for name, tensor in expected["model"].items():
        assert torch.equal(found["model"][name], tensor), name


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--epohcs", 3), "error: --epohcs is not a setting of this config: did you mean --epochs?"),
        (("--dataset_dir", "/nowhere"), "error: dataset_dir=/nowhere does not exist: give a folder in"),
        (("--rings", "gausian", "--epochs", 1), "error: rings='gausian'"),
    ],
)
def test_a_wrong_setting_is_one_sentence_in_the_terminal(arguments, match, dataset_dir, tmp_path, forked_python):
    if "--dataset_dir" not in arguments:
        arguments = (*arguments, "--dataset_dir", dataset_dir)
    process, _, err = command_line(*arguments, "--ckpt_dir", tmp_path, python=forked_python)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith(match)
    assert "Traceback" not in err


def two_processes(folder, python, configs=CONFIGS, **settings):
    """Trains in two processes with gloo, as torchrun starts them, all by ``python``."""
    files = f"['{configs / 'train.yaml'}','{configs / 'multi_gpu_train.yaml'}']"
    settings = {**SMALL, "ckpt_dir": folder, "output_dir": folder, **settings}
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", files]
    command += [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHON_EXEC": str(python)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", timeout=240, check=False)


@pytest.mark.parametrize("bundle", ["volume_segmentation_gmr_unet", "hippocampus_segmentation_gmr_unet"])
def test_two_processes_train_together(bundle, dataset_dir, tmp_path, forked_python):
    configs = BUNDLE.with_name(bundle) / "configs"
    done = two_processes(tmp_path, forked_python, configs, dataset_dir=dataset_dir, out_channels=4, epochs=1)
    assert done.returncode == 0, done.stderr
    # four cases in batches of two over two processes: one iteration, and names without the wrapper's "module."
    latest = torch.load(tmp_path / "latest.pt", weights_only=True)
    assert latest["trainer"]["iteration"] == 1
    assert not any(name.startswith("module.") for name in latest["model"])


@pytest.fixture
def poisoned(dataset_dir, tmp_path):
    """Phantoms with one NaN voxel in a training image, and the name of that image."""
    folder = shutil.copytree(dataset_dir, tmp_path / "poisoned")
    training = json.loads((folder / "dataset.json").read_text())["training"]
    path = folder / training[2]["image"]
    image = nib.load(path)
    volume = image.get_fdata().astype(np.float32)
    volume[8, 8, 8] = np.nan
    nib.save(nib.Nifti1Image(volume, image.affine), path)
    return str(folder), path.name


@pytest.mark.parametrize("settings", [{}, {"cache_rate": 0}, {"cache_rate": 0, "num_workers": 1}])
def test_a_poisoned_case_stops_all_processes_with_one_sentence(poisoned, tmp_path, settings, forked_python):
    """In any process, with or without a cache: all processes end, one names the file, and no checkpoint is damaged."""
    folder, name = poisoned
    settings = {"dataset_dir": folder, "epochs": 3, "batch_size": 1, **settings}
    done = two_processes(tmp_path / "ckpt", forked_python, **settings)
    assert done.returncode != 0
    # everything before the report of torchrun
    printed, _, _ = done.stderr.partition("torch.distributed.elastic.multiprocessing.errors.ChildFailedError")
    printed = printed.partition("torch/distributed/elastic")[0]
    (sentence,) = (line for line in printed.splitlines() if "error: " in line)
    assert name in sentence
    for sign in ("Connection closed", "RuntimeError", "DistBackendError"):
        assert sign not in done.stderr + done.stdout
    for path in (tmp_path / "ckpt").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        assert all(torch.isfinite(tensor).all() for tensor in state.get("model", state).values()), path


def test_a_poisoned_case_leaves_the_checkpoints_of_before(poisoned, trained, tmp_path, forked_python):
    folder, name = poisoned
    shutil.copytree(trained, tmp_path / "ckpt")
    before = {path.name: path.read_bytes() for path in (tmp_path / "ckpt").glob("*.pt")}
    arguments = [part for key, value in SMALL.items() for part in (f"--{key}", value)]
    arguments += ["--dataset_dir", folder, "--ckpt_dir", tmp_path / "ckpt", "--epochs", 4, "--cache_rate", 0]
    # the data differ from the data before
    arguments += ["--resume", False]
    process, _, err = command_line(*arguments, python=forked_python)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: ")
    assert name in err.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in (tmp_path / "ckpt").glob("*.pt")} == before


@pytest.mark.parametrize("conv", ["gmr_harmonic", "plain"])
def test_monais_dynunet_is_converted_by_config(dataset_dir, tmp_path, conv):
    """The overlay trains and evaluates MONAI's net, converted or unchanged, in windows that fit both."""
    files = [str(CONFIGS / f"{name}.yaml") for name in ("train", "dynunet")]
    options = {"dataset_dir": dataset_dir, "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path), "conv": conv}
    options |= {"logging_file": False, "features": [4, 6, 8], "roi_size": [16, 16, 16]}
    run(config_file=files, epochs=1, patch_size=[16, 16, 16], samples_per_case=1, val_interval=1, **options)
    files[0] = str(CONFIGS / "evaluate.yaml")
    run(config_file=files, angle_step=0, num_group_elements=4, cases=1, **options)
    with open(tmp_path / "rotation_table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["family"] for row in rows} >= {"upright", "group"}
    parser = ConfigParser()
    parser.read_config(files)
    parser["conv"], parser["features"] = conv, [4, 6, 8]
    net = parser.get_parsed_content("network_def")
    assert bool(net.conversion_report.converted) is (conv != "plain")


def test_a_trained_dynunet_is_annealed_by_config(dataset_dir, tmp_path):
    """Annealing starts with the weights of the plain training, and evaluate.yaml reads the result as an ordinary converted network."""
    files = [str(CONFIGS / f"{name}.yaml") for name in ("train", "dynunet", "anneal")]
    options = {"dataset_dir": dataset_dir, "logging_file": False, "features": [4, 6, 8], "roi_size": [16, 16, 16]}
    training = {"patch_size": [16, 16, 16], "samples_per_case": 1, "val_interval": 1}

    def folders(name):
        return {"ckpt_dir": str(tmp_path / name), "output_dir": str(tmp_path / name)}

    run(config_file=files[:2], epochs=1, conv="plain", **options, **training, **folders("plain"))
    trained = tmp_path / "plain" / "model.pt"
    run(config_file=files, epochs=3, original_weights=str(trained), **options, **training, **folders("annealed"))
    parser = ConfigParser()
    parser.read_config(files[:2])
    parser["features"] = [4, 6, 8]
    net = parser.get_parsed_content("network_def")
    # keys of a converted network without rests
    net.load_state_dict(torch.load(tmp_path / "annealed" / "model.pt", weights_only=True))
    assert equivariance_error(net.eval(), torch.randn(1, 1, 16, 17, 18)).worst < 1e-5
    evaluation = [str(CONFIGS / "evaluate.yaml"), files[1]]
    run(config_file=evaluation, angle_step=0, num_group_elements=4, cases=1, **options, **folders("annealed"))
    with open(tmp_path / "annealed" / "rotation_table.csv", newline="") as file:
        assert {row["family"] for row in csv.DictReader(file)} >= {"upright", "group"}
    latest = torch.load(tmp_path / "annealed" / "latest.pt", weights_only=True)
    assert latest["best"]["best_metric_epoch"] >= 1
    assert not any("rest" in key for key in latest["model"])


def test_annealing_asks_for_a_trained_network():
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.yaml") for name in ("train", "dynunet", "anneal")])
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("network_def")
    assert "give --original_weights" in str(find_configuration_error(caught.value))
