"""JoinedReader: what the tokenised data of several sources say together."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from ..batches import joined
from ..prepared import UNLABELLED
from ..tokens import DataReader, SplitReport
from .tables import JoinedTable, NamedTable
from .unlabelled import columns_of_groups, names_of_groups

__all__ = ["JoinedReader", "SharedUsers"]

SharedUsers = Literal["refuse", "same", "apart"]


class JoinedReader(DataReader):
    """Tokenised data of several sources; the training split is that of the sources that are trained on.

    Attributes:
        parts: Of each source with judgements, by name, in order.
        unlabelled: Of each source without, by name, in order.
        trained: Sources that are trained on.
        present_unlabelled: Optional columns of records without judgements.
        apart: Whether users are told apart by source: their names begin with it then.
        every: All of them, by name, in order.
        names: As :class:`DataReader` has them; ``source`` are the sources.
    """

    def __init__(
        self,
        parts: Mapping[str, DataReader],
        trained: Collection[str],
        *,
        shared_users: SharedUsers,
        unlabelled: Collection[str] = (),
    ) -> None:
        """Put together what they say of themselves; reads no records but those of sources with a column ``source``.

        Args:
            parts: Of each source, by name, in order.
            trained: Sources that are trained on.
            shared_users: What a name of a user that occurs in two sources means.
            unlabelled: Sources whose training records are groups of responses without judgements; nothing else is read of them.

        Raises:
            ValueError: If votes of two sources differ in their categories, users have the same name where that is
                refused, or a source names several sources of its own.
        """
        self.every, self.apart = dict(parts), shared_users == "apart"
        self.parts = {source: part for source, part in parts.items() if source not in unlabelled}
        self.unlabelled = {source: part for source, part in parts.items() if source in unlabelled}
        self.trained = [source for source in self.parts if source in trained and self._has(source, "train")]
        self.present = frozenset({"source"}).union(*(part.present for part in self.parts.values()))
        groups = frozenset({"source"}).union(*(part.present for part in self.unlabelled.values()))
        self.present_unlabelled = columns_of_groups(groups)
        self.categories = self._common_categories()
        if shared_users == "refuse":
            self._refuse_shared_users()
        self.names = self._joined_names()
        self.reports = {
            split: SplitReport.of_all([report for _, report in self.reports_of(split)])
            for split in dict.fromkeys(
                [*(split for part in self.parts.values() for split in part.reports), UNLABELLED]
            )
            if self.sources_of(split)
        }

    def _has(self, source: str, split: str) -> bool:
        return split in self.parts[source].reports

    def sources_of(self, split: str) -> list[str]:
        """Sources that have a split, in order."""
        if split == UNLABELLED:
            return list(self.unlabelled)
        return self.trained if split == "train" else [name for name in self.parts if self._has(name, split)]

    def reports_of(self, split: str) -> Iterator[tuple[str, SplitReport]]:
        """What became of the rows of a split, by source."""
        own = "train" if split == UNLABELLED else split
        return ((source, self.every[source].reports[own]) for source in self.sources_of(split))

    @property
    def training_domains(self) -> list[str]:
        """Domains of the sources that are trained on."""
        domains: list[str] = []
        for source in self.trained:
            domains = joined(domains, self.parts[source].training_domains)
        return domains

    def table(self, split: str) -> JoinedTable:
        """Records of one split, source after source."""
        own = "train" if split == UNLABELLED else split
        return JoinedTable(
            {
                source: NamedTable(self.every[source].table(own), source, apart=self.apart)
                for source in self.sources_of(split)
            }
        )

    def user_name(self, source: str, user: str) -> str:
        """What a user of a source is called here."""
        return f"{source}/{user}" if self.apart else user

    def _common_categories(self) -> dict[str, int]:
        found: dict[str, tuple[str, int]] = {}
        for source, part in self.parts.items():
            for votes, number in part.categories.items():
                other, before = found.setdefault(votes, (source, number))
                if number != before:
                    raise ValueError(
                        f"{votes} of {other} have {before} categories, those of {source} {number}: sources whose votes "
                        "mean different things cannot be learned as one; give them the same categories, or leave one out"
                    )
        return {votes: number for votes, (_, number) in found.items()}

    def _refuse_shared_users(self) -> None:
        counts = Counter(user for part in self.parts.values() for user in set(part.names.get("user", ())))
        if shared := sorted(user for user, number in counts.items() if number > 1):
            raise ValueError(
                f"{len(shared):,} users of several sources have the same name (first: {', '.join(shared[:3])}): set "
                "shared_users to same if a name is the same person everywhere, to apart if it is not"
            )

    def _joined_names(self) -> dict[str, list[str]]:
        """Names of the sources that are trained on come first; of users, those of the training splits."""
        order = [*self.trained, *(source for source in self.parts if source not in self.trained)]
        names: dict[str, list[str]] = {}
        for source in order:
            for column, values in self.parts[source].names.items():
                names[column] = joined(names.get(column, []), values)
        for part in self.unlabelled.values():
            for column, values in names_of_groups(part.names).items():
                names[column] = joined(names.get(column, []), values)
        own = {source: len(part.names.get("source", ())) for source, part in self.every.items()}
        if several := next((source for source, number in own.items() if number > 1), None):
            raise ValueError(
                f"records of {several} name {own[several]} sources of their own ({', '.join(self.every[several].names['source'][:3])}"
                ", ...), which the mixture's would hide: make each of them a source of the mixture, or take their column out"
            )
        training: list[str] = []
        for source in self.trained:
            part = self.parts[source]
            users = part.names["user"][: part.num_training_users]
            training = joined(training, [self.user_name(source, user) for user in users])
        others = [
            self.user_name(source, user) for source in order for user in self.parts[source].names["user"]
        ]
        self.num_training_users = len(training)
        return {**names, "user": joined(training, others), "source": list(self.every)}
