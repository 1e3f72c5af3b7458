"""SummarizeFromFeedbackDataModule: which summary of a Reddit post is better, by worker; or by its length.

* Source: https://huggingface.co/datasets/openai/summarize_from_feedback, configuration ``comparisons``
  (Stiennon et al., *Learning to summarize from human feedback*, 2020, https://arxiv.org/abs/2009.01325).
* Licence: "Modified MIT" (feedback and code, https://github.com/openai/summarize-from-feedback); posts CC-BY-4.0.
* Revision: 195fc27ff714b2aff32ab8aba9bbee1d35663700, the hub's conversion to Parquet (its main branch is a script).
* Columns read: ``info`` (``id``, ``post``, ``title``, ``subreddit``, ``article``), ``split``, two ``summaries``
  (``text``, ``policy``), ``choice`` (0 or 1), ``worker``, ``extra.confidence`` (1 to 9, may be missing).
* Split rule: ``split="released"``: rows marked ``train`` are training, ``valid1`` and ``valid2`` test (so does the hub:
  its validation split is our test). With ``labels="choice"`` validation is a share of the training posts, by a hash
  of the post; with ``labels="length"`` it is a tenth of the training rows, stratified by worker, seed 42, so that
  posts are shared. ``split="posts"`` (ours, for single batch files, which are mostly all ``valid1`` and ``valid2``): a
  post goes to training, validation or test (80/10/10) by the SHA-1 of its text.

All rows of a post are one record: the post is scored with each distinct summary once. Posts are told apart by
their text, since some rows have no id. Rows that summarise news articles (CNN/DM) are errors ``news article``, which
``on_invalid="skip"``, the default here, counts.

``labels="choice"``
    The human choices. Confidence is a place on one axis from 1 (the first summary is much better) to 9 (the second
    is); the comparison's strength is its distance from the middle, ``|confidence - 5|``, in 0 to 4, negative should
    a choice contradict it.
``labels="length"``
    The length-heterogeneous variant of PAL (Chen et al., 2024, https://arxiv.org/abs/2406.08469, and
    https://github.com/RamyaLab/pluralistic-alignment at fcfc03c). Kept are rows of which no policy's name contains
    ``ppo`` and both contain ``sup``, by the ten workers with most such training rows. Choices are discarded:
    ranks 4, 5 and 6 (the minority) prefer the summary of fewer characters, the other seven that of more; of equally
    long ones all prefer the second. Departures: workers with equally many rows are ranked by name, and which rows
    are held out is drawn by numpy, not scikit-learn, so that the published sizes (20,969 / 2,330 / 4,921; see
    :meth:`SummarizeFromFeedbackDataModule.verify_sizes`) are met, but not the same rows.
``unseen_workers=True``
    That variant's workers for few-shot fits, beside the ten: those with at least 100 kept rows among the released test
    rows. They are unseen, whatever ``loader.users`` says: ``fit`` and ``test`` leave them out, and ``pluralign adapt``
    fits each to n = 1, 2, 5, ..., 100 rows and measures it on all others. Departures: the same rows are measured
    whatever n, namely those that no n trains on: 100 of a worker's rows, drawn with seed 42, go to the training split
    (of exactly 100, one less); and since the official list of ids is no rule, ranks 4, 5 and 6 of every ten
    workers are the minority, as among the ten: 9 of 31, as in the list.
"""

from collections.abc import Iterator, Mapping
from hashlib import sha1
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

from lightning.pytorch.utilities import rank_zero_info

from ...base import PreferenceDataModule
from ...checks import check_choices
from ...records import (
    PERCENT,
    Comparison,
    DistinctResponses,
    HubDataset,
    PreferenceRecord,
    RecordError,
    SourceRow,
    choice_field,
    hash_split,
    list_field,
    mapping_field,
    parse_rows,
    read_json_lines,
    text_field,
    user_field,
    whole_field,
)
from ...settings import LenientSettings, OnInvalid
from .workers import WorkerGroups, held_out, preferred_length, rank_unseen_workers, rank_workers, shot_rows

__all__ = ["SummarizeFromFeedbackDataModule"]

HUB = HubDataset("openai/summarize_from_feedback", "195fc27ff714b2aff32ab8aba9bbee1d35663700")
FOLDER = "comparisons"
SPLIT_OF_ROW = {"train": "train", "valid1": "test", "valid2": "test"}
PUBLISHED_SIZES = {"train": 20_969, "validation": 2_330, "test": 4_921}
MIDDLE = 5


class _Judgement(NamedTuple):
    """One row: where it is from, the post, two summaries, which one was chosen by whom and how surely."""

    file: str
    line: int
    source: str
    post_id: str | None
    post: str
    title: str | None
    subreddit: str | None
    summaries: tuple[str, str]
    policies: tuple[str, str]
    choice: int
    worker: str
    confidence: int | None


class SummarizeFromFeedbackDataModule(PreferenceDataModule):
    """Pairs of summaries of Reddit posts judged by named workers, or relabelled by length (TL;DR)."""

    name = "summarize_from_feedback"

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        labels: Literal["choice", "length"] = "choice",
        split: Literal["released", "posts"] = "released",
        prompt: Literal["post", "tldr"] = "post",
        unseen_workers: bool = False,
        on_invalid: OnInvalid = "skip",
        **shared: Unpack[LenientSettings],
    ) -> None:
        r"""Choose labels and split; reads nothing.

        Args:
            data_dir: Folder with the batch files (``.json``, one object a line; also ``.gz``), or one that holds
                ``comparisons``; None loads the pinned revision from the Hugging Face hub.
            labels: ``choice`` for the human choices, ``length`` for two groups of workers who differ about length.
            split: ``released`` or ``posts``.
            prompt: ``post``: the post alone. ``tldr``: ``SUBREDDIT: r/...``, ``TITLE: ...``, ``POST: ...`` and
                ``TL;DR:`` as paragraphs.
            unseen_workers: With ``labels="length"`` and ``split="released"``: whether workers outside the ten are there,
                unseen, for ``pluralign adapt``.
            on_invalid: ``error`` or ``skip``; the release has rows about news articles, so ``skip`` by default.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If a setting is not one of its values, or ``unseen_workers`` does not fit the others.

        Example:
            >>> SummarizeFromFeedbackDataModule(labels="length").sources
            ('train', 'validation', 'test')

        .. versionadded:: 0.1
        """
        super().__init__(on_invalid=on_invalid, **shared)
        check_choices(SummarizeFromFeedbackDataModule.__init__, labels=labels, split=split, prompt=prompt)
        if unseen_workers and (labels, split) != ("length", "released"):
            raise ValueError(
                f"unseen_workers needs labels='length' and split='released'; got labels={labels!r}, split={split!r}"
            )
        self.data_dir, self.labels, self.split, self.prompt = data_dir, labels, split, prompt
        self.unseen_workers = unseen_workers
        self._workers: WorkerGroups | None = None
        carved = labels == "choice" and split == "released"
        self.sources = ("train", "test") if carved else ("train", "validation", "test")

    def files(self, source: str) -> list[Path]:
        """Every batch file by name, if they are local; a row says itself which split it is of.

        Raises:
            FileNotFoundError: If there are none.
        """
        if self.data_dir is None:
            return []
        folder = Path(self.data_dir)
        folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
        paths = sorted(path for path in folder.glob("*") if path.name.endswith((".json", ".json.gz")))
        if not paths:
            raise FileNotFoundError(
                f"data_dir={self.data_dir!r} holds no .json or .json.gz files, nor a folder {FOLDER} with some"
            )
        return paths

    def settings(self) -> dict[str, object]:
        """Labels, split rule and prompt, and the pinned revision if the hub is the source."""
        return {
            "hub": HUB.pin(self.data_dir),
            "labels": self.labels,
            "split": self.split,
            "prompt": self.prompt,
            **({"unseen_workers": True} if self.unseen_workers else {}),
        }

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """One row per post; before those of ``train``, an error for each malformed judgement.

        Raises:
            ValueError: If no row is marked as training, or too few workers have rows to form two groups.
        """
        judgements = []
        for item in self._judgements():
            if not isinstance(item, RecordError):
                judgements.append(item)
            elif source == "train":
                yield item
        if self.split == "released" and not any(judgement.source == "train" for judgement in judgements):
            raise ValueError(
                f"data_dir={self.data_dir!r}: no usable row is marked train; use split='posts' to divide them by post"
            )
        if self.labels == "length":
            total = len(judgements)
            judgements, groups = self._relabel(judgements)
            self._workers = groups
            if source == "train":
                rank_zero_info(
                    f"{self.name}: {len(judgements):,} of {total:,} judgements are of two supervised policies by the "
                    f"{len(groups.seen)} workers with most of them"
                    + f", or by {len(groups.unseen)} unseen ones"
                    * self.unseen_workers
                )
        posts: dict[str, list[_Judgement]] = {}
        for judgement in judgements:
            if judgement.source == source:
                posts.setdefault(judgement.post, []).append(judgement)
        for post, rows in posts.items():
            named = next((row.post_id for row in rows if row.post_id is not None), "post")
            fields = {"id": f"{named}-{sha1(post.encode()).hexdigest()[:12]}", "judgements": rows}
            yield SourceRow(rows[0].file, rows[0].line, fields)

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A post, its distinct summaries and every judgement of two of them."""
        judgements: list[_Judgement] = row.made("judgements", list)
        summaries, comparisons = DistinctResponses(), []
        for judgement in judgements:
            first, second = (text.strip() for text in judgement.summaries)
            places = summaries.pair(first, second)
            strength = None
            if judgement.confidence is not None:
                strength = float((judgement.confidence - MIDDLE) * (1 if judgement.choice else -1))
            comparisons.append(
                Comparison(
                    places[judgement.choice],
                    places[1 - judgement.choice],
                    user=judgement.worker,
                    domain=judgement.subreddit,
                    strength=strength,
                )
            )
        return PreferenceRecord(
            id=row.text("id"),
            prompt=self._prompt(judgements[0]),
            responses=tuple(summaries.responses),
            comparisons=tuple(comparisons),
            group=judgements[0].post,
        )

    def user_groups(self) -> dict[str, str]:
        """Group of each worker with ``labels="length"``, by rank; ``minority`` prefers shorter, ``majority`` longer.

        The files are read for it, once.

        Raises:
            ValueError: If there are too few workers.
        """
        groups = self._worker_groups()
        return {**groups.seen, **groups.unseen}

    def held_back_users(self) -> list[str]:
        """The workers that ``unseen_workers`` adds."""
        return list(self._worker_groups().unseen) if self.unseen_workers else []

    def _worker_groups(self) -> WorkerGroups:
        """Read once, unless ``load`` has just done so."""
        if self.labels == "length" and self._workers is None:
            self._workers = self._relabel(
                [item for item in self._judgements() if not isinstance(item, RecordError)]
            )[1]
        return self._workers or WorkerGroups({}, {})

    def verify_sizes(self, sizes: Mapping[str, int] = PUBLISHED_SIZES) -> None:
        """Count the judgements of each split and compare; reads all data, so call it when the full release is there.

        Those of workers whom ``unseen_workers`` adds do not count.

        Args:
            sizes: Expected number of judgements by split; the published ones of the length variant by default.

        Raises:
            ValueError: If a number differs; gives all of them.
        """
        counts, added = dict.fromkeys(sizes, 0), set(self.held_back_users())
        for source in sizes:
            for row in self.load(source):
                if not isinstance(row, RecordError):
                    comparisons = self.to_example(row).comparisons
                    counts[source] += sum(comparison.user not in added for comparison in comparisons)
        if counts != dict(sizes):
            raise ValueError(
                f"labels={self.labels!r}, split={self.split!r}: found {_sizes(counts)} judgements; expected "
                f"{_sizes(sizes)}"
            )

    def _prompt(self, judgement: _Judgement) -> str:
        if self.prompt == "post":
            return judgement.post
        for name, value in (("title", judgement.title), ("subreddit", judgement.subreddit)):
            if value is None:
                raise RecordError(
                    f"info.{name}", value, "a string where prompt='tldr'", reason="missing field"
                )
        return f"SUBREDDIT: r/{judgement.subreddit}\n\nTITLE: {judgement.title}\n\nPOST: {judgement.post}\n\nTL;DR:"

    def _comparison_rows(self) -> Iterator[SourceRow | RecordError]:
        if self.data_dir is None:
            for split in ("train", "validation"):
                yield from HUB.rows(split, data_dir=FOLDER)
        for path in self.files("train"):
            yield from read_json_lines(path)

    def _judgements(self) -> Iterator[_Judgement | RecordError]:
        """Every row in order, or what is wrong with it."""
        posts: dict[str, str] = {}
        for judgement in parse_rows(self._comparison_rows(), _parse_judgement):
            if isinstance(judgement, RecordError):
                yield judgement
                continue
            if self.split == "posts":
                judgement = judgement._replace(source=hash_split(judgement.post, PERCENT))
            # Equal posts share their memory.
            yield judgement._replace(post=posts.setdefault(judgement.post, judgement.post))

    def _relabel(self, judgements: list[_Judgement]) -> tuple[list[_Judgement], WorkerGroups]:
        """Keep the rows of the length variant with its labels and its splits; the groups of their workers."""
        supervised = [
            row
            for row in judgements
            if all("sup" in policy and "ppo" not in policy for policy in row.policies)
        ]
        seen = rank_workers([row.worker for row in supervised if row.source == "train"])
        unseen: dict[str, str] = {}
        if self.unseen_workers:
            unseen = rank_unseen_workers([row.worker for row in supervised if row.source == "test"], seen)
        groups = {**seen, **unseen}
        relabelled = [
            row._replace(choice=preferred_length(row.summaries, groups[row.worker]), confidence=None)
            for row in supervised
            if row.worker in seen or (row.worker in unseen and row.source == "test")
        ]
        if self.split == "released":
            train = [i for i, row in enumerate(relabelled) if row.source == "train"]
            for i in held_out([relabelled[i].worker for i in train]):
                relabelled[train[i]] = relabelled[train[i]]._replace(source="validation")
        few = [i for i, row in enumerate(relabelled) if row.worker in unseen]
        for i in shot_rows([relabelled[i].worker for i in few]):
            relabelled[few[i]] = relabelled[few[i]]._replace(source="train")
        return relabelled, WorkerGroups(seen, unseen)


def _parse_judgement(row: SourceRow) -> _Judgement:
    info = mapping_field("info", row.get("info"))
    if info.get("post") is None and info.get("article") is not None:
        allowed = "a Reddit post; this row is about a news article"
        raise RecordError("info.post", None, allowed, reason="news article")
    post = text_field("info.post", info.get("post"), blank="empty post").strip()
    split = choice_field("split", row.get("split"), SPLIT_OF_ROW)
    texts, policies = [], []
    for i, summary in enumerate(list_field("summaries", row.get("summaries"), 2)):
        field, fields = f"summaries[{i}]", mapping_field(f"summaries[{i}]", summary)
        texts.append(text_field(f"{field}.text", fields.get("text"), blank="empty response"))
        policies.append(text_field(f"{field}.policy", fields.get("policy")))
    confidence = row.get("extra.confidence", optional=True)
    subreddit = _optional(row, "info.subreddit")
    return _Judgement(
        file=row.file,
        line=row.line,
        source=SPLIT_OF_ROW[split],
        post_id=_optional(row, "info.id"),
        post=post,
        title=_optional(row, "info.title"),
        subreddit=None if subreddit is None else subreddit.removeprefix("r/"),
        summaries=(texts[0], texts[1]),
        policies=(policies[0], policies[1]),
        choice=whole_field("choice", row.get("choice"), 0, 1),
        worker=user_field("worker", row.get("worker")),
        confidence=None if confidence is None else whole_field("extra.confidence", confidence, 1, 9),
    )


def _optional(row: SourceRow, field: str) -> str | None:
    value = row.get(field, optional=True)
    return None if value is None else text_field(field, value)


def _sizes(counts: Mapping[str, int]) -> str:
    return " / ".join(f"{count:,} {source}" for source, count in counts.items())
