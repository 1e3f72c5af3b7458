"""Rollouts as a table of Arrow, a line a response, and back."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pluralign.datamodules.prompt_batch import Prompt, PromptBatch

from .ragged import KEPT, list_column, padded
from .samples import Rollouts

__all__ = [
    "ReferenceAnswer",
    "answers_of",
    "are_of_items",
    "reference_table",
    "rollout_table",
    "rollouts_of",
]


@dataclass(frozen=True)
class ReferenceAnswer:
    """What the reference policy answers to an item, and its rewards."""

    text: str
    tokens: tuple[int, ...]
    finished: bool
    rewards: Mapping[str, float]
    """By the name of the reward; float32."""


def rollout_table(step: int, rollouts: Rollouts) -> tuple[Any, dict[str, object]]:
    """A line a response.

    Args:
        step: Round.
        rollouts: On the CPU.

    Returns:
        The table, and what is to be kept of it besides.

    Raises:
        ValueError: If an item has no response, or padding differs.
        TypeError: If a number is of a kind that float32 does not hold exactly.
    """
    import pyarrow as pa

    mask = rollouts.mask
    padding = rollouts.tokens[~mask].unique().tolist()
    if missing := rollouts.num_items - len(rollouts.item.unique()):
        raise ValueError(
            f"rollouts of round {step} have no response to {missing} of {rollouts.num_items} items"
        )
    if len(padding) > 1:
        raise ValueError(f"rollouts of round {step} are padded with tokens {padding}: it must be one")
    columns = {"round": [step] * len(rollouts), **_item_columns(rollouts)}
    columns |= {"response": rollouts.texts, "finished": rollouts.finished.numpy()}
    values = {"tokens": rollouts.tokens, "log_prob": rollouts.log_prob}
    if rollouts.reference_log_prob is not None:
        values["reference_log_prob"] = rollouts.reference_log_prob
    values |= {f"token.{name}": value for name, value in rollouts.token_values.items()}
    columns |= {name: list_column(value, mask) for name, value in values.items()}
    rewards = {} if rollouts.reward is None else {"reward": rollouts.reward}
    rewards |= {f"reward.{name}": value for name, value in rollouts.rewards.items()}
    for name, value in rollouts.reference_rewards.items():
        rewards[f"reference_reward.{name}"] = value[rollouts.item]
    if wrong := sorted(name for name, value in rewards.items() if value.dtype != torch.float32):
        raise TypeError(f"rewards must be float32, got {', '.join(wrong)} of another kind")
    columns |= {name: value.numpy() for name, value in rewards.items()}
    told = {
        name: {"shape": list(value.shape[2:]), "dtype": str(value.dtype).removeprefix("torch.")}
        for name, value in rollouts.token_values.items()
    }
    return pa.table(columns), {"padding": padding[0] if padding else 0, "token_values": told}


def reference_table(answers: Mapping[int, ReferenceAnswer]) -> Any:  # noqa: ANN401  pyarrow has no types
    """A line an answer of the reference."""
    import pyarrow as pa

    names = sorted({name for answer in answers.values() for name in answer.rewards})
    columns: dict[str, object] = {
        "item_key": pa.array(list(answers), pa.int64()),
        "response": pa.array([answer.text for answer in answers.values()], pa.string()),
        "tokens": pa.array([answer.tokens for answer in answers.values()], pa.list_(pa.int32())),
        "finished": pa.array([answer.finished for answer in answers.values()], pa.bool_()),
    }
    for name in names:
        rewards = [answer.rewards.get(name) for answer in answers.values()]
        columns[f"reward.{name}"] = pa.array(rewards, pa.float32())
    return pa.table(columns)


def _item_columns(rollouts: Rollouts) -> dict[str, Any]:
    """What each response's line says of its item, and which of the item's responses it is."""
    import pyarrow as pa

    prompts, items = rollouts.prompts, rollouts.item.tolist()
    counts: Counter[int] = Counter()
    samples = []
    for item in items:
        samples.append(counts[item])
        counts[item] += 1
    preference = prompts.get("preference", [()] * rollouts.num_items)
    return {
        "item": rollouts.item.numpy(),
        "id": [prompts["id"][item] for item in items],
        "item_key": prompts["item_key"].cpu()[rollouts.item].numpy(),
        "prompt": [_prompt_text(prompts["prompt"][item]) for item in items],
        "preference": pa.array([list(preference[item]) for item in items], pa.list_(pa.string())),
        "sample": samples,
    }


def _prompt_text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def _column(table: Any, name: str) -> Tensor:  # noqa: ANN401  pyarrow has no types
    """A column of numbers."""
    return torch.tensor(table.column(name).to_numpy())


def _firsts(item: Tensor, number: int) -> Tensor:
    """The first response to each item, (N,)."""
    return torch.searchsorted(item, torch.arange(number))


def are_of_items(table: Any, prompts: PromptBatch) -> bool:  # noqa: ANN401  pyarrow has no types
    """Whether a file's items are these, in this order."""
    item, keys = _column(table, "item"), prompts["item_key"].cpu()
    if not torch.equal(item.unique(), torch.arange(len(keys))):
        return False
    return torch.equal(_column(table, "item_key"), keys[item])


def rollouts_of(table: Any, told: Mapping[str, Any], prompts: PromptBatch) -> Rollouts:  # noqa: ANN401  pyarrow has no types
    """The rollouts of :func:`rollout_table`, with what was kept of it besides; on the CPU."""
    item, names = _column(table, "item"), table.column_names
    lengths = torch.tensor(table.column("tokens").combine_chunks().value_lengths().to_numpy().astype("int64"))
    first = _firsts(item, len(prompts["id"]))
    by_prefix = {
        prefix: {name.removeprefix(prefix): _column(table, name) for name in names if name.startswith(prefix)}
        for prefix in ("reward.", "reference_reward.")
    }
    reference = "reference_log_prob" in names
    here = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in prompts.items()}
    return Rollouts(
        prompts=cast(PromptBatch, here),
        item=item,
        tokens=padded(table.column("tokens"), lengths, (), padding=told["padding"], dtype=torch.int64),
        lengths=lengths,
        finished=_column(table, "finished"),
        log_prob=padded(table.column("log_prob"), lengths, ()),
        texts=table.column("response").to_pylist(),
        reference_log_prob=padded(table.column("reference_log_prob"), lengths, ()) if reference else None,
        token_values={
            name: padded(table.column(f"token.{name}"), lengths, kind["shape"], dtype=KEPT[kind["dtype"]])
            for name, kind in told["token_values"].items()
        },
        rewards=by_prefix["reward."],
        reference_rewards={name: value[first] for name, value in by_prefix["reference_reward."].items()},
        reward=_column(table, "reward") if "reward" in names else None,
    )


def answers_of(table: Any) -> dict[int, ReferenceAnswer]:  # noqa: ANN401  pyarrow has no types
    """The answers of :func:`reference_table`, by the key of their item."""
    rewards = [name for name in table.column_names if name.startswith("reward.")]
    return {
        line["item_key"]: ReferenceAnswer(
            line["response"],
            tuple(line["tokens"]),
            line["finished"],
            {name.removeprefix("reward."): line[name] for name in rewards if line[name] is not None},
        )
        for line in table.to_pylist()
    }
