"""README.md of a mixture's folder: how it is loaded, what may be asked of it, what was compared."""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .mixture import MixtureReport

__all__ = ["mixture_code", "mixture_notes"]


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


def mixture_notes(report: "MixtureReport") -> str:
    """What somebody must know who has the folder alone.

    Args:
        report: Of the export.
    """
    dimensions = ", ".join(f"`{name}`" for name in report.dimensions) or "none"
    experts = ", ".join(f"`{name}`" for name in report.experts)
    what = (
        "A PCM of pluralign: language models that are mixed token by token, with weights that depend on the prompt, on the preference "
        "that is stated, and on the text so far."
    )
    trust = (
        "`trust_remote_code=True` lets `custom_generate/generate.py` of this folder run, which needs torch, transformers and "
        "safetensors: read it first. Without it, the network is the base (or the first expert) alone, and nothing is mixed."
    )
    asked = (
        f"Experts ({report.kind}): {experts}. What a response may be asked for, of each axis one at most: {dimensions}. `generate` gives "
        "the tokens of the responses alone. It takes conversations and no tokens, since each expert reads another wording of a prompt. "
        f"A response ends with `{report.end_token}`."
    )
    measured = (
        f"Greedy responses in plain transformers and in pluralign: {report.same} of {report.tried} have the same tokens (weights: "
        f"{', '.join(report.dtypes)}). Quality: not measured here."
    )
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- custom_generate\n---",
        f"# {report.folder.name}",
        what,
        f"```python\n{mixture_code(report)}\n```",
        trust,
        asked,
        measured,
    ]
    return "\n\n".join(parts) + "\n"
