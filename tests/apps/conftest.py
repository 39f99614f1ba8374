"""Stub of a bundle, and studies of it that run in the test's process."""

from __future__ import annotations

from pathlib import Path

import monai.bundle
import pytest
import yaml

from monai_gmr.apps.study import main
from monai_gmr.apps.study_config import load_study

# a bundle whose validation score is best at learning rate 0.01 and whose scores differ with seed, net and split
TRAIN = """
imports: [$import torch, $import pathlib]
seed: 0
ckpt_dir: models
output_dir: eval
epochs: 5
learning_rate: 0.1
conv: plain
augmentation: none
width: 3
# an epoch takes ten seconds, with "gmr" 24, and each gains 0.02
history: "$[{'epoch': i + 1, 'seconds': 24.0 if @conv == 'gmr' else 10.0, 'score': 0.02 * i} for i in range(@epochs)]"
best: "${'best_metric': 0.9 - abs(@learning_rate - 0.01), 'best_metric_epoch': 1, 'history': @history}"
network_def: {_target_: torch.nn.Linear, in_features: 2, out_features: '@width'}
run:
- $pathlib.Path(@ckpt_dir, 'started').open('a').write('x')
- $1 / (@conv != 'broken')
- "$torch.save({'best': @best}, @ckpt_dir + '/latest.pt')"
- "$torch.save({'model': {}}, @ckpt_dir + '/model.pt')"
"""
EVALUATE = """
imports: [$import pathlib]
seed: 0
ckpt_dir: models
output_dir: eval
conv: plain
split: test
angle_step: 30
scores: "$[@seed / 10, @seed / 20] if @split == 'test' else [0.7, 0.6]"
rows: "$['upright,dice,1,%s,%s' % (@scores[0], @scores[0])] + ['angles,dice,9,%s,%s' % tuple(@scores)] * (@angle_step > 0)"
run:
- $pathlib.Path(@output_dir).mkdir(parents=True, exist_ok=True)
- "$pathlib.Path(@output_dir, 'rotation_table.csv').write_text('\\\\n'.join(['family,metric,views,mean,worst', *@rows]))"
"""


@pytest.fixture
def bundle(tmp_path):
    """Folder of the stub."""
    configs = tmp_path / "stub" / "configs"
    configs.mkdir(parents=True)
    (configs / "train.yaml").write_text(TRAIN)
    (configs / "evaluate.yaml").write_text(EVALUATE)
    return configs.parent


@pytest.fixture
def config(bundle, tmp_path):
    """CONFIG of a study of the stub, for tests to change."""
    return {
        "output_dir": str(tmp_path / "out"),
        "seeds": [3, 5],
        "data": {"cells": {"bundle": str(bundle), "metric": "dice"}},
        "nets": {"plain": {"conv": "plain"}, "radial": {"conv": "gmr"}},
        "augmentations": {"none": {"augmentation": "none"}, "rotations": {"augmentation": "rotation"}},
    }


@pytest.fixture
def processes():
    """Names of the configs that ran, in order; they run in this process, because each own process takes seconds."""
    return []


@pytest.fixture
def write(tmp_path):
    """Writes a CONFIG and returns its file."""

    def write(config):
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return file

    return write


@pytest.fixture
def start(write, config, processes):
    """Runs the command line on the current CONFIG."""

    def launch(config_file, settings_file, log):
        processes.append(Path(config_file).stem)
        try:
            monai.bundle.run(config_file=str(config_file), args_file=str(settings_file), logging_file=False)
        except Exception as error:
            log.open("a").write(f"50%|\rerror: {error.__cause__ or error}\n\n")
            return 1
        log.touch()
        return 0

    return lambda *options: main([str(write(config)), *options], launch=launch)


@pytest.fixture
def load(write, config):
    """Loads the study of the current CONFIG, or with changes."""
    return lambda **changes: load_study(write(config | changes))
