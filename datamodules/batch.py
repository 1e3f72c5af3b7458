"""What travels from the data modules to the models: torch tensors under agreed names.

N prompts, R responses, P comparisons, Q requests, L tokens. A response is scored once; judgements, and requests for
a user's reward, are index tables that point at responses. Both types are plain dictionaries at run time, so Lightning moves, pins and
gathers them, and a user's own collate function needs nothing from this package.

Two layouts carry the same keys:

* *shared* (rows = prompts): the longest common token prefix of a prompt's responses, then each response's
  own tokens. ``segment_ids`` tells them apart and ``position_ids`` restart after the prefix.
* *separate* (rows = responses): every row is a shared row with a single response.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, runtime_checkable

from torch import Tensor

__all__ = [
    "Basis",
    "DataSource",
    "Features",
    "FindsTokens",
    "GivenRecord",
    "GivenResponse",
    "HasHeaviest",
    "Labels",
    "PreferenceBatch",
    "RewardOutput",
    "TextExtent",
    "TextFormat",
    "TokenStates",
]

TextFormat = dict[str, str | int | bool | None]
"""The settled text format: what a checkpoint keeps, so that later scoring uses the same."""


class PreferenceBatch(TypedDict, total=False):
    """One batch. Feature batches have ``features`` in place of the first four keys and ``response_end``."""

    input_ids: Tensor
    """(N, L) int64, right-padded; (R, L) in the separate layout."""
    position_ids: Tensor
    """(N, L) int64; restart after the prefix for every response; 0 on padding."""
    segment_ids: Tensor
    """(N, L) int64; 0 prefix, 1..k response, -1 padding: the attention mask follows from it."""
    row_lengths: list[int]
    """Tokens of each row that are not padding; plain numbers, so that reading them never waits for a device."""
    segment_lengths: list[list[int]]
    """Tokens of each row's prefix and of each of its responses, in their order; plain numbers, for the same reason."""

    id: list[str]
    """N record ids."""
    record_key: Tensor
    """(N,) int64: the record's id, split and source as a number, by which side tables are joined."""
    split_key: Tensor
    """(N,) int64: hash of what a random split keeps on one side: the prompt, or what the data name in its place."""
    source_id: Tensor
    """(N,) int64: which part of a mixture, an index into the data module's ``names["source"]``; -1 unknown."""
    aspect_id: Tensor
    """(N,) int64: the preference asked for, an index into the data module's ``names["aspect"]``; -1 unknown."""
    record_weight: Tensor
    """(N,) float32 >= 0: weight of the whole record."""
    response_row: Tensor
    """(R,) int64, ascending: row of a response in ``input_ids``."""
    response_end: Tensor
    """(R,) int64: column of the response's last real token (its EOS)."""
    response_prompt: Tensor
    """(R,) int64, ascending: index into ``id``; equals ``response_row`` in the shared layout, unless several records
    ask for the same response: it is of the first of them then."""
    response_index: Tensor
    """(R,) int64: position of the response in its record as the dataset gave it."""

    response_key: Tensor
    """(R,) int64: where rows of equal prompts were merged, ``record_key`` of the row of the data that it is from."""
    response_place: Tensor
    """(R,) int64: its place in that row."""
    response_length: Tensor
    """(R,) int64, >= 1: the response's own tokens after the shared prefix; comparable within a prompt only."""

    system_id: Tensor
    """(R,) int64: who wrote the response, an index into the data module's ``names["system"]``; -1 unknown."""

    comparisons: Tensor
    """(P, 2) int64: indices into R, chosen then rejected."""
    comparison_index: Tensor
    """(P,) int64: position of the comparison in its record; with the record's id it names a pair for good."""
    comparison_prompt: Tensor
    """(P,) int64, ascending: index into ``id``; beside requests alone, for elsewhere it is its responses' own."""
    comparison_key: Tensor
    """(P,) int64: where rows of equal prompts were merged, ``record_key`` of the row of the data that it is from."""
    comparison_place: Tensor
    """(P,) int64: its place in that row; with the key it names a judgement for good, whatever is merged with it."""
    preference: Tensor
    """(P,) float32 in [0, 1]: share of annotators preferring the first; 1 if unanimous, 0.5 for a tie."""
    comparison_votes: Tensor
    """(P, C) float32 >= 0: annotator counts per category of a comparison."""
    comparison_target: Tensor
    """(P, C) float32: share of every category to learn, from votes and prior; NaN where there is neither."""
    comparison_target_votes: Tensor
    """(P,) float32 >= 0: votes that ``comparison_target`` is worth, the prior's among them."""
    user_id: Tensor
    """(P,) int64: index into the data module's ``users``; -1 unknown."""
    domain_id: Tensor
    """(P,) int64: index into the data module's ``domains``; -1 unknown."""
    domains_present: list[int]
    """Different values of ``domain_id``, ascending; plain numbers, so that reading them never waits for a device."""
    margin: Tensor
    """(P,) float32: required reward gap."""
    weight: Tensor
    """(P,) float32 >= 0: loss weight."""
    strength: Tensor
    """(P,) float32: signed vote strength, NaN if unknown."""

    request_response: Tensor
    """(Q,) int64: index into R: the response whose reward is asked for; several requests may share it."""
    request_prompt: Tensor
    """(Q,) int64, ascending: index into ``id``: which record asks."""
    request_index: Tensor
    """(Q,) int64: position of the response in that record; with the record's id it names a request for good."""
    request_user_id: Tensor
    """(Q,) int64: index into the data module's ``users``: whose reward is asked for; -1 for nobody in particular."""
    request_domain_id: Tensor
    """(Q,) int64: index into the data module's ``domains``; -1 unknown."""

    votes: Tensor
    """(R, C) float32 >= 0: annotator counts per category of a response."""
    target: Tensor
    """(R, C) float32: share of every category to learn, from votes and prior; NaN where there is neither."""
    target_votes: Tensor
    """(R,) float32 >= 0: votes that ``target`` is worth, the prior's among them."""
    score: Tensor
    """(R,) float32: a rating of the response, NaN if unknown."""

    features: Tensor
    """(R, H) float: pooled features in place of tokens, for a frozen backbone."""
    prompts: "PreferenceBatch"
    """The prompts as rows of their own, each with one response that is its last token: N rows, N responses."""
    unlabelled: "PreferenceBatch"
    """Of training batches of a mixture with ``unlabelled`` sources: a batch of its own, of groups of two different responses at
    least without judgements, which are not counted in N. It has the keys of its rows and responses, and no comparisons."""
    prompt_features: Tensor
    """(N, H) float: of the prompt alone; of an empty one, of a token 0."""


class Labels(NamedTuple):
    """Predicted distributions over K labels, of responses or of comparisons; float32."""

    probs: Tensor
    """(items, K): probability of each label."""
    expected: Tensor
    """(items,): mean of the labels' rewards."""
    std: Tensor
    """(items,) >= 0: standard deviation of the labels' rewards."""
    names: tuple[str, ...]
    """K names of the labels."""
    on: Literal["responses", "comparisons"]
    """What the items are."""
    alpha: Tensor | None = None
    """(items, K) > 0: first parameter of the Beta of each label's share; None if none is predicted."""
    beta: Tensor | None = None
    """(items, K) > 0: second parameter."""
    sets: Tensor | None = None
    """(items, S): probability of each named set of labels; None without sets."""
    set_names: tuple[str, ...] = ()
    """S names of the sets."""


class Basis(NamedTuple):
    """Several rewards of every response: of prototypes, members of an ensemble, domains; float32."""

    rewards: Tensor
    """(R, K): reward of each column alone."""
    names: tuple[str, ...]
    """K names of the columns."""
    title: str
    """What predictions call them, such as ``prototype_rewards``."""
    linear: bool
    """Whether a reward of weights w (K,) over the columns is ``rewards @ w``; elsewhere the columns are reported only."""


class TokenStates(NamedTuple):
    """States of every token that a pass read, for a loss on tokens beside that on rewards; in the backbone's dtype."""

    states: Tensor
    """(N, L, H): on padding they mean nothing."""
    rows: PreferenceBatch
    """The batch in the rows that the network took: N of them."""


class RewardOutput(TypedDict, total=False):
    """What a reward module returns; float32, but for ``tokens``, whatever the backbone's dtype.

    Every entry declares what it is of, since a batch may have as many responses as comparisons. What a method adds goes
    into ``of_responses`` or ``of_comparisons`` under a name of its own, and is written by ``predict`` as the rest is.
    """

    reward: Tensor
    """(R,): higher is better; absent where a reward exists only for a given user."""
    chosen: Tensor
    """(P,): reward of the first response of each comparison, as that judge would give it."""
    rejected: Tensor
    """(P,): reward of the second response of each comparison."""
    preference: Tensor
    """(P,) in [0, 1]: predicted share preferring the first, ties half; absent where it is the sigmoid of the gap."""
    requested: Tensor
    """(Q,): reward of each request's response, as the user who is named would give it; absent where users make no
    difference."""
    personal: Tensor
    """(Q,) bool: whether ``requested`` is that user's own reward; elsewhere it is the mean user's."""
    labels: Labels
    """Distribution over labels of every response, or of every comparison."""
    basis: Basis
    """Several rewards of every response."""
    of_responses: dict[str, Tensor]
    """(R, ...): what else the method says of responses."""
    of_comparisons: dict[str, Tensor]
    """(P, ...): what else the method says of comparisons."""
    tokens: list[TokenStates]
    """States of the tokens in each pass over them, of a method whose loss reads them; no step hands them on."""


class GivenResponse(NamedTuple):
    """A response as its source gives it, and as whom it is to be scored."""

    text: str
    user: str | None
    domain: str | None


class GivenRecord(NamedTuple):
    """A record as its source gives it: what stands beside predictions."""

    id: str
    prompt: str | list[dict[str, str]]
    """Text, or messages with ``role`` and ``content``."""
    responses: list[GivenResponse]
    judges: list[tuple[str | None, str | None]]
    """User and domain of each comparison."""
    place: str
    """File and line."""


class TextExtent(NamedTuple):
    """How far the tokens of a split go: what a network must have to read it."""

    longest: int
    """Tokens of the longest response with its prompt."""
    largest_token: int
    """Largest token id."""


@runtime_checkable
class HasHeaviest(Protocol):
    """A loader that gives its heaviest batch by itself: what shows how much memory a step takes."""

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        ...

    def heaviest(self) -> tuple[Any, int]:
        """The batch of the current epoch that has most tokens, and how many."""
        ...


@runtime_checkable
class FindsTokens(Protocol):
    """A module that knows, or finds, how many tokens of a batch training has memory for."""

    def token_budget(self) -> int | None:
        """Most tokens of a batch; None if it was never found and no fit is under way."""
        ...


class Features(Protocol):
    """What a model asks of a feature store."""

    @property
    def hidden_size(self) -> int:
        """H, the size of a vector."""
        ...

    def check_backbone(self, description: Mapping[str, object]) -> None:
        """Refuse a backbone that would have given other vectors."""
        ...


@runtime_checkable
class DataSource(Protocol):
    """What modules, callbacks and commands ask of a data module; :class:`PreferenceDataModule` answers all of it."""

    name: str
    users: list[str]
    """Judges, those of the training split first; ``user_id`` indexes it."""
    num_training_users: int
    """How many of ``users`` were the training split's."""
    training_users: list[str]
    """Judges whom the loader of the training split shows."""
    domains: list[str]
    """Domains of the training split, then others that rows to predict ask for; ``domain_id`` indexes it."""

    @property
    def training_domains(self) -> list[str]:
        """Domains that some comparison of the training split is of."""
        ...

    @property
    def names(self) -> Mapping[str, Sequence[str]]:
        """What indices point at, by column, such as ``source`` of records; ``user`` and ``domain`` as above."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that the data have."""
        ...

    @property
    def features(self) -> Features | None:
        """The store that batches take their features from; None where they hold tokens."""
        ...

    def user_groups(self) -> Mapping[str, str]:
        """Group of each user, by name; users may lack one, and data without groups name none."""
        ...

    def judgements_of_users(self) -> Mapping[str, int]:
        """Judgements in the training split of each user whom its loader shows; empty where it is not known."""
        ...

    def text_format(self) -> TextFormat:
        """The settled text format."""
        ...

    @property
    def extents(self) -> Mapping[str, TextExtent]:
        """How far the tokens of every split go, of those that are not open, too; empty before ``setup``."""
        ...

    def mean_votes(self, name: str) -> list[float] | None:
        """Mean share of every category over the training split's judged items; None if it has no such votes."""
        ...

    def check_judged(self, name: str) -> None:
        """Make sure that every item of the open splits has votes (``votes`` or ``comparison_votes``) or a prior."""
        ...

    def loader_names(self, split: str) -> tuple[str, ...]:
        """Names of the loaders that a split comes in, in their order; empty for a single one, which has none."""
        ...

    def texts(self, split: str, responses: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
        """Prompt and text of responses, named by record id and place in the record, as the network reads them."""
        ...

    def given(self, split: str) -> Iterable[GivenRecord]:
        """Records of a split as their source gives them, in its order; none where that is not known."""
        ...

    def requested_users(self, split: str) -> list[str]:
        """Users whose reward the records of a split ask for."""
        ...

    def batches(
        self,
        split: str,
        *,
        users: Literal["seen", "unseen", "all"] | None = None,
        shuffle: bool = False,
        features: bool | None = None,
        prompts: bool | None = None,
        layout: Literal["shared", "separate"] | None = None,
        max_tokens: int | None = None,
        rank: tuple[int, int] | None = None,
    ) -> Iterable[PreferenceBatch]:
        """Batches of a split, as often as one iterates; ``PreferenceDataModule.batches`` says what is what."""
        ...
