"""Convert the network of a MONAI bundle or config, and measure its equivariance before and after.

``python -m monai_gmr.apps.convert CONFIG --network-id network_def --check 64 --check 65`` prints a line per module, then the errors.
Exits with 0 if the converted network is exact at every size, 1 if it is not, 2 and one sentence if it cannot be converted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from monai_gmr.apps.check_equivariance import check_network, network_parser, parse_size, read_network
from monai_gmr.command_line import command
from monai_gmr.metrics import EquivarianceReport
from monai_gmr.networks import convert_to_gmr
from monai_gmr.networks.layers.point_group_conv import FILTERS
from monai_gmr.tables import format_aligned
from monai_gmr.utils import ConfigurationError


def compare_errors(before: EquivarianceReport, after: EquivarianceReport) -> str:
    """Formats the worst error at each size before and after a conversion as a table; both reports have the same sizes.

    Example:
        >>> import torch
        >>> from monai_gmr.metrics import check_equivariance
        >>> report = check_equivariance(torch.nn.MaxPool2d(2), [(4,), (5,)], in_channels=1, spatial_dims=2)
        >>> print(compare_errors(report, report))
        size   before    after
        4x4   0.0e+00  0.0e+00
        5x5   6.0e-01  6.0e-01
    """

    def text_of(check: Any) -> str:
        if check.failure:
            return "cannot take it"
        return f"{check.errors.worst:.1e}" if check.errors.worst < float("inf") else "size changes"

    pairs = zip(before.sizes, after.sizes)
    rows = [["x".join(map(str, one.size)), text_of(one), text_of(two)] for one, two in pairs]
    return format_aligned([["size", "before", "after"], *rows])


@command("convert")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the conversion; returns the exit status: 0 exact at every size, or without ``--check``; 1 not exact; 2 cannot be done."""
    parser = network_parser(
        "convert",
        "Convert a network to radial, harmonic or group convolutions, print what became of each module, and measure whether its answer "
        "rotates with its input, before and after. Exit status: 0 exact at every size, 1 not exact, 2 cannot be done.",
    )
    add = parser.add_argument
    text = "input size in voxels to measure at: 97 for a square or cube, or 64,65,70; can be given several times"
    add("--check", type=parse_size, action="append", default=[], metavar="SIZE", help=text)
    add("--conv", default="gmr", choices=("gmr", "gmr_harmonic", "group"), help="kind of convolution (default: gmr)")
    add(
        "--group",
        help="for --conv group: 4mm, 4, 2mm, m in 2D, m-3m, 432, 4/mmm, mmm in 3D, or another one (default: all)",
    )
    add("--filter", choices=FILTERS[:-1], help="for --conv group: free or separable filters (default: full)")
    add("--kernel-size", type=int, help="window of all convolutions with a window above 1 (default: unchanged)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init", action="store_true", help="fresh weights instead of projected ones (default of group)")
    text = "keep the rest of each trained kernel next to its projection, for a training that drives it to zero"
    start.add_argument("--anneal", action="store_true", help=text)
    add("--exclude", action="append", metavar="NAME", help="modules that stay unchanged, such as 'encoder.*'")
    arguments = parser.parse_args(argv)
    network = read_network(arguments).eval()
    options = {name: getattr(arguments, name) for name in ("exclude", "spacing", "in_channels")}
    conv: Any = arguments.conv
    if conv == "group":
        conv = conv, {"group": arguments.group or "all", "filter": arguments.filter or "full"}
    elif arguments.group or arguments.filter:
        raise ConfigurationError(f"--group and --filter are for --conv group, not for --conv {conv}.")
    weights = "init" if arguments.init else "anneal" if arguments.anneal else None
    converted = convert_to_gmr(network, arguments.kernel_size, **options, conv=conv, weights=weights)
    if not arguments.check:
        print(converted.conversion_report)
        return 0
    own: Any = getattr(converted, "symmetry_group", None)
    moves = {} if own is None else {"group": own.elements}
    before, after = (check_network(each, arguments.check, arguments, **moves) for each in (network, converted))
    table = compare_errors(before, after)
    print(f"{converted.conversion_report}\n\nlargest relative error over the group of the grid\n{table}")
    if not after.ok:
        print(f"\nwhat still breaks it\n{after.to_text()}")
    return 0 if after.ok else 1


if __name__ == "__main__":
    sys.exit(main())
