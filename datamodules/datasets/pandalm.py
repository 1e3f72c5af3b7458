"""PandaLMDataModule: answers of two language models to an instruction, compared by three annotators (PandaLM).

* Source: https://github.com/WeOpenML/PandaLM, file ``data/testset-v1.json`` (Wang et al., *PandaLM: An Automatic
  Evaluation Benchmark for LLM Instruction Tuning Optimization*, ICLR 2024, https://arxiv.org/abs/2306.05087).
  Not on the Hugging Face hub.
* Licence: Apache-2.0.
* Revision: commit 3871806e72b4.
* Columns read: ``motivation_app``, ``instruction``, ``input``, ``response1``, ``response2``, ``annotator1``,
  ``annotator2``, ``annotator3`` (0 tie, 1 the first, 2 the second).
* Split rule (ours; the release has none): a prompt goes to training, validation or test (80/10/10) by a hash of
  instruction and input.

All rows of one instruction and input are one record: their distinct answers are responses that are scored once,
every row is a comparison. The answer with more votes comes first; a vote for a tie counts half for each. Models
that gave the same answer are one response, so a pair of texts may be compared in several rows, each with three
votes of its own.

The release has blank answers (about 6% of the rows; a row with one is an ``empty response``), which is why
``on_invalid`` is ``skip`` here. A few answers are JSON ``true`` where a model wrote the word: they are read as the
texts ``True`` and ``False``.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices
from ..records import (
    PER_10_000,
    Comparison,
    DistinctResponses,
    PreferenceRecord,
    RecordError,
    SourceRow,
    find_file,
    hash_split,
    majority_comparison,
    read_json_list,
    text_field,
    whole_field,
)
from ..settings import LenientSettings, OnInvalid

__all__ = ["PandaLMDataModule"]

COMMIT = "3871806e72b4"
ANNOTATORS = ("annotator1", "annotator2", "annotator3")
TIE, FIRST, SECOND = 0, 1, 2


class Pair(NamedTuple):
    """One row: its number in the file, prompt, answers, domain, and each annotator's value."""

    number: int
    prompt: str
    first: str
    second: str
    domain: str
    values: tuple[int, ...]


class PandaLMDataModule(PreferenceDataModule):
    """Answers of language models to instructions, each pair compared by the same three people (PandaLM)."""

    name = "pandalm"
    sources = ("train", "validation", "test")
    where_to_get = (
        "the data are not on the Hugging Face hub. Get them with `git "
        f"clone https://github.com/WeOpenML/PandaLM && git -C PandaLM checkout {COMMIT}` and give "
        "data_dir=PandaLM/data (Apache-2.0)"
    )

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        judgements: Literal["crowd", "annotators"] = "crowd",
        on_invalid: OnInvalid = "skip",
        **shared: Unpack[LenientSettings],
    ) -> None:
        """Choose judgements; reads nothing.

        Args:
            data_dir: The folder ``data`` of the PandaLM repository: ``testset-v1.json`` (also ``.gz``).
            judgements: ``crowd``: one comparison a row, with the share of votes and their counts (for the first,
                tie, for the second). ``annotators``: one comparison a vote, with ``annotator1``,
                ``annotator2`` or ``annotator3`` as user.
            on_invalid: ``error`` or ``skip``; the release has blank answers, so ``skip`` by default.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing (says where to get the data), or judgements are unknown.

        Example:
            >>> PandaLMDataModule(data_dir="PandaLM/data", judgements="annotators").judgements
            'annotators'

        .. versionadded:: 0.1
        """
        super().__init__(on_invalid=on_invalid, **shared)
        check_choices(PandaLMDataModule.__init__, judgements=judgements)
        self.data_dir, self.judgements = self.need_folder(data_dir), judgements

    def files(self, source: str) -> list[Path]:
        """The one file, whatever the source."""
        return [find_file(Path(self.data_dir), "testset-v1.json")]

    def settings(self) -> dict[str, object]:
        """Judgements."""
        return {"judgements": self.judgements}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """One row per prompt; an error for each malformed pair, in its prompt's source, or in training."""
        path = self.files(source)[0]
        prompts: dict[str, list[Pair]] = {}
        for row in read_json_list(path):
            prompt = None
            try:
                if isinstance(row, RecordError):
                    raise row
                prompt = _prompt(row)
                if hash_split(prompt, PER_10_000) == source:
                    pair = _read_pair(row, prompt)
                    prompts.setdefault(prompt, []).append(pair)
            except RecordError as error:
                if prompt is not None or source == "train":
                    yield error if error.file else error.at(str(path), row.line)
        for pairs in prompts.values():
            number = pairs[0].number
            yield SourceRow(str(path), number, {"id": f"testset-v1:{number}", "pairs": pairs})

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A prompt, the distinct answers to it and every comparison of them."""
        pairs: list[Pair] = row.made("pairs", list)
        judge = _annotator_comparisons if self.judgements == "annotators" else _crowd_comparison
        answers = DistinctResponses()
        comparisons: list[Comparison] = []
        for pair in pairs:
            comparisons.extend(judge(*answers.pair(pair.first, pair.second), pair))
        return PreferenceRecord(
            id=row.text("id"),
            prompt=pairs[0].prompt,
            responses=tuple(answers.responses),
            comparisons=tuple(comparisons),
        )


def _crowd_comparison(first: int, second: int, pair: Pair) -> Iterator[Comparison]:
    counts = Counter(pair.values)
    yield majority_comparison(first, second, (counts[FIRST], counts[TIE], counts[SECOND]), domain=pair.domain)


def _annotator_comparisons(first: int, second: int, pair: Pair) -> Iterator[Comparison]:
    for annotator, value in zip(ANNOTATORS, pair.values, strict=True):
        chosen, rejected = (second, first) if value == SECOND else (first, second)
        share = 0.5 if value == TIE else 1.0
        yield Comparison(chosen, rejected, preference=share, user=annotator, domain=pair.domain)


def _prompt(row: SourceRow) -> str:
    """Instruction and input, if there is one, as the models were given them."""
    return "\n\n".join(part for name in ("instruction", "input") if (part := row.text(name).strip()))


def _read_pair(row: SourceRow, prompt: str) -> Pair:
    return Pair(
        number=row.line,
        prompt=prompt,
        first=_answer(row, "response1"),
        second=_answer(row, "response2"),
        domain=row.text("motivation_app"),
        values=tuple(whole_field(name, row.get(name), TIE, SECOND) for name in ANNOTATORS),
    )


def _answer(row: SourceRow, field: str) -> str:
    value = row.get(field)
    return str(value) if isinstance(value, bool) else text_field(field, value, blank="empty response").strip()
