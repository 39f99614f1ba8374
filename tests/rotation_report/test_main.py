"""The report of any bundle from the command line: its options, files and error sentences."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest
import torch

import monai_gmr.rotation_report.__main__
from monai_gmr.rotation_report.__main__ import choose_views, main, read_average, read_networks, read_settings
from monai_gmr.utils import ConfigurationError

QUICK = ["--angles", "0", "--group", "m", "--num_resamples", "10", "--worst_cases", "0"]


@pytest.fixture(autouse=True)
def clean_process(monkeypatch):
    """Restores the path, to which bundles add their folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("MONAI_GMR_TRACEBACK", raising=False)


@pytest.fixture
def reports(monkeypatch):
    """Replaces :class:`RotationReport` and records its arguments."""
    calls = []

    class Recorder:
        def __init__(self, evaluator, output_dir, **options):
            calls.append({"evaluator": evaluator, "output_dir": output_dir, **options})

        def run(self):
            return []

        def check_failures(self):
            pass

    monkeypatch.setattr(monai_gmr.rotation_report.__main__, "RotationReport", Recorder)
    return calls


def read_table(folder, name="rotation_table"):
    with open(folder / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_options_reach_the_report(foreign_bundle, reports, tmp_path):
    root, out = foreign_bundle(), str(tmp_path / "out")
    options = ["--metrics", "mean_dice", "--smaller_is_better", "--prediction", "seg", "--spacing", "1", "1", "1.25"]
    options += [
        "--compare",
        "other=reports/other",
        "--worst_cases",
        "1",
        "--num_resamples",
        "7",
        "--seed",
        "3",
        "--no-resume",
        "--labels",
        "share",
        "--whole-image",
    ]
    options += ["--shifts", "0.5", "-0.25", "--images-in-ball", "--rotated-answers", "--mirrored-labels", "1:2"]
    options += ["--cases", "2", "--views-per-batch", "4", "--average", "--random", "5", "--angles=45"]
    assert main([str(root), "--output_dir", out, *options]) == 0
    (call,) = reports
    assert set(call.pop("evaluator")) == {"foreign"}
    assert call == {
        "output_dir": out,
        "views": ["all", {"angles": 45}, {"random": 5, "seed": 3}],
        "spacing": [1, 1, 1.25],
        "average": "all",
        "views_per_batch": 4,
        "labels": "share",
        "in_ball": False,
        "images_in_ball": True,
        "mirrored_labels": [(1, 2)],
        "rotated_answers": True,
        "shifts": [0.5, -0.25],
        "frame": "rotated",
        "prediction": "seg",
        "metrics": ["mean_dice"],
        "greater_is_better": False,
        "compare": {"other": "reports/other"},
        "cases": 2,
        "worst_cases": 1,
        "num_resamples": 7,
        "seed": 3,
        "resume": False,
        "class_names": None,
    }  # fmt: skip


def test_without_options_the_report_has_its_defaults(foreign_bundle, reports, tmp_path):
    assert main([str(foreign_bundle(inverts=True)), "--output_dir", str(tmp_path / "out")]) == 0
    assert reports[0]["views"] is None
    assert reports[0]["average"] is None
    assert reports[0]["frame"] == "upright"
    assert (reports[0]["shifts"], reports[0]["images_in_ball"]) == ([0.5], False)
    assert main([str(foreign_bundle("other")), "--output_dir", str(tmp_path / "out"), "--shifts", "0"]) == 0
    assert reports[1]["shifts"] == []


def test_settings_of_all_and_of_one_network(foreign_bundle, reports, tmp_path):
    root = foreign_bundle()
    shutil.copytree(root / "data", tmp_path / "data")
    shutil.rmtree(root / "data")
    weights = torch.load(root / "models" / "model.pt", weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "more.pt")
    arguments = [f"one={root}", f"two={root}", "--output_dir", "out", "--dataset_dir", str(tmp_path / "data")]
    arguments += ["--set", "inferer::overlap=0.5", "inferer::mode=gaussian", "--average", "two:[mmm, {angles: 90}]"]
    assert main([*arguments, "--for", "two", f"checkpoint={tmp_path / 'more.pt'}", "inferer::overlap=0.75"]) == 0
    one, two = reports[0]["evaluator"].values()
    assert (one.inferer.overlap, two.inferer.overlap) == (0.5, 0.75)
    assert one.inferer.mode == two.inferer.mode == "gaussian"
    assert reports[0]["average"] == {"two": ["mmm", {"angles": 90}]}
    for name, tensor in one.network.state_dict().items():
        assert torch.equal(tensor + 1, two.network.state_dict()[name]), name


@pytest.mark.parametrize(
    ("options", "views"),
    [
        ((None, None, None), None),
        ((0, None, None), ["all"]),
        ((None, "none", None), ["angles"]),
        ((90, "432", None), [432, {"angles": 90}]),
        ((0, "{group: all, count: 6}", None), [{"group": "all", "count": 6}]),
        ((0, "none", 4), [{"random": 4, "seed": 0}]),
        ((None, "432", 20), [432, "angles", {"random": 20, "seed": 0}]),
    ],
)
def test_views(options, views):
    assert choose_views(*options, 0) == views


def test_entries_that_name_a_network_or_none():
    assert read_networks(["bundles/spleen", "plain=bundles/spleen"]) == {
        "spleen": "bundles/spleen",
        "plain": "bundles/spleen",
    }
    assert read_average(["all"], ["plain"]) == "all"
    assert read_average(["plain:432", "gmr:{angles: 90}"], ["plain", "gmr"]) == {"plain": 432, "gmr": {"angles": 90}}


def test_values_of_settings_are_yaml_or_expressions():
    pairs = ["device=cpu", "roi_size=[64, 64, 32]", "dataset_dir=null", "network=$@network_def.to(@device)"]
    assert read_settings([*pairs, "network_def::act=$'RELU' if 1 == 1 else None"]) == {
        "device": "cpu",
        "roi_size": [64, 64, 32],
        "dataset_dir": None,
        "network": "$@network_def.to(@device)",
        "network_def::act": "$'RELU' if 1 == 1 else None",
    }


@pytest.mark.parametrize(
    ("read", "match"),
    [
        (lambda: choose_views(0, "none", 0, 0), "a set of views of size zero"),
        (lambda: read_networks(["a/net", "b/net"]), "two networks are named net: give names"),
        (lambda: read_settings(["device"]), "--set device cannot be read: give it as in --set device=cpu"),
        (lambda: read_settings(["roi=[1, 2"]), "cannot be read as YAML"),
        (lambda: read_average(["all", "a:432"], ["a"]), "one or the other"),
        (lambda: read_average(["a:all", "a:432"], ["a"]), "second one for the same network"),
    ],
)
def test_options_that_mean_nothing(read, match):
    with pytest.raises(ConfigurationError, match=match):
        read()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--angles", "0", "--group", "none"], "a set of views of size zero: give at least one"),
        (["--for", "other", "device=cpu"], "--for other is not a network of this report: use one of foreign"),
        (["--for", "foreign"], "--for foreign sets nothing"),
        (["--set", "devise=cpu"], "did you mean device?"),
        (["--dataset_dir", "/nowhere"], "/nowhere"),
        (["--compare", "reports"], "--compare reports cannot be read"),
        (["--config_file", "none.yaml"], "there is no config file none.yaml"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(foreign_bundle, reports, tmp_path, capsys, arguments, match):
    assert main([str(foreign_bundle()), "--output_dir", str(tmp_path / "out"), *arguments]) == 2
    printed = capsys.readouterr().err
    assert match in printed
    assert printed.startswith("rotation_report: ")
    assert printed.count("\n") == 1
    assert reports == []


def test_the_traceback_can_be_had(foreign_bundle, reports, monkeypatch):
    monkeypatch.setenv("MONAI_GMR_TRACEBACK", "1")
    with pytest.raises(ConfigurationError):
        main([str(foreign_bundle()), "--output_dir", "out", "--set", "devise=cpu"])


@pytest.mark.parametrize(("layout", "inverts"), [("evaluate", False), ("zoo", False), ("evaluate", True)])
def test_the_report_of_a_bundle_that_knows_nothing_of_it(foreign_bundle, tmp_path, capsys, layout, inverts):
    root, out = foreign_bundle(layout=layout, inverts=inverts), tmp_path / "out"
    before = contents(root)
    assert main([f"net={root}", "--output_dir", str(out), *QUICK[:-1], "1", "--random", "1", "--average", "m"]) == 0
    assert contents(root) == before
    rows = read_table(out)
    assert {"upright", "group", "random"} <= {row["family"] for row in rows}
    assert {row["network"] for row in rows} == {"net", "net, 2 views"}
    averaged = [
        row for row in rows if (row["network"], row["family"], row["metric"]) == ("net, 2 views", "group", "mean_dice")
    ]
    assert float(averaged[0]["spread"]) < 1e-3
    for name in ("rotation_report.json", "rotation_table.png", "worst_cases.png"):
        assert (out / name).is_file()
    assert "mean_dice" in capsys.readouterr().out


def test_images_in_the_ball(foreign_bundle, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([f"net={foreign_bundle()}", "--output_dir", str(out), *QUICK, "--images_in_ball"]) == 0
    assert {row["images"] for row in read_table(out)} == {"ball"}
    assert {"upright", "group", "shifts"} <= {row["family"] for row in read_table(out)}
    assert "networks see the inscribed disc or ball of images" in capsys.readouterr().out


def test_one_bundle_twice(foreign_bundle, tmp_path):
    root = foreign_bundle()
    weights = torch.load(root / "models" / "model.pt", weights_only=True)
    torch.save({name: tensor * 0.5 for name, tensor in weights.items()}, tmp_path / "half.pt")
    arguments = [f"one={root}", f"two={root}", "--output_dir", str(tmp_path / "out"), *QUICK]
    assert main([*arguments, "--for", "two", f"checkpoint={tmp_path / 'half.pt'}"]) == 0
    text = (tmp_path / "out" / "rotation_report.json").read_text()
    assert '"one"' in text
    assert '"two"' in text


def test_a_volume_that_does_not_load_is_named_and_the_rest_is_scored(foreign_bundle, tmp_path, capsys):
    root, out = foreign_bundle(), tmp_path / "out"
    (root / "data" / "image1.nii.gz").write_bytes(b"no volume")
    main([str(root), "--output_dir", str(out), *QUICK])
    assert "image1.nii.gz" in "".join(capsys.readouterr())
    cases = {row["case"] for row in read_table(out, "rotation_cases")}
    assert len(cases) >= 2


def test_no_labels(foreign_bundle, tmp_path, capsys):
    """MONAI's own evaluator cannot score these either; the error must be one sentence."""
    loads = {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True}
    root = foreign_bundle(labelled=False, preprocessing={"_target_": "Compose", "transforms": [loads]})
    assert main([str(root), "--output_dir", str(tmp_path / "out"), *QUICK]) == 2
    printed = capsys.readouterr().err
    assert "label" in printed
    assert "Traceback" not in printed


def test_windows_larger_than_the_volume(foreign_bundle, tmp_path):
    root, out = foreign_bundle(), tmp_path / "out"
    assert main([str(root), "--output_dir", str(out), *QUICK, "--set", "inferer::roi_size=[32, 24, 24]"]) == 0
    scores = [float(row["mean"]) for row in read_table(out)]
    assert np.isfinite(scores).all()


SEVERAL = """
import torch

class Several(torch.nn.Module):
    '''A network with two answers.'''

    def __init__(self, kind):
        super().__init__()
        self.kind, self.net = kind, torch.nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x):
        answer = self.net(x)
        return (answer, answer[:, :1]) if self.kind == 'tuple' else {'seg': answer, 'edge': answer[:, :1]}
"""


@pytest.mark.parametrize(("kind", "which", "other"), [("tuple", "0", "5"), ("dict", "seg", "none")])
def test_a_network_with_several_answers(foreign_bundle, tmp_path, capsys, kind, which, other):
    simple = {"_target_": "SimpleInferer"}
    root = foreign_bundle(network_def={"_target_": "several.Several", "kind": kind}, inferer=simple, handlers=[])
    (root / "several.py").write_text(SEVERAL)
    arguments = [str(root), *QUICK, "--output_dir"]
    assert main([*arguments, str(tmp_path / "out"), "--prediction", which]) == 0
    assert read_table(tmp_path / "out")
    capsys.readouterr()
    for extra in ([], ["--prediction", other]):
        assert main([*arguments, str(tmp_path / "other"), *extra]) == 2
        assert "prediction" in capsys.readouterr().err


def test_an_interrupted_report_resumes(foreign_bundle, tmp_path):
    root, out = foreign_bundle(), tmp_path / "out"
    arguments = [str(root), "--output_dir", str(out), *QUICK]
    assert main([*arguments, "--cases", "1"]) == 0
    assert main(arguments) == 0
    first = json.loads((out / "rotation_report.json").read_text())
    assert main([*arguments, "--no_resume"]) == 0
    again = json.loads((out / "rotation_report.json").read_text())
    assert first.keys() == again.keys()
    assert len({row["case"] for row in read_table(out, "rotation_cases")}) == 3
