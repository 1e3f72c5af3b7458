"""Datasets of the hub: what `datasets` says of one becomes an error that names it and says what to do."""

import pytest
from datasets.exceptions import DatasetNotFoundError, NonMatchingSplitsSizesError

from pluralign.datamodules import RecordError
from pluralign.datamodules.records import HubDataset

HUB = HubDataset("org/set", "0123456789abcdef")


def test_without_a_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        RecordError, match=r"^org/set@0123456789ab\[train\]: unreadable dataset: .*HF_HUB_OFFLINE is set"
    ):
        list(HUB.rows("train"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DatasetNotFoundError("Dataset 'org/set' doesn't exist on the Hub"), "check its name; .*hf auth login"),
        (DatasetNotFoundError("Dataset 'org/set' is a gated dataset"), "gated.*hf auth login"),
        (ValueError("Unknown split 'dev'. Should be one of ['train']."), r"Unknown split 'dev'.*this configuration and"),
        (ConnectionError("Couldn't reach 'org/set'"), "check the network, or give local files"),
        (NonMatchingSplitsSizesError([]), "a whole download: remove it from the cache"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)  # fmt: skip
def test_errors_name_dataset_and_what_to_do(monkeypatch, error, message):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(
        RecordError, match=rf"(?s)^org/set@0123456789ab/part\[dev\]: unreadable dataset: .*{message}"
    ):
        list(HUB.rows("dev", configuration="part"))
