"""Command lines: ``python -m monai_gmr.apps.NAME``."""
