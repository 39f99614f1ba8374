"""What tests of the backends share."""

import pytest

from monai_gmr import set_backend
from monai_gmr.ops import compiled_loops


@pytest.fixture
def compiled(monkeypatch):
    """Backend "compiled", with loops from the first use of a size on."""
    monkeypatch.setattr(compiled_loops, "USES_BEFORE_COMPILATION", 0)
    set_backend("compiled")
    yield
    set_backend("auto")
