"""Bundles run in the folder of their test, because a workflow in Python has "." as its ``bundle_root``."""

import pytest


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
