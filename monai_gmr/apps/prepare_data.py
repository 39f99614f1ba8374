"""Convert published npz files to the layouts that the bundles read.

python -m monai_gmr.apps.prepare_data instances dsb2018_fluorescence.npz data/nuclei
python -m monai_gmr.apps.prepare_data instances fibsem3d_medulla.npz data/fibsem --target boundary --blocks 2
python -m monai_gmr.apps.prepare_data classes hippocampus3d_msd04.npz data/hippocampus
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
    draw_sections,
    read_arrays,
    read_cases,
    read_volume,
    split_cases,
    write_decathlon,
    write_medmnist,
)
from monai_gmr.utils import ConfigurationError


def prepare_instances(options: argparse.Namespace) -> str:
    """Decathlon layout from instance maps, the target being foreground or boundaries; returns what was written."""
    check_output_dir(options.output, options.overwrite)
    arrays = read_arrays(options.source)
    about: dict[str, Any] = {"source": Path(options.source).name, "target": options.target}

    def with_target(case: Case) -> Case:
        return case._replace(label=TARGETS[options.target](case.label))

    if "ids" in arrays:
        if options.blocks is not None:
            raise ConfigurationError(f"{options.source} holds many cases, which --blocks does not cut: leave it out.")
        sections = split_cases([with_target(case) for case in read_cases(arrays, options.source)], options.seed)
        about["seed"] = options.seed
    else:
        # The target comes first, since a cut is no boundary.
        cases = cut_blocks(with_target(read_volume(arrays, options.source)), options.blocks or 2)
        sections = {"training": cases[:-2], "validation": cases[-2:-1], "test": cases[-1:]}
    return _write(options, sections, ["background", options.target], about)


def prepare_classes(options: argparse.Namespace) -> str:
    """Decathlon layout from images whose labels are classes, split in their order; returns what was written."""
    check_output_dir(options.output, options.overwrite)
    cases = read_cases(read_arrays(options.source), options.source)
    sections = split_cases(cases)
    largest = max(int(case.label.max()) for case in cases)
    labels = ["background", *(f"class {value}" for value in range(1, largest + 1))]
    return _write(options, sections, labels, {"source": Path(options.source).name})


def _write(
    options: argparse.Namespace, sections: dict[str, list[Case]], labels: list[str], about: dict[str, Any]
) -> str:
    listing = write_decathlon(options.output, sections, labels, about, options.overwrite)
    numbers = {section: len(cases) for section, cases in sections.items()}
    return f"{listing}: {numbers['training']} training, {numbers['validation']} validation and {numbers['test']} test cases"


def prepare_medmnist(options: argparse.Namespace) -> str:
    """MedMNIST layout from a file without a validation section; returns what was written."""
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
    """Run the command line; returns the exit code, 2 for wrong arguments."""
    parser = command_parser("prepare_data", __doc__)
    kinds = parser.add_subparsers(metavar="KIND", required=True, help="content of SOURCE or OUT")

    def add_kind(name: str, prepare: Callable[[argparse.Namespace], str], text: str, output: str) -> Callable[..., Any]:
        kind = kinds.add_parser(name, help=text, description=text)
        kind.set_defaults(prepare=prepare)
        kind.add_argument("source", metavar="SOURCE", help="the npz file")
        kind.add_argument("output", metavar="OUT", help=output)
        kind.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
        return kind.add_argument

    folder = "folder to make, in the layout of the Medical Segmentation Decathlon"
    text = (
        "labels number instances (keys ids, img_*, lab_*: split 60/20/20 at random; or image, label: cut into blocks)"
    )
    add = add_kind("instances", prepare_instances, text, folder)
    text = "what becomes label 1: all instances, or where a neighbour belongs to another one (foreground)"
    add("--target", choices=tuple(TARGETS), default="foreground", help=text)
    add("--seed", type=int, default=0, help="the same seed makes the same split (0)")
    add("--blocks", type=int, help="parts along each axis of a single volume, the last two for validation and test (2)")
    text = "labels are classes already (keys ids, img_*, lab_*: split 60/20/20 in their order)"
    add_kind("classes", prepare_classes, text, folder)
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
