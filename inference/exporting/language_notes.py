"""README.md of a language model's folder: code that loads it, and its model card."""

from typing import TYPE_CHECKING

from .base import base_lines, where_base
from .card import CardSubject, model_card
from .training import training_record

if TYPE_CHECKING:
    from .language_model import LanguageModelReport

__all__ = ["language_card", "writing_code"]


def writing_code(report: "LanguageModelReport") -> str:
    """Python that loads a folder in plain transformers and has it write.

    Args:
        report: Of the export.
    """
    lines = ["import torch", "from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if report.base is None:
        load = ["model = AutoModelForCausalLM.from_pretrained(folder).eval()"]
    else:
        lines.append("from peft import PeftModel")
        load = [
            *base_lines(report.base, report.base_revision),
            "network = AutoModelForCausalLM.from_pretrained(base, revision=revision, dtype=torch.float32)",
            "model = PeftModel.from_pretrained(network, folder).eval()",
        ]
    return "\n".join(
        [
            *lines,
            "",
            f'folder = "{report.folder.name}"',
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            *load,
            'conversation = [{"role": "user", "content": "Name a fruit."}]',
            "inputs = tokenizer.apply_chat_template(",
            '    [conversation], add_generation_prompt=True, return_dict=True, padding=True, return_tensors="pt"',
            ")",
            "end = tokenizer.convert_tokens_to_ids(" + repr(report.end_token) + ")",
            "written = model.generate(",
            "    **inputs, do_sample=False, max_new_tokens=20, eos_token_id=end, pad_token_id=tokenizer.pad_token_id",
            ")",
            'print(tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    )


def language_card(report: "LanguageModelReport", *, licence: str | None = None) -> str:
    """The model card of a language model's folder.

    Args:
        report: Of the export.
        licence: Of the weights; None for unknown.
    """
    alone = "" if report.base is None else f" The folder holds the adapter alone{where_base(report.base)}."
    subject = CardSubject(
        folder=report.folder.name,
        method=report.method_class,
        task="text-generation",
        library="transformers" if report.base is None else "peft",
        bases=() if report.trained_from is None else (report.trained_from,),
        about=f"The language model of a {report.method} of pluralign. Weights are stored as {report.dtype}.{alone}",
        meaning=f"What it does: {report.meaning}.",
        code=writing_code(report),
        tokens="Render conversations with the chat template of this folder and `add_generation_prompt=True`, and tokenise without adding "
        f"special tokens. A response ends with `{report.end_token}`; `{report.pad_token}` pads, on the left.",
        check=f"Logits as plain transformers gives them differ from those of training by {report.difference:.1e} at most (two prompts, "
        f"padded on the left, loaded in float32, weights stored as {report.dtype}; the largest logit is {report.largest_logit:.3g}).",
    )
    return model_card(subject, training_record(report.checkpoint), licence=licence)
