"""The command of the rotation report has a second name."""

import monai_gmr.apps.rotation_report
import monai_gmr.rotation_report.__main__


def test_it_is_the_same_command():
    assert monai_gmr.apps.rotation_report.main is monai_gmr.rotation_report.__main__.main
