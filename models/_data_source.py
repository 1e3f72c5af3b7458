"""A data module of somebody else's as a DataSource: what it lacks is answered as if the data had none of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Never

from pluralign.datamodules.batch import Features, GivenRecord, TextExtent, TextFormat

__all__ = ["AdaptedData"]


class AdaptedData:
    """What modules, callbacks and commands ask of data, from what a data module happens to say now.

    Attributes:
        name: Of its class.
        users: Judges; none if it names none.
        num_training_users: How many of them were the training split's: all, unless it says so.
        training_users: Judges whom training shows: any, unless it says so.
        domains: Of the training split.
        training_domains: The same, unless it says otherwise.
        names: What indices point at; users and domains at least.
        splits: None: it can be read through a trainer alone.
        features: The store that its batches take features from, if there is one.
    """

    def __init__(self, datamodule: object) -> None:
        """Ask once.

        Args:
            datamodule: With any of the attributes and methods of a :class:`DataSource`.
        """

        def names(attribute: str, otherwise: Iterable[str] = ()) -> list[str]:
            return list(getattr(datamodule, attribute, otherwise))

        self.name = type(datamodule).__name__
        self.users = names("users")
        self.num_training_users: int = getattr(datamodule, "num_training_users", len(self.users))
        self.training_users = names("training_users", self.users)
        self.domains = names("domains")
        self.training_domains = names("training_domains", self.domains)
        others = getattr(datamodule, "names", {})
        others = others if isinstance(others, Mapping) else {}
        self.names: Mapping[str, Sequence[str]] = {**others, "user": self.users, "domain": self.domains}
        self.splits: tuple[str, ...] = ()
        self.features: Features | None = getattr(datamodule, "features", None)
        self._text_format: Callable[[], TextFormat] = getattr(datamodule, "text_format", dict)
        self._groups: Callable[[], Mapping[str, str]] = getattr(datamodule, "user_groups", dict)
        self._loader_names: Callable[[str], Iterable[str]] = getattr(
            datamodule, "loader_names", lambda split: ()
        )
        self._judgements: Callable[[], Mapping[str, int]] = getattr(datamodule, "judgements_of_users", dict)
        self._mean_votes: Callable[[str], list[float] | None] = getattr(
            datamodule, "mean_votes", lambda name: None
        )
        self._check_judged: Callable[[str], None] = getattr(datamodule, "check_judged", lambda name: None)

    def user_groups(self) -> Mapping[str, str]:
        """Group of each user, by name; empty where there are none."""
        return self._groups()

    def judgements_of_users(self) -> Mapping[str, int]:
        """Judgements of each user in the training split; empty if it counts none."""
        return self._judgements()

    @property
    def extents(self) -> Mapping[str, TextExtent]:
        """Nothing: its batches are looked at instead."""
        return {}

    def text_format(self) -> TextFormat:
        """The text format; empty, which fits any, if it says none."""
        return self._text_format()

    def mean_votes(self, name: str) -> list[float] | None:
        """Mean share of every category; None if it says none."""
        return self._mean_votes(name)

    def check_judged(self, name: str) -> None:
        """What it checks itself."""
        self._check_judged(name)

    def loader_names(self, split: str) -> tuple[str, ...]:
        """Names of the loaders of a split; none if it names none."""
        return tuple(self._loader_names(split))

    def texts(self, split: str, responses: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
        """Empty texts: it keeps none."""
        return [("", "")] * len(responses)

    def given(self, split: str) -> list[GivenRecord]:
        """None: it does not keep them."""
        return []

    def requested_users(self, split: str) -> list[str]:
        """None: it names them in its batches alone."""
        return []

    def batches(self, split: str, **settings: object) -> Never:
        """Refuse: it has loaders alone.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            f"{self.name} gives batches through a Trainer alone; what reads data by itself needs a PreferenceDataModule"
        )
