"""README.md of an exported reward: code that loads it, and its model card."""

from typing import TYPE_CHECKING

from ..board import Board
from ..opening import OpenedModel
from .base import base_lines, where_base
from .card import CardSubject, model_card
from .card_parts import table
from .parity import Parity
from .training import training_record

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
            f'folder = "{report.folder.name}"',
            *base_lines(report.base, report.base_revision),
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            "config = AutoConfig.from_pretrained(folder)",
            "network = AutoModelForSequenceClassification.from_pretrained(",
            "    base, revision=revision, config=config, dtype=torch.float32",
            ")",
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


def folder_notes(
    opened: OpenedModel,
    report: "ExportReport",
    *,
    board: Board | None = None,
    name: str | None = None,
    licence: str | None = None,
) -> str:
    """The model card of an exported reward.

    Args:
        opened: The model; of a checkpoint in its run's folder the card says how it was trained.
        report: Of the export.
        board: Of an evaluation, whose numbers go into the card.
        name: Of the model on that board.
        licence: Of the weights; None for unknown.
    """
    chosen = ", ".join(f"{what} {value}" for what, value in report.choice.described().items())
    written = {
        "classification": f"a classification class of transformers (`{report.family}`) computes it",
        "own_code": f"it ships with a modelling file that needs `trust_remote_code=True`: {report.why}",
        "adapter": f"adapter and head alone, put on the base by PEFT{where_base(report.base)}",
    }[report.form]
    limit = "" if report.max_length is None else f" Texts are at most {report.max_length} tokens long."
    pad = " (added by the export)" if report.pad_added else ""
    subject = CardSubject(
        folder=report.folder.name,
        method=type(opened.module),
        task="text-classification",
        library="peft" if report.form == "adapter" else "transformers",
        bases=() if report.base is None else (report.base,),
        about=f"A reward model: {type(opened.module).__name__} of pluralign. In this folder {written}. "
        f"Weights are stored as {report.dtype}.",
        meaning=f"Output{'s' if len(report.outputs) > 1 else ''}: {', '.join(f'`{each}`' for each in report.outputs)}. Each "
        f"logit is {report.meaning}.\nChosen at the export: {chosen or 'nothing, so the reward that the method gives when nobody is named'}.\n"
        "Only differences between responses to one prompt mean something.",
        code=loading_code(report),
        tokens="Render conversations with the chat template of this folder and tokenise without adding special tokens: the text ends "
        f"with `{report.end_token}` as the template has it, and the padding token is `{report.pad_token}`{pad}, which is never the end "
        f"token.{limit}",
        check=_check(report.parity),
        own_code=report.form == "own_code",
        tags=("reward-model",),
    )
    return model_card(subject, training_record(opened.place), board=board, name=name, licence=licence)


def _check(parity: Parity | None) -> str:
    """What plain transformers made of the folder, as a table."""
    if parity is None:
        return "Not measured: the folder was exported with `--check none`."
    where = "a process in which pluralign cannot be imported" if parity.apart else "the process of the export"
    rows = [
        [
            "none" if load.asked is None else load.asked,
            load.dtype,
            *(f"{load.differences[way]:.1e}" for way in ("alone", "right", "left")),
            f"{load.same_order:.1%}",
        ]
        for load in parity.loads
    ]
    columns = [
        "dtype asked for",
        "network",
        "alone",
        "padded right",
        "padded left",
        "pairs in the same order",
    ]
    versions = ", ".join(f"{name} {version}" for name, version in parity.versions.items())
    return (
        f"Largest difference from the rewards of pluralign in float32, over {parity.conversations} conversations, rewards up to "
        f"{parity.largest_reward:.3g}; {parity.equal_tokens} of them have the tokens of training. Measured in {where} ({versions}).\n\n"
        + table(columns, rows)
    )
