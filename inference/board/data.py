"""A split of a data module as what is judged: every prompt once, every response to it once, and the comparisons by index."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pluralign.datamodules import PreferenceRecord, Response
from pluralign.datamodules.prepared import PreparedData
from pluralign.datamodules.records import Message

__all__ = ["EvaluationData", "JudgedComparison", "Split", "evaluation_data", "read_data", "shown_prompt"]

Split = Literal["train", "validation", "test", "predict"]
PREFERRED: tuple[Split, ...] = ("test", "validation")
"""What is read where nothing is said: what no model was trained on or chosen by, before what it was chosen by."""


class JudgedComparison(NamedTuple):
    """A comparison; responses are places among all of the data."""

    record: int
    """Place of its record."""
    place: int
    """Its place there."""
    prompt: int
    first: int
    second: int
    share: float
    """Share of people who prefer the first, in [0, 1]."""
    user: str | None
    domain: str | None
    votes: tuple[float, ...] | None


@dataclass(frozen=True)
class EvaluationData:
    """A split of a data set, read and put in order.

    Attributes:
        name: In tables.
        split: Which split it is.
        module: The data module.
        records: As the source gives them.
        invalid: Rows that were no valid records and were skipped, by reason.
        prompts: Different prompts, text or messages.
        responses: Different responses to them.
        prompt_of: Prompt of each response.
        places: Responses of each record, as places among all.
        comparisons: Those whose sides differ.
        group_of_user: Where users are of groups.
        votes: Votes on each response, those of all records added up, by its place and their number of categories.
    """

    name: str
    split: str
    module: PreparedData
    records: list[PreferenceRecord]
    invalid: Counter[str] = field(default_factory=Counter)
    prompts: list[str | tuple[Message, ...]] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)
    prompt_of: list[int] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)
    comparisons: list[JudgedComparison] = field(default_factory=list)
    group_of_user: dict[str, str] = field(default_factory=dict)
    votes: dict[tuple[int, int], tuple[float, ...]] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any text or judgement, and with their order."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(json.dumps(asdict(record), sort_keys=True, default=str).encode())
        return digest.hexdigest()[:16]

    @property
    def identical(self) -> int:
        """Comparisons of equal texts, which nothing can tell apart."""
        return sum(len(record.comparisons) for record in self.records) - len(self.comparisons)

    @cached_property
    def share(self) -> Tensor:
        """Share of people who prefer the first of each comparison, (P,) float64."""
        return torch.tensor([one.share for one in self.comparisons], dtype=torch.float64)

    @cached_property
    def prompt(self) -> Tensor:
        """Prompt of each comparison, (P,) int64."""
        return torch.tensor([one.prompt for one in self.comparisons], dtype=torch.int64)

    @cached_property
    def sides(self) -> Tensor:
        """First and second response of each comparison, (P, 2) int64."""
        pairs = [(one.first, one.second) for one in self.comparisons]
        return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)

    @cached_property
    def users(self) -> list[str]:
        """Users who judged, in order of appearance."""
        return list(dict.fromkeys(one.user for one in self.comparisons if one.user is not None))

    @cached_property
    def domains(self) -> list[str]:
        """Domains of comparisons, in order of appearance."""
        return list(dict.fromkeys(one.domain for one in self.comparisons if one.domain is not None))

    @cached_property
    def votes_of_pairs(self) -> dict[tuple[int, int], tuple[float, ...]]:
        """Votes on each pair of responses, those of all its comparisons added up, by its first one and the number of categories.

        A comparison the other way round has its categories reversed.
        """
        first_of: dict[frozenset[int], int] = {}
        found: dict[tuple[int, int], tuple[float, ...]] = {}
        for place, one in enumerate(self.comparisons):
            if one.votes is None:
                continue
            leading = first_of.setdefault(frozenset((one.first, one.second)), place)
            turned = self.comparisons[leading].first != one.first
            _add_votes(found, leading, one.votes[::-1] if turned else one.votes)
        return found

    def judges_of(self, record: int) -> tuple[str | None, str | None]:
        """The one user and the one domain of a record's comparisons; None where there are none, or several."""
        comparisons = self.records[record].comparisons
        users, domains = {one.user for one in comparisons}, {one.domain for one in comparisons}
        return (
            users.pop() if len(users) == 1 else None,
            domains.pop() if len(domains) == 1 else None,
        )


def read_data(name: str, module: PreparedData, split: Split | None = None) -> EvaluationData:
    """Read a split of a data module; nothing is tokenised, and no cache is written.

    Args:
        name: In tables.
        module: The data module.
        split: Which split; None for ``test``, and where there is none ``validation``.

    Raises:
        ValueError: If there is no such split, or nothing in it that was judged.
        RecordError: At the first row that is no valid record, unless the data module skips such.
    """
    if split is None:
        for one in PREFERRED:
            if one in module.splits:
                return read_data(name, module, one)
        raise ValueError(
            f"{name}: {type(module).__name__} has neither a test nor a validation split, only "
            f"{', '.join(module.splits) or 'none'}: say which one to read with split, or give it a file for test"
        )
    if split not in module.splits:
        raise ValueError(f"{name}: split={split!r}: {type(module).__name__} has {', '.join(module.splits)}")
    invalid: Counter[str] = Counter()
    records = list(module.records(split, skipped=invalid))
    found = evaluation_data(name, split, module, records, invalid)
    if not found.comparisons and not found.votes:
        raise ValueError(
            f"{name}: nothing in the {split} split was judged: {len(records):,} records with {found.identical:,} comparisons of "
            "equal texts, and no votes; an evaluation needs comparisons"
        )
    return found


def evaluation_data(
    name: str,
    split: str,
    module: PreparedData,
    records: Sequence[PreferenceRecord],
    invalid: Counter[str] | None = None,
) -> EvaluationData:
    """Records as what is judged: equal prompts are one, and so are equal responses to one prompt.

    Args:
        name: In tables.
        split: Which split they are of.
        module: Their data module.
        records: Any number.
        invalid: Rows that were skipped, by reason.
    """
    found = EvaluationData(name, split, module, list(records), invalid or Counter())
    prompts: dict[object, int] = {}
    responses: dict[object, int] = {}
    for number, record in enumerate(found.records):
        prompt = prompts.setdefault(_prompt_key(record.prompt), len(prompts))
        if prompt == len(found.prompts):
            found.prompts.append(record.prompt)
        own = [_response_place(found, responses, prompt, response) for response in record.responses]
        found.places.append(own)
        for at, response in zip(own, record.responses, strict=True):
            if response.votes is not None:
                _add_votes(found.votes, at, response.votes)
        for place, one in enumerate(record.comparisons):
            first, second = own[one.chosen], own[one.rejected]
            if first != second:
                judged = one.preference, one.user, one.domain, one.votes
                found.comparisons.append(JudgedComparison(number, place, prompt, first, second, *judged))
            if one.user is not None and one.group is not None:
                found.group_of_user[one.user] = one.group
    return found


def _add_votes(found: dict[tuple[int, int], tuple[float, ...]], place: int, votes: tuple[float, ...]) -> None:
    """Add votes to those of before on the same item with as many categories."""
    key = place, len(votes)
    before = found.get(key, (0.0,) * len(votes))
    found[key] = tuple(one + other for one, other in zip(before, votes, strict=True))


def _response_place(
    found: EvaluationData, responses: dict[object, int], prompt: int, response: Response
) -> int:
    key = prompt, response.text, None if response.messages is None else _prompt_key(response.messages)
    place = responses.setdefault(key, len(responses))
    if place == len(found.responses):
        found.responses.append(response)
        found.prompt_of.append(prompt)
    return place


def _prompt_key(prompt: str | tuple[Message, ...]) -> object:
    """What equal texts have in common; a message's other keys are a mapping, which has no hash."""
    return (
        prompt if isinstance(prompt, str) else tuple((turn.role, turn.content, turn.rest) for turn in prompt)
    )


def shown_prompt(prompt: str | tuple[Message, ...]) -> str:
    """A prompt as text to be read: of a conversation each turn with its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt)
