"""Without a label, a network is compared with its own upright answer, on any bundle and one's own scan."""

import csv
import json
import shutil
import sys

import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.data import DataLoader, Dataset
from small_reports import find

from monai_gmr.rotation_report import RotationReport
from monai_gmr.rotation_report.__main__ import main
from monai_gmr.rotation_report.own_answer import AgreementEvaluator, _classification_parts, _segmentation_parts

QUICK = ["--angles", "0", "--group", "m", "--num_resamples", "0", "--worst_cases", "0", "--shifts", "0"]


@pytest.fixture(autouse=True)
def clean_process(monkeypatch):
    """Restores the path, to which bundles add their folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("MONAI_GMR_TRACEBACK", raising=False)


def read(folder, name="rotation_table"):
    with open(folder / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def make_evaluator(network, images, **parts):
    loader = DataLoader(Dataset([{"image": image} for image in images]))
    return AgreementEvaluator(device=torch.device("cpu"), val_data_loader=loader, network=network, **parts)


class Slices(torch.nn.Module):
    """A network that predicts class 2 in the first rows of any image, and class 1 where it is bright."""

    def forward(self, x):
        first = torch.zeros_like(x)
        first[:, :, :2] = 5
        return torch.cat([torch.full_like(x, 0.5), x, first], 1)


def test_scores_are_those_of_the_upright_answer_rotated(tmp_path):
    """Compares by hand: the answer to the image rotated by 180 degrees with the upright answer, rotated."""
    image = (torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    parts = _segmentation_parts(True, 3, {1: "left", 2: ""})
    report = RotationReport(
        make_evaluator(Slices(), [image], **parts), tmp_path, views="2", shifts=None, in_ball=False, worst_cases=0
    )
    rows = report.run()
    upright = Slices()(image[None]).argmax(1)[0].flip(0, 1)
    turned = Slices()(image.flip(1, 2)[None]).argmax(1)[0]
    for number, name in ((1, "dice_left"), (2, "dice_class_2")):
        a, b = upright == number, turned == number
        dice = 2 * (a & b).sum() / (a.sum() + b.sum())
        assert find(rows, metric=name, family="group")["worst"] == pytest.approx(float(dice))
        assert find(rows, metric=name, family="upright")["mean"] == 1
    changed = find(rows, metric="changed_voxels", family="group")
    assert changed["worst"] == pytest.approx(float((upright != turned).float().mean()))
    # larger is worse
    assert changed["worst"] > changed["mean"]


def test_a_class_that_is_nowhere_is_no_disagreement(tmp_path):
    parts = _segmentation_parts(True, 2, {1: ""})
    constant = torch.nn.Conv2d(1, 2, 1)
    torch.nn.init.zeros_(constant.weight)
    constant.bias.data = torch.tensor([1.0, 0.0])
    rows = RotationReport(
        make_evaluator(constant, [torch.rand(1, 6, 6)], **parts), tmp_path, views="2", shifts=None, worst_cases=1
    ).run()
    assert find(rows, metric="dice", family="group")["worst"] == 1
    assert (tmp_path / "report.html").is_file()


class Upper(torch.nn.Module):
    """A classifier with one logit: whether the image is brighter in the upper half."""

    def forward(self, x):
        return (x[:, :, :4] - x[:, :, 4:]).sum((1, 2, 3))[:, None]


def test_classifications_change_their_probabilities(tmp_path):
    image = torch.zeros(1, 8, 8)
    image[:, 0, 0] = 2
    rows = RotationReport(
        make_evaluator(Upper(), [image], **_classification_parts()), tmp_path, views="2", shifts=None, worst_cases=0
    ).run()
    change = float(torch.sigmoid(torch.tensor(2.0)) - torch.sigmoid(torch.tensor(-2.0)))
    assert find(rows, metric="changed_probability", family="group")["worst"] == pytest.approx(change, abs=1e-5)
    assert find(rows, metric="same_class", family="group")["worst"] == 0


@pytest.mark.parametrize("inference", [False, True])
def test_a_scan_through_a_bundle_that_knows_nothing_of_it(inference, foreign_bundle, tmp_path, capsys):
    """Works with the evaluate config, whose transforms need a label, and with one for inference."""
    root, out = foreign_bundle(inverts=True), tmp_path / "out"
    scan = tmp_path / "my scan.nii.gz"
    shutil.copy(root / "data" / "image1.nii.gz", scan)
    shutil.rmtree(root / "data")
    if inference:
        config = yaml.safe_load((root / "configs" / "evaluate.yaml").read_text(encoding="utf-8"))
        config["preprocessing"]["transforms"] = [
            {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True}
        ]
        config["postprocessing"] = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
        config.pop("key_metric")
        config["evaluator"].pop("key_val_metric")
        (root / "configs" / "inference.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    meta = {"network_data_format": {"outputs": {"pred": {"channel_def": {"0": "background", "1": "Liver"}}}}}
    (root / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0", **meta}))
    arguments = [f"net={root}", "--input", str(scan), "--output_dir", str(out), *QUICK]
    arguments[arguments.index("--worst_cases") + 1] = "1"
    assert main(arguments) == 0
    rows = read(out)
    assert {row["metric"] for row in rows} == {"dice", "changed_voxels", "equivariance_error"}
    assert {row["case"] for row in read(out, "rotation_cases")} == {"my scan.nii.gz"}
    upright = next(row for row in rows if (row["family"], row["metric"]) == ("upright", "dice"))
    assert float(upright["mean"]) == 1
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "upright answer, rotated" in page
    assert "Without labels" in (out / "rotation_report.md").read_text(encoding="utf-8")
    assert "1 Liver" in page
    assert "net, its dice with its own upright answer: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("case", "match"),
    [
        ("nowhere", "there is no scan at"),
        ("no scan", "notes.nii.gz"),
        ("empty folder", "holds no image"),
        ("channels", "cannot take two.nii.gz, which its preprocessing makes an image of shape (2, 12, 12, 12)"),
        ("no checkpoint", "there is no checkpoint at"),
        ("both", "--input and --dataset_dir both give the images"),
        ("labels alone", "the inferer has reduction='argmax'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(case, match, foreign_bundle, tmp_path, capsys):
    root, scan, more = foreign_bundle(), tmp_path / "notes.nii.gz", []
    if case == "no scan":
        scan.write_text("shopping list")
    elif case == "empty folder":
        scan.mkdir()
    elif case == "channels":
        scan = tmp_path / "two.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.zeros((12, 12, 12, 2), np.float32), np.eye(4)), scan)
    elif case != "nowhere":
        scan = root / "data" / "image0.nii.gz"
        more = ["--dataset_dir", "data"] if case == "both" else []
    if case == "labels alone":
        inferer = "{_target_: monai_gmr.inferers.GMRSlidingWindowInferer, roi_size: 8, reduction: argmax}"
        more = ["--set", f"inferer={inferer}"]
    if case == "no checkpoint":
        (root / "models" / "model.pt").unlink()
    assert main([str(root), "--input", str(scan), "--output_dir", str(tmp_path / "out"), *QUICK, *more]) == 2
    printed = capsys.readouterr().err
    assert match in printed
    assert printed.startswith("rotation_report: ")
    assert printed.count("\n") == 1
    assert not (tmp_path / "out" / "report.html").exists()


def test_records_of_a_mirrored_scan_are_not_those_of_the_scan(tmp_path, capsys):
    """An exactly equivariant network gives the same norms and scores for both."""
    image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))

    class Bright(torch.nn.Module):
        def forward(self, x):
            return torch.cat([torch.full_like(x, 0.5), x], 1)

    for scan in (image, image, image.flip(1)):
        parts = _segmentation_parts(True, 2, {})
        RotationReport(make_evaluator(Bright(), [scan], **parts), tmp_path, views="2", shifts=None, worst_cases=0).run()
    found = capsys.readouterr().out
    assert found.count("are there already") == found.count("are replaced") == 1
