"""The shared settings are the arguments of the base."""

from typing import get_args, get_type_hints

import pytest

from pluralign.datamodules import DSPDataModule, SyntheticDataModule
from pluralign.datamodules.prepared import PreparedData
from pluralign.datamodules.settings import LenientSettings, OnInvalid, SharedSettings


def test_shared_settings_are_the_arguments_of_the_base():
    hints = get_type_hints(PreparedData.__init__)
    assert hints.pop("return") is type(None)
    assert get_type_hints(SharedSettings) == hints
    assert get_type_hints(LenientSettings) == {name: hints[name] for name in hints if name != "on_invalid"}
    assert get_args(OnInvalid) == ("error", "skip")


def test_a_share_is_refused_where_there_is_a_validation_split():
    assert SyntheticDataModule(validation_share=0.05).splits == ("train", "validation", "test", "predict")
    with pytest.raises(
        ValueError, match=r"validation_share must not be given, got 0\.1: SyntheticDataModule"
    ):
        SyntheticDataModule(validation_share=0.1)
    assert DSPDataModule(data_dir="x", validation_share=0.1).validation_share == 0.1
