"""The effects of the frame and of shifts by less than a voxel on a network's scores."""

import json
import re

import numpy as np
import pytest
import small_reports
import torch
from monai.data import Dataset
from scipy import ndimage
from small_reports import find, make_evaluator, read

import monai_gmr.rotation_report.handler
from monai_gmr.metrics import equivariance_error
from monai_gmr.symmetry import inscribed_ball, transform_image

VIEWS = ["all", {"angles": 60}]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Disables pictures, which take longer than the rest and have their own tests."""
    monkeypatch.setattr(monai_gmr.rotation_report.handler, "can_draw", lambda: False)


class Corner(torch.nn.Module):
    """A network that predicts foreground everywhere if the first corner is bright, else nowhere."""

    def forward(self, x):
        bright = x[(slice(None), slice(None), *[slice(0, 1)] * (x.ndim - 2))] - 0.5
        return torch.cat([-bright, bright], 1).expand(-1, 2, *x.shape[2:])


def smooth_image(shape, seed=0):
    """Makes smooth noise that falls off to 0 well inside the frame."""
    noise = np.random.default_rng(seed).normal(size=shape)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    image = ndimage.gaussian_filter(noise, 1.5) * np.exp(-6 * (grid**2).sum(0))
    return torch.as_tensor(image / image.std(), dtype=torch.float32)[None]


def make_report(network, items, folder, **settings):
    evaluator = make_evaluator(network, dataset=Dataset(items), batch_size=len(items))
    return small_reports.make_report(evaluator, folder, **{"views": VIEWS, "shifts": (0.5,), "order": 3} | settings)


@pytest.mark.parametrize("shape", [(12, 12), (9, 12), (7, 7, 7)])
def test_a_network_that_reads_a_corner_is_equivariant_inside_the_ball_alone(tmp_path, shape):
    """Closed form: one element of 4 or 8 keeps the one bright corner of 4 or 8 in place; masked, no corner is bright."""
    image, label = torch.full((1, *shape), 0.2), torch.ones(1, *shape)
    image[(0, *[0] * len(shape))] = 1
    items = [{"image": image, "label": label}]
    whole = make_report(Corner(), items, tmp_path / "whole", views="all").run()
    assert find(whole, metric="dice", family="upright")["mean"] == 1
    assert find(whole, metric="dice", family="group")["mean"] == 0.5 ** len(shape)
    ball = make_report(Corner(), items, tmp_path / "ball", views=VIEWS, images_in_ball=True).run()
    for row in ball:
        if row["metric"] == "equivariance_error":
            # interpolation of the constant answer rounds
            assert row["worst"] < 1e-6, row
        else:
            assert (row["mean"], row["spread"]) == (0, 0), row
    assert {row["images"] for row in whole} == {"whole"}
    assert {row["images"] for row in ball} == {"ball"}


def test_every_image_is_masked_alike(tmp_path):
    """The network sees each rotated image inside the ball, and outside the smallest value inside the upright image."""
    seen = []

    class Looks(torch.nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return torch.cat([-x, x], 1)

    image = torch.rand(1, 11, 13, generator=torch.Generator().manual_seed(0)) + 3
    items = [{"image": image, "label": (image > 3.5).float()}, {"image": 2 * image, "label": (image > 3.5).float()}]
    report = make_report(Looks(), items, tmp_path, images_in_ball=True)
    report.run()
    assert len(seen) == len(report.views) == 8 + 4 + 2
    least = image[0, inscribed_ball((11, 13))].min()
    for view, batch in zip(report.views, seen):
        for factor, case in zip((1, 2), batch):
            ball = torch.as_tensor(inscribed_ball(case.shape[1:], None, view.shift))
            moved = transform_image(factor * image, view.matrix, 3, None, view.shift)
            torch.testing.assert_close(case[0, ball], moved[0, ball])
            assert torch.equal(case[0, ~ball], (factor * least).expand(int((~ball).sum())))


def test_shifts_have_the_error_of_the_library_and_the_score_of_the_answer_moved_back(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(2, 2, 3, padding=1)
    )
    images = [smooth_image((24, 25), seed) for seed in range(2)]
    items = [{"image": image, "label": (image > 0.3).float()} for image in images]
    summary = make_report(network, items, tmp_path, shifts=(0.5, -0.25)).run()
    rows = [row for row in read(tmp_path / "rotation_views.csv") if row["family"] == "shifts"]
    names = [f"{distance} voxels along axis {axis}" for distance in ("0.5", "-0.25") for axis in (0, 1)]
    assert [row["view"] for row in rows] == names
    assert [(row["axis"], row["angle"], float(row["shift"])) for row in rows] == [
        ("0", "", 0.5),
        ("1", "", 0.5),
        ("0", "", -0.25),
        ("1", "", -0.25),
    ]
    errors = [equivariance_error(network, x[None], [], order=3, shifts=(0.5, -0.25)).errors for x in images]
    assert [float(row["equivariance_error"]) for row in rows] == pytest.approx(np.mean(errors, 0), rel=1e-4)
    assert find(summary, metric="equivariance_error", family="shifts")["worst"] == pytest.approx(
        np.mean(errors, 0).max(), rel=1e-4
    )
    ball = inscribed_ball((24, 25))
    for row in rows:
        offset = np.eye(2)[int(row["axis"])] * float(row["shift"])
        scores = []
        for item in items:
            moved = ndimage.shift(item["image"][0].numpy(), offset, order=3, mode="nearest")
            with torch.no_grad():
                answer = network(torch.as_tensor(moved)[None, None])[0].numpy()
            back = [ndimage.shift(channel, -offset, order=3, mode="nearest") for channel in answer]
            predicted, label = (back[1] > back[0]) & ball, item["label"][0].numpy().astype(bool) & ball
            scores.append(2 * (predicted & label).sum() / (predicted.sum() + label.sum()))
        assert float(row["dice"]) == pytest.approx(np.mean(scores), abs=1e-6)


def test_a_convolution_has_no_error_under_shifts_and_a_rectifier_has(tmp_path):
    """A shift of splines commutes with a convolution, and creates no frequencies; frequencies above the grid's limit are aliased."""
    torch.manual_seed(0)
    linear = torch.nn.Conv2d(1, 2, 3, padding=1, bias=False)
    sharp = torch.nn.Sequential(linear, torch.nn.ReLU(), torch.nn.MaxPool2d(3, 1, 1))
    image = smooth_image((32, 32))
    items = [{"image": image, "label": (image > 0.3).float()}]
    errors = []
    for name, network in (("linear", linear), ("sharp", sharp)):
        summary = make_report(network, items, tmp_path / name).run()
        errors.append(find(summary, metric="equivariance_error", family="shifts")["worst"])
    assert errors[0] < 1e-3
    assert errors[1] > 20 * errors[0]


def test_labels_and_rotations_are_as_without_shifts(tmp_path):
    image = smooth_image((16, 16))
    items = [{"image": image, "label": (image > 0.3).float()}]
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    with_shifts = make_report(network, items, tmp_path / "with", shifts=(0.5,)).run()
    without = make_report(network, items, tmp_path / "without", shifts=None).run()
    assert [row for row in with_shifts if row["family"] != "shifts"] == without
    assert [row["family"] for row in with_shifts if row["metric"] == "dice"][-1] == "shifts"


def test_the_report_says_what_the_networks_saw(tmp_path):
    image = smooth_image((16, 16))
    items = [{"image": image, "label": (image > 0.3).float()}]
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    make_report(network, items, tmp_path / "whole").run()
    other = {"compare": {"before": tmp_path / "whole"}, "images_in_ball": True}
    make_report(network, items, tmp_path / "ball", **other).run()
    said = {
        "whole": "networks see images to their corners",
        "ball": "networks see images to their corners (before) or the inscribed disc or ball of images (this run)",
    }
    for folder, sentence in said.items():
        assert (tmp_path / folder / "rotation_report.md").read_text().splitlines()[-2:] == ["", f"Here {sentence}."]
        assert json.loads((tmp_path / folder / "rotation_report.json").read_text())["images"] == sentence
    table = read(tmp_path / "ball" / "rotation_table.csv")
    assert {(row["network"], row["images"]) for row in table} == {("this run", "ball"), ("before", "whole")}


def test_records_of_other_images_are_not_used_and_those_without_shifts_are(tmp_path, capsys):
    image = smooth_image((16, 16))
    items = [{"image": image, "label": (image > 0.3).float()}]
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    make_report(network, items, tmp_path, shifts=None).run()
    header = json.loads((tmp_path / "records" / "this_run.jsonl").read_text().splitlines()[0])
    assert set(header) == {"network", "average", "metrics", "settings"}
    assert header["settings"] == [None, "nearest", "turned", True, 3, None]
    capsys.readouterr()
    make_report(network, items, tmp_path).run()
    assert "12 views of cases are there already" in capsys.readouterr().out
    make_report(network, items, tmp_path, images_in_ball=True).run()
    assert "are replaced" in capsys.readouterr().out


class Positions(torch.nn.Module):
    """A network that predicts foreground in the first half of the rows of any image: not equivariant at all."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, x):
        self.passes += len(x)
        rows = torch.linspace(1, -1, x.shape[2]).reshape(1, 1, -1, *[1] * (x.ndim - 3)).expand(len(x), 1, *x.shape[2:])
        return torch.cat([-rows, rows], 1)


def test_a_rotated_answer_has_the_scores_of_an_equivariant_network(tmp_path):
    """The label is the upright answer: the rotated answer is right in every view of the grid, the network only in the upright view."""
    image = smooth_image((12, 12))
    label = (torch.linspace(1, -1, 12) > 0).float().reshape(1, -1, 1).expand(1, 12, 12)
    network = Positions()
    rows = make_report(network, [{"image": image, "label": label}], tmp_path, rotated_answers=True).run()
    own, rotated = ({"network": name, "metric": "dice"} for name in ("this run", "this run, answer rotated"))
    assert find(rows, **own, family="upright")["mean"] == find(rows, **rotated, family="upright")["mean"] == 1
    # half of the elements of the group keep rows, and half of these keep them in place
    assert find(rows, **own, family="group")["worst"] == 0
    assert find(rows, **rotated, family="group")["worst"] == 1
    assert find(rows, **rotated, family="angles")["worst"] > 0.9
    errors = {
        row["family"]: row["worst"]
        for row in rows
        if row["network"] == "this run, answer rotated" and row["metric"] != "dice"
    }
    assert errors["group"] == 0
    assert errors["angles"] < 0.1
    table = (tmp_path / "rotation_report.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| ([^|]+?) \|", table, flags=re.MULTILINE)[1:] == ["this run", "this run, answer rotated"]
    # once for each view, and once for the rotated answer
    assert network.passes == len({row["view"] for row in read(tmp_path / "rotation_views.csv")}) + 1


def test_a_report_of_rotated_answers_resumes_with_more_views(tmp_path):
    items, name = [{"image": smooth_image((10, 10)), "label": torch.ones(1, 10, 10)}], "this run, answer rotated"
    for views in ("2mm", VIEWS):
        rows = make_report(Positions(), items, tmp_path, views=views, rotated_answers=True).run()
        assert find(rows, network=name, metric="equivariance_error", family="group")["worst"] == 0
    assert find(rows, network=name, metric="dice", family="group")["views"] == 8
