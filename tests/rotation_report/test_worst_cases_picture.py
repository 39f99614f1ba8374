"""The picture of worst cases shows where label and prediction differ, in the slice where they differ most."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from monai_gmr.rotation_report.statistics import WorstCase
from monai_gmr.rotation_report.worst_cases_picture import (
    CLASS_COLOURS,
    ERROR_COLOURS,
    _figure,
    _pictures,
    _slice_number,
    draw_worst_cases,
    find_errors,
    in_colour,
)
from monai_gmr.utils import ConfigurationError

NAMES = ("net", "case 7", "90 degrees about axis 1", "mean_dice")


def make_case(image, label=None, prediction=None, value=0.5, upright=0.9, names=NAMES):
    return WorstCase(*names, value, upright, image, label, prediction)


def segmentation(shape, channels=1, seed=0):
    generator = np.random.default_rng(seed)
    image = generator.random((channels, *shape))
    label, prediction = generator.integers(0, 3, (2, *shape))
    return make_case(image, label, prediction)


def headings(figure):
    return [panel.get_label() for panel in figure.axes]


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_errors_have_kinds():
    label = np.array([0, 1, 1, 0, 2, 2])
    prediction = np.array([0, 1, 0, 1, 1, 2])
    assert find_errors(label, prediction).tolist() == [0, 0, 1, 2, 3, 0]


@pytest.mark.parametrize(("number", "label", "prediction"), [(0, 1, 0), (1, 0, 2), (2, 1, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_kind_of_error_has_its_colour(number, label, prediction, channels):
    image = np.random.default_rng(0).random((channels, 4, 4))
    labels, predictions = np.zeros((2, 4, 4), int)
    labels[1, 2], predictions[1, 2] = label, prediction
    difference = _pictures(make_case(image, labels, predictions))["difference"]
    distances = [np.abs(difference[1, 2] - to_rgb(colour)).max() for colour in ERROR_COLOURS]
    assert int(np.argmin(distances)) == number
    assert min(distances) < 0.1
    # where both agree it is grey
    rest = np.delete(difference.reshape(-1, 3), 6, axis=0)
    assert np.allclose(rest, rest[:, :1])


def test_classes_are_laid_over_the_image():
    label = np.array([[0, 1], [2, len(CLASS_COLOURS) + 1]])
    image = np.array([[[1.0, 0.4], [0.2, 0.4]]])
    pictures = _pictures(make_case(image, label))
    assert set(pictures) == {"image", "label"}
    assert np.array_equal(pictures["label"][0, 0], pictures["image"][0, 0])
    # colours start again after the last
    for place, colour in (((0, 1), 0), ((1, 0), 1), ((1, 1), 0)):
        distances = [np.abs(pictures["label"][place] - to_rgb(each)).sum() for each in CLASS_COLOURS]
        assert int(np.argmin(distances)) == colour


@pytest.mark.parametrize("worst", [0, 3, 5])
def test_the_slice_is_the_one_with_most_wrong_voxels(worst):
    label = np.zeros((4, 5, 6), int)
    label[:, :, 2] = 1
    prediction = label.copy()
    prediction[:3, :2, worst] += 1
    prediction[0, 0, 1] = 1
    case = make_case(np.arange(120.0).reshape(1, 4, 5, 6), label, prediction)
    assert _slice_number(case) == worst
    assert f"axis 2, slice {worst} of 0 to 5" in texts(_figure([case]))
    assert _pictures(case)["difference"].shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("foreground", "with_prediction", "expected"), [(4, True, 4), (4, False, 4), (None, True, 3), (None, False, 3)]
)
def test_without_errors_the_slice_shows_foreground_or_the_middle(foreground, with_prediction, expected):
    label = np.zeros((3, 3, 6), int)
    if foreground is not None:
        label[1, 1, foreground] = 1
    case = make_case(np.zeros((1, 3, 3, 6)), label, label if with_prediction else None)
    assert _slice_number(case) == expected


@pytest.mark.parametrize(("shape", "channels"), [((8, 8), 1), ((6, 9), 3), ((6, 7, 5), 1), ((6, 7, 5), 3)])
@pytest.mark.parametrize("rows", [1, 3])
def test_segmentations_have_four_pictures_a_row(shape, channels, rows):
    figure = _figure([segmentation(shape, channels, seed) for seed in range(rows)])
    assert headings(figure) == ["image", "label", "prediction", "difference"] * rows
    legends = [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]
    assert legends == [["missed", "added", "wrong class"], ["class 1", "2"]]


@pytest.mark.parametrize(
    ("label", "prediction", "expected"),
    [
        (3, 1, "label 3, predicted 1"),
        (np.int64(3), None, "label 3"),
        (None, np.array(2), "predicted 2"),
        (None, None, None),
    ],
)
@pytest.mark.parametrize("shape", [(8, 8), (6, 6, 4)])
def test_classes_of_whole_images_are_written_above_them(label, prediction, expected, shape):
    figure = _figure([make_case(np.zeros((1, *shape)), label, prediction)])
    assert headings(figure) == ["image"]
    assert [text for text in texts(figure) if "label" in text or "predicted" in text] == [expected] * (
        expected is not None
    )
    assert not figure.legends


@pytest.mark.parametrize("upright", [None, 0.75])
@pytest.mark.parametrize(("value", "written"), [(0.1234, "0.123"), (130.42, "130.4"), (float("nan"), "nan")])
def test_a_row_says_what_it_shows(value, written, upright):
    written_texts = texts(_figure([make_case(np.zeros((1, 4, 4)), value=value, upright=upright)]))
    assert written_texts[:4] == ["net", "case 7", "90 degrees about axis 1", f"mean dice {written}"]
    assert ("upright 0.750" in written_texts) is (upright is not None)


def test_no_text_covers_another_or_a_picture():
    long = (
        "a network with a name that is long",
        "TCGA-18-5592-01Z-00-DX1_tile_00001.png",
        "$random$ 12 of seed 20240101",
    )
    case = segmentation((12, 30, 5))._replace(network=long[0], case=long[1], view=long[2])
    figure = _figure(
        [case, make_case(np.zeros((1, 20, 9)), 1, 0, names=(*long, "probability_of_the_true_class")), case]
    )
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.texts]
    boxes += [panel.get_window_extent() for panel in figure.axes]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))
    frame = figure.bbox.padded(1)
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("fill", [0.0, 7.0, np.nan, np.inf])
def test_images_without_contrast_are_drawn_all_the_same(channels, fill):
    picture = in_colour(np.full((channels, 4, 5), fill))
    assert picture.shape == (4, 5, 3)
    assert np.array_equal(picture, np.zeros((4, 5, 3)))


def test_values_that_are_not_finite_do_not_spoil_the_others():
    image = np.linspace(0, 255, 48).reshape(3, 4, 4)
    expected = in_colour(image)
    assert (expected.min(), expected.max()) == (0, 1)
    image[0, 0, 0] = np.nan
    image[2, 3, 3] = np.inf
    picture = in_colour(image)
    assert np.isfinite(picture).all()
    assert np.allclose(picture, expected, atol=0.03)


def test_the_file_appears_when_complete(tmp_path):
    file = tmp_path / "new" / "worst.png"
    draw_worst_cases([segmentation((8, 8), 3), segmentation((6, 6, 4)), make_case(np.zeros((1, 8, 8)), 1, 0)], file)
    assert file.read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in file.parent.iterdir()] == ["worst.png"]


def test_no_cases_are_no_file(tmp_path):
    draw_worst_cases([], tmp_path / "worst.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("case", "match"),
    [
        (make_case(np.zeros((4, 4))), r"image of case 'case 7' has shape \(4, 4\): give \(C, H, W\)"),
        (make_case(np.zeros((1, 4, 4)), np.zeros((1, 4, 4), int)), r"label .* has shape \(1, 4, 4\): give \(4, 4\)"),
        (
            make_case(np.zeros((1, 4, 4)), None, np.zeros((4, 5), int)),
            r"prediction .* has shape \(4, 5\): give \(4, 4\)",
        ),
    ],
)
def test_shapes_that_do_not_fit(case, match, tmp_path):
    with pytest.raises(ConfigurationError, match=match):
        draw_worst_cases([case], tmp_path / "worst.png")
    assert not list(tmp_path.iterdir())
