"""Makes ``e2cnn_p4m.npz``: filters, answers and the action of the group of e2cnn 0.2.3, of which only numbers are kept.

    python tests/reference/make_reference_groups.py  # where e2cnn 0.2.3 is installed

``image`` (1, 1, 5, 5), ``moved`` (8, 5, 5): it, transformed by each element of e2cnn's group in its order; for the names ``lift`` (1 to 2
fields) and ``regular`` (2 to 3 fields): ``NAME_input``, ``NAME_filter``, ``NAME_bias`` and ``NAME_output``.
"""

import sys
from pathlib import Path

import numpy as np
import torch


def main() -> None:
    from e2cnn import gspaces
    from e2cnn.nn import FieldType, GeometricTensor, R2Conv

    torch.manual_seed(0)
    space = gspaces.FlipRot2dOnR2(4)
    scalar, regular = space.trivial_repr, space.regular_repr
    image = torch.randn(1, 1, 5, 5)
    tensor = GeometricTensor(image, FieldType(space, [scalar]))
    arrays = {"image": image, "moved": torch.cat([tensor.transform(e).tensor[0] for e in space.fibergroup.elements])}
    for name, inputs, outputs in (("lift", [scalar], 2), ("regular", [regular] * 2, 3)):
        ends = FieldType(space, inputs), FieldType(space, [regular] * outputs)
        layer = R2Conv(*ends, kernel_size=3, padding=1)
        torch.nn.init.normal_(layer.bias)
        x = torch.randn(2, ends[0].size, 6, 7)
        kernel, bias = layer.expand_parameters()
        output = layer(GeometricTensor(x, ends[0])).tensor
        arrays |= {f"{name}_input": x, f"{name}_filter": kernel, f"{name}_bias": bias, f"{name}_output": output}
    path = Path(__file__).with_name("e2cnn_p4m.npz")
    np.savez_compressed(path, **{name: array.detach().numpy() for name, array in arrays.items()})
    print(path, path.stat().st_size, "bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
