"""Modules with constant tables that no state dict holds and that every move of the module keeps."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn


def _follow_parameters(module: "TableModule", *_: Any) -> None:
    """Bring the tables to the device of the parameters, which ``load_state_dict(assign=True)`` changes; without parameters they leave
    the meta device, where they have no values."""
    tables = module._tables()
    device = next((each.device for each in module.parameters(recurse=False)), None)
    if device is not None or any(table.is_meta for table in tables.values()):
        module._place_tables(tables, device)


class TableModule(nn.Module):
    """A module with tables of whole numbers: as buffers outside the state dict, untouched by casts, made anew after the meta device.

    Subclasses have ``_make_tables`` and call :meth:`_finish_tables` at the end of their constructor.
    """

    table_names: list[str]

    def _make_tables(self) -> dict[str, Any]:
        """Constants as whole numbers, by the names of the buffers: no cast to half precision, and none in a state dict."""
        raise NotImplementedError

    def _finish_tables(self, device: torch.device | str | None = None) -> None:
        """Register the tables for the first time."""
        tables = self._make_tables()
        self.table_names = list(tables)
        self._place_tables(tables, device)
        self.register_load_state_dict_post_hook(_follow_parameters)

    def _tables(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name) for name in self.table_names}

    def _place_tables(self, tables: Mapping[str, Any], device: torch.device | str | None) -> None:
        """Register tables on a device; those of the meta device have no values."""
        on_meta = any(isinstance(table, torch.Tensor) and table.is_meta for table in tables.values())
        if on_meta and torch.device(device or "cpu").type != "meta":
            tables = self._make_tables()
        for name, table in tables.items():
            self.register_buffer(name, torch.as_tensor(table, device=device), persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "TableModule":
        # here, as in torch.nn.RNNBase: Module.to_empty() leaves nothing of a buffer, and no state dict brings it back
        tables = self._tables()
        super()._apply(fn, recurse)
        if tables:
            self._place_tables(tables, getattr(self, self.table_names[0]).device)
        return self
