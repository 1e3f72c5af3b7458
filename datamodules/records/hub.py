"""Datasets on the Hugging Face hub, at a revision; or as somebody names one, to look at its first rows."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from .record import RecordError
from .rows import SourceRow

__all__ = ["HubDataset", "HubTable"]

HUB_NAME = re.compile(
    r"(?:hub:)?(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+?))?(?::(?P<configuration>[\w.-]+))?(?:/(?P<split>\w+))?",
    re.ASCII,
)

ADVICE = {
    "OfflineModeIsEnabled": "a hub that can be reached: HF_HUB_OFFLINE is set; unset it, or give local files",
    "DatasetNotFoundError": "a dataset that is there and that this account may read: check its name; where access must be "
    "asked for, ask on its page and run `hf auth login`",
    "LocalEntryNotFoundError": "a hub that can be reached, or a dataset that was read before",
    "ConnectionError": "a hub that can be reached: check the network, or give local files",
    "NonMatchingSplitsSizesError": "a whole download: remove it from the cache of datasets, and read it again",
}
"""What to do about an error, by its type's name or a word in its message; the first that fits."""
OTHERWISE = "a dataset that `datasets` can read, with this configuration and split, at this revision"


class HubDataset(NamedTuple):
    """A dataset on the Hugging Face hub.

    Attributes:
        name: As on the hub.
        revision: Commit hash.
    """

    name: str
    revision: str

    def pin(self, data_dir: str | None) -> str | None:
        """What a fingerprint says of the source: None where local files, whose bytes count, replace the hub."""
        return f"{self.name}@{self.revision}" if data_dir is None else None

    def rows(
        self, split: str, *, configuration: str | None = None, data_dir: str | None = None
    ) -> Iterator[SourceRow | RecordError]:
        """Rows of a split; nulls are left out.

        Args:
            split: Split on the hub.
            configuration: Configuration on the hub.
            data_dir: Folder inside the dataset.

        Raises:
            RecordError: If it cannot be read, naming dataset, revision and split, and saying what to do.
        """
        from datasets import load_dataset

        names = [self.name] if configuration is None else [self.name, configuration]
        part = "".join(f"/{name}" for name in (configuration, data_dir) if name)
        place = f"{self.name}@{self.revision[:12]}{part}[{split}]"
        with _readable(place):
            rows: Any = load_dataset(*names, revision=self.revision, split=split, data_dir=data_dir)
            for number, fields in enumerate(rows, 1):
                yield SourceRow(
                    place, number, {key: cell for key, cell in fields.items() if cell is not None}
                )


class HubTable(NamedTuple):
    """A split of a dataset on the hub, named by somebody who wants to see its first rows.

    Attributes:
        name: As on the hub.
        revision: Branch, tag or commit hash; None for the newest.
        configuration: One of its configurations; None where it has one alone.
        split: Its split; None for ``train``, or the first where there is none of that name.
    """

    name: str
    revision: str | None = None
    configuration: str | None = None
    split: str | None = None

    @classmethod
    def of_name(cls, text: str) -> "HubTable | None":
        """What ``[hub:]org/name[@revision][:configuration][/split]`` names; None of text that has another form.

        Args:
            text: As somebody wrote it.
        """
        match = HUB_NAME.fullmatch(text)
        return cls(**match.groupdict()) if match else None

    @property
    def place(self) -> str:
        """What messages call it."""
        parts = ((self.revision, "@"), (self.configuration, ":"), (self.split, "/"))
        return self.name + "".join(f"{mark}{part}" for part, mark in parts if part)

    def rows(self) -> Iterator[SourceRow]:
        """Its rows, read over the network as one takes them; nulls are left out. No code of the dataset runs.

        Raises:
            RecordError: If it cannot be read, naming the dataset and saying what to do.
        """
        from datasets import load_dataset

        names = [self.name] if self.configuration is None else [self.name, self.configuration]
        with _readable(self.place):
            load: Callable[..., Any] = load_dataset  # without a split it gives all
            rows = load(*names, revision=self.revision, split=self.split, streaming=True)
            place = self.place
            if isinstance(rows, Mapping):
                split = "train" if "train" in rows else next(iter(rows))
                place, rows = self._replace(split=split).place, rows[split]
            for number, fields in enumerate(rows, 1):
                yield SourceRow(
                    place, number, {key: cell for key, cell in fields.items() if cell is not None}
                )


@contextmanager
def _readable(place: str) -> Iterator[None]:
    """Turn what ``datasets`` and the hub's client raise into an error that names the dataset."""
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ValueError, KeyError, DatasetsError, ArrowException) as error:
        problem = f"{type(error).__name__}: {error}"
        allowed = next((advice for word, advice in ADVICE.items() if word in problem), OTHERWISE)
        # The type that says what is wrong may stand behind the one that is raised.
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OSError | ValueError) and allowed == OTHERWISE:
            problem += f" ({type(cause).__name__}: {cause})"
        raise RecordError("dataset", problem, allowed, reason="unreadable dataset", file=place) from error
