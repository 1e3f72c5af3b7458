"""Data of `customized_rm.py`: customised and general preferences, one tokenizer for both, and the test comparisons.

Customised are the five answers to a query of DSP, of which each is preferred in its own domain; general the pairs of
HH-RLHF (helpful-base). Where they are not in the folder, an invented grammar writes files of the same
schema, and table and JSON object say so.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from pluralign.datamodules import (
    DSPDataModule,
    HHRLHFDataModule,
    LoaderConfig,
    MixtureDataModule,
    PreferenceBatch,
    PreferenceDataModule,
    TextConfig,
)
from pluralign.datamodules.records import RecordError
from pluralign.datamodules.settings import LenientSettings
from pluralign.metrics import outcomes

__all__ = [
    "DOMAINS",
    "SETS",
    "Judged",
    "Sources",
    "TestSet",
    "train_tokenizer",
    "write_excerpts",
    "write_stand_in",
]

DOMAINS = ("academy", "business", "entertainment", "literature")
SYSTEMS = (*DOMAINS, "normal")
SETS = ("helpful-base",)
"""General sets, of one taste. With harmless-base beside it a linear head or a tiny network learns neither: what the one prefers
the other rejects (a head trained on either is right about 0.41 of the other)."""
IDENTICAL = "comparison of identical responses"
"""What reports call comparisons that are left out, since nobody can tell the answers apart."""
ALIKE = 0.1
"""Two lengths are alike if they differ by at most this share of the longer one."""
VALIDATION_SHARE = 0.1
PAIRS_PER_QUERY = 4
VOCABULARY = 2048


class TestSet(NamedTuple):
    """Comparisons of a split, P of them over R responses, and the batches that hold these in their order."""

    names: tuple[str, ...]
    """Of the groups."""
    batches: list[PreferenceBatch]
    """Without comparisons: what a model reads."""
    pairs: Tensor
    """(P, 2) int64: responses, the preferred one first."""
    group: Tensor
    """(P,) int64: index into ``names``."""
    against_normal: Tensor
    """(P,) bool: whether the answer that lost was written for no domain."""
    alike: Tensor
    """(P,) bool: whether both are of about the same length in tokens."""
    longer: Tensor
    """(P,) float64: whether the preferred one is the longer one; a half where they are equally long."""
    prompt: Tensor
    """(P,) int64: number of the record."""

    def right(self, rewards: Tensor) -> Tensor:
        """Who is right, (P,) bool; an equal reward is not.

        Args:
            rewards: Of every response, (R,).
        """
        chosen, rejected = rewards[self.pairs].unbind(1)
        return outcomes(chosen - rejected, torch.ones_like(chosen)) == 1

    @property
    def weight(self) -> Tensor:
        """(P,) float64: each group counts equally, whatever its size."""
        return 1 / self.group.bincount().double()[self.group]


def read_set(data: PreferenceDataModule, split: str, groups: Sequence[str]) -> TestSet:
    """Comparisons of a split of such data.

    Args:
        data: With domains.
        split: ``validation`` or ``test``.
        groups: Names of domains that count, in the order of :attr:`TestSet.group`.
    """
    data.setup("validate" if split == "validation" else split)
    names, systems = list(data.names["domain"]), data.names.get("system", ())
    columns: dict[str, list[Tensor]] = {}
    batches: list[PreferenceBatch] = []
    responses = records = 0
    for batch in data.batches(split, shuffle=False):
        kept = [names[i] in groups for i in batch["domain_id"].tolist()]
        pairs = batch["comparisons"][kept]
        lengths = batch["response_length"][pairs].double()
        domain = [groups.index(names[i]) for i in batch["domain_id"][kept].tolist()]
        normal = torch.zeros(len(pairs), dtype=torch.bool)
        if "system_id" in batch:
            normal = batch["system_id"][pairs[:, 1]] == systems.index("normal")
        found = {
            "pairs": pairs + responses,
            "group": torch.tensor(domain, dtype=torch.int64),
            "against_normal": normal,
            "alike": (lengths[:, 0] - lengths[:, 1]).abs() <= ALIKE * lengths.amax(1),
            "longer": (lengths[:, 0] > lengths[:, 1]).double() + 0.5 * (lengths[:, 0] == lengths[:, 1]),
            "prompt": batch["response_prompt"][pairs[:, 0]] + records,
        }
        for name, column in found.items():
            columns.setdefault(name, []).append(column)
        responses, records = responses + len(batch["response_row"]), records + len(batch["id"])
        judged = ("comparisons", "comparison_index", "domain_id", "domains_present", "preference")
        batches.append({name: value for name, value in batch.items() if name not in judged})  # type: ignore[typeddict-item]
    return TestSet(tuple(groups), batches, **{name: torch.cat(parts) for name, parts in columns.items()})


class Judged(NamedTuple):
    """The comparisons that every run is measured on."""

    customized: TestSet
    general: TestSet


class Sources:
    """Where training and test come from, as one way of reading text has them."""

    def __init__(
        self,
        data_dir: Path,
        cache: Path,
        text: TextConfig,
        *,
        features: Path | None = None,
    ) -> None:
        """Name folders; reads nothing.

        Args:
            data_dir: With ``dsp`` and ``hh-rlhf``.
            cache: Of tokens.
            text: How text becomes tokens.
            features: Folder of a feature store; responses are scored alone there.
        """
        self.data_dir, self.cache, self.text, self.features = data_dir, cache, text, features

    def _common(self, batch_size: int, seed: int) -> dict[str, Any]:
        """Settings that are a mixture's where there is one."""
        stored = self.features is not None and self.features.is_dir()
        loader = LoaderConfig(
            batch_size=batch_size,
            max_tokens=None,
            mega_batch=1,  # or batches of like lengths would each be of one source
            seed=seed,
            features=str(self.features) if stored else None,
            items="conversation" if self.features is None else "response",
        )
        return {"text": self.text, "loader": loader, "cache_dir": str(self.cache)}

    def customized(
        self, domains: Sequence[str] = DOMAINS, *, batch_size: int = 16, seed: int = 0
    ) -> DSPDataModule:
        """Queries with the judgements of some domains."""
        return self._queries(domains, **self._common(batch_size, seed))

    def _queries(self, domains: Sequence[str], **common: Unpack[LenientSettings]) -> DSPDataModule:
        return DSPDataModule(
            data_dir=str(self.data_dir / "dsp"),
            domains=tuple(domains),
            validation_share=VALIDATION_SHARE,
            **common,
        )

    def general(self, *, batch_size: int = 32, seed: int = 0) -> HHRLHFDataModule:
        """General pairs."""
        return self._pairs(**self._common(batch_size, seed))

    def _pairs(self, **common: Unpack[LenientSettings]) -> HHRLHFDataModule:
        return HHRLHFDataModule(
            data_dir=str(self.data_dir / "hh-rlhf"),
            subsets=SETS,
            validation_share=VALIDATION_SHARE,
            **common,
        )

    def mixture(
        self, domains: Sequence[str], *, ratio: float, batch_size: int, seed: int = 0
    ) -> MixtureDataModule:
        """Both, with so many general comparisons for each customised one."""
        return MixtureDataModule(
            sources={"customized": self._queries(domains), "general": self._pairs()},
            weights={"customized": 1.0, "general": ratio},
            **self._common(batch_size, seed),
        )

    def ceiling(self, domain: str) -> float:
        """Best possible accuracy of a domain's test comparisons, if those of identical answers counted a half."""
        data = self.customized((domain,))
        data.setup("test")
        report = data.reports["test"]
        same = report.dropped[IDENTICAL]
        return 1 - 0.5 * same / (report.comparisons + same)

    def judged(self, split: str = "test") -> Judged:
        """Comparisons of a split."""
        return Judged(
            read_set(self.customized(batch_size=16), split, DOMAINS),
            read_set(self.general(batch_size=64), split, SETS),
        )


# Files ---------------------------------------------------------------------------------------------------


def write_excerpts(data_dir: Path, folder: Path, words: int) -> None:
    """Write the end of each prompt and the beginning of each response, as files of the same schema.

    Args:
        data_dir: With ``dsp`` and ``hh-rlhf``.
        folder: For the excerpts.
        words: Kept of each text.
    """

    def beginning(text: str) -> str:
        return " ".join(text.split()[:words])

    def end(text: str) -> str:
        return " ".join(text.split()[-words:])

    sources = Sources(data_dir, folder, TextConfig())
    for split in ("train", "test"):
        queries = [
            {
                "query": end(row.text("query")),
                "responses": {
                    name: beginning(text) for name, text in row.fields["responses"].items() if text.strip()
                },
            }
            for row in sources.customized().load(split)
            if not isinstance(row, RecordError)
        ]
        whole = [query for query in queries if len(query["responses"]) == len(SYSTEMS)]
        write_queries(folder, split, whole)
        pairs: dict[str, list[tuple[str, str, str]]] = {name: [] for name in SETS}
        for record in sources.general().given(split):
            assert not isinstance(record.prompt, str)  # dialogues
            first, second = (beginning(response.text) for response in record.responses)
            dialogue = " ".join(turn["content"] for turn in record.prompt)
            pairs[record.judges[0][1] or ""].append((end(dialogue), first, second))
        write_pairs(folder, split, pairs)


def write_queries(folder: Path, split: str, queries: Sequence[Mapping[str, Any]]) -> None:
    """Write the file of a split of DSP."""
    path = folder / "dsp" / f"domain_specific_preference.{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(queries)), encoding="utf-8")


def write_pairs(folder: Path, split: str, pairs: Mapping[str, Sequence[tuple[str, str, str]]]) -> None:
    """Write the files of a split of HH-RLHF from prompt, preferred response and other response."""
    for name, rows in pairs.items():
        path = folder / "hh-rlhf" / name / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps(
                {
                    side: f"\n\nHuman: {prompt}\n\nAssistant: {answer}"
                    for side, answer in (("chosen", chosen), ("rejected", rejected))
                }
            )
            for prompt, chosen, rejected in rows
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_stand_in(folder: Path) -> None:
    """Write files of the same schema from an invented grammar, where the real ones are not at hand.

    Each domain has words of its own; in general a response is liked for kind words and disliked for rude ones. A third of
    the domains' words are rude ones, so that what is learned of a domain is partly at the cost of the general liking.
    """
    random_ = random.Random(0)
    things = [
        a + b for a in ("lor", "mas", "tin", "bel", "kov", "rud") for b in ("an", "ek", "im", "ol", "us")
    ]
    kind, rude = [f"kind{word}" for word in things[:10]], [f"rude{word}" for word in things[:10]]
    own = {
        name: [f"{name[:3]}{word}" for word in things[:12]] + (rude[:6] if i % 2 else [])
        for i, name in enumerate(DOMAINS)
    }
    own["normal"] = things

    def text(words: Sequence[str], share: float) -> str:
        length = random_.randint(12, 30)
        return " ".join(random_.choice(words if random_.random() < share else things) for _ in range(length))

    for split, number in (("train", 384), ("test", 136)):
        queries = [
            {
                "query": f"what of {text(things, 1.0)}?",
                "responses": {name: text(words, 0.15) for name, words in own.items()},
            }
            for _ in range(number)
        ]
        write_queries(folder, split, queries)
        pairs = {
            name: [(f"say {text(things, 1.0)}", text(kind, 0.1), text(rude, 0.1)) for _ in range(2 * number)]
            for name in SETS
        }
        write_pairs(folder, split, pairs)


def train_tokenizer(sources: Sources, folder: Path) -> str:
    """Train a byte-level BPE on the texts of both training splits; the folder that holds it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(sources), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(folder)
    return str(folder)


def _training_texts(sources: Sources) -> Iterator[str]:
    for data in (sources.customized(), sources.general()):
        for record in data.given("train"):
            yield record.prompt if isinstance(record.prompt, str) else record.prompt[-1]["content"]
            yield from (response.text for response in record.responses)
