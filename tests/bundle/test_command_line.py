"""Mistyped overrides are reported with the intended name, and our own errors are one line on the screen."""

import sys

import monai.bundle.__main__
import pytest
from torch.utils.data import DataLoader, Dataset

from monai_gmr.bundle import GMRWorkflow, find_bundle_root, guard_command_line
from monai_gmr.bundle.command_line import check_overrides, report
from monai_gmr.utils import ConfigurationError, find_configuration_error

CONFIG = """
epochs: 3
rate: 0.1
amp: false
features: [1, 2]
name: one
bundle_root: "$monai_gmr.bundle.find_bundle_root()"
imports: ["$import monai_gmr", "$import monai_gmr.bundle"]
net: {_target_: torch.nn.Linear, in_features: 1, out_features: 1}
network: $@net.to('cpu')
wrapped: "@net"
loss: {_target_: DiceCELoss, include_background: false}
anything: {_target_: builtins.dict}
train:
  dataset: {_target_: monai.data.CacheDataset, data: [], cache_rate: 0.5}
  handlers:
  - {_target_: monai.handlers.StatsHandler, iteration_log: false}
  metrics: {mean_dice: 1}
run: ["$None"]
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "bundle" / "configs" / "train.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize(
    "overrides",
    [
        ["--epochs", "4", "--rate", "2", "--features", "[3]", "--amp", "True", "--name", "other"],
        ["--epochs=4", "--net::bias", "False", "--net#in_features", "2", "--_meta_::version", "1"],
        ["--epochs", "$1 + 1", "--rate", "@epochs", "--features", "$[1]", "--logging_file", "None", "--amp"],
        ["--loss::softmax", "True", "--loss#_disabled_", "True", "--train::dataset::num_workers", "2"],
        ["--train::handlers::0::tag_name", "x", "--train::handlers::0", "@net", "--train::metrics::hausdorff", "@net"],
        ["--train::dataset::cache_rate", "0", "--train#handlers#0#iteration_log", "True", "--anything::a", "@net"],
        ["--tracking", "mlflow", "--experiment_name", "first"],
        ["--workflow_name", "monai_gmr.bundle.GMRWorkflow", "--epochs", "4"],
        ["--net", "@wrapped", "--loss", "$torch.nn.L1Loss()", "--train", "%other.yaml::train", "--anything", "None"],
        ["--net", "{'_target_':'torch.nn.Identity'}", "--wrapped", "{'_target_':'builtins.dict'}"],
        ["--train::metrics", "3", "--train::metrics::mean_dice", "@net"],
        ["--anything", "[{'_target_':'torch.nn.Identity'},'$print']", "--loss", "[]"],
        ["--run-id", "run", "--epochs", "5", "--", "--trace"],
    ],
)
def test_overrides_of_the_config_and_arguments_of_monai_pass(config_file, overrides):
    check_overrides(["--config_file", str(config_file), *overrides])


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["--epohcs", "4"], "--epohcs is not a setting .* did you mean --epochs"),
        (["--epohcs=4"], "did you mean --epochs"),
        (["--nets::bias", "False"], "did you mean --net"),
        (["--zzzzzzzz", "1"], "the settings are amp, bundle_root, epochs"),
        (["--epochs", "three"], "--epochs three cannot be used: give a whole number"),
        (["--epochs", "2.5"], "whole number"),
        (["--rate", "fast"], "give a number"),
        (["--amp", "3"], "True or False"),
        (["--features", "3"], r"a list such as \[1, 2\]"),
        (["--experiment_name", "first"], "not a setting"),
        (["--loss::include_backgroud", "True"], "did you mean --loss::include_background"),
        (["--loss::sofmax", "True"], "did you mean --loss::softmax"),
        (["--train#dataset#cache_rat", "0"], "did you mean --train::dataset::cache_rate"),
        (["--net::biass", "False"], "did you mean --net::bias"),
        (["--net::zzzz", "False"], "net has _desc_, .*bias.*in_features"),
        (["--net::_targt_", "torch.nn.Identity"], "did you mean --net::_target_"),
        (["--train::handlers::0::iteration_logg", "0"], "did you mean --train::handlers::0::iteration_log"),
        (["--train::handlers::7::iteration_log", "0"], "a list of 1, whose entries are 0 to 0"),
        (["--train::handlers::last", "0"], "a list of 1"),
        (["--train::datasett::cache_rate", "0"], "did you mean --train::dataset"),
        (["--train::metrics::mean_dise", "0"], "did you mean --train::metrics::mean_dice"),
        (["--network::bias", "0"], "which has no parts: did you mean --net::bias"),
        (["--wrapped::bias", "0"], "wrapped is what net is: did you mean --net::bias"),
        (["--epochs::more", "0"], "epochs is 3, which has no parts: give --epochs as a whole"),
        (["--train::dataset::cache_rate", "high"], "give a number"),
        (["--train::handlers::0::iteration_log", "3"], "True or False"),
        (["--net", "Identity"], "such as --net::_target_, or a mapping in a second config file"),
        (["--loss"], "--loss True cannot be used in place of a component"),
        (
            ["--loss", "{_target_: torch.nn.L1Loss}"],
            "in place of a component: give its parts, such as --loss::_target_",
        ),
        (["--wrapped", "3"], "--wrapped 3 cannot be used in place of a component"),
        (["--train", "[1, 2]"], "in place of a section: give its parts, such as --train::dataset, or a mapping"),
        (["--train::dataset", "PersistentDataset"], "such as --train::dataset::_target_"),
        (["--train::handlers::0", "StatsHandler"], "such as --train::handlers::0::_target_"),
    ],
)
def test_overrides_that_mean_nothing_are_named(config_file, overrides, match):
    with pytest.raises(ConfigurationError, match=match):
        check_overrides(["--config_file", str(config_file), *overrides])


def test_several_config_files_and_an_args_file(config_file, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("extra: 1\n")
    check_overrides(["--config_file", f"['{config_file}','{overlay}']", "--extra", "2", "--epochs", "1"])
    arguments = tmp_path / "args.yaml"
    arguments.write_text(f"config_file: {config_file}\nepohcs: 3\n")
    with pytest.raises(ConfigurationError, match="epohcs"):
        check_overrides(["--args_file", str(arguments)])
    for nested in ("loss::sofmax: true", "train#dataset#cache_rat: 0", "network::bias: false"):
        arguments.write_text(f"config_file: {config_file}\n{nested}\n")
        with pytest.raises(ConfigurationError, match="did you mean"):
            check_overrides(["--args_file", str(arguments)])


def test_the_bundle_root_does_not_depend_on_the_working_directory(config_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in (config_file, config_file.relative_to(tmp_path)):
        workflow = GMRWorkflow(str(given), workflow_type="train", logging_file=False)
        workflow.initialize()
        assert workflow.bundle_root == str(config_file.parent.parent)
        for several in (given, f"['{given}','{given}']"):
            monkeypatch.setattr(sys, "argv", [monai.bundle.__main__.__file__, "run", "--config_file", str(several)])
            assert find_bundle_root() == str(config_file.parent.parent)
    monkeypatch.setattr(sys, "argv", ["program", "run", "--config_file", str(config_file)])
    assert find_bundle_root() == "."


@pytest.mark.parametrize("hook", [True, False])
def test_only_the_process_of_monais_command_gets_the_hook(hook, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "argv", [monai.bundle.__main__.__file__ if hook else "program", "run", "--epochs", "3"])
    guard_command_line()
    assert (sys.excepthook is report) is hook


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"network::x": 1}, "which has no parts: did you mean --net::x"),
        ({"train::zzz::x": 1}, "not a setting .* train has dataset, handlers, metrics"),
        ({"train::datasett::cache_rate": 0}, "did you mean --train::dataset"),
        ({"train::handlers::7::iteration_log": 0}, "a list of 1, whose entries are 0 to 0"),
    ],
)
def test_a_workflow_refuses_what_monai_cannot_apply(config_file, overrides, match):
    with pytest.raises(ConfigurationError, match=match):
        GMRWorkflow(str(config_file), logging_file=False, **overrides)


@pytest.mark.parametrize(
    ("error", "variable", "one_line"),
    [(ConfigurationError, "", True), (ConfigurationError, "1", False), (ValueError, "", False)],
)
def test_a_wrapped_error_of_ours_is_one_line(error, variable, one_line, monkeypatch, capsys):
    monkeypatch.setenv("MONAI_GMR_TRACEBACK", variable)
    try:
        try:
            raise error("rings='x' is unknown")
        except ValueError as cause:
            raise RuntimeError("failed to instantiate") from cause
    except RuntimeError as wrapped:
        report(type(wrapped), wrapped, wrapped.__traceback__)
    printed = capsys.readouterr().err
    if one_line:
        assert printed == "error: rings='x' is unknown\n"
    else:
        assert "Traceback" in printed
        assert "failed to instantiate" in printed


class Broken(Dataset):
    """A data set whose item 1 is refused, as the cause of an error of the transform."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:
            try:
                raise ConfigurationError("the image b.nii.gz is empty: take it out.")
            except ConfigurationError as error:
                raise RuntimeError("applying transform") from error
        return index


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_the_sentence_of_a_worker_is_found(num_workers):
    def error_of(loader):
        try:
            return list(loader)
        except RuntimeError as error:
            # its frames reference the workers; torch waits 5 seconds for each one that the garbage collection finds
            return error.with_traceback(None)

    error = error_of(DataLoader(Broken(), num_workers=num_workers))
    assert str(find_configuration_error(error)) == "the image b.nii.gz is empty: take it out."
