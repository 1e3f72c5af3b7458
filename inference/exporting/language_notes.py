"""README.md of a language model's folder: how it is loaded, what it is for, which tokens end a text."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .language_model import LanguageModelReport

__all__ = ["language_notes", "writing_code"]


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
            f'base = AutoModelForCausalLM.from_pretrained("{report.base}", dtype=torch.float32)',
            "model = PeftModel.from_pretrained(base, folder).eval()",
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


def language_notes(report: "LanguageModelReport") -> str:
    """What somebody must know who has the folder alone.

    Args:
        report: Of the export.
    """
    library = "transformers" if report.base is None else "peft"
    tokens = (
        "Render conversations with the chat template of this folder and `add_generation_prompt=True`, and tokenise without adding special "
        f"tokens. A response ends with `{report.end_token}`; `{report.pad_token}` pads, on the left."
    )
    measured = (
        f"Logits as plain transformers gives them differ from those of training by {report.difference:.1e} at most (two prompts, padded "
        f"on the left, float32, weights stored as {report.dtype}; the largest is {report.largest_logit:.3g})."
    )
    parts = [
        f"---\nlibrary_name: {library}\npipeline_tag: text-generation\n---",
        f"# {report.folder.name}",
        f"The language model of a {report.method} of pluralign: {report.meaning}.",
        f"```python\n{writing_code(report)}\n```",
        tokens,
        measured,
    ]
    return "\n\n".join(parts) + "\n"
