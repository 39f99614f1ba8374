"""What tests of the backends share."""

import pytest

from monai_gmr import set_backend


@pytest.fixture
def compiled():
    """Backend "compiled"."""
    set_backend("compiled")
    yield
    set_backend("auto")
