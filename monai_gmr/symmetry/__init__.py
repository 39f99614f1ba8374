"""The mathematics: functions on arrays, no modules."""

from monai_gmr.symmetry.elements import element_name, element_triplet, grid_element
from monai_gmr.symmetry.harmonics import number_of_components, real_harmonics, tap_harmonics
from monai_gmr.symmetry.point_groups import generate_group, is_grid_symmetry, point_group, transform_grid
from monai_gmr.symmetry.projection import project_kernel, project_kernel_on_order, project_transposed_kernel
from monai_gmr.symmetry.radial_bases import (
    default_num_rings,
    gaussian_basis,
    gaussian_means,
    indexed_basis,
    initial_sigma,
    positive_sigma,
    ring_masks,
    square_ring_masks,
)
from monai_gmr.symmetry.rotations import axis_direction, axis_index, inscribed_ball, rotation_matrix, transform_image
from monai_gmr.symmetry.shells import Shells, kernel_shells, tap_coordinates, tap_spacing
from monai_gmr.symmetry.strides import (
    centred_steps,
    centred_window,
    stride_is_exact,
    symmetric_padding,
    transposed_padding,
)
from monai_gmr.symmetry.subgroups import group_names, named_group
from monai_gmr.symmetry.views import View, angle_views, group_views, icosahedral_views, make_views, random_views

__all__ = [
    "Shells",
    "View",
    "angle_views",
    "axis_direction",
    "axis_index",
    "centred_steps",
    "centred_window",
    "default_num_rings",
    "element_name",
    "element_triplet",
    "gaussian_basis",
    "gaussian_means",
    "generate_group",
    "grid_element",
    "group_names",
    "group_views",
    "icosahedral_views",
    "indexed_basis",
    "initial_sigma",
    "inscribed_ball",
    "is_grid_symmetry",
    "kernel_shells",
    "make_views",
    "named_group",
    "number_of_components",
    "point_group",
    "positive_sigma",
    "project_kernel",
    "project_kernel_on_order",
    "project_transposed_kernel",
    "random_views",
    "real_harmonics",
    "ring_masks",
    "rotation_matrix",
    "square_ring_masks",
    "stride_is_exact",
    "symmetric_padding",
    "tap_coordinates",
    "tap_harmonics",
    "tap_spacing",
    "transform_grid",
    "transform_image",
    "transposed_padding",
]
