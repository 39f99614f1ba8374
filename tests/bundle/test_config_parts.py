"""Parts of any bundle's config that write or cache are disabled before they are made."""

import pytest
from monai.bundle import ConfigParser

from monai_gmr.bundle.config_parts import switch_off


def test_what_writes_is_switched_off_wherever_it_stands():
    saver = {"_target_": "monai.transforms.SaveImaged", "keys": "pred"}
    copy = {"_target_": "CopyItemsd", "keys": "pred", "names": "other"}
    config = {
        "saver": saver,
        "copy": copy,
        "inline": {"_target_": "Compose", "transforms": [copy, saver]},
        "referred": {"_target_": "Compose", "transforms": ["@copy", "@saver"]},
        "macro": {"_target_": "Compose", "transforms": "%inline::transforms"},
        "handlers": [{"_target_": "monai.handlers.TensorBoardStatsHandler", "log_dir": "/nowhere"}],
    }
    parser = ConfigParser(config)
    parser.resolve_macro_and_relative_ids()
    switch_off(parser)
    for name in ("inline", "referred", "macro"):
        compose = parser.get_parsed_content(name)
        assert [type(transform).__name__ for transform in compose.transforms] == ["CopyItemsd"]
    assert parser.get_parsed_content("handlers") == []


@pytest.mark.parametrize(
    "target", ["CacheDataset", "SmartCacheDataset", "CacheNTransDataset", "PersistentDataset", "Dataset"]
)
def test_no_dataset_keeps_or_loads_images_ahead(target, tmp_path):
    own = {"SmartCacheDataset": {"cache_num": 2}, "CacheNTransDataset": {"cache_n_trans": 1}}.get(target, {})
    own |= {"cache_dir": str(tmp_path / "cache")} if target in ("CacheNTransDataset", "PersistentDataset") else {}
    loaded = []
    transform = {"_target_": "monai.transforms.Lambda", "func": "$@loaded.append"}
    config = {"set": {"_target_": f"monai.data.{target}", "data": [1, 2, 3], "transform": transform, **own}}
    parser = ConfigParser(config | {"loaded": loaded})
    switch_off(parser)
    dataset = parser.get_parsed_content("set")
    assert len(dataset) == 3
    assert parser.get_parsed_content("loaded") == []
    assert not (tmp_path / "cache").exists()
