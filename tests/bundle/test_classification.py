"""Checks of the data of the classification bundles."""

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from monai_gmr.bundle.classification import (
    HeadedCSVSaver,
    check_data,
    class_and_probabilities,
    class_weights,
    make_loss,
    network_shape,
)
from monai_gmr.data import MedMNISTCacheDataset
from monai_gmr.utils import ConfigurationError


def test_weighted_classes_count_alike_and_images_one_on_average():
    counts = np.array([30, 5, 0, 65])
    weights = class_weights(counts)
    totals = weights * torch.tensor(counts)
    assert totals[[0, 1, 3]].tolist() == pytest.approx([100 / 3] * 3)
    assert totals[2] == 0
    assert totals.sum() == pytest.approx(100)


def test_several_labels_an_image_are_known_or_refused(tmp_path):
    labels = np.eye(4, dtype=np.uint8)
    np.savez(tmp_path / "chest.npz", test_images=np.zeros((4, 9, 9), np.uint8), test_labels=labels)
    data = MedMNISTCacheDataset(tmp_path, "chest.npz", "test", check_md5=False)
    with pytest.raises(ConfigurationError, match=r"chest\.npz has 4 labels an image"):
        check_data(data, spatial_dims=2, num_classes=4, in_channels=1)
    check_data(data, spatial_dims=2, num_classes=4, in_channels=1, multi_label=True)
    assert network_shape({}, tmp_path, "chest.npz", "test") == {"in_channels": 1, "num_classes": 4, "multi_label": True}
    for balanced, weights in ((True, [3.0] * 4), (False, None)):
        loss = make_loss(data, balanced, multi_label=True)
        assert (loss.pos_weight if weights is None else loss.pos_weight.tolist()) == weights
    assert make_loss(data, False).weight is None


def test_classes_without_training_images_are_named(tmp_path):
    labels = {"train_labels": [0, 2, 4], "val_labels": [0, 1, 3], "test_labels": [1, 2, 4]}
    images = {name.replace("labels", "images"): np.zeros((3, 9, 9), np.uint8) for name in labels}
    np.savez(tmp_path / "cells.npz", **images, **{name: np.array(each) for name, each in labels.items()})
    for section, warned in (("training", True), ("validation", False)):
        data = MedMNISTCacheDataset(tmp_path, "cells.npz", section, check_md5=False)
        with (
            pytest.warns(UserWarning, match="no training image of cells.npz has the class 1, 3")
            if warned
            else nullcontext()
        ):
            check_data(data, spatial_dims=2, num_classes=5, in_channels=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_data(data, spatial_dims=2, num_classes=5, in_channels=1)


def test_shape_is_the_file_s_and_else_the_metadata_s(tmp_path):
    layout = {"inputs": {"image": {"num_channels": 5}}, "outputs": {"pred": {"num_channels": 6}}}
    metadata = {"network_data_format": layout}
    assert network_shape(metadata, tmp_path, "cells.npz") == {"in_channels": 5, "num_classes": 6, "multi_label": False}
    np.savez(tmp_path / "cells.npz", test_images=np.zeros((4, 9, 9, 3), np.uint8), test_labels=np.arange(4))
    for grey, channels in ((False, 3), (True, 1)):
        shape = network_shape(metadata, tmp_path, "cells.npz", "test", classes=[2, 3], grey=grey)
        assert shape == {"in_channels": channels, "num_classes": 2, "multi_label": False}


@pytest.mark.parametrize(
    ("multi_label", "expected"), [(False, [[1], [2], [0]]), (True, [[0, 1, 1], [0, 0, 0], [1, 1, 1]])]
)
def test_a_row_has_the_class_or_all_labels(multi_label, expected):
    probabilities = torch.tensor([[0.1, 0.9, 0.6], [0.1, 0.2, 0.4], [0.8, 0.7, 0.5]])
    rows = class_and_probabilities(multi_label=multi_label)([{"pred": each} for each in probabilities])
    assert torch.equal(torch.stack(rows), torch.cat([torch.tensor(expected).float(), probabilities], 1))


def test_predictions_are_not_written_half(tmp_path):
    (tmp_path / "predictions.csv").write_text("of an earlier run\n")
    saver = HeadedCSVSaver(tmp_path, "predictions.csv", ["class", "probability"])
    saver.save(np.array([1.0, 0.5]), {"filename_or_obj": 'a "quoted", name'})
    saver.save(np.array([1.0]), {"filename_or_obj": "short"})
    with pytest.raises(ConfigurationError, match="short has 1 values for the 2 columns"):
        saver.finalize()
    assert (tmp_path / "predictions.csv").read_text() == "of an earlier run\n"
    saver.get_cache().pop("short")
    saver.finalize()
    assert (tmp_path / "predictions.csv").read_text().splitlines()[1] == '"a ""quoted"", name",1,0.5'
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.csv"]
