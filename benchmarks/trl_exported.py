"""A policy of TRL's tuned on an exported reward model, in a process that cannot import this project.

The folder is handed to GRPO or RLOO as its name alone (``reward_funcs=folder``): TRL loads it by plain transformers, with its tokenizer
and its chat template. A tiny policy that writes letters is tuned; printed as JSON are mean rewards at the beginning and at the end, what
was written, and every reward as TRL computed it, for whoever wants to compute them again. It needs ``pip install "pluralign[trl]"``.

    python benchmarks/trl_exported.py FOLDER --method grpo --steps 30
"""

import argparse
import json
import sys
import tempfile
from typing import TYPE_CHECKING

sys.modules["pluralign"] = None  # type: ignore[assignment]  # whatever is installed here, importing it is an error

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LONGEST = 8
CHAT = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def policy() -> tuple["LlamaForCausalLM", "PreTrainedTokenizerFast"]:
    """A language model of nothing but letters, and its tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    symbols = ["<pad>", "</s>", " ", *"abcdefghijklmnopqrstuvwxyz"]
    core = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token=" "))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")
    tokenizer.chat_template = CHAT
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(symbols), pad_token_id=0, bos_token_id=None, eos_token_id=1, **sizes)
    return LlamaForCausalLM(config), tokenizer


def main() -> None:
    """Tune, and say what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", help="that `pluralign export` wrote")
    parser.add_argument("--method", choices=("grpo", "rloo"), default="grpo")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--trust_remote_code", action="store_true", help="of a folder with code of its own")
    options = parser.parse_args()
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    set_seed(0)
    make, kind = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}[options.method]
    network, tokenizer = policy()
    with tempfile.TemporaryDirectory() as scratch:
        settings = make(
            output_dir=scratch,
            max_steps=options.steps,
            per_device_train_batch_size=32,
            num_generations=8,
            max_completion_length=LONGEST,
            learning_rate=3e-3,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            beta=0.0,
            seed=0,
            disable_tqdm=True,
            gradient_checkpointing=False,
            trust_remote_code=options.trust_remote_code,
        )
        row = {"prompt": [{"role": "user", "content": "write"}]}
        trainer = kind(
            model=network,
            reward_funcs=options.folder,
            args=settings,
            train_dataset=Dataset.from_list([row] * 64),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    (name,) = trainer._logs["rewards"]
    means = [
        entry[f"rewards/{name}/mean"]
        for entry in trainer.state.log_history
        if f"rewards/{name}/mean" in entry
    ]
    tenth = max(1, len(means) // 10)
    result = {
        "method": options.method,
        "first": sum(means[:tenth]) / tenth,
        "last": sum(means[-tenth:]) / tenth,
        "completions": list(trainer._logs["completion"]),
        "rewards": [float(reward) for reward in trainer._logs["rewards"][name]],
        "class": type(trainer.reward_funcs[0]).__name__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
