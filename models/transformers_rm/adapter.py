"""An adapter of PEFT that is a reward model of its base: what its folder says, and the two made one."""

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from .files import json_file, stored_shapes, stored_weight

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["Adapter", "adapter_base", "adapter_config", "merged", "takes_over"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
START = "base_model.model."
"""What PEFT puts before the names of what it wraps."""


class Adapter(NamedTuple):
    """Where an adapter is."""

    name: str
    """Folder, or name on the hub."""
    revision: str | None = None
    """Of the hub."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its weights by name.

        Raises:
            ValueError: If they are in another form than safetensors, which is not read, or hold no head.
        """
        found = stored_shapes(self.name, WEIGHTS, self.revision)
        if found is None:
            raise ValueError(f"{self.name!r} has no {WEIGHTS}: write the adapter anew with a PEFT that does")
        if not any(map(_is_head, found)):
            raise ValueError(
                f"{self.name!r} is an adapter without a head (score or classifier in modules_to_save): it makes no reward model of "
                "its base"
            )
        return found

    def head(self, key: str) -> Tensor | None:
        """A weight of its head, in the precision that it is stored in; None if it has none of this name."""
        return stored_weight(self.name, f"{START}{key}", self.revision, file=WEIGHTS)


def adapter_base(name: str, revision: str | None) -> tuple[str | None, str | None] | None:
    """The base that an adapter of PEFT is put on, with its revision; None for what is no adapter.

    The base is None where the folder does not name it, such as one of a machine that nobody else knows.
    """
    said = json_file(name, CONFIG, revision)
    return None if said is None else (said.get("base_model_name_or_path") or None, said.get("revision"))


def adapter_config(name: str, revision: str | None) -> dict[str, Any]:
    """The configuration of the network with its head, as `pluralign export` writes it beside an adapter; else empty."""
    return json_file(name, "config.json", revision) or {}


def takes_over(network: "PretrainedConfig", adapter: Adapter, fixed: frozenset[str]) -> None:
    """Give a base's configuration what its adapter says: outputs, and the pad token by which a text's end is found.

    Args:
        network: Of the base; changed in place.
        adapter: Which one.
        fixed: Fields that whoever loads it has set.

    Raises:
        ValueError: If the adapter has no head.
    """
    said = adapter_config(adapter.name, adapter.revision)
    names = said.get("id2label") or {}
    number = said.get("num_labels") or len(names)
    heads = [shape for name, shape in adapter.shapes().items() if _is_head(name)]
    network.num_labels = number or heads[-1][0]
    if names:
        network.id2label = {int(place): str(name) for place, name in names.items()}
    if said.get("pad_token_id") is not None and "pad_token_id" not in fixed:
        network.pad_token_id = network.get_text_config().pad_token_id = said["pad_token_id"]


def merged(model: "PreTrainedModel", adapter: Adapter) -> "PreTrainedModel":
    """The network with an adapter merged into it, and the head that came with it.

    Raises:
        ValueError: If the adapter has no head, or is of other layers.
    """
    from peft import PeftModel

    shapes = adapter.shapes()
    wrapped = PeftModel.from_pretrained(model, adapter.name, revision=adapter.revision)
    present = {
        name.replace(".default.", ".").replace(".modules_to_save.default", "")
        for name in wrapped.state_dict()
    }
    present |= {
        name.removesuffix(".weight") for name in present if ".lora_magnitude_vector." in name
    }  # as files say
    if unknown := sorted(name for name in shapes if "lora_" in name and name not in present):
        raise ValueError(
            f"{adapter.name!r} has weights of layers that the network does not have, such as {unknown[0]}: PEFT would leave them "
            "out. It was saved over another class"
        )
    found: PreTrainedModel = wrapped.merge_and_unload()
    return found


def _is_head(name: str) -> bool:
    parts = name.split(".")
    return parts[-1] == "weight" and ("score" in parts or "classifier" in parts)
