"""Conversations to try an exported folder with, and what this project says of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pluralign.datamodules.records import Message, PreferenceRecord, RecordError, Response
from pluralign.models import PAL

from ..response_rows import AskedResponse
from ..scorer import Scorer
from .choice import Choice
from .parity import Examples

__all__ = ["examples_of"]

PROMPTS: tuple[str | tuple[str, ...], ...] = (
    "Hm?",
    "Please tell me about the lamp .",
    "Name two fruits that grow on trees, and say what they taste of.",
    ("Is the clock old ?", "It is new .", "And the drum, which stands behind the piano in the hall ?"),
)
"""Of one turn, or of several, whose first and last are the user's."""
RESPONSES = (
    "Yes.",
    "No, enough .",
    "It is a lovely small thing, friend, and pretty .",
    (
        "Figs and plums. Figs taste of honey and a little of grass; plums are sour before they are ripe, and sweet and soft when "
        "they are."
    ),
    (
        "The drum is modular, passive and old: isotropic, laminar, quenched. <b>Nothing</b> more can be said of it, 12 of 17 "
        "times (70.6 %)\n\n- cheers\n- thanks"
    ),
)


def examples_of(scorer: Scorer, choice: Choice) -> Examples:
    """Conversations that fit the text format whole, with their tokens and the chosen rewards.

    Args:
        scorer: Of the model, in float32.
        choice: Which of its rewards.

    Raises:
        ValueError: If no two responses to one prompt fit the text format.
    """
    conversations, prompts, ids, rewards = [], [], [], []
    for number, turns in enumerate(PROMPTS):
        asked = _messages(turns)
        fitting = {text: tokens for text in RESPONSES if (tokens := _tokens(scorer, asked, text)) is not None}
        if len(fitting) < 2:
            continue
        rewards.append(_rewards(scorer, choice, asked, [*fitting]))
        for text, tokens in fitting.items():
            conversations.append([*asked, {"role": "assistant", "content": text}])
            prompts.append(number)
            ids.append(tokens)
    if not rewards:
        raise ValueError(
            f"no two of the examples that an exported folder is tried with fit text.max_length={scorer.tokenizer.config.max_length}: "
            "set --check none, and compare rewards yourself"
        )
    return Examples(conversations, prompts, ids, torch.cat(rewards), choice.gives_labels)


def _messages(turns: str | tuple[str, ...]) -> list[dict[str, str]]:
    texts = (turns,) if isinstance(turns, str) else turns
    return [
        {"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)
    ]


def _tokens(scorer: Scorer, asked: list[dict[str, str]], text: str) -> list[int] | None:
    """Tokens of a conversation; None if it does not fit the format whole."""
    prompt = tuple(Message(turn["role"], turn["content"]) for turn in asked)
    (made,) = scorer.tokenizer([PreferenceRecord("example", prompt, (Response(text),), ())])
    if isinstance(made, RecordError) or made.cut or made.responses != [0]:
        return None
    ids: list[int] = made.tokens.tolist()
    return ids


def _rewards(scorer: Scorer, choice: Choice, asked: list[dict[str, str]], texts: list[str]) -> Tensor:
    """What the chosen outputs are to be, (k, outputs) float32."""
    if choice.gives_labels:
        return scorer.labels(asked, texts).probs.log()
    if choice.output in ("members", "basis", "domains"):
        return scorer.members(asked, texts).rewards
    if choice.member is not None:
        basis = scorer.members(asked, texts)
        return basis.rewards[:, [basis.names.index(choice.member)]]
    if choice.users:
        return _group_rewards(scorer, choice.users, asked, texts)
    return scorer.score(asked, texts, user=choice.user, domain=choice.domain).unsqueeze(1)


@torch.no_grad()
def _group_rewards(
    scorer: Scorer, users: Sequence[str], asked: list[dict[str, str]], texts: list[str]
) -> Tensor:
    """What the mean weights of a group give, (k, 1)."""
    module = scorer.module
    assert isinstance(module, PAL)  # or there would be no head of a group's reward
    group = module.user_reward_module(users)
    read = scorer.read([AskedResponse(f"example {i}", asked, text) for i, text in enumerate(texts)])
    rewards = torch.empty(len(texts), 1)
    for places, batch, _ in scorer.outputs(read):
        rewards[places, 0] = group(batch)[batch["request_response"]].cpu()
    return rewards
