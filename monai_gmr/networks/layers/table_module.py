"""Modules with constant tables that stay outside the state dict and survive every move of the module."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import distributed, nn

from monai_gmr.annotations import Device
from monai_gmr.ops.recorded import is_recorded, is_transformed


def _follow_parameters(module: "TableModule", *_: Any) -> None:
    """Moves the tables to the device of the parameters, which ``load_state_dict(assign=True)`` can change; without parameters, moves them
    off the meta device, where they have no values."""
    tables = module._tables()
    device = next((each.device for each in module.parameters(recurse=False)), None)
    if device is not None or any(table.is_meta for table in tables.values()):
        module._place_tables(tables, device)


def _is_written(table: torch.Tensor) -> bool:
    """Whether a table was written into since it was made; unknown, so false, for tensors inside a transform of torch."""
    # torch counts writes into a tensor, but has no public access to the count
    if type(table) is not torch.Tensor or table.is_inference() or table._version == 0:
        return False
    return not (table.is_meta or is_transformed(table))


def _as_tensor(table: Any, device: Device | None) -> torch.Tensor:
    """A table on a device; copies arrays, because ``torch.export.save`` fails for tensors that share memory and for empty ones with the
    strides of NumPy."""
    return table.to(device) if isinstance(table, torch.Tensor) else torch.tensor(table, device=device)


class TableModule(nn.Module):
    """Module with integer tables: buffers outside the state dict, unaffected by casts, rebuilt after the meta device.

    Subclasses implement ``_make_tables``, call :meth:`_finish_tables` at the end of their constructor and :meth:`mend_tables` at the start
    of ``forward``. Tables that they write into are listed in ``written_tables``.
    """

    table_names: list[str]
    written_tables: tuple[str, ...] = ()

    @torch.jit.unused
    def mend_tables(self) -> None:
        """Rebuilds tables that were written into: an exponential average of buffers (``torch.optim.swa_utils.AveragedModel``) truncates
        integers. Does nothing in distributed training, where processes broadcast equal buffers."""
        if is_recorded():
            return
        if self.training and distributed.is_available() and distributed.is_initialized():
            return
        fixed: dict[str, Any] = {
            name: self._buffers[name] for name in self.table_names if name not in self.written_tables
        }
        if any(map(_is_written, fixed.values())):
            made, device = self._make_tables(), next(iter(fixed.values())).device
            tables = {name: _as_tensor(made[name], device) for name in fixed}
            # in a pass without values, as in conversion, tables have none
            if all(type(table) is torch.Tensor and not table.is_meta for table in tables.values()):
                self._place_tables(tables, device)

    def _make_tables(self) -> dict[str, Any]:
        """Constants as integers, by the names of the buffers, so that casts to half precision do not change them."""
        raise NotImplementedError

    def _finish_tables(self, device: Device | None = None) -> None:
        """Registers the tables for the first time."""
        tables = self._make_tables()
        self.table_names = list(tables)
        self._place_tables(tables, device)
        self.register_load_state_dict_post_hook(_follow_parameters)

    def _tables(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name) for name in self.table_names}

    def _place_tables(self, tables: Mapping[str, Any], device: Device | None) -> None:
        """Registers tables on a device; rebuilds those of the meta device, which have no values."""
        on_meta = any(isinstance(table, torch.Tensor) and table.is_meta for table in tables.values())
        if on_meta and torch.device(device or "cpu").type != "meta":
            tables = self._make_tables()
        for name, table in tables.items():
            numbers = _as_tensor(table, device)
            # torch cannot subtract booleans, as averages with equal weights do
            numbers = numbers.to(torch.uint8) if numbers.dtype == torch.bool else numbers
            self.register_buffer(name, numbers, persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "TableModule":
        # as in torch.nn.RNNBase: Module.to_empty() discards the values of buffers, and no state dict restores them
        tables = self._tables()
        super()._apply(fn, recurse)
        if tables:
            self._place_tables(tables, getattr(self, self.table_names[0]).device)
        return self
