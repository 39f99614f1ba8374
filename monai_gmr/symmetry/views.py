"""Sets of views: transformations of an image under which outputs are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from monai_gmr.annotations import Seed, checked_arguments
from monai_gmr.arguments import check_count, check_number, reads_as_number, voxel_spacing
from monai_gmr.symmetry.group_names import check_dims, element_name
from monai_gmr.symmetry.group_structure import GroupSpec, PointGroup, names_group
from monai_gmr.symmetry.point_groups import is_grid_symmetry
from monai_gmr.symmetry.rotations import rotation_matrix
from monai_gmr.utils import ConfigurationError


class View(NamedTuple):
    """One transformation of an image by an orthogonal ``matrix`` ``(d, d)``, then by a ``shift`` in voxels, one per axis, if there is one.

    ``family`` is "upright", "group", "angles", "icosahedral", "random" or "shifts", ``angle`` in degrees about the axis of the rotation
    (``None`` for a group element and a shift).
    """

    name: str
    family: str
    angle: float | None
    matrix: np.ndarray
    shift: tuple[float, ...] | None = None


def view_name(element: np.ndarray) -> str:
    """Name of the view of a grid symmetry, a signed permutation matrix ``(d, d)``: "upright" or
    :func:`~monai_gmr.symmetry.element_name`.

    Example:
        >>> view_name(np.eye(3)), view_name(np.diag([1, 1, -1]))
        ('upright', 'm [001]')
    """
    return "upright" if np.array_equal(element, np.eye(len(element))) else element_name(element)


@checked_arguments
def group_views(
    spatial_dims: int,
    spacing: Sequence[float] | None = None,
    group: GroupSpec | None = None,
    axis: int | str | None = None,
) -> list[View]:
    """Views for the elements of the grid's point group, or of a named subgroup, named by :func:`view_name`; the upright image first.

    Elements that exchange axes of different ``spacing`` (millimetres) are left out; ``group`` is given as in
    :meth:`~monai_gmr.symmetry.PointGroup.from_name`, ``axis`` is the direction of a named group.

    Example:
        >>> [view.name for view in group_views(3, group="mm2")]
        ['upright', 'm [100]', 'm [010]', '2 [001]']
    """
    check_dims(spatial_dims, (1, 2, 3))
    spacing = voxel_spacing(spacing, spatial_dims)
    group = "all" if group is None else group
    named = PointGroup.from_name(group if axis is None else (group, axis), spatial_dims).elements
    upright, *others = (element for element in named if is_grid_symmetry(element, spacing))
    views = [View(view_name(element), "group", None, element) for element in others]
    return [View("upright", "upright", 0.0, upright), *views]


def angle_view(spatial_dims: int, angle: float, axis: int) -> View:
    """A rotation by an angle in degrees, in 3D about an array axis."""
    name = f"{angle:g} degrees" + (f" about axis {axis}" if spatial_dims == 3 else "")
    return View(name, "angles", float(angle), rotation_matrix(spatial_dims, float(angle), axis))


@checked_arguments
def angle_views(
    spatial_dims: int, step: float, spacing: Sequence[float] | None = None, grid: bool = False
) -> list[View]:
    """Rotations every ``step`` degrees, in 3D about each array axis, without symmetries of the grid at this ``spacing`` (in millimetres).

    ``grid`` includes them: the upright image (once, first) and rotations by 90 degrees.

    Example:
        >>> len(angle_views(2, 30)), len(angle_views(3, 45))
        (8, 12)
        >>> len(angle_views(2, 10, grid=True)), len(angle_views(3, 30, grid=True))
        (36, 34)
    """
    check_dims(spatial_dims)
    check_number("step", step, 0, 360, above=True)
    voxel_spacing(spacing, spatial_dims)
    views = [View("upright", "upright", 0.0, np.eye(spatial_dims))] if grid else []
    for axis in range(3 if spatial_dims == 3 else 1):
        for angle in np.arange(0.0, 360.0, step):
            view = angle_view(spatial_dims, angle, axis)
            if angle > 0 if grid else not is_grid_symmetry(view.matrix, spacing):
                views.append(view)
    return views


def icosahedral_views() -> list[View]:
    """The 60 rotations of the icosahedron, the upright image first: the largest evenly spread and closed set of views in 3D.

    Its rotations by 180 degrees about the array axes and 8 of its rotations by 120 are symmetries of the grid, the other 48 are
    interpolated; ``angle`` is 0 to 180 degrees. Source: ``scipy.spatial.transform.Rotation.create_group``.

    Example:
        >>> views = icosahedral_views()
        >>> len(views), views[0].name, views[1].family
        (60, 'upright', 'icosahedral')
    """
    rotations = Rotation.create_group("I")
    angles, matrices = np.rad2deg(rotations.magnitude()), rotations.as_matrix()
    # rounding gives rotations by the same angle the same order on every machine
    order = np.argsort(angles.round(6), kind="stable")
    views = [View(f"icosahedral {i}", "icosahedral", float(angles[k]), matrices[k]) for i, k in enumerate(order)]
    return [View("upright", "upright", 0.0, views[0].matrix), *views[1:]]


@checked_arguments
def random_views(count: int, spatial_dims: int, seed: Seed = 0) -> list[View]:
    """Random rotations, at least one, uniform on SO(3) or SO(2); for a given seed, fewer views are the first of more views.

    Example:
        >>> [view.name for view in random_views(2, 3, seed=7)]
        ['random 0 of seed 7', 'random 1 of seed 7']

    Source:
        K. Shoemake, "Uniform random rotations", Graphics Gems III, 1992: normally distributed quaternions.
    """
    check_dims(spatial_dims)
    check_count("count", count)
    # not drawn by Rotation.random, whose numbers for a seed depend on the version of scipy
    generator = np.random.default_rng(seed)
    if spatial_dims == 2:
        angles = generator.uniform(0.0, 360.0, count)
        matrices = np.stack([rotation_matrix(2, float(angle)) for angle in angles])
    else:
        rotations = Rotation.from_quat(generator.normal(size=(count, 4)))
        angles, matrices = np.rad2deg(rotations.magnitude()), rotations.as_matrix()
    return [
        View(f"random {i} of seed {seed}", "random", float(angle), matrix)
        for i, (angle, matrix) in enumerate(zip(angles, matrices))
    ]


def shift_views(spatial_dims: int, distances: Sequence[float]) -> list[View]:
    """Views that shift the image by each of these distances in voxels along each axis, without rotation.

    Example:
        >>> [(view.name, view.shift) for view in shift_views(2, [0.5])]
        [('0.5 voxels along axis 0', (0.5, 0.0)), ('0.5 voxels along axis 1', (0.0, 0.5))]
    """
    views = []
    for distance in map(float, distances):
        if not 0 < abs(distance) < np.inf:
            raise ConfigurationError(f"the shift {distance:g} moves nothing: give distances in voxels, such as 0.5.")
        for axis in range(spatial_dims):
            shift = tuple(distance if other == axis else 0.0 for other in range(spatial_dims))
            name = f"{distance:g} voxels along axis {axis}"
            views.append(View(name, "shifts", None, np.eye(spatial_dims), shift))
    return views


# degrees between the views of "angles", per number of axes
DEFAULT_STEPS = {2: 10.0, 3: 30.0}
ViewSpec = str | PointGroup | Mapping[str, Any] | Sequence[Any]


def _one_set(spec: Any, spatial_dims: int, spacing: Sequence[float] | None, seed: int) -> list[View]:
    """The views of one entry of a specification."""
    name = spec if isinstance(spec, str) else None
    if isinstance(spec, Mapping):
        keys = set(spec)
        if keys == {"angles"}:
            # command lines give strings
            step = float(spec["angles"]) if reads_as_number(spec["angles"]) else spec["angles"]
            check_number("angles", step, 0, 360, above=True)
            return angle_views(spatial_dims, step, spacing, grid=True)
        if "random" in keys and keys <= {"random", "seed"}:
            check_count("random", spec["random"])
            return random_views(spec["random"], spatial_dims, spec.get("seed", seed))
        if "group" in keys and keys <= {"group", "axis", "count"}:
            views = group_views(spatial_dims, spacing, spec["group"], spec.get("axis"))
            count = len(views) if spec.get("count") is None else spec["count"]
            check_count("count", count)
            count = min(count, len(views))
            return [views[i * len(views) // count] for i in range(count)]
    elif name == "angles":
        return angle_views(spatial_dims, DEFAULT_STEPS[spatial_dims], spacing, grid=True)
    elif name == "group":
        return group_views(spatial_dims, spacing)
    elif name == "upright":
        return group_views(spatial_dims, group="1")
    elif name == "icosahedral" and spatial_dims == 3:
        return icosahedral_views()
    elif names_group(spec, among_elements=False):
        try:
            return group_views(spatial_dims, spacing, PointGroup.from_name(spec, spatial_dims, "views"))
        except ConfigurationError as error:
            others = "'upright', 'angles' or 'icosahedral'" if spatial_dims == 3 else "'upright' or 'angles'"
            raise ConfigurationError(f"{str(error)[:-1]}, or {others}.") from None
    raise ConfigurationError(
        f"views={spec!r} is unknown: give the name of a group such as 'all', 'upright', 'icosahedral' (3D), {{'angles': 10}}, "
        "{'random': 20, 'seed': 1}, ('mm2', 'x'), or a list of these."
    )


def make_views(spec: ViewSpec, spatial_dims: int, spacing: Sequence[float] | None = None, seed: Seed = 0) -> list[View]:
    """Makes a set of views from a short description, as in a config.

    Args:
        spec: one of these, or a list of them, without repeated views, the upright one first: a group's name such as "all", "oh", "d4" or
            "4/mmm" (:func:`~monai_gmr.symmetry.named_group`), a pair of it and an axis, ``("mm2", "x")``, or a
            :class:`~monai_gmr.symmetry.PointGroup`; "group", which is "all"; "upright"; "icosahedral" (3D, 60 rotations); ``{"angles":
            10}``: every 10 degrees, in 3D about each array axis, the upright one and rotations by 90 degrees included; "angles": the same
            every 10 degrees in 2D and every 30 in 3D; ``{"random": 20, "seed": 1}``: 20 random rotations; ``{"group": "mm2", "axis":
            "x"}``: a group along another array axis; ``{"group": "all", "count": 12}``: 12 elements of a group, spread evenly over it; a
            :class:`View`.
        spatial_dims: 2 or 3.
        spacing: voxel size in millimetres, one per axis: elements of groups that exchange axes of different spacing are left out. Default
            1.
        seed: seed of random views without one.

    Raises:
        ConfigurationError: if there is no such set, or it is empty.

    Example:
        >>> len(make_views("oh", 3)), len(make_views("oh", 3, spacing=(1, 1, 3))), len(make_views({"angles": 10}, 2))
        (48, 16, 36)
        >>> len(make_views(["432", "icosahedral", {"random": 20, "seed": 1}], 3))
        92
    """
    check_dims(spatial_dims)
    voxel_spacing(spacing, spatial_dims)
    # a view is also a tuple, but not a list of sets
    entries: Any = [spec] if isinstance(spec, (Mapping, View)) or names_group(spec, among_elements=False) else spec
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        entries = [spec]
    views: list[View] = []
    for entry in entries:
        for view in [entry] if isinstance(entry, View) else _one_set(entry, spatial_dims, spacing, seed):
            if view.matrix.shape != (spatial_dims, spatial_dims):
                raise ConfigurationError(
                    f"the view {view.name!r} has a matrix of shape {view.matrix.shape}: give one of {(spatial_dims,) * 2}."
                )
            if view.shift is not None:
                raise ConfigurationError(
                    f"the view {view.name!r} is moved: sets of views are of rotations and mirrors, give distances as shifts."
                )
            if not any(np.allclose(view.matrix, other.matrix, atol=1e-6) for other in views):
                views.append(view)
    if not views:
        raise ConfigurationError(
            f"views={spec!r} is a set of size zero: give at least one entry, such as 'upright' or 'all'."
        )
    return sorted(views, key=lambda view: view.family != "upright")
