"""Random symmetries: exactly those of the group, the same for all keys, reproducible by seed, invertible, lazy."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Flipd, Invertd

from monai_gmr.symmetry import named_group, transform_grid
from monai_gmr.transforms import RandGridSymmetry, RandGridSymmetryD, RandGridSymmetryd, RandGridSymmetryDict
from monai_gmr.utils import ConfigurationError


def picture(dims, size=3):
    affine = torch.diag(torch.tensor([0.5, 1.5, 2.5, 1.0], dtype=torch.float64))
    return MetaTensor(torch.arange(float(size**dims)).reshape(1, *(size,) * dims), affine=affine)


def results(transform, image, times):
    return {tuple(transform(image).flatten().tolist()) for _ in range(times)}


@pytest.mark.parametrize(
    ("group", "axis", "dims"),
    [
        ("all", None, 2),
        ("all", None, 3),
        ("oh", None, 3),
        ("p4", None, 2),
        ("mmm", None, 3),
        ("m", "x", 3),
        (222, None, 3),
    ],
)
def test_every_element_of_the_group_is_drawn_and_nothing_else(group, axis, dims):
    image = picture(dims)
    elements = named_group(str(group), dims, axis)
    expected = {tuple(transform_grid(image, g).flatten().tolist()) for g in elements}
    transform = RandGridSymmetry(1.0, group, axis).set_random_state(1)
    assert results(transform, image, 9 * len(elements) + 20) == expected
    dictionary = RandGridSymmetryd("image", 1.0, group, axis).set_random_state(2)
    assert results(lambda x: dictionary({"image": x})["image"], image, 9 * len(elements) + 20) == expected


def test_elements_may_be_listed():
    transform = RandGridSymmetry(1.0, [0, "m [10]", [[0, 1], [1, 0]]]).set_random_state(0)
    assert len(results(transform, picture(2), 40)) == 3


def test_probability_is_kept():
    image = picture(3)
    for transform in (RandGridSymmetry(0.3, ["-1"]), RandGridSymmetryd("image", 0.3, ["-1"])):
        transform.set_random_state(0)
        rotated = 0
        for _ in range(400):
            out = transform(image) if isinstance(transform, RandGridSymmetry) else transform({"image": image})["image"]
            rotated += not torch.equal(out.as_tensor(), image.as_tensor())
        assert 85 < rotated < 155


@pytest.mark.parametrize("lazy", [False, True])
def test_seeds_repeat_in_array_and_dictionary_form(lazy):
    image = picture(3)

    def run(seed, dictionary):
        if dictionary:
            chain = Compose([RandGridSymmetryd("image", 0.7), RandGridSymmetryd("image", 0.7, "mmm")], lazy=lazy)
            chain.set_random_state(seed)
            return [chain({"image": image})["image"].flatten().tolist() for _ in range(10)]
        chain = Compose([RandGridSymmetry(0.7), RandGridSymmetry(0.7, "mmm")], lazy=lazy).set_random_state(seed)
        return [chain(image).flatten().tolist() for _ in range(10)]

    for dictionary in (False, True):
        assert run(3, dictionary) == run(3, dictionary)
        assert run(3, dictionary) != run(4, dictionary)


def test_lazy_equals_eager_for_the_same_seed():
    image = picture(3)
    chains = [
        Compose([RandGridSymmetryd("image", 0.6), RandGridSymmetryd("image", 0.6, "4/mmm")], lazy=lazy)
        for lazy in (False, True)
    ]
    for chain in chains:
        chain.set_random_state(5)
    for _ in range(15):
        eager, lazily = (chain({"image": image})["image"] for chain in chains)
        assert torch.equal(eager.as_tensor(), lazily.as_tensor())
        assert torch.allclose(eager.affine, lazily.affine)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_image_and_label_are_transformed_alike_and_inverted_exactly(prob, lazy):
    image = MetaTensor(torch.rand(1, 3, 4, 5), affine=picture(3).affine)
    label = MetaTensor((image.as_tensor() > 0.5).to(torch.int16), affine=torch.eye(4))
    chain = Compose([RandGridSymmetryd(["image", "label"], prob), Flipd(["image", "label"], 0)], lazy=lazy)
    chain.set_random_state(0)
    for _ in range(10):
        rotated = chain({"image": image, "label": label})
        assert torch.equal((rotated["image"] > 0.5).as_tensor(), (rotated["label"] > 0.5).as_tensor())
        # inverting consumes the trace
        back = chain.inverse(deepcopy(rotated))
        assert torch.equal(back["image"].as_tensor(), image.as_tensor())
        assert torch.equal(back["label"].as_tensor(), label.as_tensor())
        assert torch.allclose(back["image"].affine, image.affine)
        rotated["prediction"] = rotated["image"].clone()
        undone = Invertd("prediction", chain, orig_keys="image", nearest_interp=False)(rotated)["prediction"]
        assert torch.equal(undone.as_tensor(), image.as_tensor())


@pytest.mark.parametrize("lazy", [False, True])
def test_the_array_form_is_inverted_and_can_repeat_its_draw(lazy):
    image = picture(3)
    transform = RandGridSymmetry(0.5).set_random_state(0)
    chain = Compose([transform], lazy=lazy)
    for _ in range(10):
        rotated = chain(image)
        assert torch.equal(transform(image, randomize=False).as_tensor(), rotated.as_tensor())
        back = chain.inverse(rotated)
        assert torch.equal(back.as_tensor(), image.as_tensor())
        assert torch.allclose(back.affine, image.affine)


def test_numpy_and_plain_tensors_and_missing_keys():
    data = {"image": np.random.default_rng(0).random((1, 4, 4)), "label": torch.ones(1, 4, 4)}
    transform = RandGridSymmetryd(["absent", "image", "label"], 1.0, allow_missing_keys=True)
    assert transform(data)["image"].shape == (1, 4, 4)
    assert transform({"name": 1}) == {"name": 1}
    with pytest.raises(KeyError):
        RandGridSymmetryd("absent", 1.0)(data)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: RandGridSymmetry(1.0, "octahedral"), "group='octahedral' is unknown in 3D: use one of"),
        (lambda: RandGridSymmetry(1.0, "oh")(picture(2)), "group='oh' is unknown in 2D: use one of"),
        (lambda: RandGridSymmetryd("image", 1.0, "p4m")({"image": picture(3)}), "group='p4m' is unknown in 3D"),
        (lambda: RandGridSymmetry(1.0, []), "set of size zero"),
        (lambda: RandGridSymmetry(1.0, [0, 99]), "element=99 is out of range"),
        (lambda: RandGridSymmetry(1.5), "prob=1.5 is impossible: give a number from 0 to 1"),
        (lambda: RandGridSymmetryd("image", -0.5), "prob=-0.5 is impossible: give a number from 0 to 1"),
        (lambda: RandGridSymmetry(1.0, "m", axis="up"), "axis='up' is unknown"),
        (lambda: RandGridSymmetry(1.0).randomize(), "give it the image"),
        (lambda: RandGridSymmetryd("image", 1.0)({"image": "a.nii"}), "the path 'a.nii', .*: load it first"),
        (lambda: RandGridSymmetry(0.0)("a.nii"), "the path 'a.nii'"),
    ],
)
def test_wrong_input_ends_in_a_sentence(call, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        call()


def test_aliases():
    assert RandGridSymmetryD is RandGridSymmetryDict is RandGridSymmetryd
