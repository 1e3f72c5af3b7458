"""README.md of a mixture's folder: how it is loaded, what may be asked of it, what was compared."""

import json
from typing import TYPE_CHECKING

from .card import CardSubject, model_card
from .training import training_record

if TYPE_CHECKING:
    from .mixture import MixtureReport

__all__ = ["mixture_card", "mixture_code"]


def mixture_code(report: "MixtureReport") -> str:
    """Python that loads a folder in plain transformers and has it write.

    Args:
        report: Of the export.
    """
    asked: dict[str, str] = {}
    known = [name for name in report.dimensions if name in report.experts] or list(report.dimensions)
    for name in known:
        asked.setdefault(name.partition(".")[0], name)
    return "\n".join(
        [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'folder = "{report.folder.name}"',
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            "model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()",
            "written = model.generate(",
            '    conversations=[[{"role": "user", "content": "Name a fruit."}]],',
            f"    preferences=[{json.dumps(list(asked.values()), ensure_ascii=False)}],",
            "    max_new_tokens=20,",
            ")",
            "print(tokenizer.decode(written[0], skip_special_tokens=True))",
        ]
    )


def mixture_card(report: "MixtureReport", *, licence: str | None = None) -> str:
    """The model card of a mixture's folder.

    Args:
        report: Of the export.
        licence: Of the weights; None for unknown.
    """
    dimensions = ", ".join(f"`{name}`" for name in report.dimensions) or "none"
    experts = ", ".join(f"`{name}`" for name in report.experts)
    subject = CardSubject(
        folder=report.folder.name,
        method=report.method_class,
        task="text-generation",
        library="transformers",
        bases=report.bases,
        about="A PCM of pluralign: language models that are mixed token by token, with weights that depend on the prompt, on the "
        "preference that is stated, and on the text so far.",
        meaning=f"Experts ({report.kind}): {experts}. What a response may be asked for, of each axis one at most: {dimensions}.",
        code=mixture_code(report),
        tokens="`generate` takes conversations and no tokens, since each expert reads another wording of a prompt, and gives the tokens "
        f"of the responses alone. A response ends with `{report.end_token}`. `trust_remote_code=True` lets "
        "`custom_generate/generate.py` of this folder run, which needs torch, transformers and safetensors. Without it, the network is "
        "the base (or the first expert) alone, and nothing is mixed.",
        check=f"Greedy responses in plain transformers and in pluralign: {report.same} of {report.tried} have the same tokens (weights: "
        f"{', '.join(report.dtypes)}).",
        own_code=True,
        tags=("custom_generate",),
    )
    return model_card(subject, training_record(report.checkpoint), licence=licence)
