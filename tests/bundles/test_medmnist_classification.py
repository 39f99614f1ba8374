"""The classification bundles follow MONAI's bundle specification, run from data to table, resume, and refuse in one sentence."""

import csv
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out
from sklearn.metrics import roc_auc_score

from monai_gmr.utils import ConfigurationError

BUNDLES = {d: Path(__file__).parents[2] / "bundles" / f"medmnist{d}d_classification_gmr_resnet" for d in (2, 3)}
# allowed differences between the two bundles: defaults of settings, never a part of the workflow
OWN_DEFAULTS = {"spatial_dims", "flag", "spatial_size", "batch_size", "epochs", "angle_step"}
TINY = {"layers": [1, 1], "width": 4, "kernel_sizes": 3, "batch_size": 8, "epochs": 1, "spatial_size": 0}


def write_dataset(folder, spatial_dims, size=9, channels=1, classes=2, multi_label=False):
    """Makes bright blobs whose radius is their class, in a file of MedMNIST's layout; several labels: the class and all below it."""
    random, arrays = np.random.default_rng(0), {}
    grid = np.stack(np.meshgrid(*[np.arange(size) - (size - 1) / 2] * spatial_dims, indexing="ij"))
    for section, count in (("train", 12), ("val", 6), ("test", 6)):
        labels = np.arange(count) % classes
        inside = np.sqrt((grid**2).sum(0)) < (1.5 + labels).reshape(-1, *[1] * spatial_dims)
        images = 150 * inside + random.integers(0, 50, inside.shape)
        if channels > 1:
            images = np.stack([images] * channels, -1)
        labels = labels[:, None] >= np.arange(classes) if multi_label else labels[:, None]
        arrays |= {f"{section}_images": images.astype(np.uint8), f"{section}_labels": labels.astype(np.uint8)}
    np.savez(folder / "blobs.npz", **arrays)
    return {"dataset_dir": str(folder), "flag": "blobs.npz"}


def open_workflow(spatial_dims, name, **settings):
    """Reads a config of a bundle and overrides its settings."""
    names = (name,) if isinstance(name, str) else name
    files = [str(BUNDLES[spatial_dims] / "configs" / f"{one}.yaml") for one in names]
    kind = "train" if names[0] == "train" else "infer"
    return ConfigWorkflow(files, workflow_type=kind, logging_file=False, **settings)


def balanced_accuracy(scores, labels):
    """Computes the share of right signs where a label is 1 and where it is 0, averaged over those that occur, then over labels."""
    right = (scores > 0).numpy() == labels
    each = [[right[one == value, i].mean() for value in np.unique(one)] for i, one in enumerate(labels.T)]
    return np.mean([np.mean(recalls) for recalls in each])


def evaluate(spatial_dims, **settings):
    """Runs the evaluation of a bundle; returns its network, and the rows of its table by family and metric."""
    evaluation = open_workflow(spatial_dims, "evaluate", **settings)
    evaluation.initialize()
    assert evaluation.check_properties() == []
    evaluation.run()
    with open(Path(settings["output_dir"]) / "rotation_table.csv", newline="", encoding="utf-8") as file:
        rows = {(row["family"], row["metric"]): row for row in csv.DictReader(file)}
    return evaluation.parser.get_parsed_content("network").eval(), rows


def refusal(spatial_dims, name, **settings):
    """Returns the sentence with which a config refuses to start."""
    with pytest.raises(RuntimeError) as caught:
        open_workflow(spatial_dims, name, **settings).initialize()
    error = caught.value
    while error is not None and not isinstance(error, ConfigurationError):
        error = error.__cause__
    assert error is not None, caught.value
    return str(error)


@pytest.mark.parametrize("config", ["train", "evaluate", "inference", "multi_gpu_train"])
def test_the_two_bundles_differ_in_their_defaults_only(config):
    two, three = (
        yaml.safe_load((BUNDLES[d] / "configs" / f"{config}.yaml").read_text(encoding="utf-8")) for d in (2, 3)
    )
    assert {key for key in two.keys() | three.keys() if two.get(key) != three.get(key)} <= OWN_DEFAULTS


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_configs_of_a_bundle_share_their_defaults(spatial_dims):
    configs = [
        yaml.safe_load((BUNDLES[spatial_dims] / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("train", "evaluate", "inference")
    ]
    shared = (
        set(configs[0]) & set(configs[1]) & set(configs[2]) - {"imports", "initialize", "run", "shape", "output_dir"}
    )
    assert {"flag", "network_def", "conv", "width", "spatial_size"} <= shared
    for key in shared:
        assert configs[0][key] == configs[1][key] == configs[2][key], key


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_readme_tells_every_setting(spatial_dims):
    readme = (BUNDLES[spatial_dims] / "docs" / "README.md").read_text(encoding="utf-8")
    documented = {
        name for line in readme.splitlines() if line.startswith("| `") for name in line.split("|")[1].split("`")
    }
    for config in ("train", "evaluate", "inference"):
        text = (BUNDLES[spatial_dims] / "configs" / f"{config}.yaml").read_text(encoding="utf-8")
        settings = yaml.safe_load(text.partition("network_def:")[0].partition("bundle_root:")[2].partition("\n")[2])
        # not set by users: device, rank of the process, purpose of the bundle
        assert set(settings) - documented <= {"device", "checkpoint", "main_process", "spatial_dims", "shape"}, config


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("config", ["train", "evaluate", "inference"])
def test_network_fits_metadata_before_there_are_data(spatial_dims, config, tmp_path):
    configs = BUNDLES[spatial_dims] / "configs"
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / f"{config}.yaml"),
        device="cpu",
        dataset_dir=str(tmp_path),
    )


@pytest.mark.parametrize(("config", "node"), [("train", "validate::postprocessing"), ("evaluate", "postprocessing")])
@pytest.mark.parametrize("labels", [torch.tensor([2, 0, 1, 2]), torch.tensor([[2], [0], [1], [2]])])
def test_postprocessing_of_a_batch_is_that_of_its_images(config, node, labels):
    parser = ConfigParser({"num_classes": 3})
    parser.read_config(str(BUNDLES[2] / "configs" / f"{config}.yaml"))
    parser["num_classes"], parser["multi_label"] = 3, False
    scores = torch.randn(4, 3)
    output = parser.get_parsed_content(node)({"pred": scores.clone(), "label": labels})
    for image in range(4):
        exponentials = scores[image].double().exp()
        assert torch.allclose(output["probability"][image].double(), exponentials / exponentials.sum(), atol=1e-6)
        assert output["pred"][image].tolist() == [float(c == scores[image].argmax()) for c in range(3)]
        assert output["label"][image].tolist() == [float(c == labels.flatten()[image]) for c in range(3)]


def test_several_labels_an_image_are_trained_and_scored_each_for_itself(tmp_path):
    places = {"ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "out")}
    settings = write_dataset(tmp_path, 2, channels=3, classes=4, multi_label=True) | places | TINY
    training = open_workflow(2, "train", **settings, select_by="balanced_accuracy")
    training.initialize()
    assert isinstance(training.parser.get_parsed_content("loss"), torch.nn.BCEWithLogitsLoss)
    training.run()
    state = training.parser.get_parsed_content("validate::evaluator").state
    settings.pop("epochs")
    network, table = evaluate(2, **settings, angle_step=120)
    rows = {key: float(row["mean"]) for key, row in table.items()}
    # by hand, upright
    arrays, by_hand = np.load(tmp_path / "blobs.npz"), {}
    for section in ("val", "test"):
        x = torch.tensor(arrays[f"{section}_images"]).movedim(-1, 1).float()
        x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True, correction=0)
        with torch.no_grad():
            by_hand[section] = (network(x), arrays[f"{section}_labels"])
    assert state.metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy(*by_hand["val"]), abs=1e-6)
    scores, labels = by_hand["test"]
    assert rows["upright", "balanced_accuracy"] == pytest.approx(balanced_accuracy(scores, labels), abs=1e-6)
    assert rows["upright", "accuracy"] == pytest.approx(float(((scores > 0).numpy() == labels).mean()), abs=1e-5)
    # every image has the first label
    expected = roc_auc_score(labels[:, 1:], scores[:, 1:], average="macro")
    assert rows["upright", "auc"] == pytest.approx(expected, abs=1e-5)
    inference = open_workflow(2, "inference", **settings | {"output_dir": str(tmp_path / "prediction")})
    inference.initialize()
    inference.run()
    with open(tmp_path / "prediction" / "predictions.csv", newline="", encoding="utf-8") as file:
        cases = list(csv.DictReader(file))
    names = [f"{kind}_{label}" for kind in ("label", "probability") for label in range(4)]
    assert list(cases[0]) == ["filename", *names]
    found = torch.tensor([[float(case[name]) for name in names] for case in cases])
    assert torch.allclose(found[:, 4:], scores.sigmoid(), atol=1e-4)
    assert torch.equal(found[:, :4], (found[:, 4:] >= 0.5).float())


@pytest.mark.parametrize("conv", ["group", ["group", {"group": "4", "filter": "gc"}]])
def test_group_convolutions_by_a_setting(conv, tmp_path):
    places = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "out")}
    settings = write_dataset(tmp_path, 2) | places | TINY | {"conv": conv, "width": 8}
    del settings["kernel_sizes"]
    training = open_workflow(2, "train", **settings)
    training.initialize()
    training.run()
    settings.pop("epochs")
    _, rows = evaluate(2, **settings, angle_step=0)
    assert {row["network"] for row in rows.values()} == {"group" if conv == "group" else "group 4 gc"}
    if conv == "group":
        assert float(rows["group", "balanced_accuracy"]["spread"]) == 0
        assert float(rows["group", "equivariance_error"]["worst"]) < 1e-5


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_bundle_from_data_to_table_and_predictions(spatial_dims, tmp_path):
    places = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "out")}
    settings = write_dataset(tmp_path, spatial_dims) | places | TINY
    training = open_workflow(spatial_dims, "train", **settings)
    training.initialize()
    assert training.check_properties() == []
    training.run()
    assert (tmp_path / "models" / "model.pt").is_file()
    settings.pop("epochs")

    _, rows = evaluate(spatial_dims, **settings, angle_step=90 if spatial_dims == 3 else 45)
    for metric in ("auc", "balanced_accuracy"):
        assert int(rows["group", metric]["views"]) == (8 if spatial_dims == 2 else 48)
        assert float(rows["group", metric]["spread"]) == 0
        assert 0 <= float(rows["upright", metric]["mean"]) <= 1
    assert (tmp_path / "out" / "rotation_table.png").stat().st_size > 1000

    prediction = open_workflow(spatial_dims, "inference", **settings)
    prediction.initialize()
    assert prediction.check_properties() == []
    prediction.run()
    with open(tmp_path / "out" / "predictions.csv", newline="", encoding="utf-8") as file:
        cases = list(csv.DictReader(file))
    assert [case["filename"] for case in cases] == [f"blobs_test_{i:05d}" for i in range(6)]
    for case in cases:
        probabilities = [float(case["probability_0"]), float(case["probability_1"])]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert int(case["class"]) == int(np.argmax(probabilities))


def test_training_that_was_killed_ends_like_one_that_was_not(tmp_path):
    settings = write_dataset(tmp_path, 2) | TINY | {"epochs": 3, "output_dir": str(tmp_path)}

    def train(folder, killed_in=None):
        workflow = open_workflow(2, "train", **settings, ckpt_dir=str(tmp_path / folder))
        workflow.initialize()
        if killed_in:

            def kill():
                raise KeyboardInterrupt

            workflow.trainer.add_event_handler(Events.EPOCH_STARTED(once=killed_in), kill)
        workflow.run()
        return workflow.network_def.state_dict()

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("pieces", killed_in=3)
    resumed = train("pieces")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)
    first, second = (torch.load(tmp_path / f / "model.pt", weights_only=True) for f in ("whole", "pieces"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_colours_classes_and_channels_follow_from_the_file(tmp_path):
    data = write_dataset(tmp_path, 2, channels=3, classes=4)
    for settings, channels, classes in (
        ({}, 3, 4),
        ({"classes": [3, 1]}, 3, 2),
        ({"grey": True, "spatial_size": 12}, 1, 4),
    ):
        workflow = open_workflow(2, "train", **data, **(TINY | settings))
        workflow.initialize()
        item = workflow.train_dataset[0]
        assert item["image"].shape == (channels, *[settings.get("spatial_size", 9)] * 2)
        assert item["image"].mean() == pytest.approx(0, abs=1e-5)
        assert item["image"].std(correction=0) == pytest.approx(1, abs=1e-4)
        assert workflow.network_def(item["image"][None].repeat(2, 1, 1, 1)).shape == (2, classes)


def test_a_margin_repeats_the_border(tmp_path):
    data, items = write_dataset(tmp_path, 2), []
    for margin in (0, 2):
        workflow = open_workflow(2, "train", **data, **TINY, margin=margin)
        workflow.initialize()
        items.append(workflow.train_dataset[0]["image"])
    assert torch.equal(items[1][:, 2:-2, 2:-2], items[0])
    assert torch.equal(items[1], torch.nn.functional.pad(items[0], (2, 2, 2, 2), mode="replicate"))


def test_images_in_a_folder_are_predicted_under_their_names(tmp_path):
    settings = write_dataset(tmp_path, 2) | TINY | {"output_dir": str(tmp_path), "ckpt_dir": str(tmp_path)}
    settings.pop("epochs")
    for i in range(3):
        np.save(tmp_path / f"cell_{i}.npy", np.random.default_rng(i).random((9, 9), np.float32))
    workflow = open_workflow(2, "train", **settings, epochs=1)
    workflow.initialize()
    torch.save(workflow.network_def.state_dict(), tmp_path / "model.pt")
    prediction = open_workflow(2, "inference", **settings, input=str(tmp_path))
    prediction.initialize()
    prediction.run()
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "filename,class,probability_0,probability_1"
    assert [Path(line.split(",")[0]).name for line in lines[1:]] == [f"cell_{i}.npy" for i in range(3)]


@pytest.mark.parametrize(
    ("config", "settings", "sentence"),
    [
        ("train", {"dataset_dir": "nowhere"}, "dataset_dir nowhere does not exist"),
        ("train", {"flag": "absent"}, "absent.npz does not exist"),
        ("train", {"classes": [0, 7]}, "unknown label values [7]"),
        ("train", {"num_classes": 1}, "has 2 classes and num_classes=1"),
        ("train", {"in_channels": 3}, "have 1 channel and in_channels=3"),
        ("train", {"optimizer_name": "sdg"}, "optimizer_name='sdg' cannot be used"),
        ("train", {"select_by": "f1"}, "select_by='f1' cannot be used"),
        ("train", {"rings": "gausian"}, "rings='gausian'"),
        ("train", {"conv": "radial"}, "conv='radial'"),
        ("evaluate", {"split": "tset"}, "section='tset' is unknown"),
        ("evaluate", {"checkpoint": "none.pt"}, "there is no trained network at none.pt"),
        ("inference", {"input": "nothing", "checkpoint": __file__}, "input=nothing does not exist"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(config, settings, sentence, tmp_path):
    tiny = {key: value for key, value in TINY.items() if config == "train" or key != "epochs"}
    data = write_dataset(tmp_path, 2) | {"ckpt_dir": str(tmp_path), "checkpoint": __file__}
    if config == "train":
        data.pop("checkpoint")
    refused = refusal(2, config, **(data | tiny | settings))
    assert sentence in refused
    assert "\n" not in refused


def test_validation_images_of_other_channels_are_refused_before_training(tmp_path):
    places = write_dataset(tmp_path, 2)
    with np.load(tmp_path / "blobs.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "blobs.npz", **{**arrays, "val_images": np.stack([arrays["val_images"]] * 3, -1)})
    sentence = refusal(2, "train", **places, **TINY, ckpt_dir=str(tmp_path))
    assert sentence.startswith("the validation images of blobs.npz have 3 channels and in_channels=1")


def test_a_bundle_refuses_images_of_the_other_dimension(tmp_path):
    for spatial_dims in (2, 3):
        refused = refusal(spatial_dims, "train", **write_dataset(tmp_path, 5 - spatial_dims), **TINY)
        assert f"this is a {spatial_dims}D bundle: use the {5 - spatial_dims}D one" in refused


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_two_processes_train_one_network(spatial_dims, tmp_path, forked_python):
    data = write_dataset(tmp_path, spatial_dims)
    configs = BUNDLES[spatial_dims] / "configs"
    settings = {**data, **TINY, "epochs": 2, "ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path)}
    command = [forked_python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run"]
    command += ["--config_file", str([str(configs / "train.yaml"), str(configs / "multi_gpu_train.yaml")])]
    command += [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHON_EXEC": forked_python}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    latest = torch.load(tmp_path / "models" / "latest.pt", weights_only=True)
    assert latest["trainer"]["epoch_length"] == 1  # 12 images, 2 processes, batches of 8: one each
    assert (tmp_path / "models" / "model.pt").is_file()
