"""Layout of the responses of a harmonic layer in the arrays of the kernels."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from monai_gmr.ops.harmonic_operation import Order, orders_of
from monai_gmr.ops.kept_terms import num_chiral

# half-precision numbers of a row that a GPU loads at once
ALIGNED = 8


class AngularPart(NamedTuple):
    """Layout of one order above 0."""

    order: Order
    slots: int  # responses of a pair: the length's response, its partner, and optionally a third one and an empty slot
    columns: int  # of the weights
    first_column: int
    first_response: int  # in a row of responses, which has ``components`` times ``columns`` numbers of the order
    first_component: int
    chiral: bool  # whether it has terms whose sign mirroring changes


class Layout(NamedTuple):
    """Layout of all orders above 0; indices are int64 on a device, and the index after the last stands for zeros."""

    parts: tuple[AngularPart, ...]
    width: int  # columns of all orders
    responses: int  # numbers in a row of responses
    rows: torch.Tensor  # (width,), the row of the weights in each column
    columns: torch.Tensor  # (rows, 2), the columns that contain each row
    factors: torch.Tensor  # (responses,), the column of the linear factors for each response
    places: torch.Tensor  # (columns of the linear factors,), the response for each column

    def pack(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Weights ``(rows, in_channels, shells)`` as ``(shells, in_channels, width)``."""
        whole = F.pad(weight, [0, 0, 0, 0, 0, 1]).to(dtype)
        return whole.permute(2, 1, 0).index_select(2, self.rows).contiguous()

    def unpack(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of :meth:`pack`."""
        whole = F.pad(gradient, [0, 1]).permute(2, 1, 0)
        return whole.index_select(0, self.columns[:, 0]) + whole.index_select(0, self.columns[:, 1])

    def pack_linear(self, linear: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Linear factors ``(outputs, responses)``, by channel and component, as ``(outputs, responses of a row)``."""
        return F.pad(linear, [0, 1]).to(dtype).index_select(1, self.factors).contiguous()

    def unpack_linear(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of :meth:`pack_linear`."""
        return gradient.index_select(1, self.places)


def layout_of(
    norms: list[int], products: list[int], components: list[int], chiral: bool, device: torch.device
) -> Layout:
    """The cached layout of a layer; ``chiral`` is whether it has chiral factors."""
    return _kept_layout(tuple(norms), tuple(products), tuple(components), chiral, str(device))


@lru_cache(maxsize=256)
def _kept_layout(norms: tuple, products: tuple, components: tuple, chiral: bool, device: str) -> Layout:
    parts: list[AngularPart] = []
    rows: list[int] = []
    factors: list[int] = []
    orders = [order for order in orders_of(norms, products, components) if order.components]
    none = orders[-1].rows.stop if orders else 0, orders[-1].responses.stop if orders else 0
    for order in orders:
        n, m, count = order.norms, order.products, order.components
        turns = chiral and num_chiral(n, m, count) > 0
        slots = 1 if m == 0 else (4 if turns and count == 3 else 2)
        pairs = -(-n * slots // ALIGNED) * ALIGNED // slots
        channels = []
        for pair in range(pairs):
            third = (pair + 1) % n if pair < m else n + m
            channels += [pair if pair < n else n + m, n + pair if pair < m else n + m, third, n + m][:slots]
        places = (len(rows), len(factors), order.own.start)
        parts.append(AngularPart(order, slots, len(channels), *places, turns))
        rows += [order.rows.start + channel if channel < n + m else none[0] for channel in channels]
        for component in range(count):
            # a third response is a copy: its factors belong to the original
            factors += [
                order.responses.start + channel * count + component
                if channel < n + m and place % slots < 2
                else none[1]
                for place, channel in enumerate(channels)
            ]
    columns = [[place for place, each in enumerate(rows) if each == row] for row in range(none[0])]
    twice = [[*own, len(rows), len(rows)][:2] for own in columns]
    places_of = {factor: place for place, factor in enumerate(factors)}
    tables = [rows, twice, factors, [places_of[factor] for factor in range(none[1])]]
    arrays = (torch.tensor(table, dtype=torch.int64, device=device) for table in tables)
    return Layout(tuple(parts), len(rows), len(factors), *arrays)
