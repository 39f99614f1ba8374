"""Write phantom volumes with labels as NIfTI in the Decathlon layout.

python -m monai_gmr.apps.make_phantoms OUT --number 24 --size 48 --seed 0
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from monai_gmr.command_line import command, command_parser
from monai_gmr.data.phantoms import POSES, make_phantom, write_phantoms
from monai_gmr.files import replacing
from monai_gmr.utils import ConfigurationError, can_draw


def split_number(number: int) -> tuple[int, int, int]:
    """Splits a number into training, validation and test volumes: a sixth each for the last two, at least one.

    Example:
        >>> split_number(24), split_number(3)
        ((16, 4, 4), (1, 1, 1))
    """
    if number < 3:
        raise ConfigurationError(f"number={number} cannot be split into training, validation and test: use at least 3.")
    held_out = max(1, number // 6)
    return number - 2 * held_out, held_out, held_out


def draw_phantom(path: Path, spatial_shape: Sequence[int], spacing: Sequence[float], pose: str, seed: int) -> None:
    """Draws the first training volume: its middle slices across each axis, labels below.

    Example:
        >>> file = getfixture("tmp_path") / "phantom.png"
        >>> draw_phantom(file, (16, 16, 16), (1, 1, 1), "upright", 0); file.exists()
        True
    """
    from matplotlib.figure import Figure

    image, label = make_phantom(spatial_shape, spacing=spacing, pose=pose, seed=(seed, 0))
    planes = [()] if image.ndim == 2 else [(slice(None),) * axis + (n // 2,) for axis, n in enumerate(image.shape)]
    figure = Figure(figsize=(3 * len(planes), 6), layout="constrained")
    panels = figure.subplots(2, len(planes), squeeze=False)
    for column, plane in enumerate(planes):
        panels[0, column].imshow(image[plane], cmap="gray", vmin=0, vmax=image.max())
        panels[1, column].imshow(label[plane], cmap="viridis", vmin=0, vmax=3, interpolation="nearest")
        panels[0, column].set_title("image" if image.ndim == 2 else f"across axis {column}")
    for panel in panels.flat:
        panel.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png")


@command("make_phantoms")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for wrong arguments."""
    parser = command_parser("make_phantoms", __doc__.splitlines()[0])
    add = parser.add_argument
    add("output_dir", metavar="OUT", help="folder to write to")
    add("--number", type=int, default=24, help="total number of volumes; two thirds are for training (24)")
    add("--size", type=int, nargs="+", default=[48], help="voxels: one number for a cube, or one per axis (48)")
    add(
        "--spacing",
        type=float,
        nargs="+",
        default=[1.0],
        help="voxel size in millimetres, one number or one per axis (1)",
    )
    add("--pose", choices=POSES, default="upright", help="orientation of the structures (upright)")
    add("--seed", type=int, default=0, help="the same seed makes the same volumes (0)")
    options = parser.parse_args(arguments)
    shape = options.size * 3 if len(options.size) == 1 else options.size
    spacing = options.spacing * len(shape) if len(options.spacing) == 1 else options.spacing
    numbers = split_number(options.number)
    listing = write_phantoms(options.output_dir, *numbers, shape, spacing=spacing, pose=options.pose, seed=options.seed)
    if can_draw():
        draw_phantom(listing.parent / "phantom.png", shape, spacing, options.pose, options.seed)
    print(f"{listing}: {numbers[0]} training, {numbers[1]} validation and {numbers[2]} test volumes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
