"""Elements of the part of a group on which the fields of a partial group convolution live, with a learned extent."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import nn

from monai_gmr.annotations import Device, Seed, checked_arguments
from monai_gmr.networks.layers.table_module import TableModule
from monai_gmr.symmetry import PointGroup, is_mirror
from monai_gmr.symmetry.group_structure import GroupSpec
from monai_gmr.symmetry.rotation_sampling import (
    axis_and_angle,
    cone_angles,
    even_uniforms,
    held_in_unit,
    interval_angles,
    plane_rotations,
    quaternion_of,
    quaternion_product,
    relaxed_bernoulli,
    share_below,
    space_rotations,
)
from monai_gmr.symmetry.sampled_group import SampledGroup, partial_group
from monai_gmr.utils import ConfigurationError

# random numbers are stored as integers, which casts to half precision do not change
UNITS_PER_UNIFORM = 2**32
UNITS_PER_QUATERNION = 10**12
DEFAULT_TEMPERATURE = 0.5


class GroupElements(NamedTuple):
    """Elements of a group, float64: ``matrices``, ``(elements, d, d)``; ``gates``, ``(elements,)``, from 0 (element is ignored) to 1."""

    matrices: torch.Tensor
    gates: torch.Tensor


class PartialGroupElements(TableModule):
    """Learned part of a group as a list of elements, from the whole group to only the identity.

    Rotations of a continuous group are uniform on an interval of angles (2D) or on the rotations by at most an angle about any axis (3D),
    ``extent * 180`` degrees; mirror images are kept with a probability. In a group of the grid, each element except the identity is kept
    with a probability. All these numbers are learned, start at 1 (the whole group) and can reach 0.

    In eval mode the elements are a fixed quadrature, and gates are the probabilities. In train mode the quadrature is rotated at random
    before it is contracted to the extent, so that samples of the whole group stay closed under the grid's symmetries; gates are relaxed
    Bernoulli variables, one per element. Samples are reparametrised: functions of the learned numbers and of random numbers from
    :meth:`draw`. They stay the same between two draws, so that the layer that outputs fields and the layers that take them, which share
    this module, agree.

    Args:
        spatial_dims, group, samples: as in :func:`~monai_gmr.symmetry.sampled_group.partial_group`.
        learned: whether the part is learned; otherwise it is the whole group.
        seed: seed of the random numbers; default: torch's global generator.

    Shape:
        - ``extent``: ``(1,)``, for continuous groups; ``keep``: ``(1,)`` for continuous groups with mirror images, ``(order - 1,)`` for
          groups of the grid

    Attributes:
        temperature: temperature of the relaxed Bernoulli variables (:func:`~monai_gmr.networks.layers.set_temperature`).

    Example:
        >>> elements = PartialGroupElements(2, "SE(2)", samples=4).eval()
        >>> elements.extent.data.fill_(0.4)
        tensor([0.4000])
        >>> matrices, gates = elements()
        >>> torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]).rad2deg().round().tolist(), gates.tolist()
        ([-54.0, -18.0, 18.0, 54.0], [1.0, 1.0, 1.0, 1.0])

    Source:
        Romero and Lohit, Learning partial equivariances from data, arXiv 2110.10211, section 4.
    """

    draws: torch.Tensor
    written_tables = ("draws",)
    quadrature: torch.Tensor
    base: torch.Tensor

    @checked_arguments
    def __init__(
        self,
        spatial_dims: int,
        group: GroupSpec | SampledGroup | None = None,
        *,
        samples: int | None = None,
        learned: bool = True,
        seed: Seed | None = None,
        device: Device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.spatial_dims, self.learned, self.seed = spatial_dims, learned, seed
        self.group = partial_group(group, spatial_dims, samples)
        self.order, self.temperature, self.draws_made = self.group.order, DEFAULT_TEMPERATURE, 0
        continuous = isinstance(self.group, SampledGroup)
        if isinstance(self.group, SampledGroup):
            self.mirrors, gates = self.group.mirrors, int(self.group.mirrors)
        else:
            self.mirrors, gates = any(map(is_mirror, self.group.elements)), self.order - 1
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.extent = nn.Parameter(torch.ones(1, **options)) if learned and continuous else None
        self.keep = nn.Parameter(torch.ones(gates, **options)) if learned and gates else None
        self._finish_tables(device)

    def _make_tables(self) -> dict[str, Any]:
        group = self.group
        if isinstance(group, PointGroup):
            rotation, base, gated = torch.zeros(0), group.elements, self.order - 1
        elif self.spatial_dims == 2:
            rotation, base, gated = torch.full((1,), 0.5), np.zeros(0), group.order - group.samples
        else:
            closed = group.grid_rotations
            quaternions = Rotation.from_matrix(closed.elements).as_quat()
            base = (quaternions * UNITS_PER_QUATERNION).round()
            rotation = even_uniforms(group.samples // closed.order).flatten()
            gated = group.order - group.samples
        quadrature = (rotation.double() * UNITS_PER_UNIFORM).round().to(torch.int64)
        draws = torch.cat([quadrature, torch.full((gated,), UNITS_PER_UNIFORM // 2)])
        return {"quadrature": quadrature, "draws": draws, "base": np.asarray(base).astype(np.int64)}

    def draw(self, generator: torch.Generator | None = None) -> None:
        """Draws the random numbers of the next samples, on the CPU: from a generator, else by the seed, else from torch's global one."""
        if generator is None and self.seed is not None:
            state = np.random.SeedSequence((self.seed, self.draws_made)).generate_state(1)
            generator = torch.Generator().manual_seed(int(state[0]))
        numbers = torch.randint(UNITS_PER_UNIFORM, (len(self.draws),), generator=generator)
        with torch.no_grad():
            self.draws.copy_(numbers)
        self.draws_made += 1

    def __prepare_scriptable__(self) -> Any:
        # torch.jit.script calls this on each module before compiling
        raise ConfigurationError(
            "partial group convolutions make their kernels in Python, which torch.jit.script cannot read: use torch.jit.trace or "
            "torch.export, or script the to_conv() of a layer in eval mode."
        )

    def _held(self, name: str) -> torch.Tensor | None:
        learned = getattr(self, name)
        return None if learned is None else held_in_unit(learned.double())

    def _rotations(self, group: SampledGroup) -> torch.Tensor:
        """Rotations, contracted to the extent."""
        numbers = self.draws[: len(self.quadrature)] if self.training else self.quadrature
        uniforms = numbers.double() / UNITS_PER_UNIFORM
        extent = self._held("extent")
        if self.spatial_dims == 2:
            places = torch.arange(group.samples, dtype=torch.float64, device=uniforms.device)
            uniforms = (places + uniforms) / group.samples
            return plane_rotations(interval_angles(uniforms, uniforms.new_ones(1) if extent is None else extent))
        # compose each rotation of the grid with each of the even or random rotations
        base = self.base.double()
        base = base / torch.linalg.vector_norm(base, dim=1, keepdim=True)
        others = quaternion_of(uniforms.unflatten(0, (-1, 3)))
        axes, angles = axis_and_angle(quaternion_product(base.unsqueeze(1), others).flatten(0, 1))
        if extent is not None:
            angles = cone_angles(share_below(angles), math.pi * extent)
        return space_rotations(axes, angles)

    def _gates(self, count: int) -> torch.Tensor:
        """Gates of ``count`` elements: probabilities or, in train mode, samples."""
        keep = self._held("keep")
        if keep is None:
            return torch.ones(count, dtype=torch.float64, device=self.draws.device)
        keep = keep.expand(count)
        if not self.training:
            return keep
        uniforms = (self.draws[len(self.quadrature) :].double() + 0.5) / UNITS_PER_UNIFORM
        return relaxed_bernoulli(keep, uniforms, self.temperature)

    def forward(self) -> GroupElements:
        """The elements, with those that are always kept first."""
        self.mend_tables()
        group = self.group
        if isinstance(group, PointGroup):
            gates = self._gates(self.order - 1)
            return GroupElements(self.base.double(), torch.cat([gates.new_ones(1), gates]))
        matrices = self._rotations(group)
        if self.mirrors:
            # mirror from the left, so that the whole set is closed under the mirror image
            mirror = torch.ones(self.spatial_dims, dtype=torch.float64, device=matrices.device)
            mirror[slice(1) if self.spatial_dims == 2 else slice(None)] = -1.0
            matrices = torch.cat([matrices, mirror[:, None] * matrices])
        kept = matrices.new_ones(group.samples)
        return GroupElements(matrices, torch.cat([kept, self._gates(self.order - group.samples)]))

    def extents(self) -> torch.Tensor:
        """Learned numbers from 0 to 1, differentiable: the extent of the rotations, then the probabilities of the gates."""
        held = [each for each in (self._held("extent"), self._held("keep")) if each is not None]
        return torch.cat(held) if held else torch.ones(0, dtype=torch.float64, device=self.draws.device)

    def following(self, group: GroupSpec | SampledGroup | None = None) -> "PartialGroupElements":
        """A new learned part of the same or another group, for the fields of a later layer; a seed is incremented."""
        seed = None if self.seed is None else self.seed + 1
        return PartialGroupElements(self.spatial_dims, self.group if group is None else group, seed=seed)

    def extra_repr(self) -> str:
        return f"{self.group!r}, learned={self.learned}"
