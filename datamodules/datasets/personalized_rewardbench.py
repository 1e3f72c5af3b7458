"""PersonalizedRewardBenchDataModule: answers that do and do not suit the person who asked (Personalized RewardBench).

* Source: https://huggingface.co/datasets/QiyaoMa/Personalized-RewardBench, split ``test`` (Ma et al., *Personalized RewardBench: Evaluating
  Reward Models with Human Aligned Personalization*, 2026, https://arxiv.org/abs/2604.07343); schema and rule as in
  Martin-qyma/Personalized-RewardBench at a5c6814d2273.
* Licence: see the card of the data set, which was not at hand.
* Revision: none is known here; give ``revision``, a commit of the hub's data set, or ``data_dir``.
* Columns read: ``id``, ``question``, ``chosen``, ``rejected`` and, where asked for, ``profile`` (``category`` and ``text`` of what the person asked
  before). ``rubric_aspects`` and ``narrative``, from which the answers were made, are never read: they would give the answer away.
* Split rule: all of it is the test split.

A row is a record of two responses and one comparison, whose domain is the subset. There are no users: every row is a person of
its own. With ``profile_posts`` the person's earlier posts stand before the question, in the form of the release's prompts, so that a
model can know who asks; without them, as in the release's own script for reward models, it sees the question alone.

**Official score** (:func:`official_scores`): the share of rows, of each subset, in which the chosen answer has the greater reward. Ties are
counted apart (``SUBSET ties``) and are no wins. ``average`` is the mean of the three subsets, where all were run: our reading, for the
script scores one subset at a time. It cuts texts at 8,192 tokens, which ``text.max_length`` and ``text.truncation`` decide here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

from ..base import PreferenceDataModule
from ..checks import check_range, check_subset
from ..official import OfficialScores, mean_by_name, pair_items, pair_results
from ..records import (
    Comparison,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    list_field,
    mapping_field,
    name_field,
    text_field,
)
from ..settings import SharedSettings
from .parts import find_parts, pinned_dataset, read_parts

__all__ = ["PersonalizedRewardBenchDataModule"]

HUB = "QiyaoMa/Personalized-RewardBench"
SUBSETS = ("Art_and_Entertainment", "Lifestyle_and_Personal_Development", "Society_and_Culture")
COLUMNS = ("id", "question", "chosen", "rejected")
RULE = "Personalized RewardBench: share of wins, ties apart (Martin-qyma/Personalized-RewardBench at a5c6814d2273)"


class PersonalizedRewardBenchDataModule(PreferenceDataModule):
    """Answers that suit the person who asked, against equally good ones that do not (Personalized RewardBench)."""

    name = "personalized_rewardbench"
    sources = ("test",)
    where_to_get = (
        "get the files with `curl -LO https://huggingface.co/datasets/QiyaoMa/Personalized-RewardBench/resolve/COMMIT/"
        "Society_and_Culture/test-00000-of-00001.parquet`, each into a folder named like its subset, and give data_dir=FOLDER; or give "
        "revision=COMMIT"
    )

    def __init__(
        self,
        *,
        subsets: tuple[str, ...] = SUBSETS,
        profile_posts: int = 0,
        data_dir: str | None = None,
        revision: str | None = None,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Choose subsets, context and source; reads nothing.

        Args:
            subsets: Which to read: ``Art_and_Entertainment``, ``Lifestyle_and_Personal_Development``, ``Society_and_Culture``.
            profile_posts: How many of the person's earlier posts, >= 0, stand before the question; 0 for the question alone.
            data_dir: Folder with a folder for each subset in use: ``test*.parquet`` or ``test*.jsonl`` (also ``.gz``).
            revision: Commit of the data set on the Hugging Face hub to read, where ``data_dir`` is None.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If neither ``data_dir`` nor ``revision`` is given, or both are (says where to get the data), or a setting
                is unknown or off range.

        Example:
            >>> PersonalizedRewardBenchDataModule(data_dir="bench", profile_posts=5).profile_posts
            5

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        check_range("profile_posts", profile_posts, at_least=0)
        self.subsets, self.profile_posts = check_subset("subsets", subsets, SUBSETS), profile_posts
        self.hub = pinned_dataset(HUB, revision, data_dir)
        self.data_dir = None if self.hub else self.need_folder(data_dir)

    def files(self, source: str) -> list[Path]:
        """Files of the subsets in use, if local."""
        return [path for subset in self.subsets for path in self._files(subset)]

    def _files(self, subset: str) -> list[Path]:
        if self.data_dir is None:
            return []
        return find_parts(Path(self.data_dir) / subset, "test*.parquet", "test*.jsonl", "test*.jsonl.gz")

    def settings(self) -> dict[str, object]:
        """Subsets and number of posts, and the revision if the hub is the source."""
        hub = None if self.hub is None else self.hub.pin(None)
        return {"hub": hub, "subsets": self.subsets, "profile_posts": self.profile_posts}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the subsets in use, without the columns that would give the answer away."""
        columns = (*COLUMNS, "profile") if self.profile_posts else COLUMNS
        for subset in self.subsets:
            local = self.hub is None
            rows = read_parts(self._files(subset), columns) if local else self._hub_rows(subset)
            for row in rows:
                if isinstance(row, RecordError):
                    yield row
                else:
                    read = {name: row.fields[name] for name in columns if name in row.fields}
                    yield row._replace(fields={**read, "subset": subset})

    def _hub_rows(self, subset: str) -> Iterator[SourceRow | RecordError]:
        return iter(()) if self.hub is None else self.hub.rows("test", configuration=subset)

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A question, with what its author asked before where that is wanted, and two answers."""
        subset, question = row.text("subset"), row.text("question")
        posts = _posts(row.get("profile"), self.profile_posts) if self.profile_posts else []
        return PreferenceRecord(
            id=f"{subset}:{name_field('id', row.get('id'))}",
            prompt="\n".join(posts) + f"\n\n{question}" if posts else question,
            responses=(Response(row.text("chosen")), Response(row.text("rejected"))),
            comparisons=(Comparison(0, 1, domain=subset),),
        )

    def official_scores(
        self, records: Sequence[PreferenceRecord], rewards: Sequence[Sequence[float]]
    ) -> OfficialScores:
        """Share of wins of each subset that was run and, of all three, their mean; shares of ties by subset."""
        results = pair_results(records, rewards)
        parts = [result.part for result in results]
        numbers = mean_by_name(parts, [result.right for result in results])
        if len(numbers) == len(SUBSETS):
            numbers["average"] = sum(numbers.values()) / len(numbers)
        ties = mean_by_name(parts, [result.tied for result in results])
        numbers |= {f"{subset} ties": share for subset, share in ties.items()}
        return OfficialScores(numbers, pair_items(results), RULE)


def _posts(value: object, number: int) -> list[str]:
    posts = []
    for i, entry in enumerate(list_field("profile", value, empty=True)[:number]):
        post = mapping_field(f"profile[{i}]", entry)
        category, text = (text_field(f"profile[{i}].{name}", post.get(name)) for name in ("category", "text"))
        posts.append(f"Post {i + 1} (Category: {category}):\n{text}")
    return posts
