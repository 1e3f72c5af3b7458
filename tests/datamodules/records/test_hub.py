"""Datasets of the hub: what `datasets` says of one becomes an error that names it and says what to do."""

import pytest
from datasets.exceptions import DatasetNotFoundError, NonMatchingSplitsSizesError

from pluralign.datamodules import RecordError
from pluralign.datamodules.records import HubDataset, HubTable

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


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", ("org/name", None, None, None)),
        ("hub:org/name", ("org/name", None, None, None)),
        ("org/name/test", ("org/name", None, None, "test")),
        ("org/name@v1.2", ("org/name", "v1.2", None, None)),
        ("org/name@0a1b:plain/test", ("org/name", "0a1b", "plain", "test")),
        ("org/name:my-config", ("org/name", None, "my-config", None)),
    ],
)
def test_a_name_of_the_hub(text, parts):
    table = HubTable.of_name(text)
    assert table == parts
    assert table.place == text.removeprefix("hub:")


@pytest.mark.parametrize("text", ["name", "a/b/c/d", "s3://bucket/rows", "data/*.parquet", "~/rows/a", ""])
def test_no_name_of_the_hub(text):
    assert HubTable.of_name(text) is None
