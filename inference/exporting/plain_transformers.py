"""What plain transformers makes of an exported folder. Run as a script, in a process that cannot import this project.

It needs torch, transformers and, for adapters, peft; it reads a request (JSON) and writes an answer (JSON). A folder is loaded
as its card says: with no dtype named, and with each that is asked for.
"""

import json
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["answer", "main"]

PROJECT = "pluralign"


class Refusal(MetaPathFinder):
    """Finds the project nowhere, installed or not."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Refuse the project; others are found by others.

        Raises:
            ModuleNotFoundError: If it is asked for.
        """
        if fullname.partition(".")[0] == PROJECT:
            raise ModuleNotFoundError(f"{PROJECT} cannot be imported here", name=fullname)
        return None


def load(folder: str, *, base: Sequence[str] | None, own_code: bool, dtype: str | None) -> "PreTrainedModel":
    """The model of a folder as somebody loads it who has its card alone.

    Args:
        folder: The exported one.
        base: Of adapters and head: name and revision of what they are put on; None for a whole model.
        own_code: Whether it ships a modelling file.
        dtype: Of the weights; None leaves it to the folder.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    kind: Any = AutoModelForSequenceClassification
    asked = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    if base is None:
        model: PreTrainedModel = kind.from_pretrained(folder, trust_remote_code=own_code, **asked).eval()
        return model
    from peft import PeftModel

    name, revision = base
    config = AutoConfig.from_pretrained(folder)
    network = kind.from_pretrained(name, revision=revision, config=config, **asked)
    adapted: PreTrainedModel = cast("PreTrainedModel", PeftModel.from_pretrained(network, folder).eval())
    return adapted


@torch.no_grad()
def rewards(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[Sequence[int]],
    side: str | None,
) -> list[list[float]]:
    """Logits of texts.

    Args:
        model: Loaded.
        tokenizer: Of the same folder.
        texts: Their tokens.
        side: Where padding stands, in one batch of all; None for each text alone.
    """
    if side is None:
        rows = [model(input_ids=torch.tensor([list(ids)])).logits for ids in texts]
        return [row[0].float().tolist() for row in rows]
    tokenizer.padding_side = side
    batch = tokenizer.pad({"input_ids": [list(ids) for ids in texts]}, return_tensors="pt")
    found: list[list[float]] = (
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float().tolist()
    )
    return found


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Read a folder's tokenizer and model, and say what they make of conversations.

    Args:
        request: ``folder``; ``conversations``, each a list of messages; ``ids``, the tokens that each should be; ``dtypes``, to
            load with, null for none; ``base``, name and revision of what an adapter is put on, null for a whole model; ``own_code``, whether
            the folder ships a modelling file.

    Returns:
        ``ids`` that the tokenizer gives, and ``loads``: for each dtype, but one that came before, the ``dtype`` of the network as it was loaded, and
        rewards ``alone``, and in one batch padded ``right`` and ``left``; ``versions`` of what ran.
    """
    import transformers
    from transformers import AutoTokenizer

    folder = request["folder"]
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=request["own_code"]
    )
    render: Any = tokenizer.apply_chat_template  # its hint leaves out what a dictionary holds
    ids = [list(render(turns, return_dict=True)["input_ids"]) for turns in request["conversations"]]
    loads: list[dict[str, Any]] = []
    for dtype in request["dtypes"]:
        if dtype in [each["dtype"] for each in loads]:  # it came in this one unasked
            continue
        model = load(folder, base=request["base"], own_code=request["own_code"], dtype=dtype)
        ways = {"alone": None, "right": "right", "left": "left"}
        loads.append(
            {"asked": dtype, "dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}
            | {name: rewards(model, tokenizer, request["ids"], side) for name, side in ways.items()}
        )
    versions = {"torch": str(torch.__version__), "transformers": transformers.__version__}
    return {"ids": ids, "loads": loads, "versions": versions}


def main() -> None:
    """Answer the request in the first file into the second."""
    sys.meta_path.insert(0, Refusal())
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(answer(request)), encoding="utf-8")


if __name__ == "__main__":
    main()
