"""Convert published npz files, and folders of PNG, to the layouts that the bundles read.

python -m monai_gmr.apps.prepare_data instances dsb2018_fluorescence.npz data/nuclei
python -m monai_gmr.apps.prepare_data instances fibsem3d_medulla.npz data/fibsem --target boundary --blocks 2
python -m monai_gmr.apps.prepare_data classes hippocampus3d_msd04.npz data/hippocampus
python -m monai_gmr.apps.prepare_data classes hippocampus3d_msd04.npz data/slices --slices 2 --split split.json
python -m monai_gmr.apps.prepare_data instances cells data/cells --png
python -m monai_gmr.apps.prepare_data medmnist mnist.npz data/digits.npz --turned mnist_rr_test_rednn.npz
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from monai_gmr.command_line import command, command_parser
from monai_gmr.data.conversion import (
    TARGETS,
    Case,
    as_test_section,
    check_output_dir,
    check_output_file,
    cut_blocks,
    cut_slices,
    draw_sections,
    read_arrays,
    read_cases,
    read_folder,
    read_split,
    read_volume,
    split_cases,
    take_split,
    write_decathlon,
    write_medmnist,
)
from monai_gmr.utils import ConfigurationError


def prepare_instances(options: argparse.Namespace) -> str:
    """Converts instance maps to the Decathlon layout, with foreground or boundaries as target; returns a sentence about the output."""
    check_output_dir(options.output, options.overwrite)
    about: dict[str, Any] = {"source": Path(options.source).name, "target": options.target}

    def with_target(case: Case) -> Case:
        return case._replace(label=TARGETS[options.target](case.label))

    cases = _read_cases(options)
    if cases:
        if options.blocks is not None:
            raise ConfigurationError(f"{options.source} holds many cases, which --blocks does not cut: leave it out.")
        sections = _split(options, [with_target(case) for case in cases], options.seed)
        about |= {} if options.split else {"seed": options.seed}
    else:
        if options.split:
            raise ConfigurationError(f"{options.source} holds one volume, which --split does not divide: leave it out.")
        # The target comes first, because a cut is not a boundary.
        volume = with_target(read_volume(read_arrays(options.source), options.source))
        blocks = cut_blocks(volume, options.blocks or 2)
        sections = {"training": blocks[:-2], "validation": blocks[-2:-1], "test": blocks[-1:]}
    return _write(options, sections, ["background", options.target], about)


def prepare_classes(options: argparse.Namespace) -> str:
    """Converts images with class labels to the Decathlon layout, split in their order; returns a sentence about the output."""
    check_output_dir(options.output, options.overwrite)
    cases = _read_cases(options) or read_cases(read_arrays(options.source), options.source)
    sections = _split(options, cases)
    largest = max(int(case.label.max()) for case in cases)
    labels = ["background", *(f"class {value}" for value in range(1, largest + 1))]
    return _write(options, sections, labels, {"source": Path(options.source).name})


def _read_cases(options: argparse.Namespace) -> list[Case]:
    """Reads the cases of a folder or of a file with many cases; returns none for a file with a single volume."""
    if Path(options.source).is_dir():
        return read_folder(options.source)
    arrays = read_arrays(options.source)
    return read_cases(arrays, options.source) if "ids" in arrays else []


def _split(options: argparse.Namespace, cases: list[Case], seed: int | None = None) -> dict[str, list[Case]]:
    return take_split(cases, read_split(options.split), options.source) if options.split else split_cases(cases, seed)


def _write(
    options: argparse.Namespace, sections: dict[str, list[Case]], labels: list[str], about: dict[str, Any]
) -> str:
    if options.slices is not None:
        # after the split, so that the slices of a volume are in one section
        sections = {
            section: [part for case in cases for part in cut_slices(case, options.slices)]
            for section, cases in sections.items()
        }
    listing = write_decathlon(options.output, sections, labels, about, options.overwrite, pictures=options.png)
    numbers = {section: len(cases) for section, cases in sections.items()}
    return f"{listing}: {numbers['training']} training, {numbers['validation']} validation and {numbers['test']} test cases"


def prepare_medmnist(options: argparse.Namespace) -> str:
    """Converts a file without a validation section to the MedMNIST layout; returns a sentence about the output."""
    output = Path(options.output)
    turned = output.with_name(f"{output.stem}_turned.npz")
    sources = [Path(path).resolve() for path in (options.source, options.turned) if path is not None]
    outputs = [output] if options.turned is None else [output, turned]
    for file in outputs:
        check_output_file(file, options.overwrite)
        if file.resolve() in sources:
            raise ConfigurationError(f"{file} is to be read and written: give another OUT.")
    numbers = (options.training, options.validation)
    arrays = draw_sections(read_arrays(options.source), *numbers, options.source, options.seed)
    lines = []
    if options.turned is not None:
        section = as_test_section(read_arrays(options.turned), "x", "y", options.turned)
        write_medmnist(turned, section, options.overwrite)
        lines.append(f"{turned}: {len(section['test_images'])} test images")
    write_medmnist(output, arrays, options.overwrite)
    train, val, test = (len(arrays[f"{section}_images"]) for section in ("train", "val", "test"))
    return "\n".join([f"{output}: {train} training, {val} validation and {test} test images", *lines])


@command("prepare_data")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for wrong arguments."""
    parser = command_parser("prepare_data", __doc__)
    kinds = parser.add_subparsers(metavar="KIND", required=True, help="content of SOURCE or OUT")

    def add_kind(
        name: str, prepare: Callable[[argparse.Namespace], str], text: str, output: str, source: str = "the npz file"
    ) -> Callable[..., Any]:
        kind = kinds.add_parser(name, help=text, description=text)
        kind.set_defaults(prepare=prepare)
        kind.add_argument("source", metavar="SOURCE", help=source)
        kind.add_argument("output", metavar="OUT", help=output)
        kind.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
        return kind.add_argument

    folder = "folder to make, in the layout of the Medical Segmentation Decathlon"
    source = "the npz file, or a folder of images and labels, PNG files of the same names"

    def add_layout(add: Callable[..., Any]) -> None:
        add(
            "--split",
            metavar="JSON",
            help="names of the cases by section: {training: [...], validation: [...], test: [...]}",
        )
        text = "cut volumes into slices across this axis, after the split, so that a volume's slices are in one section"
        add("--slices", type=int, choices=range(3), metavar="AXIS", help=text)
        add("--png", action="store_true", help="write PNG instead of NIfTI (two dimensions, 8 or 16 bits)")

    text = (
        "labels number instances (keys ids, img_*, lab_*: split 60/20/20 at random; or image, label: cut into blocks)"
    )
    add = add_kind("instances", prepare_instances, text, folder, source)
    text = "voxels of label 1: all instances, or those with a neighbour of another instance (foreground)"
    add("--target", choices=tuple(TARGETS), default="foreground", help=text)
    add("--seed", type=int, default=0, help="the same seed makes the same split (0)")
    add("--blocks", type=int, help="parts along each axis of a single volume, the last two for validation and test (2)")
    add_layout(add)
    text = "labels are classes already (keys ids, img_*, lab_*: split 60/20/20 in their order)"
    add_layout(add_kind("classes", prepare_classes, text, folder, source))
    text = "{train,test}_{images,labels} without validation section, for the layout of MedMNIST"
    add = add_kind("medmnist", prepare_medmnist, text, "npz file to make")
    add("--training", type=int, default=10000, help="training images to draw (10000)")
    add("--validation", type=int, default=2000, help="validation images to draw (2000)")
    add("--seed", type=int, default=0, help="the same seed draws the same images (0)")
    add("--turned", metavar="NPZ", help="rotated test images (keys x, y), written as test section of OUT_turned.npz")
    options = parser.parse_args(arguments)
    print(options.prepare(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
