"""All valid cases are predicted even if others fail; failed cases are named, and the run ends with an error."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, Lambdad, Spacingd

from monai_gmr.bundle.case_batches import CaseBatches
from monai_gmr.bundle.prediction import CasePredictor
from monai_gmr.transforms import LoadCased
from monai_gmr.utils import ConfigurationError


class Picky(torch.nn.Module):
    """A network that returns its input, and fails on large or negative input."""

    def forward(self, x):
        if max(x.shape[2:]) > 16:
            raise RuntimeError("this is too large\nread on")
        return torch.where((x < 0).flatten(1).any(1).reshape(-1, 1, 1, 1), torch.nan, x)


def unreadable(value):
    if value.shape[-1] == 1:
        raise OSError("no reader for this file")
    return value


def make(images, batch_size, workers=0):
    cases = [{"image": image, "name": f"cell {n}"} for n, image in enumerate(images)]
    loader = DataLoader(Dataset(cases, Lambdad("image", unreadable)), batch_size=batch_size, num_workers=workers)
    predicted = []
    predictor = CasePredictor(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=Picky(),
        postprocessing=Lambdad("pred", lambda pred: predicted.append(float(pred.max())) or pred),
        output="OUT",
    )
    return predictor, predicted


GOOD = [torch.full((1, 4, 4), float(value)) for value in range(1, 6)]
BAD = {
    "no reader for this file": torch.zeros(1, 4, 1),
    "NaN or infinite": torch.full((1, 4, 4), torch.nan),
    "this is too large": torch.zeros(1, 20, 4),
    "answer of the network holds NaN": torch.full((1, 4, 4), -1.0),
}


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
@pytest.mark.parametrize("why", BAD)
@pytest.mark.parametrize("place", [0, 3, 5])
def test_a_case_that_fails_is_left_out_alone(batch_size, why, place, capsys):
    images = [*GOOD[:place], BAD[why], *GOOD[place:]]
    predictor, predicted = make(images, batch_size)
    with pytest.raises(ConfigurationError, match=rf"\A(?!.*\n)1 of 6 images were not predicted, cell {place}: .*{why}"):
        predictor.predict()
    assert sorted(set(predicted)) == [1, 2, 3, 4, 5]
    printed = capsys.readouterr().out
    assert "5 predictions in OUT" in printed
    assert f"cell {place} is left out: " in printed


def test_images_of_unlike_sizes_are_predicted(capsys):
    predictor, predicted = make([torch.full((1, 4 + n % 3, 5), float(n)) for n in range(7)], 4, workers=1)
    predictor.predict()
    assert predicted == [0, 1, 2, 3, 4, 5, 6]
    assert "7 predictions in OUT" in capsys.readouterr().out
    # and again, like a second run of a plain evaluator
    predictor.predict()


def test_a_case_that_resampling_makes_too_large_is_left_out(tmp_path):
    cases = [{"image": str(tmp_path / f"{millimetres}.nii")} for millimetres in (1, 30)]
    for millimetres in (1, 30):
        affine = np.diag([millimetres] * 3 + [1])
        nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.float32), affine), tmp_path / f"{millimetres}.nii")
    chain = Compose([LoadCased("image", 3, 1), Spacingd("image", 1.0)])
    items = CaseBatches(DataLoader(Dataset(cases, chain))).items()
    assert [why.partition(":")[0] for _, _, why in (items[0], items[1])] == [
        "",
        f"the image {cases[1]['image']} grows too much, its 4 x 5 x 6 voxels of 30 x 30 x 30 mm are resampled to 91 x 121 x 151",
    ]


def test_a_whole_run_that_fails_is_one_sentence():
    predictor, predicted = make(list(BAD.values()), 2)
    with pytest.raises(ConfigurationError, match="4 of 4 images were not predicted, the first is cell 0"):
        predictor.predict()
    assert predicted == []
