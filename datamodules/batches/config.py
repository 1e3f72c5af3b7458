"""How records become batches: the settings of every data module's loaders."""

from dataclasses import dataclass, field, replace
from typing import Literal

from ..checks import check_choices, check_range
from ..crowd import CrowdConfig
from ..treatments import TreatmentConfig
from .users import UserProtocol

__all__ = ["LoaderConfig", "changed"]


@dataclass(frozen=True)
class LoaderConfig:
    """How records are put into batches; nothing here changes the tokens.

    Attributes:
        max_tokens: Bound on rows x padded length of a batch; None for none; ``auto`` for the most that training has memory
            for, found when a fit begins and kept in its checkpoints (docs/concepts/memory.md), 8192 where nothing was found.
        batch_size: Bound on prompts per batch, not on their comparisons; None for none. One of the two must be given.
        mega_batch: Batches' worth of prompts shuffled together, then sorted by length within: larger means
            less padding, smaller means more random order.
        shuffle: Whether training order is random.
        seed: Seed of the order.
        num_workers: Worker processes of each loader.
        worker_timeout: Seconds, >= 0, to wait for a batch of a worker before the run stops; 0 to wait for ever.
        layout: ``shared`` rows hold a prompt and all its responses, ``separate`` rows one response each;
            ``auto`` asks the model, and takes shared rows if there is none.
        features: Folder of a feature store (``pluralign embed``): batches then hold stored features in place of
            tokens, and ``max_tokens`` bounds responses; None for tokens.
        features_memory: MiB, >= 0, that the features of a split may take in memory, in each process that trains; those of
            a larger split are read from the disk, batch by batch.
        crowd: How votes become the distribution that is learned.
        users: Whose judgements batches hold.
        items: What is scored: the ``conversation``, prompt and response together, or the ``response`` alone, which is
            for methods that read the prompt apart.
        prompts: Whether batches of tokens hold every prompt as a row of its own, too.
        joins: Side tables (:mod:`pluralign.datamodules.joins`): Parquet files of strengths, margins, weights or priors
            by record key, which go before those of the data.
        treatments: What is done to the labels of the training split by the strength of each: flipped, smoothed, dropped,
            given a margin (docs/concepts/treatments.md); None for nothing.
    """

    max_tokens: int | Literal["auto"] | None = 8192
    batch_size: int | None = None
    mega_batch: int = 64
    shuffle: bool = True
    seed: int = 0
    num_workers: int = 0
    worker_timeout: int = 0
    layout: Literal["auto", "shared", "separate"] = "auto"
    features: str | None = None
    features_memory: int = 2048
    crowd: CrowdConfig = field(default_factory=CrowdConfig)
    users: UserProtocol = field(default_factory=UserProtocol)
    items: Literal["conversation", "response"] = "conversation"
    prompts: bool = False
    joins: tuple[str, ...] = ()
    treatments: TreatmentConfig | None = None

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            TypeError: If ``joins`` is a file and no list of files.
            ValueError: Naming the argument, its value and what is allowed.
        """
        if self.max_tokens is None and self.batch_size is None:
            raise ValueError("loader: max_tokens and batch_size are both null; give at least one")
        for name, low in (
            ("max_tokens", 1),
            ("batch_size", 1),
            ("mega_batch", 1),
            ("features_memory", 0),
            ("num_workers", 0),
            ("worker_timeout", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, str) and name == "max_tokens" and value != "auto":
                raise ValueError(f"loader.max_tokens must be a number >= 1, auto or null; got {value!r}")
            if not isinstance(value, str):
                check_range(f"loader.{name}", value, at_least=low)
        check_choices(type(self), prefix="loader.", **vars(self))
        if isinstance(self.joins, str):
            raise TypeError(f"loader.joins must be a list of files, got {self.joins!r}")
        object.__setattr__(self, "joins", tuple(self.joins))


def changed(
    loader: LoaderConfig,
    *,
    users: Literal["seen", "unseen", "all"] | None = None,
    features: bool | None = None,
    prompts: bool | None = None,
    layout: Literal["shared", "separate"] | None = None,
    max_tokens: int | None = None,
) -> LoaderConfig:
    """Settings with what is not None changed, and without treatments; arguments as ``PreferenceDataModule.batches`` has them.

    Raises:
        ValueError: If features are asked for and the settings name no store, or a value is out of range.
    """
    if features and loader.features is None:
        raise ValueError("features=True needs loader.features: name the store that `pluralign embed` wrote")
    return replace(
        loader,
        users=loader.users if users is None else replace(loader.users, show=users),
        features=None if features is False else loader.features,
        prompts=loader.prompts if prompts is None else prompts,
        layout=loader.layout if layout is None else layout,
        max_tokens=loader.max_tokens if max_tokens is None else max_tokens,
        treatments=None,
    )
