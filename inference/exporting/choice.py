"""Which of a module's rewards is exported."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pluralign.datamodules.records import listed

__all__ = ["GENERAL", "Choice"]

GENERAL = "general"
"""The reward of a customised model that is no domain's own."""


@dataclass(frozen=True)
class Choice:
    """Whose reward is exported, and in which form; each for the methods that have such rewards.

    Attributes:
        user: Of :class:`PAL`: whose reward.
        users: Of :class:`PAL`: the mean reward of a group of users.
        domain: Of :class:`CustomizedRM`: of which domain; None for the general one.
        output: Of what the logits are: ``reward``, the one output that trainers read; ``labels``, of :class:`DPRM`, a logit for
            each label; ``members``, of :class:`EnsembleVoteRM`; ``basis``, of :class:`PAL`, a reward for each prototype;
            ``domains``, of :class:`CustomizedRM`. None for one reward.
        member: Of :class:`EnsembleVoteRM`: one member's reward.
    """

    user: str | None = None
    users: tuple[str, ...] = ()
    domain: str | None = None
    output: str | None = None
    member: str | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without the model.

        Raises:
            ValueError: If two choices exclude each other.
        """
        if self.user is not None and self.users:
            raise ValueError(
                "--user and --users: whose reward is it, one user's or a group's? Give one of them"
            )
        if len(set(self.users)) < len(self.users):
            raise ValueError(f"--users names somebody twice: {listed(self.users)}")

    @property
    def gives_labels(self) -> bool:
        """Whether the outputs are logits of labels, and not rewards."""
        return self.output == "labels"

    def described(self) -> dict[str, str | Sequence[str]]:
        """What was chosen, without what was left open."""
        return {name: value for name, value in asdict(self).items() if value}
