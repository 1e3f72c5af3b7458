r"""PersonaDataModule: synthetic users, each with one persona of the model-written persona evaluations.

* Source: https://github.com/anthropics/evals, folder ``persona`` (Perez et al., *Discovering Language Model
  Behaviors with Model-Written Evaluations*, 2022, https://arxiv.org/abs/2212.09251).
* Licence: CC-BY-4.0.
* Revision: commit 84fcc677e52e.
* Columns read: ``question``, ``statement``, ``answer_matching_behavior`` (Yes or No).
* Split rule (ours; the release has none): a statement goes to training, validation or test (80/10/10) by the
  SHA-1 of its text. Held-out pairs are therefore made of statements that no one judged in training; every
  user has queries in every split.

The statements are real, the users are not. Each user has one persona and answers queries about it:

``pairs="conflict"``
    A statement that persona p agrees with against one that persona q agrees with. A user of p prefers the
    first, a user of q the second; a user judges only pairs that his own persona is part of. A model without
    users cannot do better than chance where two personas judge the same pairs.
``pairs="agreement"``
    A statement that the user's persona agrees with against one that it disagrees with. Nobody contradicts
    anybody: the control in which users' identity is worth nothing.

This follows the Persona data of PAL (Chen et al., *PAL: Pluralistic Alignment Framework for Learning from
Heterogeneous Preferences*, 2024, https://arxiv.org/abs/2406.08469) in its idea, K* personas with a crowd of users
each. That its personas are the six ``interest-in-...`` files is a recollection of low confidence; numbers of
users and queries are ours, so figures are not comparable with the paper's.

Statements are put into records of a few per persona under the one question that all of them share; a user's
queries point at them by index, so each statement is scored once per record however many users judge it.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

import numpy as np

from ..base import PreferenceDataModule
from ..checks import check_choices, check_range
from ..records import (
    PERCENT,
    Comparison,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    choice_field,
    find_file,
    hash_split,
    parse_rows,
    read_json_lines,
    text_field,
)
from ..settings import SharedSettings

__all__ = ["PersonaDataModule"]

COMMIT = "84fcc677e52e"
VERSION = 1
"""Counts up when the same settings give other rows."""

PERSONAS = tuple(
    f"interest-in-{subject}" for subject in ("art", "literature", "math", "music", "science", "sports")
)
ANSWERS = {"Yes": True, "No": False}


class _Statement(NamedTuple):
    """One statement: the index of its persona, whether that persona agrees with it, its text."""

    persona: int
    agrees: bool
    text: str


class PersonaDataModule(PreferenceDataModule):
    """Synthetic users with one persona each, who judge statements of real persona evaluations."""

    name = "persona"
    sources = ("train", "validation", "test")
    where_to_get = (
        "get the statements with `git clone "
        f"https://github.com/anthropics/evals && git -C evals checkout {COMMIT}` and give "
        "data_dir=evals/persona (CC-BY-4.0)"
    )

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        personas: tuple[str, ...] = PERSONAS,
        pairs: Literal["conflict", "agreement"] = "conflict",
        num_users: int = 60,
        queries_per_user: int = 100,
        held_out_queries_per_user: int = 20,
        statements_per_record: int = 24,
        seed: int = 0,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Describe personas and users; reads nothing. Rows are a function of the files and these settings.

        Args:
            data_dir: The folder ``persona`` of the evaluations, or one that holds it: ``<persona>.jsonl`` (also
                ``.gz``).
            personas: Names of files without their suffix; at least two where pairs are in conflict.
            pairs: ``conflict``: two personas' statements against each other. ``agreement``: a persona's own,
                one it agrees with against one it does not.
            num_users: Users, dealt to the personas in turn; at least one for each.
            queries_per_user: Different pairs that each user judges in the training split, >= 1.
            held_out_queries_per_user: The same in each of validation and test, >= 1.
            statements_per_record: Most statements of a record, the same number of each persona up to one;
                at least one for each persona (two with ``pairs="agreement"``). Larger means more possible pairs and
                longer rows.
            seed: Seed of records and queries, >= 0.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing (says where to get the data), or a setting is off range.

        Example:
            >>> data = PersonaDataModule(data_dir="evals", personas=("interest-in-art", "interest-in-math"), num_users=3)
            >>> list(data.user_groups())
            ['interest-in-art:0000', 'interest-in-math:0000', 'interest-in-art:0001']

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        check_choices(PersonaDataModule.__init__, pairs=pairs)
        least = 2 if pairs == "conflict" else 1
        if len(personas) < least or len(set(personas)) < len(personas):
            raise ValueError(
                f"personas must be at least {least} different names with pairs={pairs!r}; got {list(personas)}"
            )
        kinds = len(personas) * (1 if pairs == "conflict" else 2)
        for name, value, low in (
            ("num_users", num_users, len(personas)),
            ("queries_per_user", queries_per_user, 1),
            ("held_out_queries_per_user", held_out_queries_per_user, 1),
            ("statements_per_record", statements_per_record, kinds),
            ("seed", seed, 0),
        ):
            check_range(name, value, at_least=low)
        self.data_dir, self.pairs, self.seed = self.need_folder(data_dir), pairs, seed
        self.personas, self.num_users = tuple(personas), num_users
        self.queries_per_user = queries_per_user
        self.held_out_queries_per_user = held_out_queries_per_user
        self.statements_per_record = statements_per_record

    def files(self, source: str) -> list[Path]:
        """The personas' files.

        Raises:
            FileNotFoundError: If one is not there.
        """
        folder = Path(self.data_dir)
        folder = folder / "persona" if (folder / "persona").is_dir() else folder
        return [find_file(folder, f"{persona}.jsonl") for persona in self.personas]

    def settings(self) -> dict[str, object]:
        """Everything but the files that the rows are a function of."""
        return {
            "version": VERSION,
            "personas": self.personas,
            "pairs": self.pairs,
            "num_users": self.num_users,
            "queries_per_user": self.queries_per_user,
            "held_out_queries_per_user": self.held_out_queries_per_user,
            "statements_per_record": self.statements_per_record,
            "seed": self.seed,
        }

    def user_groups(self) -> dict[str, str]:
        """Persona of every user, by the user's name, such as ``interest-in-art:0007``."""
        groups = {}
        for user in range(self.num_users):
            number, persona = divmod(user, len(self.personas))
            groups[f"{self.personas[persona]}:{number:04d}"] = self.personas[persona]
        return groups

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Records of a source; before those of ``train``, an error for each malformed statement.

        Raises:
            ValueError: If a persona has fewer pairs than a user is to judge.
        """
        question, statements = "", []
        for item in self._statements():
            if not isinstance(item, RecordError):
                question, statement = item
                if hash_split(statement.text, PERCENT) == source:
                    statements.append(statement)
            elif source == "train":
                yield item
        blocks = self._blocks(source, statements)
        queries = self._queries(source, blocks)
        for number, (block, judged) in enumerate(zip(blocks, queries, strict=True), 1):
            fields: dict[str, object] = {
                "id": f"{source}:{number}",
                "prompt": question,
                "statements": [statement.text for statement in block],
                "queries": judged,
            }
            yield SourceRow(f"{self.name}[{source}]", number, fields)

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """The question, its statements, and what every user said of a pair of them."""
        return PreferenceRecord(
            id=row.text("id"),
            prompt=row.text("prompt"),
            responses=tuple(map(Response, row.made("statements", list))),
            comparisons=tuple(
                Comparison(chosen, rejected, user=user)
                for chosen, rejected, user in row.made("queries", list)
            ),
            group=row.text("id"),  # all records share the question; their statements differ
        )

    def _statements(self) -> Iterator[tuple[str, _Statement] | RecordError]:
        """The question that all statements share, with each of them; an error for each that is malformed."""
        question: str | None = None
        for persona, path in enumerate(self.files("train")):
            seen: set[str] = set()

            def parse(
                row: SourceRow, persona: int = persona, seen: set[str] = seen
            ) -> tuple[str, _Statement]:
                nonlocal question
                asked, statement = _parse_statement(row, persona)
                question = asked if question is None else question
                if asked != question:
                    raise RecordError("question", asked, repr(question), reason="another question")
                if statement.text in seen:
                    allowed = "a statement that occurs once in its file"
                    raise RecordError("statement", statement.text, allowed, reason="duplicate statement")
                seen.add(statement.text)
                return question, statement

            yield from parse_rows(read_json_lines(path), parse)

    def _rng(self, source: str, stream: int) -> np.random.Generator:
        return np.random.default_rng([VERSION, self.seed, self.sources.index(source), stream])

    def _blocks(self, source: str, statements: list[_Statement]) -> list[list[_Statement]]:
        """Deal shuffled statements to records, each kind evenly, so that none has more than it may."""
        kinds = [(True,), (True, False)][self.pairs == "agreement"]
        pools = [
            [statement for statement in statements if (statement.persona, statement.agrees) == kind]
            for kind in product(range(len(self.personas)), kinds)
        ]
        most = self.statements_per_record // len(pools)
        blocks: list[list[_Statement]] = [[] for _ in range(-(-max(map(len, pools)) // most))]
        rng = self._rng(source, 0)
        for pool in pools:
            parts = np.array_split(rng.permutation(len(pool)), max(1, len(blocks)))
            for block, part in zip(blocks, parts, strict=False):
                block.extend(pool[i] for i in part.tolist())
        return blocks

    def _queries(self, source: str, blocks: list[list[_Statement]]) -> list[list[tuple[int, int, str]]]:
        """What users say, by record: (preferred, other, user)."""
        count = self.queries_per_user if source == "train" else self.held_out_queries_per_user
        possible = {
            name: [
                (number, first, second)
                for number, block in enumerate(blocks)
                for first, second in self._pairs(block, persona)
            ]
            for persona, name in enumerate(self.personas)
        }
        queries: list[list[tuple[int, int, str]]] = [[] for _ in blocks]
        for user, (name, persona) in enumerate(self.user_groups().items()):
            pairs = possible[persona]
            if len(pairs) < count:
                setting = "queries_per_user" if source == "train" else "held_out_queries_per_user"
                raise ValueError(
                    f"{setting}={count}, but {source} has only {len(pairs)} pairs for persona {persona!r}: ask "
                    "for fewer, or raise statements_per_record"
                )
            # A stream of his own: a user's queries stay when others are added.
            for drawn in self._rng(source, 1 + user).choice(len(pairs), count, replace=False).tolist():
                number, first, second = pairs[drawn]
                queries[number].append((first, second, name))
        return queries

    def _pairs(self, block: list[_Statement], persona: int) -> Iterator[tuple[int, int]]:
        """Pairs of a record that users of ``persona`` may judge; they prefer the first."""
        liked = [i for i, one in enumerate(block) if one.persona == persona and one.agrees]
        if self.pairs == "conflict":
            other = [i for i, one in enumerate(block) if one.persona != persona]
        else:
            other = [i for i, one in enumerate(block) if one.persona == persona and not one.agrees]
        return product(liked, other)


def _parse_statement(row: SourceRow, persona: int) -> tuple[str, _Statement]:
    """The question before the quoted statement, and the statement."""
    statement = text_field("statement", row.get("statement"), blank="empty response")
    question = row.text("question")
    asked = question.rstrip().removesuffix(f'"{statement}"')
    if asked == question.rstrip():
        allowed = "a question that ends with the statement in double quotes"
        raise RecordError("question", question, allowed, reason="another question")
    field = "answer_matching_behavior"
    answer = choice_field(field, row.text(field).strip(), ANSWERS)
    return asked.strip(), _Statement(persona, ANSWERS[answer], statement.strip())
