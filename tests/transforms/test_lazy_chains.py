"""Chains with lazy resampling: no transform loses the interpolation modes of previous ones, and none returns its input's memory."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Flip, Invertd

from monai_gmr.symmetry import point_group, transform_grid, transform_image
from monai_gmr.transforms import (
    GridSymmetry,
    GridSymmetryd,
    RandGridSymmetry,
    RandGridSymmetryd,
    RotateAboutAxis,
    RotateAboutAxisd,
    rotation_transforms,
)

SHAPES = {2: (11, 12), 3: (9, 10, 11)}
VALUES = {0.0, 7.0}


def label(dims, affine_dims=3):
    generator = torch.Generator().manual_seed(0)
    data = (torch.rand(1, *SHAPES[dims], generator=generator) > 0.5).float() * 7
    return MetaTensor(data, affine=torch.eye(affine_dims + 1, dtype=torch.float64))


# transforms without interpolation that can follow a rotation, in array and dictionary form
FOLLOWERS = {
    "not drawn": (lambda: RandGridSymmetry(0.0), lambda: RandGridSymmetryd("x", 0.0)),
    "drawn": (lambda: RandGridSymmetry(1.0), lambda: RandGridSymmetryd("x", 1.0)),
    "identity drawn": (lambda: RandGridSymmetry(1.0, [0]), lambda: RandGridSymmetryd("x", 1.0, [0])),
    "identity": (lambda: GridSymmetry(0), lambda: GridSymmetryd("x", 0)),
    "symmetry": (lambda: GridSymmetry(5), lambda: GridSymmetryd("x", 5)),
    "no angle": (lambda: RotateAboutAxis(0), lambda: RotateAboutAxisd("x", 0)),
    "180 degrees": (lambda: RotateAboutAxis(180), lambda: RotateAboutAxisd("x", 180)),
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("name", FOLLOWERS)
def test_what_interpolates_nothing_keeps_mode_and_padding_of_what_came_before(name, padding_mode, dictionary, dims):
    image = label(dims, dims)
    follow = FOLLOWERS[name][dictionary]
    options = {"angle": 30, "mode": "nearest", "padding_mode": padding_mode}
    rotation = RotateAboutAxisd("x", **options) if dictionary else RotateAboutAxis(**options)

    def run(lazy):
        # twice, because the second must pass on the modes from the first
        chain = Compose([rotation, follow(), follow()], lazy=lazy).set_random_state(1)
        result = chain({"x": image} if dictionary else image)
        return result["x"] if dictionary else result

    eager, lazily = run(False), run(True)
    assert set(lazily.unique().tolist()) == VALUES
    assert torch.equal(eager.as_tensor(), lazily.as_tensor())
    assert torch.allclose(eager.affine, lazily.affine)
    assert len(lazily.applied_operations) == 3


@pytest.mark.parametrize("flags", [(True, False, True), (False, True, True), (True, True, False)])
@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_transforms_may_be_lazy_one_by_one(flags, prob):
    first, second, third = flags
    chain = [
        RotateAboutAxisd("x", 30, "x", mode="nearest", lazy=first),
        RandGridSymmetryd("x", prob, lazy=second),
        RandGridSymmetryd("x", 1 - prob, "mmm", lazy=third),
    ]
    eager = Compose(chain, lazy=False).set_random_state(3)({"x": label(3)})["x"]
    lazily = Compose(chain, lazy=None).set_random_state(3)({"x": label(3)})["x"]
    assert set(lazily.unique().tolist()) == VALUES
    assert torch.equal(eager.as_tensor(), lazily.as_tensor())


@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_a_mode_is_kept_behind_transforms_of_monai_that_have_none(prob):
    chain = [RotateAboutAxis(30, mode="nearest"), Flip(0), RandGridSymmetry(prob, "mmm")]
    eager, lazily = (Compose(chain, lazy=lazy).set_random_state(0)(label(3)) for lazy in (False, True))
    assert torch.equal(eager.as_tensor(), lazily.as_tensor())


def test_a_later_rotation_decides_on_its_own_mode():
    chain = Compose([RotateAboutAxis(30, mode="nearest"), GridSymmetry(0), RotateAboutAxis(10)], lazy=True)
    assert len(chain(label(3)).unique()) > 2
    chain = Compose([RotateAboutAxis(30), RandGridSymmetry(0.0), RotateAboutAxis(10, mode="nearest")], lazy=True)
    assert set(chain(label(3)).unique().tolist()) == VALUES


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_chains_are_inverted_drawn_or_not(prob, lazy):
    # 180 degrees are exact, so the inverse returns the input
    chain = [RotateAboutAxisd("x", 180, "x"), RandGridSymmetryd("x", prob), RandGridSymmetryd("x", prob, "mmm")]
    compose = Compose(chain, lazy=lazy).set_random_state(5)
    for dims in (2, 3):
        if dims == 2:
            compose.transforms = (RotateAboutAxisd("x", 180), *chain[1:2])
        else:
            compose.transforms = chain
        image = label(dims, dims)
        rotated = compose({"x": image})
        back = compose.inverse(deepcopy(rotated))["x"]
        assert torch.equal(back.as_tensor(), image.as_tensor())
        assert torch.allclose(back.affine, image.affine)
        rotated["y"] = rotated["x"].clone()
        undone = Invertd("y", compose, orig_keys="x", nearest_interp=False)(rotated)["y"]
        assert torch.equal(undone.as_tensor(), image.as_tensor())


COPIES = {
    "identity": GridSymmetry(0),
    "exchange of axes": GridSymmetry([[0, 1], [1, 0]]),
    "mirror image": GridSymmetry("m [10]"),
    "not drawn": RandGridSymmetry(0.0),
    "identity drawn": RandGridSymmetry(1.0, [0]),
    "no angle": RotateAboutAxis(0),
    "360 degrees": RotateAboutAxis(360, mode="nearest"),
    "180 degrees": RotateAboutAxis(180),
    "an angle": RotateAboutAxis(30),
}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("kind", ["numpy", "tensor", "MetaTensor"])
@pytest.mark.parametrize("name", COPIES)
def test_writing_to_a_result_leaves_the_image_and_its_history_as_they_were(name, kind, lazy):
    original = label(2)
    image = {"numpy": original.numpy().copy(), "tensor": original.as_tensor().clone(), "MetaTensor": original}[kind]
    before, affine = torch.as_tensor(np.array(image)), original.affine.clone()
    result = Compose([COPIES[name]], lazy=lazy)(image)
    result.add_(1)
    result.affine.add_(1)
    assert np.array_equal(np.asarray(image), before)
    assert torch.equal(original.affine, affine)
    assert not original.applied_operations
    assert not original.pending_operations
    if not lazy:
        rotated = COPIES[name](image)
        kept = rotated.clone()
        COPIES[name].inverse(rotated).add_(1)
        assert torch.equal(rotated, kept)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    "transform",
    [
        GridSymmetryd(["x", "y"], 0),
        RandGridSymmetryd(["x", "y"], 0.0),
        RandGridSymmetryd(["x", "y"], 1.0, [0]),
        RotateAboutAxisd(["x", "y"], 0),
    ],
)
def test_keys_of_one_tensor_get_memory_of_their_own(transform, lazy):
    image = label(3)
    result = Compose([transform], lazy=lazy)({"x": image, "y": image})
    result["x"].add_(1)
    assert torch.equal(result["y"].as_tensor(), image.as_tensor())
    assert set(image.unique().tolist()) == VALUES


@pytest.mark.parametrize("dims", [2, 3])
def test_functions_of_symmetry_give_copies_for_every_element(dims):
    image = label(dims).as_tensor()
    before = image.clone()
    for element in point_group(dims):
        for array in (image, image.numpy()):
            for rotated in (transform_grid(array, element), transform_image(array, element)):
                rotated += 1
                assert torch.equal(image, before)
    changed = point_group(dims)
    changed += 1
    assert point_group(dims)[0].tolist() == np.eye(dims).tolist()


def test_monais_transforms_lose_their_modes_lazily_unless_compose_has_them():
    chain = rotation_transforms("rotation", "x", 2, mode="nearest", padding_mode="border", prob=1.0)
    overrides = {"x": {"mode": "nearest", "padding_mode": "border"}}
    assert len(Compose(chain, lazy=True).set_random_state(0)({"x": label(2, 2)})["x"].unique()) > 2
    result = Compose(chain, lazy=True, overrides=overrides).set_random_state(0)({"x": label(2, 2)})["x"]
    assert set(result.unique().tolist()) == VALUES
