"""What `pcm.py` checks beside its runs: that weights follow a bit of the context, and what an epoch on stored rollouts costs."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import lightning as L
import torch
from quiet_runs import adamw
from torch import Tensor, nn

from pluralign.datamodules import PersonalizedPromptsDataModule, TextConfig
from pluralign.datamodules.prompt_batch import Prompt
from pluralign.datamodules.prompts import PromptLoaderConfig
from pluralign.losses import mixture_log_prob
from pluralign.models import PCM, BlackBoxExperts, ExpertsConfig

__all__ = ["epoch_speed", "learnability"]

WORDS = ("friend", "fool")
"""What the two experts always say, whatever they are asked."""
TINY = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def right_word(
    prompts: Sequence[Prompt], responses: Sequence[str], columns: Mapping[str, Sequence[object]]
) -> Tensor:
    """1 where the response is the word that the prompt's bit asks for, 0 elsewhere."""
    wanted = [WORDS["blue" in prompt] for prompt in prompts]
    return torch.tensor([float(word == said.strip()) for word, said in zip(wanted, responses, strict=True)])


def _always(token: int) -> Callable[[list[list[int]]], tuple[Tensor, Tensor]]:
    def say(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
        return torch.full((len(sequences), 1), token), torch.zeros(len(sequences), 1)

    return say


def learnability(folder: Path, seed: int, baseline: str = "none") -> dict[str, float]:
    """Two experts that always say their word, and a reward for the word that a bit of the prompt asks for.

    Args:
        folder: For prompts and rollouts.
        seed: Of network and draws.
        baseline: ``static`` for weights that know nothing of the prompt.

    Returns:
        ``weight`` of the right expert, the smaller one of the two prompts, and the mean ``reward`` to expect.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.jsonl"
    rows = [
        json.dumps({"prompt": f"show me the {kind} lamp ."}) for kind in ("red", "blue") for _ in range(64)
    ]
    prompts.write_text("\n".join(rows), encoding="utf-8")
    loader = PromptLoaderConfig(batch_size=64, seed=seed)
    data = PersonalizedPromptsDataModule(
        train=str(prompts),
        validation=str(prompts),
        axes={},
        text=TextConfig(tokenizer="words"),
        loader=loader,
    )
    data.setup()
    L.seed_everything(seed, verbose=False)
    module = PCM(
        {"config": TINY, "tokenizer": "words"},
        experts=ExpertsConfig(prompts="none"),
        baseline=baseline,  # type: ignore[arg-type]  # one of the two
        rewards={"right": right_word},
        reference="none",
        max_new_tokens=1,
        optimizer=adamw(1e-2),
        rollout_dir=str(folder / f"rollouts-{seed}-{baseline}"),
        seed=seed,
    )
    vocabulary = data.tokenizer.tokenizer
    tokens = [int(vocabulary.convert_tokens_to_ids(word)) for word in WORDS]
    module.experts = BlackBoxExperts(
        {word: _always(token) for word, token in zip(WORDS, tokens, strict=True)}, vocab_size=len(vocabulary)
    )
    trainer = L.Trainer(
        max_epochs=30,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    weights = []
    for batch in data.batches("validation"):
        rollouts = module.respond(batch, num_samples=1)
        right = torch.tensor([int("blue" in prompt) for prompt in batch["prompt"]])
        weights.append(rollouts.token_values["weights"][:, 0].gather(1, right[:, None])[:, 0])
    every = torch.cat(weights)
    return {"weight": float(every.min()), "reward": float(every.mean())}


# Speed -------------------------------------------------------------------------------------------------


def _llama(hidden: int, layers: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
    )
    return LlamaForCausalLM(config)


def epoch_speed(hidden: int = 512, layers: int = 8, rounds: int = 3) -> dict[str, float]:
    """CPU seconds of one pass over stored responses with the numbers that are kept, and with the experts run again.

    Three experts are adapters over a Llama of random weights; the control network is a Llama of two layers. Both ways run it
    forward and backward on 16 responses of 48 tokens to prompts of 32; the second way runs the experts as well, to have the
    log-probabilities that rollouts keep.

    Args:
        hidden: Width of the experts' base.
        layers: Its layers.
        rounds: Of which the median counts.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    names, prompt, length, samples = ("first", "second", "third"), 32, 48, 16
    settings = LoraConfig(r=8, target_modules="all-linear")
    experts = get_peft_model(_llama(hidden, layers), settings, adapter_name=names[0])  # type: ignore[arg-type]  # a pretrained model
    assert isinstance(experts, PeftModel)  # one adapter type
    for name in names[1:]:
        experts.add_adapter(name, settings)
    control, head = _llama(64, 2), nn.Linear(64, len(names))
    experts.eval()
    ids = torch.randint(4096, (samples, prompt + length), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def by_experts() -> Tensor:
        said = []
        for name in names:
            experts.set_adapter(name)
            logits = experts(ids, logits_to_keep=length + 1).logits[:, :-1]
            said.append(logits.log_softmax(-1).gather(2, ids[:, prompt:, None])[..., 0])
        return torch.stack(said, -1)

    def learn(log_prob: Tensor) -> None:
        states = control.model(ids).last_hidden_state[:, prompt - 1 : -1]  # type: ignore[operator, union-attr]  # a network
        mixture_log_prob(head(states), log_prob).sum().backward()

    stored = by_experts()

    def seconds(run: Callable[[], object]) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    learn(stored)
    kept = statistics.median(seconds(lambda: learn(stored)) for _ in range(rounds))
    again = statistics.median(seconds(by_experts) for _ in range(rounds))
    return {"stored_seconds": kept, "experts_seconds": again, "ratio": (kept + again) / kept}
