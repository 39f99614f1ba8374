"""Tools to run bundles: the guard of the command line, checks of settings and data, prediction case by case."""

from monai_gmr.bundle.checks import check_decathlon, check_file, list_images, load_network, with_weights
from monai_gmr.bundle.command_line import GMRWorkflow, find_bundle_root, guard_command_line, refuse
from monai_gmr.bundle.process import join_process_group, keep_freed_memory, leave_process_group
from monai_gmr.bundle.settings import check_values
from monai_gmr.files import FolderLock, check_folder

__all__ = [
    "FolderLock",
    "GMRWorkflow",
    "check_decathlon",
    "check_file",
    "check_folder",
    "check_values",
    "find_bundle_root",
    "guard_command_line",
    "join_process_group",
    "keep_freed_memory",
    "leave_process_group",
    "list_images",
    "load_network",
    "refuse",
    "with_weights",
]
