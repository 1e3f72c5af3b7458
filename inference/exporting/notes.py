"""README.md of an exported folder: how it is loaded, what it gives, which tokens it needs."""

from typing import TYPE_CHECKING

from ..opening import OpenedModel

if TYPE_CHECKING:
    from .folder import ExportReport

__all__ = ["folder_notes", "loading_code"]


def loading_code(report: "ExportReport") -> str:
    """Python that loads a folder in plain transformers and rates a conversation.

    Args:
        report: Of the export.
    """
    own = ", trust_remote_code=True" if report.form == "own_code" else ""
    lines = ["import torch", "from transformers import AutoModelForSequenceClassification, AutoTokenizer"]
    if report.form == "adapter":
        lines[1] = "from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer"
        lines += [
            "from peft import PeftModel",
            "",
            f'folder, base = "{report.folder.name}", "{report.base}"',
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            "config = AutoConfig.from_pretrained(folder)",
            "network = AutoModelForSequenceClassification.from_pretrained(base, config=config, dtype=torch.float32)",
            "model = PeftModel.from_pretrained(network, folder).eval()",
        ]
    else:
        lines += [
            "",
            f'folder = "{report.folder.name}"',
            f"tokenizer = AutoTokenizer.from_pretrained(folder{own})",
            f"model = AutoModelForSequenceClassification.from_pretrained(folder{own}).eval()",
        ]
    lines += [
        'conversation = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "A fig."}]',
        'inputs = tokenizer.apply_chat_template([conversation], return_dict=True, padding=True, return_tensors="pt")',
        "with torch.no_grad():",
        "    print(model(**inputs).logits)",
    ]
    return "\n".join(lines)


def folder_notes(opened: OpenedModel, report: "ExportReport") -> str:
    """What somebody must know who has the folder alone.

    Args:
        opened: The model.
        report: Of the export.
    """
    tokens = (
        "Only differences between responses to one prompt mean something. Render conversations with the chat template of this folder "
        f"and tokenise without adding special tokens: the text ends with `{report.end_token}` exactly once, and the padding token "
        f"is `{report.pad_token}`."
    )
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-classification\n---",
        f"# {report.folder.name}",
        f"A {type(opened.module).__name__} of pluralign. {len(report.outputs)} output(s): {report.meaning}.",
        f"```python\n{loading_code(report)}\n```",
        tokens,
    ]
    return "\n\n".join(parts) + "\n"
