"""Every test draws the same random numbers, whichever ran before it; processes that start at once; a bundle in stock MONAI.

torch and MONAI are imported where they are needed: the process of pytest-xdist that hands out the tests would wait for them first.
"""

import functools
import gc
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

# Triton reads it when it is first imported; its kernels then run on the CPU, in numpy
if not os.path.exists("/dev/nvidia0"):
    os.environ.setdefault("TRITON_INTERPRET", "1")
# likewise OpenMP: workers of pytest-xdist share the cores, and threads that wait for each other there take many times as long
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import numpy as np
import pytest
import yaml


@functools.cache
def has_cuda():
    import torch

    return torch.cuda.is_available()


def on_other_device():
    """Whether the device "other" is asked for, which is not the CPU, though it computes there (other_device/other_device.py)."""
    return os.environ.get("TEST_DEVICE") == "other"


def pytest_generate_tests(metafunc):
    """The devices of the fixture ``device``: the CPU, CUDA where there is one, and "other" where ``TEST_DEVICE=other`` asks for it: torch
    takes it for the machine's accelerator, which tests of other things need not meet."""
    if "device" in metafunc.fixturenames:
        other = ["other"] if on_other_device() else []
        cuda = [pytest.param("cuda", marks=pytest.mark.gpu)] if has_cuda() else []
        metafunc.parametrize("device", ["cpu", *other, *cuda], indirect=True)


@pytest.fixture
def other_device():
    """For tests of the device "other" itself."""
    if not on_other_device():
        pytest.skip("TEST_DEVICE=other asks for it")


@pytest.fixture
def device(request):
    """The device of a property that holds on all: the CPU, one that is not and, where there is a GPU, CUDA, without TF32, which is no
    float32."""
    import torch

    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield torch.device(request.param)
    for switch, allowed in zip(switches, before):
        switch.allow_tf32 = allowed


@pytest.fixture
def one_thread():
    """Threads cost more than they gain on small nets."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_finish(session):
    """Leave what importing and collecting made out of every collection of garbage; the next tensor gets the memory of the last one."""
    from monai_gmr.bundle import keep_freed_memory

    if on_other_device() and not session.config.option.collectonly:
        import other_device

        # before the first backward pass, at which torch counts the devices
        other_device.load(session.config.cache.mkdir("other_device"))
    gc.collect()
    gc.freeze()
    keep_freed_memory()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """``-m gpu``: what a GPU must show, with Triton's kernels; ``-m rehearsal``: the same on the CPU, to be run before there is one."""
    for item in items:
        triton = "triton" in item.path.parent.parts
        if triton and has_cuda():
            item.add_marker(pytest.mark.gpu)
        if triton or ("device" in getattr(item, "fixturenames", ()) and item.get_closest_marker("gpu") is None):
            item.add_marker(pytest.mark.rehearsal)


def pytest_runtest_setup(item):
    import torch

    # torch.manual_seed notes each call, with its stack, for devices that are not there
    torch.default_generator.manual_seed(0)
    if has_cuda():
        torch.cuda.manual_seed_all(0)
    np.random.seed(0)  # noqa: NPY002  (MONAI's transforms draw from it)


@pytest.fixture(scope="session")
def forked_python(tmp_path_factory):
    """An executable in the place of ``sys.executable``, before ``-m`` or ``-c``, that saves the imports of torch and MONAI
    (forked_python.py): for tests of what a command does. Each command of the library is also run by ``sys.executable`` once."""
    if sys.platform != "linux":
        yield sys.executable
        return
    folder = tmp_path_factory.mktemp("forked")
    program, path, executable = Path(__file__).with_name("forked_python.py"), folder / "socket", folder / "python"
    words = shlex.join([sys.executable, "-IS", str(program), "call", str(path)])
    executable.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    executable.chmod(0o755)
    command = [sys.executable, str(program), "serve", str(path)]
    # one thread: a process that has started more cannot be forked safely
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "cwd": "/", "text": True}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options) as server:
        assert server.stdout.readline() == "ready\n"
        yield str(executable)
        server.stdin.close()


def _foreign_parts(inverts):
    """The parts of an evaluation in stock MONAI."""
    save = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"}
    discrete = {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False], "to_onehot": 2}
    invert = {"_target_": "Invertd", "keys": ["pred", "label"], "transform": "@preprocessing", "orig_keys": "image"}
    invert |= {"nearest_interp": [False, True]}
    return {
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": ["image", "label"], "ensure_channel_first": True},
                {
                    "_target_": "Spacingd",
                    "keys": ["image", "label"],
                    "pixdim": [1, 1, 1],
                    "mode": ["bilinear", "nearest"],
                },
                {"_target_": "ScaleIntensityd", "keys": "image"},
            ],
        },
        "dataset": {
            "_target_": "CacheDataset",
            "data": "$monai.data.load_decathlon_datalist(@dataset_dir + '/dataset.json', data_list_key='validation')",
            "transform": "@preprocessing",
            "progress": False,
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.25},
        "postprocessing": {"_target_": "Compose", "transforms": [*([invert] if inverts else []), discrete, save]},
        "handlers": [
            {"_target_": "CheckpointLoader", "load_path": "@checkpoint", "load_dict": {"model": "@network"}},
            {"_target_": "StatsHandler", "iteration_log": False},
        ],
        "key_metric": {
            "mean_dice": {
                "_target_": "MeanDice",
                "include_background": False,
                "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
            }
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "key_val_metric": "@key_metric",
            "val_handlers": "@handlers",
        },
    }


def _below(value, ids):
    """References to ``ids`` as those to the same names under ``validate``."""
    if isinstance(value, dict):
        return {key: _below(item, ids) for key, item in value.items()}
    if isinstance(value, list):
        return [_below(item, ids) for item in value]
    return f"@validate#{value[1:]}" if isinstance(value, str) and value[1:] in ids else value


def _write_volumes(folder, labelled):
    import nibabel

    folder.mkdir()
    random, cases = np.random.default_rng(0), []
    axes = np.meshgrid(*(np.arange(n) - n / 2 for n in (16, 16, 12)), indexing="ij")
    for case in range(3):
        label = (np.sqrt(sum((axis - case) ** 2 for axis in axes)) < 4).astype(np.uint8)
        image = (label + random.normal(0, 0.3, label.shape)).astype(np.float32)
        for kind, array in (("image", image), ("label", label)):
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1, 1, 1.25, 1])), folder / f"{kind}{case}.nii.gz")
        cases.append({"image": f"image{case}.nii.gz"} | ({"label": f"label{case}.nii.gz"} if labelled else {}))
    (folder / "dataset.json").write_text(json.dumps({"validation": cases}))


@pytest.fixture
def foreign_bundle(tmp_path):
    """Writes a bundle that knows nothing of this library, with three volumes and a checkpoint of random weights, and returns its folder.

    ``layout="evaluate"``: evaluate.yaml has all; ``"zoo"``: as in MONAI's model zoo, evaluate.json goes over train.json. ``changes`` are
    ids to new contents.
    """

    import torch
    from monai.networks.nets import UNet

    def write(name="foreign", layout="evaluate", inverts=False, labelled=True, **changes):
        root = tmp_path / name
        (root / "configs").mkdir(parents=True)
        (root / "models").mkdir()
        _write_volumes(root / "data", labelled)
        network = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
        torch.save(UNet(**network).state_dict(), root / "models" / "model.pt")
        parts = _foreign_parts(inverts)
        common = {
            "bundle_root": ".",
            "dataset_dir": "$@bundle_root + '/data'",
            "output_dir": "$@bundle_root + '/eval'",
            "checkpoint": "$@bundle_root + '/models/model.pt'",
            "device": "$torch.device('cpu')",
            "network_def": {"_target_": "monai.networks.nets.UNet", **network},
            "network": "$@network_def.to(@device)",
        }
        speed = "$setattr(torch.backends.cudnn, 'benchmark', False)"
        (root / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
        if layout == "evaluate":
            config = {
                "imports": ["$import glob"],
                **common,
                **parts,
                "initialize": [speed],
                "run": ["$@evaluator.run()"],
            }
            (root / "configs" / "evaluate.yaml").write_text(yaml.safe_dump(config | changes, sort_keys=False))
        else:
            parts = _below(parts, parts)
            over = {f"validate#{part}": parts.pop(part) for part in ("postprocessing", "handlers")}
            trainer = {"trainer": {"_target_": "SupervisedTrainer", "train_data_loader": "@train#none"}}
            train = {**common, "train": trainer, "validate": parts, "run": ["$@train#trainer.run()"]}
            over |= {"initialize": [speed], "run": ["$@validate#evaluator.run()"]}
            (root / "configs" / "train.json").write_text(json.dumps(train | changes))
            (root / "configs" / "evaluate.json").write_text(json.dumps(over))
        return root

    return write
