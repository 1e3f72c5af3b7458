"""Adapters and head as a folder of PEFT, over the family's classification class."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from pluralign.models.exported import ExportedHead

from .base import hub_name
from .body import Body
from .classification import split_class
from .tokenizer_files import ExportedTokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["write_adapter"]

START = "base_model.model."
"""What PEFT puts before the names of what it wraps."""


def write_adapter(
    folder: Path, body: Body, head: ExportedHead, config: "PretrainedConfig", tokenizer: ExportedTokenizer
) -> None:
    """Write an adapter that ``PeftModel.from_pretrained`` puts on the base's classification class, and the head with it.

    Names are those of the whole class's layers: PEFT loads others as no adapter at all, and warns. A base on the hub is named with
    its revision; one that lies in a folder of this machine is not named, and whoever loads the adapter says where theirs lies.

    Args:
        folder: That exists.
        body: Whose adapter.
        head: A linear one.
        config: With labels; it is written, too, since the base's own has neither these nor the pad token.
        tokenizer: As it is written.

    Raises:
        ValueError: If there is no adapter, more than one, no base to load, or no row in the base for the pad token.
    """
    from copy import deepcopy

    from peft import LoraConfig, PeftModel, get_peft_model_state_dict
    from safetensors.torch import save_file

    backbone, wrapper = body.backbone, body.backbone.model
    if not isinstance(wrapper, PeftModel) or len(body.adapters) != 1:
        what = f"has {len(body.adapters)}, one over the other" if body.adapters else "has none"
        raise ValueError(
            f"--adapter writes the one adapter that a reward has, and this one {what}: leave --adapter out, and a whole network is "
            "written"
        )
    if backbone.config.name is None:
        raise ValueError(
            "--adapter: the base has random weights that lie nowhere else (backbone.name is null): leave --adapter out"
        )
    rows = body.rows
    if tokenizer.size > rows:
        raise ValueError(
            f"--adapter: the tokenizer has no pad token but its end token, and the base's {rows} embeddings have no row for a new "
            "one: leave --adapter out, and the whole network is written with that row"
        )
    found = split_class(config)
    assert found is not None  # it was tried
    _, prefix, place = found
    (adapter,) = body.adapters
    state: dict[str, Tensor] = get_peft_model_state_dict(wrapper, adapter_name=adapter)
    settings = deepcopy(wrapper.peft_config[adapter])
    assert isinstance(settings, LoraConfig)  # as lora_settings made it
    settings.task_type, settings.inference_mode, settings.modules_to_save = "SEQ_CLS", True, [place]
    told = hub_name(backbone.config.name)  # of a folder of this machine the path is nobody else's
    settings.base_model_name_or_path, settings.revision = told, backbone.config.revision if told else None
    if isinstance(settings.target_modules, str):  # a pattern of whole names
        settings.target_modules = rf"{re.escape(prefix)}\.(?:{settings.target_modules})"
    tensors = {
        f"{START}{prefix}.{key.removeprefix(START)}": value.detach().float().cpu().contiguous()
        for key, value in state.items()
    }
    (weight,) = head.weights.values()
    tensors[f"{START}{place}.weight"] = weight.detach().float().cpu().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings.save_pretrained(str(folder))
    config.save_pretrained(folder)
