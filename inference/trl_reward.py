"""A reward as TRL's trainers call it: ``reward_funcs`` of GRPO, RLOO and the like. Nothing here needs TRL."""

from collections.abc import Mapping, Sequence
from typing import TypeGuard, cast

import torch

from pluralign.datamodules.prompt_batch import Prompt, RewardFunction

__all__ = ["TRLReward"]

Completion = str | Sequence[Mapping[str, object]]
"""Text, or the messages that a policy wrote."""


class TRLReward:
    """A reward function of the collection as one of TRL's ``reward_funcs``.

    TRL calls with keywords alone: ``prompts`` and ``completions``, both as text or as messages, the columns of its data set, and
    more from release to release, which is left aside. Columns of as many values as there are completions, such as ``user``
    and ``domain``, are handed on. A reward that is missing or not finite is an error here: TRL would take it for "does not
    apply", and train on without it. It is a plain callable, for TRL takes a ``Module`` for a network of transformers.

    Attributes:
        reward: The reward function.

    Example:
        >>> from pluralign.inference import TRLReward
        >>> def brevity(prompts, responses, columns):
        ...     return [-float(len(response)) for response in responses]
        >>> reward = TRLReward(brevity)
        >>> reward(prompts=["Name a fruit."], completions=[" A fig."], completion_ids=[[3, 4]])
        [-6.0]
        >>> reward.__name__
        'brevity'
    """

    def __init__(
        self, reward: RewardFunction, *, name: str | None = None, prompt_column: str | None = None
    ) -> None:
        """Keep the function.

        Args:
            reward: Such as a :class:`CheckpointReward`, or a function of one's own.
            name: What TRL's logs call it; the function's own name, or that of its class, by default. Several rewards of one
                trainer need several names.
            prompt_column: Column that holds the prompt as the reward is to see it, where the policy reads it in another
                form, such as a text that its own format has been put around; None for the prompts themselves.
        """
        self.reward, self.prompt_column = reward, prompt_column
        own: str = getattr(reward, "__name__", type(reward).__name__)
        self.__name__ = name or own

    def __call__(
        self, *, prompts: Sequence[Prompt], completions: Sequence[Completion], **others: object
    ) -> list[float]:
        """Rate completions.

        Args:
            prompts: Text, or messages, S of them.
            completions: S texts, or lists of one message of the assistant; white space at their ends is not part of them.
            **others: Columns of S values each, and what else TRL gives.

        Returns:
            S rewards, higher is better.

        Raises:
            ValueError: If a completion is not one text, there is no ``prompt_column``, or a reward is missing or not finite.
        """
        responses = [_text(completion, i) for i, completion in enumerate(completions)]
        columns: dict[str, Sequence[object]] = {}
        for name, values in others.items():
            if _is_column(values, len(responses)) and name != "completion_ids":
                columns[name] = values
        if self.prompt_column is not None and self.prompt_column not in columns:
            raise ValueError(
                f"prompt_column={self.prompt_column!r} is no column of the data set, which has {', '.join(columns) or 'none'}"
            )
        asked = prompts if self.prompt_column is None else cast(Sequence[Prompt], columns[self.prompt_column])
        found = self.reward(asked, responses, columns)
        rewards = found.tolist() if isinstance(found, torch.Tensor) else list(found)
        if len(rewards) != len(responses):
            raise ValueError(f"{self.__name__} gave {len(rewards)} rewards for {len(responses)} completions")
        for i, reward in enumerate(rewards):
            if reward is None or not abs(reward) < float("inf"):
                raise ValueError(
                    f"{self.__name__} gave completion {i} a reward of {reward}, which TRL would take for one that does not apply: "
                    "let it be a finite number"
                )
        return [float(reward) for reward in rewards]


def _is_column(values: object, number: int) -> TypeGuard[Sequence[object]]:
    """Whether a keyword has a value for each completion, and is nothing of the trainer's."""
    return isinstance(values, Sequence) and not isinstance(values, str) and len(values) == number


def _text(completion: Completion, place: int) -> str:
    """What the policy wrote, as text.

    Raises:
        ValueError: If it is more than one message, or not the assistant's, or no text.
    """
    if isinstance(completion, str):
        return completion.strip()
    if len(completion) == 1 and completion[0].get("role") == "assistant":
        content = completion[0].get("content")
        if isinstance(content, str):
            return content.strip()
    raise ValueError(
        f"completion {place} must be text or one message of the assistant with text, got {completion!r:.200}: calls of tools "
        "have no reward"
    )
