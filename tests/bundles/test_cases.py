"""Handling of unusable cases: training stops, evaluation and inference name them and leave them out; nothing is lost."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import run
from monai.utils import set_determinism
from PIL import Image

from monai_gmr.data import write_phantoms
from monai_gmr.files import LOCK_NAME
from monai_gmr.utils import find_configuration_error

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
SEGMENTATION = BUNDLES / "volume_segmentation_gmr_unet" / "configs"
CLASSIFICATION = BUNDLES / "medmnist2d_classification_gmr_resnet" / "configs"
NETWORK = {"features": [4, 6]}
SMALL = {**NETWORK, "patch_size": [16, 16, 16], "samples_per_case": 1, "val_interval": 1}


@pytest.fixture(autouse=True)
def clean_process(monkeypatch):
    """Restores the seeds and the hook after a run in this process."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield
    set_determinism(None)


def run_config(path, **settings):
    run(config_file=str(path), logging_file=False, **settings)


def sentence(path, **settings):
    """Returns the one sentence with which a run ends; MONAI wraps it."""
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_config(path, **settings)
    found = find_configuration_error(caught.value)
    assert found is not None, caught.value
    assert "\n" not in str(found)
    return str(found)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 4, 2, 3, (16, 17, 18), progress=False)
    return folder


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory):
    """Folder with the checkpoints of one epoch."""
    folder = str(tmp_path_factory.mktemp("trained"))
    run_config(
        SEGMENTATION / "train.yaml", dataset_dir=str(phantoms), ckpt_dir=folder, output_dir=folder, epochs=1, **SMALL
    )
    return Path(folder)


def rewrite(path, change=lambda array: array, affine=None):
    image = nib.load(path)
    array = change(np.asarray(image.dataobj))
    nib.save(nib.Nifti1Image(array, image.affine if affine is None else affine), path)


def put(value):
    def change(array):
        array = array.astype(np.float32)
        array[3, 4, 5] = value
        return array

    return change


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


POISON = {
    "NaN in the image": ("image", lambda path: rewrite(path, put(np.nan)), "NaN or infinite"),
    "inf in the image": ("image", lambda path: rewrite(path, put(np.inf)), "NaN or infinite"),
    "4D image": ("image", lambda path: rewrite(path, lambda a: np.stack([a, a], -1)), "2 channels"),
    "empty image": ("image", lambda path: path.write_bytes(b""), "is empty"),
    "truncated image": ("image", truncate, "cannot be read"),
    "truncated label": ("label", truncate, "cannot be read"),
    "shorter label": ("label", lambda path: rewrite(path, lambda a: a[:, :, :-2]), "has the shape"),
    "label times .5": ("label", lambda path: rewrite(path, lambda a: a * np.float32(0.5)), "not whole"),
    "label times .99998": ("label", lambda path: rewrite(path, lambda a: a * np.float32(0.99998)), "not whole"),
    "label out of range": ("label", lambda path: rewrite(path, lambda a: a + (a > 0) * np.uint8(4)), "--out_channels"),
    "negative label": ("label", lambda path: rewrite(path, lambda a: a.astype(np.int16) - 1), "from -1"),
    "NaN in the label": ("label", lambda path: rewrite(path, put(np.nan)), "NaN or infinite"),
    "label moved by 40 mm": ("label", lambda path: rewrite(path, affine=np.eye(4) + 40 * np.eye(4, k=3)), "by 40 mm"),
}


def poison(phantoms, folder, name, section):
    """Copies the phantoms and spoils one random case of a list; returns its file and the cause."""
    part, spoil, cause = POISON[name]
    shutil.copytree(phantoms, folder)
    cases = json.loads((folder / "dataset.json").read_text())[section]
    # another place for each kind of damage, the same in every run
    place = np.random.default_rng(list(name.encode())).integers(len(cases))
    file = folder / cases[place][part]
    spoil(file)
    return file.resolve(), cause


@pytest.mark.parametrize("name", POISON)
@pytest.mark.parametrize("cache_rate", [1.0, 0.0])
def test_training_stops_at_a_poisoned_case(phantoms, trained, tmp_path, name, cache_rate):
    """The run ends with one sentence that names the file; existing checkpoints stay unchanged."""
    file, cause = poison(phantoms, tmp_path / "data", name, "training")
    models = tmp_path / "models"
    shutil.copytree(trained, models)
    before = {path.name: path.read_bytes() for path in models.iterdir()}
    assert {"model.pt", "latest.pt"} <= set(before)
    places = {"dataset_dir": str(tmp_path / "data"), "ckpt_dir": str(models), "output_dir": str(models)}
    # a training on other data does not resume
    options = {"epochs": 2, "cache_rate": cache_rate, "resume": False}
    message = sentence(SEGMENTATION / "train.yaml", **places, **options, **SMALL)
    assert file.name in message
    assert cause in message
    assert {path.name: path.read_bytes() for path in models.iterdir()} == before


@pytest.mark.parametrize("name", ["NaN in the image", "shorter label", "truncated image"])
def test_training_stops_at_a_poisoned_case_of_the_validation(phantoms, trained, tmp_path, name):
    """Without a cache, the run ends when the first validation loads the case; the best network is kept."""
    file, cause = poison(phantoms, tmp_path / "data", name, "validation")
    models = tmp_path / "models"
    shutil.copytree(trained, models)
    best = (models / "model.pt").read_bytes()
    places = {"dataset_dir": str(tmp_path / "data"), "ckpt_dir": str(models), "output_dir": str(models)}
    message = sentence(SEGMENTATION / "train.yaml", **places, epochs=2, cache_rate=0.0, resume=False, **SMALL)
    assert file.name in message
    assert cause in message
    assert (models / "model.pt").read_bytes() == best
    state = torch.load(models / "latest.pt", weights_only=True)["model"]
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


@pytest.mark.parametrize(
    ("section", "change", "cause", "settings"),
    [
        ("training", lambda a: np.stack([a, a], -1), "2 channels", {}),
        ("validation", lambda a: np.stack([a, a], -1), "2 channels", {}),
        ("validation", lambda a: a[0], "2 spatial axes", {}),
        ("validation", lambda a: a[:2, :1, :2], "2 x 1 x 2 voxels, and 1 halvings leave one", {}),
        # they are padded
        ("training", lambda a: a[:2, :1, :2], "", {}),
        ("validation", lambda a: a[:2, :1, :2], "", {"roi_size": [8, 8, 8]}),
    ],
)
def test_images_that_do_not_fit_the_network_are_found_before_training(
    phantoms, tmp_path, section, change, cause, settings
):
    """Without a cache, validation cases would only be read after an epoch, and the error would not name the case that is too small."""
    shutil.copytree(phantoms, tmp_path / "data")
    case = json.loads((tmp_path / "data" / "dataset.json").read_text())[section][-1]
    for part in ("image",) if cause else ("image", "label"):
        rewrite(tmp_path / "data" / case[part], change)
    places = {"dataset_dir": str(tmp_path / "data"), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
    train, options = SEGMENTATION / "train.yaml", {**SMALL, "epochs": 1, "cache_rate": 0.0, **settings}
    if cause:
        message = sentence(train, **places, **options)
        assert Path(case["image"]).name in message
        assert cause in message
    else:
        run_config(train, **places, **options)
    assert (tmp_path / "model.pt").exists() == (not cause)


@pytest.mark.parametrize(
    ("options", "module"),
    [
        ((), "monai.bundle"),
        (("--cache_rate", 0), "monai.bundle"),
        (("--cache_rate", 0, "--num_workers", 2), "monai.bundle"),
        (("--cache_rate", 0), "monai_gmr.bundle"),
    ],
)
def test_a_poisoned_case_is_one_sentence_in_the_terminal(phantoms, tmp_path, options, module, forked_python):
    """Errors come from threads that fill the cache, the process itself and workers of the loader, in MONAI's command and in ours, which
    starts a new interpreter."""
    file, cause = poison(phantoms, tmp_path / "data", "inf in the image", "training")
    settings = {**SMALL, "dataset_dir": tmp_path / "data", "ckpt_dir": tmp_path, "output_dir": tmp_path, "epochs": 1}
    python = forked_python if module == "monai.bundle" else sys.executable
    command = [python, "-m", module, "run", "--config_file", str(SEGMENTATION / "train.yaml")]
    command += [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    command += [str(part) for part in options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("MONAI_GMR_TRACEBACK", None)
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, timeout=240, check=False)
    assert done.returncode == 1, done.stderr
    message = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(message) == 1
    assert file.name in message[0]
    assert cause in message[0]
    for sign in ("Traceback", "RuntimeError", "terminat"):
        assert sign not in done.stderr + done.stdout


def test_a_wrong_setting_is_refused_at_the_first_case(phantoms, tmp_path):
    places = {"dataset_dir": str(phantoms), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path), "epochs": 1}
    for settings, message in (({"out_channels": 2}, "give --out_channels 4"), ({"in_channels": 2}, "--in_channels 1")):
        assert message in sentence(SEGMENTATION / "train.yaml", **places, **SMALL, **settings)
    assert not list(tmp_path.glob("*.pt"))


def test_labels_are_brought_to_their_images_by_a_setting(phantoms, trained, tmp_path):
    """A data set whose labels are stored mirrored, with a matching affine, is evaluated like the original one."""
    shutil.copytree(phantoms, tmp_path / "data")
    flip = np.diag([-1.0, 1, 1, 1])
    for path in (tmp_path / "data" / "labelsTr").glob("*"):
        image = nib.load(path)
        flip[0, 3] = image.shape[0] - 1
        rewrite(path, lambda array: array[::-1].copy(), image.affine @ flip)
    options = {
        "ckpt_dir": str(trained),
        "angle_step": 0,
        "num_group_elements": 2,
        "worst_cases": 0,
        "num_resamples": 0,
        **NETWORK,
    }
    places = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "mirrored")}
    evaluate = SEGMENTATION / "evaluate.yaml"
    assert "mirrored along axis 0" in sentence(evaluate, **places, **options)
    run_config(evaluate, **places, **options, label_affine="resample")
    run_config(evaluate, dataset_dir=str(phantoms), output_dir=str(tmp_path / "stored"), **options)
    tables = [read(tmp_path / name / "rotation_table.csv") for name in ("mirrored", "stored")]
    assert [row["mean"] for row in tables[0]] == [row["mean"] for row in tables[1]]


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", POISON)
def test_the_evaluation_leaves_a_poisoned_case_out_of_every_metric(phantoms, trained, tmp_path, name, capsys):
    file, cause = poison(phantoms, tmp_path / "data", name, "test")
    options = {"dataset_dir": str(tmp_path / "data"), "ckpt_dir": str(trained), "output_dir": str(tmp_path / "out")}
    options |= {"angle_step": 0, "num_group_elements": 2, "worst_cases": 0, "num_resamples": 0}
    message = sentence(SEGMENTATION / "evaluate.yaml", **options, **NETWORK)
    assert "1 of 3 cases were left out" in message
    assert file.name in message
    assert cause in message
    image = file.name
    assert f"{image} is left out: " in capsys.readouterr().out.splitlines()[-1]
    rows = read(tmp_path / "out" / "rotation_cases.csv")
    assert len({row["case"] for row in rows}) == 2
    assert image not in {row["case"] for row in rows}
    metrics = {"mean_dice_in_ball", "mean_dice", "equivariance_error"}
    assert all(np.isfinite(float(row[metric])) for row in rows for metric in metrics)
    assert {row["cases"] for row in read(tmp_path / "out" / "rotation_table.csv")} == {"2"}


def predict(trained, output, **settings):
    return {"ckpt_dir": str(trained), "output_dir": str(output), **NETWORK, **settings}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_of_one_name_in_several_folders_are_all_predicted(phantoms, trained, tmp_path, num_workers, capsys):
    images = sorted((phantoms / "imagesTr").glob("*.nii.gz"))
    names = ["a/t1.nii.gz", "b/t1.nii.gz", "b/deeper/t1.nii.gz", "t1.nii.gz"]
    for image, name in zip(images, names):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / "data" / name)
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"test": names}))
    settings = predict(trained, tmp_path / "out", num_workers=num_workers)
    run_config(SEGMENTATION / "inference.yaml", dataset_dir=str(tmp_path / "data"), **settings)
    assert "4 predictions in" in capsys.readouterr().out
    alone = predict(trained, tmp_path / "alone", input=str(phantoms / "imagesTr"))
    run_config(SEGMENTATION / "inference.yaml", **alone)
    for image, name in zip(images, names):
        found = nib.load(tmp_path / "out" / name.replace(".nii.gz", "_seg.nii.gz")).get_fdata()
        expected = nib.load(tmp_path / "alone" / image.name.replace(".nii.gz", "_seg.nii.gz")).get_fdata()
        assert np.array_equal(found, expected)
    assert len(list((tmp_path / "out").rglob("*_seg.nii.gz"))) == 4


def test_what_would_be_overwritten_is_refused(phantoms, trained, tmp_path):
    images = sorted((phantoms / "imagesTr").glob("*.nii.gz"))
    for place, image in zip(("a", "b", "c"), images):
        (tmp_path / place).mkdir()
        shutil.copy(image, tmp_path / place / "t1.nii.gz")
    nib.save(nib.load(images[0]), tmp_path / "c" / "t1.nii")
    inference, out = SEGMENTATION / "inference.yaml", tmp_path / "out"
    run_config(inference, **predict(trained, out, input=str(tmp_path / "a")))
    written = (out / "t1_seg.nii.gz").read_bytes()
    message = sentence(inference, **predict(trained, out, input=str(tmp_path / "b")))
    assert "is the prediction of" in message
    assert "would both be predicted" in sentence(inference, **predict(trained, out, input=str(tmp_path / "c")))
    assert (out / "t1_seg.nii.gz").read_bytes() == written
    # the same images again
    run_config(inference, **predict(trained, out, input=str(tmp_path / "a")))


def test_all_other_images_of_a_folder_are_predicted(phantoms, trained, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(phantoms / "imagesTr", folder)
    files = sorted(folder.glob("*.nii.gz"))
    for file in files:
        (folder / f"._{file.name}").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    rewrite(files[1], put(np.nan))
    truncate(files[3])
    nib.save(nib.Nifti1Image(np.zeros((6, 6, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4)), files[5])
    message = sentence(SEGMENTATION / "inference.yaml", **predict(trained, tmp_path / "out", input=str(folder)))
    assert message.startswith(f"3 of {len(files)} images were not predicted, the first is {files[1].name}: ")
    printed = capsys.readouterr().out
    assert f"{len(files) - 3} predictions in" in printed
    for number, cause in ((1, "NaN or infinite"), (3, "cannot be read"), (5, "RGB colours")):
        assert any(
            line.startswith(f"{files[number].name} is left out: ") and cause in line for line in printed.splitlines()
        )
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == len(files) - 3


@pytest.fixture
def classifier(tmp_path):
    """Makes settings of an inference with a network of random weights for grey images."""
    arrays = {f"{part}_images": np.zeros((4, 9, 9), np.uint8) for part in ("train", "val", "test")}
    arrays |= {f"{part}_labels": np.arange(4, dtype=np.uint8) % 2 for part in ("train", "val", "test")}
    np.savez(tmp_path / "blobs.npz", **arrays)
    settings = {"dataset_dir": str(tmp_path), "flag": "blobs.npz", "layers": [1, 1], "width": 4, "kernel_sizes": 3}
    settings |= {"ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), "batch_size": 8}
    run_config(CLASSIFICATION / "train.yaml", **settings, epochs=1, spatial_size=0)
    return settings


def pictures(folder):
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, mode, size in (("a", "L", 9), ("b", "RGB", 12), ("c", "RGBA", 14), ("d", "L", 11), ("e", "P", 10)):
        image = Image.fromarray(random.integers(0, 255, (size, size + 1, 4)).astype(np.uint8), "RGBA")
        image.putalpha(255)
        image.convert(mode).save(folder / f"{name}.png")
        (folder / f"._{name}.png").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")


@pytest.mark.parametrize("spatial_size", [0, 9])
def test_a_folder_of_unlike_pictures(classifier, tmp_path, spatial_size, capsys):
    pictures(tmp_path / "pictures")
    options = {**classifier, "input": str(tmp_path / "pictures"), "spatial_size": spatial_size}
    run_config(CLASSIFICATION / "inference.yaml", **options, grey=True)
    rows = read(tmp_path / "out" / "predictions.csv")
    assert [Path(row["filename"]).name for row in rows] == [f"{name}.png" for name in "abcde"]
    assert "5 predictions in" in capsys.readouterr().out
    # each equals its prediction without the others
    for row in rows:
        alone = {**options, "input": row["filename"], "output_dir": str(tmp_path / Path(row["filename"]).stem)}
        run_config(CLASSIFICATION / "inference.yaml", **alone, grey=True)
        (single,) = read(Path(alone["output_dir"]) / "predictions.csv")
        assert float(single["probability_1"]) == pytest.approx(float(row["probability_1"]), abs=1e-5)
    # without --grey, images of one channel are predicted, the others are named
    message = sentence(CLASSIFICATION / "inference.yaml", **options)
    assert message.startswith("3 of 5 images were not predicted, the first is b.png: ")
    assert "b.png has 3 channels and the network reads 1" in message
    rows = read(tmp_path / "out" / "predictions.csv")
    assert [Path(row["filename"]).name for row in rows] == ["a.png", "d.png"]


def test_predictions_of_other_pictures_are_not_replaced(classifier, tmp_path):
    pictures(tmp_path / "pictures")
    shutil.copytree(tmp_path / "pictures", tmp_path / "others")
    run_config(CLASSIFICATION / "inference.yaml", **classifier, input=str(tmp_path / "pictures"), grey=True)
    written = (tmp_path / "out" / "predictions.csv").read_bytes()
    message = sentence(CLASSIFICATION / "inference.yaml", **classifier, input=str(tmp_path / "others"), grey=True)
    assert "holds predictions of other images" in message
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == written


@pytest.mark.parametrize("config", ["train", "evaluate", "inference"])
def test_a_picture_of_an_array_that_is_not_finite(classifier, tmp_path, config):
    with np.load(tmp_path / "blobs.npz") as file:
        arrays = {key: file[key].astype(np.float32) if key.endswith("images") else file[key] for key in file.files}
    arrays["train_images" if config == "train" else "test_images"][2, 3, 3] = np.nan
    np.savez(tmp_path / "blobs.npz", **arrays)
    models = {path: path.read_bytes() for path in tmp_path.glob("*.pt")}
    options = {"train": {"epochs": 2}, "evaluate": {"angle_step": 0, "worst_cases": 0}, "inference": {}}[config]
    message = sentence(CLASSIFICATION / f"{config}.yaml", **classifier, spatial_size=0, **options)
    assert f"blobs_{'train' if config == 'train' else 'test'}_00002 of " in message
    assert "holds 1 value of 81 that is NaN or infinite" in message
    assert {path: path.read_bytes() for path in tmp_path.glob("*.pt")} == models
    if config == "inference":
        assert len(read(tmp_path / "out" / "predictions.csv")) == 3
    if config == "evaluate":
        assert {row["cases"] for row in read(tmp_path / "out" / "rotation_table.csv")} == {"3"}


@pytest.fixture
def terminal(forked_python):
    """A function that runs a command as typed by a user; returns its exit status and its output."""

    def run_command(*arguments, module="monai.bundle", config="train", overlay=()):
        files = [str(SEGMENTATION / f"{name}.yaml") for name in (config, *overlay)]
        command = [forked_python, "-m", module, "run", "--config_file", str(files) if overlay else files[0]]
        command += map(str, arguments)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("MONAI_GMR_TRACEBACK", None)
        options = {"capture_output": True, "text": True, "cwd": "/", "env": environment, "timeout": 240}
        return subprocess.run(command, check=False, **options)

    return run_command


def one_sentence(done):
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "error: " in line)
    return line


NESTED_VALUES = [
    (("--optimizer::lr", -1), "optimizer::lr=-1 cannot be used: give --optimizer::lr a number above 0"),
    (("--train::dataloader::batch_size", 0), "a whole number of at least 1"),
    (("--train#trainer#max_epochs", 0), "train#trainer#max_epochs=0 cannot be used"),
    (("--device", "cuda:7"), "give --device a device of this machine"),
    (("--features", "[4,6]"), "DynUNet cannot be made with these settings .*no less than 3"),
]


@pytest.mark.parametrize(("arguments", "cause"), NESTED_VALUES)
def test_an_impossible_value_is_one_sentence_in_the_terminal(arguments, cause, tmp_path, terminal):
    """The value is given by the setting's name or by an id that refers to it, and is refused before data are read."""
    folders = ("--ckpt_dir", tmp_path, "--dataset_dir", tmp_path / "nowhere")
    line = one_sentence(terminal(*arguments, *folders, overlay=("dynunet",)))
    assert re.search(cause, line), line


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("--network::x", 1), "did you mean --network_def::x"),
        (("--train::traner::x", 1), "did you mean --train::trainer"),
        (("--train::handlers::99::x", 1), "train::handlers is a list of 9"),
        (("--epohcs", 1), "did you mean --epochs"),
    ],
)
def test_our_own_command_refuses_what_monai_cannot_apply(arguments, cause, tmp_path, terminal):
    """MONAI applies overrides before any code of a bundle runs, so its own command ends in its traceback here."""
    line = one_sentence(terminal(*arguments, "--ckpt_dir", tmp_path, module="monai_gmr.bundle"))
    assert cause in line, line


# the lock of FolderLock without its imports; tests/test_files.py uses FolderLock itself
HOLD = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(1, flush=True); sys.stdin.read()"


@pytest.mark.parametrize("bundle", sorted(path.name for path in BUNDLES.iterdir() if path.is_dir()))
def test_an_inference_leaves_the_folder_of_another_one_alone(bundle, tmp_path):
    """The folder is refused until the other inference ends, however it ends; nothing is written before."""
    inference = BUNDLES / bundle / "configs" / "inference.yaml"
    settings = {"output_dir": str(tmp_path / "out"), "ckpt_dir": str(tmp_path), "dataset_dir": str(tmp_path)}
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out" / LOCK_NAME)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "1\n"
        line = sentence(inference, **settings)
        assert line.startswith(f"output_dir={tmp_path / 'out'} is in use by another run")
        assert [file.name for file in (tmp_path / "out").iterdir()] == [LOCK_NAME]
        other.kill()
    assert "there is no trained network" in sentence(inference, **settings)


@pytest.mark.parametrize("below", ["", "prediction"])
def test_an_inference_into_the_folder_of_its_images_can_be_repeated(phantoms, trained, tmp_path, below, capsys):
    images = tmp_path / "images"
    for number, image in enumerate(sorted((phantoms / "imagesTr").glob("*.nii.gz"))[:2]):
        place = images / ("patient" if number else ".") / image.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
    settings = predict(trained, images / below, input=str(images))
    for _ in range(2):
        run_config(SEGMENTATION / "inference.yaml", **settings)
        assert "2 predictions in" in capsys.readouterr().out
        assert len(list(images.rglob("*_seg.nii.gz"))) == 2


@pytest.mark.parametrize("setting", [{"patch_size": 16}, {"roi_size": 16}, {"angle_step": 180.0}])
def test_one_number_stands_for_all_axes(phantoms, trained, tmp_path, setting):
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path), **NETWORK}
    if "angle_step" in setting:
        options = {"num_group_elements": 2, "worst_cases": 0, "num_resamples": 0, "cases": 1}
        run_config(SEGMENTATION / "evaluate.yaml", **places, **options, **setting, ckpt_dir=str(trained))
    else:
        options = {**places, **SMALL, "epochs": 1, **setting}
        run_config(SEGMENTATION / "train.yaml", **options, ckpt_dir=str(tmp_path))
        assert (tmp_path / "model.pt").is_file()
