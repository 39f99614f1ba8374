"""Every bundle keeps the rules of MONAI's model zoo, and every verb of ``monai.bundle`` works on it, from any folder."""

import csv
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, create_workflow, onnx_export, verify_metadata, verify_net_in_out
from monai.utils import optional_import

from monai_gmr import load_bundle
from monai_gmr.apps.bundles import main
from monai_gmr.bundle import GMRWorkflow
from monai_gmr.bundle.__main__ import trt_export
from monai_gmr.bundle.shipped import copy_bundle, read_metadata
from monai_gmr.bundle.zoo import SCHEMA, check_bundle
from monai_gmr.networks.weights import read_checkpoint
from monai_gmr.utils import ConfigurationError

BUNDLES = sorted(path.parents[1] for path in Path(__file__).parents[2].glob("bundles/*/configs/metadata.json"))
TINY = {"features": [4, 6], "layers": [1], "width": 4}
INFERENCE, METADATA = "configs/inference.yaml", "configs/metadata.json"


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def bundle(request, tmp_path_factory):
    """A bundle with a network that its settings make small, and weights of that network."""
    root, folder = request.param, tmp_path_factory.mktemp("bundle")
    parser = ConfigParser()
    parser.read_config(str(root / INFERENCE))
    parser.read_meta(str(root / METADATA))
    settings = {name: value for name, value in TINY.items() if name in parser}
    for name, value in settings.items():
        parser[name] = value
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    torch.save(network.state_dict(), folder / "model.pt")
    image = read_metadata(root)["network_data_format"]["inputs"]["image"]
    arguments = {"net_id": "network_def", "config_file": str(root / INFERENCE), "meta_file": str(root / METADATA)}
    verb = arguments | settings | {"ckpt_file": str(folder / "model.pt")}
    dims = len(image["spatial_shape"])
    sizes = [
        (1, image["num_channels"], *(8 + i for i in range(dims))),
        (2, image["num_channels"], *range(13, 13 - dims, -1)),
    ]
    return SimpleNamespace(root=root, settings=settings, network=network, arguments=arguments, verb=verb, sizes=sizes)


def answer(network, x):
    with torch.no_grad():
        return network(x)


@pytest.mark.parametrize("root", BUNDLES, ids=lambda path: path.name)
def test_the_rules_of_the_zoo(root):
    """Names, files, metadata by the schema, large files, ids of configs, weights; the network's output matches the metadata."""
    assert check_bundle(root) == []


def trained_here(root):
    """Checks whether a training, such as the one of the README, replaced the weights of a checkout."""
    command = ["git", "-C", str(root), "status", "--porcelain", "--", "models"]
    return shutil.which("git") is not None and subprocess.run(command, capture_output=True, check=False).stdout != b""


@pytest.mark.parametrize("root", BUNDLES, ids=lambda path: path.name)
def test_weights_that_ship_have_a_checksum(root):
    if trained_here(root):
        pytest.skip("a training replaced the weights that ship")
    assert "model.pt" in (root / "models" / "SHA256SUMS").read_text()
    read_checkpoint(root / "models" / "model.pt")


@pytest.mark.parametrize("root", BUNDLES, ids=lambda path: path.name)
def test_metadata_hold_the_numbers_of_the_page(root):
    """Checks the score of the weights that ship, and the ranges of input and output values of inference."""
    metadata, page = read_metadata(root), (root / "docs" / "README.md").read_text(encoding="utf-8")
    (score,) = metadata["eval_metrics"].values()
    assert any(
        f"| {score:.3f} | {score:.3f} / {score:.3f}" in line and "gmr_harmonic" in line for line in page.splitlines()
    )
    layout = metadata["network_data_format"]
    for tensor in (layout["inputs"]["image"], layout["outputs"]["pred"]):
        low, high = tensor["value_range"]
        assert low < high


def test_metadata_follow_the_schema(bundle, tmp_path):
    """MONAI's own command, with the schema at the path of MONAI's download."""
    (tmp_path / "schema.json").write_bytes(SCHEMA.read_bytes())
    verify_metadata(bundle.arguments["meta_file"], filepath=str(tmp_path / "schema.json"))
    broken = {key: value for key, value in read_metadata(bundle.root).items() if key != "task"}
    (tmp_path / "metadata.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="'task' is a required property"):
        verify_metadata(str(tmp_path / "metadata.json"), filepath=str(tmp_path / "schema.json"))


def test_network_in_and_out(bundle):
    verify_net_in_out(**bundle.arguments, device="cpu")


def test_torchscript_gives_the_same_numbers(bundle, tmp_path):
    ckpt_export(**bundle.verb, filepath=str(tmp_path / "model.ts"))
    exported, x = torch.jit.load(tmp_path / "model.ts"), torch.randn(bundle.sizes[1])
    # compiling it for one call takes seconds
    with torch.jit.optimized_execution(False):
        torch.testing.assert_close(answer(exported, x), answer(bundle.network, x), rtol=1e-4, atol=1e-4)


def test_onnx_gives_the_same_numbers_at_another_size(bundle, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    axes = {0: "batch", **{axis: f"size{axis}" for axis in range(2, len(bundle.sizes[0]))}}
    names = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": {"image": axes}}
    options = {"use_trace": True, "converter_kwargs": {**names, "dynamo": False}}
    onnx_export(**bundle.verb, **options, input_shape=bundle.sizes[0], filepath=str(tmp_path / "model.onnx"))
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(bundle.sizes[1])
    (found,) = session.run(None, {"image": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), answer(bundle.network, x), rtol=1e-4, atol=1e-4)


def test_tensorrt_or_a_sentence(bundle, tmp_path):
    export = {**bundle.verb, "filepath": str(tmp_path / "model.ts")}
    if torch.cuda.is_available() and optional_import("torch_tensorrt")[1]:
        trt_export(**export)
        assert (tmp_path / "model.ts").is_file()
    else:
        with pytest.raises(ConfigurationError, match=r"^trt_export needs .* which this machine lacks: export with"):
            trt_export(**export)


def test_a_copy_runs_and_loads_from_anywhere(bundle, tmp_path, monkeypatch):
    """A workflow, monai.bundle.load and load_bundle all use the weights of the copy, in a folder outside the bundle."""
    copy = copy_bundle(bundle.root.name, tmp_path / "work")
    (copy / "models").mkdir(exist_ok=True)
    (copy / "models" / "model.pt").write_bytes(Path(bundle.verb["ckpt_file"]).read_bytes())
    assert main(["checksum", str(copy)]) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    shape = bundle.sizes[0][2:]
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random(shape, np.float32), np.eye(4)), "scan.nii.gz")

    network = monai.bundle.load(copy.name, bundle_dir=copy.parent, device="cpu", net_override=bundle.settings)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in bundle.network.state_dict().items())

    places = {"input": "scan.nii.gz", "output_dir": str(tmp_path / "out"), "device": "cpu"}
    workflow = create_workflow(
        GMRWorkflow, str(copy / INFERENCE), workflow_type="infer", logging_file=False, **places, **bundle.settings
    )
    assert workflow.check_properties() == []
    workflow.run()

    loaded = load_bundle(copy, device="cpu", **bundle.settings)
    found = loaded("scan.nii.gz")
    labels = tmp_path / "out" / "scan_seg.nii.gz"
    if labels.exists():
        assert np.array_equal(found[0].numpy(), nib.load(labels).get_fdata())
    else:
        with open(tmp_path / "out" / "predictions.csv", newline="") as file:
            (row,) = csv.DictReader(file)
        written = [float(value) for name, value in row.items() if name.startswith("probability")]
        assert found.tolist() == pytest.approx(written, abs=1e-6)
    assert [path.name for path in elsewhere.iterdir()] == ["scan.nii.gz"]
    with open(copy / "models" / "model.pt", "ab") as file:
        file.write(b"0")
    with pytest.raises(ConfigurationError, match="is not the file that SHA256SUMS beside it names"):
        load_bundle(copy, device="cpu", **bundle.settings)
