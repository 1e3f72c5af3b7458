"""What benchmarks share that need many responses to a prompt: the answers of AlpacaEval, nine to an instruction."""

from functools import cache
from pathlib import Path

from pluralign.datamodules import AlpacaEvalDataModule

__all__ = ["MODELS", "nine_answers"]

MODELS = (
    "alpaca-7b",
    "claude-2.1",
    "falcon-7b-instruct",
    "gemma-2b-it",
    "gpt-3.5-turbo-0301",
    "oasst-sft-pythia-12b",
    "vicuna-7b",
    "wizardlm-13b",
)
"""Whose answers are read beside the baseline's."""
JUDGE = "weighted_alpaca_eval_gpt4_turbo"
"""The one judge who saw all of them."""


@cache
def nine_answers(folder: Path) -> list[tuple[str, list[str]]]:
    """Instructions, each with nine answers: those of :data:`MODELS` and the baseline's.

    Args:
        folder: ``results`` of AlpacaEval's repository.
    """
    answers_to: dict[str, dict[str, str]] = {}
    data = AlpacaEvalDataModule(data_dir=str(folder), models=MODELS, judges=(JUDGE,))
    for split in data.splits:
        for record in data.records(split):
            prompt = record.prompt
            text = prompt if isinstance(prompt, str) else "\n\n".join(turn.content for turn in prompt)
            known = answers_to.setdefault(text, {})
            known |= {str(response.system): response.text for response in record.responses}
    return [(text, list(answers.values())) for text, answers in answers_to.items() if len(answers) == 9]
