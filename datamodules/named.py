"""NamedData: who the users of data are, and what a checkpoint keeps of data; once for all datasets."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from .batches import UserProtocol, joined
from .content import content_changes
from .prepared import PreparedData
from .settings import SharedSettings
from .tokens import DataReader

__all__ = ["NamedData"]


class NamedData(PreparedData):
    """Part of every data module that knows what indices point at: users, domains and other names, also after a restart.

    Names are known once a subclass has opened the token cache.

    Attributes:
        users: Judges, those of the training split first; ``user_id`` indexes it.
        num_training_users: How many of ``users`` were the training split's; a restored run counts its own.
        training_users: Judges that the loader of this training split shows, by ``loader.users``.
        domains: Domains of the training split, then others that rows to predict ask for; ``domain_id`` indexes it.
    """

    def __init__(self, **shared: Unpack[SharedSettings]) -> None:
        """Keep the settings that all datasets share; reads nothing.

        Args:
            **shared: As :class:`PreparedData` has them.
        """
        super().__init__(**shared)
        self.users: list[str] = []
        self.num_training_users = 0
        self.training_users: list[str] = []
        self.domains: list[str] = []
        self._names: dict[str, list[str]] = {}
        self._divided: tuple[UserProtocol, tuple[list[str], list[str]]] | None = None
        self._reader: DataReader | None = None
        self._restored: dict[str, Any] | None = None
        self._content: dict[str, object] = {}

    def _name_users(self) -> None:
        """Order of users and domains: as in a restored run, then as the data have them; unseen users last."""
        assert self._reader is not None  # the caller opened it
        names, number = dict(self._reader.names), self._reader.num_training_users
        training = names["user"][:number]
        if self._divides(self.loader.users):
            training, _ = self.divided_users()
            names["user"] = joined(training, names["user"])
        self.training_users, self.num_training_users = list(training), len(training)
        if self._restored is not None:
            self.num_training_users = self._restored["num_training_users"]
            before = _names_of(self._restored)
            names = {column: joined(before.get(column, []), values) for column, values in names.items()}
        names["domain"] = joined(names["domain"], self.requested_domains("predict"))
        self._names, self.users, self.domains = names, names["user"], names["domain"]

    def requested_domains(self, split: str) -> list[str]:
        """Domains whose reward the records of a split ask for, if ``setup`` opened it; none unless a subclass says so."""
        return []

    def divided_users(self) -> tuple[list[str], list[str]]:
        """Seen and unseen users, as ``loader.users`` says.

        Raises:
            RuntimeError: If ``setup`` has not run.
            ValueError: If there is no training split, an unseen user is not in it, or nobody is seen.
        """
        if self._reader is None:
            raise RuntimeError("call setup() first: the users are in the data")
        protocol = replace(self.loader.users, unseen=(*self.loader.users.unseen, *self.held_back_users()))
        if self._divided is None or self._divided[0] != protocol:
            counts = self._reader.judgements_of_users()
            names = self._reader.names["user"][: self._reader.num_training_users]
            self._divided = protocol, protocol.divide({name: counts[name] for name in names})
        return self._divided[1]

    def held_back_users(self) -> Sequence[str]:
        """Users whom the data's own rule leaves unseen, besides those of ``loader.users``; none unless a data set says so."""
        return ()

    def _divides(self, protocol: UserProtocol) -> bool:
        """Whether any judgement may be left out."""
        return protocol.active or bool(self.held_back_users())

    @property
    def training_domains(self) -> list[str]:
        """Domains that some comparison of the training split is of; none before ``setup``."""
        return [] if self._reader is None else self._reader.training_domains

    @property
    def names(self) -> dict[str, list[str]]:
        """What indices point at, by column: ``user`` and ``domain`` as above, ``source`` and ``aspect`` of records."""
        return {**self._names, "user": self.users, "domain": self.domains}

    def user_groups(self) -> Mapping[str, str]:
        """Group of each user, by name; users may lack one, and data without groups name none.

        Raises:
            ValueError: If a user is of two groups.
        """
        groups, nobody = ({}, 0) if self._reader is None else self._reader.groups_of_users()
        if nobody:
            rank_zero_warn(
                f"{self.name}: {nobody:,} judgements have a group but no user, so that it says nothing"
            )
        return groups

    def judgements_of_users(self) -> dict[str, int]:
        """Judgements in the training split of each user whom its loader shows; empty where data have no such split.

        Raises:
            RuntimeError: If ``setup`` has not run.
        """
        if self._reader is None:
            raise RuntimeError("call setup() first: the judgements are in the data")
        if "train" not in self.splits:
            return {}
        counts = self._reader.judgements_of_users()
        return {name: counts[name] for name in self.training_users}

    def state_dict(self) -> dict[str, Any]:
        """Users, domains and other names, so that indices keep their meaning with other data; what the data were."""
        others = {name: list(values) for name, values in self.names.items() if name not in ("user", "domain")}
        return {
            "users": list(self.users),
            "domains": list(self.domains),
            "num_training_users": self.num_training_users,
            "names": others,
            "content": self._content,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take users and domains from a checkpoint.

        Raises:
            ValueError: If a run is to go on with other data than it was trained with; says what differs.
        """
        self._check_content(state_dict.get("content"))
        self._names = _names_of(state_dict)
        self.users, self.domains = self._names["user"], self._names["domain"]
        # Version 0.1 knew training users only.
        self.num_training_users = state_dict.get("num_training_users", len(self.users))
        self._restored = self.state_dict()
        if self._reader is not None:
            self._name_users()

    def _check_content(self, before: object) -> None:
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if fitting and before and (changes := content_changes(before, self._content)):
            raise ValueError(
                f"{self.name}: a run cannot go on with other data than it was trained with: {'; '.join(changes)}. Give it "
                "the data it had; to start a new run from its weights, name the checkpoint as model.init_from and leave "
                "ckpt_path out"
            )


def _names_of(state: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names in a saved state; version 0.1 knew users and domains only."""
    names = {**state.get("names", {}), "user": state["users"], "domain": state["domains"]}
    return {column: list(values) for column, values in names.items()}
