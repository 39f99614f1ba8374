"""What stands around a bundle's engines: turned batches, the process's memory, and checks that end in one sentence."""

from monai_gmr.engines.checks import (
    check_decathlon,
    check_file,
    list_images,
    load_network,
)
from monai_gmr.engines.command_line import find_bundle_root, guard_command_line
from monai_gmr.engines.distributed import leave_process_group
from monai_gmr.engines.memory import keep_freed_memory
from monai_gmr.engines.prepare_batch import PrepareBatchView
from monai_gmr.engines.settings import check_values
from monai_gmr.files import FolderLock, check_folder

__all__ = [
    "FolderLock",
    "PrepareBatchView",
    "check_decathlon",
    "check_file",
    "check_folder",
    "check_values",
    "find_bundle_root",
    "guard_command_line",
    "keep_freed_memory",
    "leave_process_group",
    "list_images",
    "load_network",
]
