"""DSPDataModule: domain-specific preferences, and the general ones released beside them.

* Source: https://github.com/Linear95/DSP, folder ``data`` (Cheng et al., *Everyone Deserves A Reward: Learning
  Customized Human Preferences*, 2023, https://arxiv.org/abs/2309.03126). Not on the Hugging Face hub.
* Licence: CC-BY-NC-4.0 (data): not for commercial use.
* Revision: commit ec099cf332cfdac0d1b0d644844ba60459144092. Of ``gpt4llm``, whose bytes were not at hand, the schema is that
  of the other general sets, with two or more answers.
* Columns read: of ``domain_specific_preference`` ``query`` and ``responses`` (``academy``, ``business``,
  ``entertainment``, ``literature``, ``normal``); of all others ``text`` (two or more dialogues) and ``score`` (a number
  each, of any size and sign).
* Split rule: ``train`` and ``test`` as released. The release has no development split: validation is carved out of
  ``train`` by a hash of the query (of the first human turn), so that nothing is chosen by its test queries.

A query and its five responses are one record, each response with its ``system``: the domain whose prompt it was written under, or
``normal``, the answer of Alpaca's data. In each domain that domain's response is preferred to each of the four others. The paper's
figure draws the other domains alone as losers, its code has ``normal`` among them: ``losers`` chooses. Over all
domains together these judgements contradict each other pair by pair: a model that does not know the domain can learn
nothing from them. Give it one domain (``domains``), or a method that uses ``domain_id``.

``subset: converted`` reads what the original's ``reward_datasets.py --convert`` makes of it, ``dsp_<domain>_pairs.<split>.json`` or,
without ``--to_pairs``, ``dsp_<domain>.<split>.json``: the same records, of one domain each. Pairs of one preferred text that
follow each other become one record; two losers are compared in neither form. Which loser is the ``normal`` one these files do
not say, so ``losers`` must be ``all``.

Of scored texts every two whose scores differ are a comparison of one record, the greater score first; the difference is its
strength, and each score is its response's ``score``. What is no comparison is counted in the report of the split, under dropped:

* *Ties*, equal scores: 245 of the 901 pairs of WebGPT's test file, so that accuracy is over 656. The original's ranking loss has no
  use for them, but its steps and its imitation loss count them. A row of which every score is tied has nothing to say and is left
  out whole. ``ties: keep`` makes them comparisons of a share of 0.5, which losses for ties learn from; accuracy leaves those out, too.
* *Identical answers* cannot be told apart: 44, 43, 29 and 28 of the 2,644 test pairs of academy, business, entertainment and
  literature, 34, 33, 25 and 24 of the 1,983 without ``normal``. They are dropped when tokenised, as in every data module. The
  best possible accuracy with them, at a half each, would be 99.168, 99.187, 99.452 and 99.470 %.
* *Empty answers* (one ``normal`` in the domain test file; of 4 pairs each of helpful and harmless): their pairs are left out, and
  the other answers of the row stay.

Mind the length: in the domain test file ``normal`` has 57 words on average, the others 121 to 126. Preferring the longer text (in
characters, equal lengths a half) alone is right in 66.0, 60.0, 54.7 and 58.6 % of the pairs of academy, business,
entertainment and literature, against the other domains alone in 57.9, 50.3, 43.5 and 48.3 %.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, groupby
from pathlib import Path
from typing import Literal, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices, check_subset
from ..records import (
    Comparison,
    Message,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    compared,
    find_file,
    is_blank,
    list_field,
    number_field,
    plain_turns,
    read_json_list,
    shared_turns,
    signed_judgement,
    text_field,
)
from ..settings import LenientSettings, OnInvalid
from .hh_rlhf import TURN, parse_dialogue

__all__ = ["DSPDataModule"]

COMMIT = "ec099cf332cfdac0d1b0d644844ba60459144092"
QUERIES = "domain_specific_preference"
NORMAL = "normal"
DOMAINS = ("academy", "business", "entertainment", "literature", NORMAL)
LOSERS = {"all": DOMAINS, "domains": DOMAINS[:-1], "normal": (NORMAL,)}
HASH_TURN = re.compile(r"(?:\A|\n\n)\s*## (Human|Assistant):")
"""What begins a turn in the original's own template; helpful and harmless have Anthropic's."""
EMPTY = "comparison of an empty response"
TIED = "comparison of tied scores, which ties: keep would keep"


class DSPDataModule(PreferenceDataModule):
    """Five responses per query, each preferred in its own domain; or scored texts of the general sets (DSP)."""

    name = "dsp"
    sources = ("train", "test")
    where_to_get = (
        "the data are not on the Hugging Face hub. Get them with `git clone "
        f"https://github.com/Linear95/DSP && git -C DSP checkout {COMMIT}` and give data_dir=DSP/data "
        "(CC-BY-NC-4.0: not for commercial use)"
    )

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        subset: Literal["domain", "converted", "helpful", "harmless", "webgpt", "gpt4llm"] = "domain",
        domains: tuple[str, ...] = DOMAINS,
        losers: Literal["all", "domains", "normal"] = "all",
        ties: Literal["leave_out", "keep"] = "leave_out",
        margins: bool = False,
        on_invalid: OnInvalid = "skip",
        **shared: Unpack[LenientSettings],
    ) -> None:
        """Choose subset, domains and losers; reads nothing.

        Args:
            data_dir: The folder ``data`` of the DSP repository: ``<file>.{train,test}.json`` (also ``.gz``).
            subset: ``domain`` for the domain-specific preferences, ``converted`` for the files that the original makes of
                them, or one of the general sets ``helpful``, ``harmless``, ``webgpt``, ``gpt4llm``.
            domains: Domains whose judgements to use, with ``subset="domain"`` or ``"converted"``. Name one to train a
                model for it, leave one out to test customisation on it.
            losers: Which responses a domain's own is preferred to, with ``subset="domain"``: ``all`` four others, the other
                ``domains`` without ``normal``, or ``normal`` alone. Responses that no judgement needs are not read.
            ties: Whether two texts of equal scores make no comparison (``leave_out``), or one with a share of 0.5 (``keep``).
            margins: Whether the difference of two scores also becomes the required reward gap (scored texts only). It is
                the comparison's strength in any case.
            on_invalid: ``error`` or ``skip``; empty answers are counted, and no error, either way.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing (says where to get the data), a choice is unknown, or no response is left
                to lose.

        Example:
            >>> DSPDataModule(data_dir="DSP/data", domains=("academy",), losers="domains").domains_used
            ('academy',)

        .. versionadded:: 0.1
        """
        super().__init__(on_invalid=on_invalid, **shared)
        check_choices(DSPDataModule.__init__, subset=subset, losers=losers, ties=ties)
        self.domains_used = check_subset("domains", domains, DOMAINS)
        if losers != "all" and subset != "domain":
            raise ValueError(
                f'losers must be all with subset="{subset}", got {losers!r}: only the files of subset="domain" say who wrote a '
                "response"
            )
        if losers == NORMAL and self.domains_used == (NORMAL,):
            raise ValueError(
                "losers must be all or domains where domains is normal alone: nothing is left to lose"
            )
        self.data_dir, self.subset, self.margins = self.need_folder(data_dir), subset, margins
        self.losers, self.ties = losers, ties

    def files(self, source: str) -> list[Path]:
        """The subset's file; of converted ones that of each domain, in the order of ``domains``."""
        folder = Path(self.data_dir)
        if self.subset != "converted":
            name = QUERIES if self.subset == "domain" else self.subset
            return [find_file(folder, f"{name}.{source}.json")]
        return [
            find_file(folder, f"dsp_{domain}_pairs.{source}.json", f"dsp_{domain}.{source}.json")
            for domain in self.domains_used
        ]

    def settings(self) -> dict[str, object]:
        """Subset, domains, losers, ties and use of margins."""
        domains = {"subset": self.subset, "domains": self.domains_used, "losers": self.losers}
        return {**domains, "ties": self.ties, "margins": self.margins}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the subset's files; converted pairs of one preferred text are one row."""
        names = self.domains_used if self.subset == "converted" else (self.subset,)
        for name, path in zip(names, self.files(source), strict=True):
            rows: Iterator[SourceRow | RecordError] = read_json_list(path)
            if self.subset == "converted":
                rows = _joined_pairs(rows)
            for row in rows:
                if isinstance(row, RecordError):
                    yield row
                else:
                    yield row._replace(fields={**row.fields, "id": f"{name}/{source}:{row.line}", "of": name})

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A query with its responses, or scored texts."""
        return self._domain_record(row) if self.subset == "domain" else self._scored_record(row)

    def _domain_record(self, row: SourceRow) -> PreferenceRecord:
        texts = {domain: row.text(f"responses.{domain}").strip() for domain in DOMAINS}
        pairs = [
            (domain, loser)
            for domain in self.domains_used
            for loser in LOSERS[self.losers]
            if loser != domain
        ]
        named = [domain for domain in DOMAINS if any(domain in pair for pair in pairs)]
        answers = {
            domain: Response(texts[domain], system=domain) for domain in named if not is_blank(texts[domain])
        }
        _refuse_nothing("responses", answers)
        kept = [pair for pair in pairs if answers.keys() >= {*pair}]
        places = {domain: place for place, domain in enumerate(answers)}
        return PreferenceRecord(
            id=row.text("id"),
            prompt=row.text("query"),
            responses=tuple(answers.values()),
            comparisons=tuple(
                Comparison(places[domain], places[loser], domain=domain) for domain, loser in kept
            ),
            left_out=+Counter({EMPTY: len(pairs) - len(kept)}),
        )

    def _scored_record(self, row: SourceRow) -> PreferenceRecord:
        given = list_field("text", row.get("text"))
        if len(given) < 2:
            raise RecordError("text", given, "a list of two or more", reason="wrong length")
        scores = [
            number_field(f"score[{i}]", score)
            for i, score in enumerate(list_field("score", row.get("score"), len(given)))
        ]
        prompt, texts = _taken_apart([text_field(f"text[{i}]", text) for i, text in enumerate(given)])
        answers = {i: text for i, text in enumerate(texts) if not is_blank(text)}
        _refuse_nothing("text", answers)
        domain, converted = row.text("of"), self.subset == "converted"
        comparisons, left_out = self._scored_pairs(scores, list(answers), domain)
        best = max(scores)
        # The one best text of a converted row is the domain's own.
        writer = domain if converted and scores.count(best) == 1 else None
        return PreferenceRecord(
            id=row.text("id"),
            prompt=prompt[0].content if converted and len(prompt) == 1 else prompt,
            responses=tuple(
                Response(
                    text,
                    # Where nothing is compared, the scores say nothing either: the record is dropped.
                    score=scores[i] if comparisons else None,
                    system=writer if scores[i] == best else None,
                )
                for i, text in answers.items()
            ),
            comparisons=comparisons,
            group=None if converted else prompt[0].content,
            left_out=left_out,
        )

    def _scored_pairs(
        self, scores: Sequence[float], answers: Sequence[int], domain: str
    ) -> tuple[tuple[Comparison, ...], Counter[str]]:
        """Comparisons of every two scores, among the answers that are not empty, and what is none."""
        comparisons: list[Comparison] = []
        left_out: Counter[str] = Counter()
        for first, second in combinations(range(len(scores)), 2):
            gap = scores[first] - scores[second]
            if gap == 0 and self.subset == "converted":
                continue  # two that are not the domain's: nobody compared them
            if gap == 0 and self.ties == "leave_out":
                left_out[TIED] += 1
            elif not {first, second} <= {*answers}:
                left_out[EMPTY] += 1
            else:
                comparisons.append(
                    compared(
                        answers.index(first),
                        answers.index(second),
                        signed_judgement("score", gap, "first"),
                        domain=domain,
                        margin=abs(gap) if self.margins else None,
                    )
                )
        return tuple(comparisons), left_out


def _refuse_nothing(field: str, answers: object) -> None:
    """Refuse a row of which every answer is empty."""
    if not answers:
        raise RecordError(field, "", "an answer that is not blank", reason="empty response")


def _taken_apart(texts: Sequence[str]) -> tuple[tuple[Message, ...], list[str]]:
    """The turns that all dialogues share, and what each adds to them."""
    dialogues = []
    for i, text in enumerate(map(str.strip, texts)):
        turn = HASH_TURN if HASH_TURN.match(text) else TURN
        dialogues.append(parse_dialogue(f"text[{i}]", text, turn))
    shared = shared_turns(dialogues)
    if not shared:
        allowed = "dialogues that share their first turn"
        raise RecordError("text", texts[0], allowed, reason="no common prompt")
    return tuple(dialogues[0][:shared]), [plain_turns(turns[shared:]) for turns in dialogues]


def _joined_pairs(rows: Iterable[SourceRow | RecordError]) -> Iterator[SourceRow | RecordError]:
    """Neighbouring pairs of one preferred text, which all are of one query, as one list; all other rows as they are."""
    for preferred, group in groupby(rows, key=_preferred):
        if preferred is None:
            yield from group
            continue
        pairs = [row for row in group if isinstance(row, SourceRow)]
        text, score, place = preferred
        others = [[list_field(name, row.get(name))[1 - place] for row in pairs] for name in ("text", "score")]
        yield pairs[0]._replace(fields={"text": [text, *others[0]], "score": [score, *others[1]]})


def _preferred(row: SourceRow | RecordError) -> tuple[str, float, int] | None:
    """Text, score and place of the preferred side of a pair; None of whatever else."""
    if isinstance(row, RecordError):
        return None
    try:
        texts, scores = (list_field(name, row.get(name), 2) for name in ("text", "score"))
        first, second = (number_field("score", score) for score in scores)
        sides = [text_field("text", text) for text in texts]
    except RecordError:  # said where the row is read
        return None
    place = int(second > first)
    return None if first == second else (sides[place], max(first, second), place)
