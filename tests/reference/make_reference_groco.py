"""Makes ``groco.npz``: filters, answers, pools and groups of GroCo 0.1.0 on Keras 3.0.5 and torch, of which only numbers are kept.

    PYTHONPATH=GROCO KERAS_BACKEND=torch python tests/reference/make_reference_groco.py
    # GROCO: a copy of https://github.com/APJansen/GroCo at 83ffe12, which is on no registry; keras 3.0.5 (with 3.15.1 its layers fail)

Axes are in torch's order: fields ``(batch, fields, elements, *spatial)``, images with one element, filters
``(out_fields, out_elements, in_fields, in_elements, *window)``.

``image_D`` and ``moved_D``: an image of ``D`` axes, and it after each element of the largest group; ``elements_NAME``: the places of a
group's elements in that list, in its order; ``representatives_NAME``: those of the elements that its pools reduce to one. For each of
``NAMES``: ``NAME_input``, ``NAME_filter``, ``NAME_bias``, ``NAME_output``; for each of ``POOLS``: its input and output. ``sizes``
(padding, window, stride, size): lengths of the output for each of the two paddings, windows 1 to 4, strides 1 to 3, sizes 7 and 8; 0
where GroCo refuses.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np

PLANE = ("P4M", "P4", "P2MM", "PMh", "PMw", "P2", "P1")
SPACE = ("Oh", "O", "D4h", "D4")
# name: group, subgroup, fields of the input (0: an image), window, stride, sizes
NAMES: dict[str, tuple[str, str, int, int, int, tuple[int, ...]]] = {
    "lift": ("P4M", "P4M", 0, 3, 1, (6, 7)),
    "regular": ("P4M", "P4M", 2, 3, 1, (6, 7)),
    "strided": ("P4M", "P4M", 1, 3, 2, (7, 9)),
    "even": ("P4M", "P4M", 1, 2, 2, (6, 8)),
    **{f"onto_{name}": ("P4M", name, 1, 3, 1, (4, 5)) for name in PLANE[1:]},
    "transposed": ("P4M", "P4M", 2, 2, 2, (4, 6)),
    "lift_3d": ("Oh", "Oh", 0, 3, 1, (3, 4, 5)),
    **{f"onto_{name}": ("Oh", name, 1, 2, 1, (3, 3, 3)) for name in SPACE[1:]},
    "regular_3d": ("D4", "D4", 1, 3, 1, (3, 4, 4)),
}
POOLS = {
    **{f"{kind}_{name}": (kind, "P4M", name, (2, 3)) for kind in ("max", "average") for name in PLANE[1:]},
    **{f"{kind}_{name}": (kind, "Oh", name, (1, 2, 2)) for kind in ("max", "average") for name in SPACE[1:]},
}


def torch_order(fields: np.ndarray, dims: int) -> np.ndarray:
    """``(batch, *spatial, elements, fields)`` as ``(batch, fields, elements, *spatial)``."""
    return fields.transpose(0, dims + 2, dims + 1, *range(1, dims + 1))


def numbers(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def main() -> None:
    from groco import layers
    from groco.groups import group_dict
    from keras import utils

    utils.set_random_seed(0)
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}

    def draw(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype("float32")

    for dims, names in ((2, PLANE), (3, SPACE)):
        whole, axes = group_dict[names[0]], tuple(range(dims))
        image = draw(*(5,) * dims)
        moved = whole.action(image, spatial_axes=axes, new_group_axis=dims, domain_group=None)
        arrays |= {f"image_{dims}": image, f"moved_{dims}": np.moveaxis(numbers(moved), -1, 0)}
        arrays |= {f"elements_{name}": np.array(whole.subgroup[name]) for name in names}
        arrays |= {f"representatives_{name}": np.array(whole.cosets[name]) for name in names}
    for name, (group, subgroup, fields, window, stride, spatial) in NAMES.items():
        dims = len(spatial)
        transposed = name == "transposed"
        kind = getattr(layers, f"GroupConv{dims}D" + "Transpose" * transposed)
        options = {"group": group, "subgroup": subgroup, "filters": 2 if dims == 2 else 1, "kernel_size": window}
        padding = "same_equiv" if stride == 1 and window % 2 else "valid_equiv"
        layer = kind(**options, strides=stride, padding=padding, bias_initializer="normal")
        order = group_dict[group].order
        x = draw(1, *spatial, *((order, fields) if fields else (1,)))
        y = numbers(layer(x))
        x = x if fields else x[..., None]
        spread = numbers(layer.group_transforms.transform_kernel(layer.kernel.value))
        ends = y.shape[-2:] + x.shape[-2:] if transposed else x.shape[-2:] + y.shape[-2:]
        spread = spread.reshape(*(window,) * dims, *ends)
        spread = np.moveaxis(spread, range(dims), range(4, 4 + dims))  # two ends, each elements before fields
        first, second = (spread, (1, 0, 3, 2)) if transposed else (spread, (3, 2, 1, 0))
        arrays[f"{name}_filter"] = first.transpose(*second, *range(4, 4 + dims))
        arrays |= {f"{name}_input": torch_order(x, dims), f"{name}_output": torch_order(y, dims)}
        arrays[f"{name}_bias"] = numbers(layer.bias.value)
    for name, (kind, group, subgroup, spatial) in POOLS.items():
        dims = len(spatial)
        pool = getattr(layers, f"Group{kind.capitalize()}Pooling{dims}D")
        # positive: what GroCo pads with would be the maximum of negative fields
        x = np.abs(draw(1, *spatial, group_dict[group].order, 1))
        y = pool(group=group, subgroup=subgroup, pool_size=1, padding="valid_equiv")(x)
        arrays |= {f"{name}_input": torch_order(x, dims), f"{name}_output": torch_order(numbers(y), dims)}
    sizes = np.zeros((2, 4, 3, 2), int)
    grid = itertools.product(enumerate(("valid_equiv", "same_equiv")), range(4), range(3), range(2))
    for (i, padding), k, s, n in grid:
        layer = layers.GroupConv2D(group="P4M", kernel_size=k + 1, filters=1, strides=s + 1, padding=padding)
        try:
            sizes[i, k, s, n] = layer(draw(1, 7 + n, 7 + n, 1)).shape[1]
        except (ValueError, AttributeError) as error:
            # what "same_equiv" would say, GroCo asks of a method that it lacks
            if "maintains equivariance" not in str(error) and "compute_same_padding" not in str(error):
                raise
    path = Path(__file__).with_name("groco.npz")
    np.savez_compressed(path, sizes=sizes, **arrays)
    print(path, path.stat().st_size, "bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
