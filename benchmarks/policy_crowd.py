"""The crowd of `policy.py`: its words as a tokenizer, its prompts and imitated responses, and what it truly thinks of any phrase."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluralign.datamodules import (
    LoaderConfig,
    PersonalizedPromptsDataModule,
    PromptLoaderConfig,
    SyntheticDataModule,
    TextConfig,
)
from pluralign.datamodules.datasets.synthetic.crowd import TOPICS, WORDS, Crowd
from pluralign.models.rollouts import Rollouts

__all__ = ["Truth", "World", "write_tokenizer"]

WORDS_A_PHRASE = 3
SPECIAL = ("<pad>", "<unk>", "</s>", "?")


def write_tokenizer(folder: Path) -> str:
    """A tokenizer with a token for each word of the synthetic data; its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys([*SPECIAL, *WORDS, *TOPICS])
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Truth(NamedTuple):
    """What is true of responses, (S,) each; NaN of one without a word that the crowd knows."""

    utility: Tensor
    """Mean utility over all users, or that of some."""
    harmful: Tensor
    """Share of the population's ratings that are the lowest label."""
    well_formed: Tensor
    """Whether it is as many words as the data's phrases have, and nothing else; 1 or 0."""


@dataclass
class World:
    """One seed's crowd, its data for reward models and for policies.

    Attributes:
        seed: Of the crowd and of its data.
        tokenizer: Folder.
        folder: For files of prompts.
        num_groups: Groups of users.
        disagreement: How far apart the groups' tastes are.
        num_words: Words that phrases are made of.
    """

    seed: int
    tokenizer: str
    folder: Path
    num_groups: int = 3
    disagreement: float = 0.5
    num_words: int = 16

    @property
    def text(self) -> TextConfig:
        """Prompt, a colon's place held by the question mark, response."""
        return TextConfig(
            tokenizer=self.tokenizer, format="plain", prompt_format="{text}", response_format=" {text}"
        )

    def data(self, judgements: str, **settings: object) -> SyntheticDataModule:
        """Judged phrases of the crowd."""
        shared = {
            "num_groups": self.num_groups,
            "disagreement": self.disagreement,
            "num_words": self.num_words,
        }
        sizes = {"num_train": 1024, "num_validation": 16, "num_test": 16, "num_predict": 16}
        return SyntheticDataModule(
            judgements=judgements,
            text=self.text,
            loader=LoaderConfig(max_tokens=None, batch_size=32),
            seed=self.seed,
            **{**shared, **sizes, **settings},
        )

    def prompts(self, num_train: int, num_test: int, batch_size: int) -> PersonalizedPromptsDataModule:
        """Prompts of the same kind, those of validation held out from all training."""
        paths = {}
        generator = np.random.default_rng([self.seed, 77])
        names = generator.permutation(len(TOPICS) ** 2)[: num_train + num_test].tolist()
        lines = [
            json.dumps({"prompt": f"{TOPICS[name % len(TOPICS)]} {TOPICS[name // len(TOPICS)]} ?"})
            for name in names
        ]
        for split, part in (("train", lines[:num_train]), ("validation", lines[num_train:])):
            paths[split] = str(self.folder / f"{split}-{self.seed}.jsonl")
            Path(paths[split]).write_text("\n".join(part) + "\n", encoding="utf-8")
        loader = PromptLoaderConfig(batch_size=batch_size)
        return PersonalizedPromptsDataModule(axes={}, text=self.text, loader=loader, **paths)

    def imitated(self, data: PersonalizedPromptsDataModule, steps: int, batch_size: int) -> list[Rollouts]:
        """Random phrases in answer to training prompts: what the policy is first trained to say."""
        generator = np.random.default_rng([self.seed, 78])
        words = data.tokenizer.tokenizer.convert_tokens_to_ids(WORDS[: self.num_words])
        batches = iter(())
        made = []
        for _ in range(steps):
            batch = next(batches, None)
            if batch is None:
                batches = iter(data.train_dataloader())
                batch = next(batches)
            number = len(batch["id"])
            tokens = torch.tensor(words)[
                torch.from_numpy(generator.integers(self.num_words, size=(number, WORDS_A_PHRASE)))
            ]
            tokens = torch.cat([tokens, torch.full((number, 1), data.end_id)], 1)
            nothing = torch.zeros(tokens.shape)
            made.append(
                Rollouts(
                    prompts=batch,
                    item=torch.arange(number),
                    tokens=tokens,
                    lengths=torch.full((number,), tokens.shape[1]),
                    finished=torch.ones(number, dtype=torch.bool),
                    log_prob=nothing,
                    texts=[""] * number,
                )
            )
        return made

    def truth(self, responses: list[str], point: NDArray[np.float64] | None = None) -> Truth:
        """What the crowd thinks of responses, or a user with this ideal point."""
        crowd = Crowd(self.data("ratings"))
        known = {word: place for place, word in enumerate(WORDS[: self.num_words])}
        utility, harmful, well_formed = [], [], []
        points = crowd.user_points if point is None else point[None]
        for response in responses:
            words = response.split()
            places = [known[word] for word in words if word in known]
            well_formed.append(float(len(words) == len(places) == WORDS_A_PHRASE))
            if not places:
                utility.append(float("nan"))
                harmful.append(float("nan"))
                continue
            liked = crowd.utility(points, crowd.words[places].mean(0), np.zeros(len(points), dtype=np.int64))
            utility.append(float(liked.mean()))
            harmful.append(float(crowd.rating_chances(liked)[:, 0].mean()))
        return Truth(
            *(torch.tensor(values, dtype=torch.float64) for values in (utility, harmful, well_formed))
        )
