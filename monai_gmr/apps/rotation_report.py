"""``python -m monai_gmr.apps.rotation_report BUNDLE --input scan.nii.gz``: the command of :mod:`monai_gmr.rotation_report`."""

from __future__ import annotations

import sys

from monai_gmr.rotation_report.__main__ import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
