"""Pools of experts from a configuration, and what tells one expert's files from another's."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pluralign.datamodules.batch import TextFormat

from ..backbone import BackboneConfig, load_model
from .adapter_experts import AdapterExperts
from .adapter_files import adapter_digest
from .experts import ExpertPool, ExpertsConfig
from .model_experts import ModelExperts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_text", "digests", "load_pool"]

ALIKE = 0.9
"""Share of the smaller vocabulary that two tokenizers of one family have in common at least; some add tokens of their own."""


def load_pool(config: ExpertsConfig, base: "PreTrainedModel | None" = None) -> ExpertPool:
    """Load experts, frozen.

    Args:
        config: Which.
        base: The causal network beneath adapters, where ``config.base`` names none; its layers are wrapped in place.

    Returns:
        The pool; its ``digests`` are those of the experts' files.

    Raises:
        ValueError: If no expert is named, adapters have no base, files do not fit, or tokenizers differ.
    """
    pool: ExpertPool
    if config.adapters:
        if config.base is not None:
            if config.base.name is None:
                raise ValueError(
                    "experts.base has no name, so that its weights could not be found again: set experts.base.name"
                )
            base = load_model(replace(config.base, frozen=True), language_head=True)
        if base is None:
            raise ValueError("experts.adapters need a network beneath them: set experts.base")
        pool = AdapterExperts(base, config.adapters, decoding=config.decoding)
    elif config.models:
        _check_tokenizers(config.models)
        networks = {
            expert: load_model(BackboneConfig(name=name, frozen=True), language_head=True)
            for expert, name in config.models.items()
        }
        pool = ModelExperts(networks)
    else:
        raise ValueError("there are no experts: name them in experts.adapters or experts.models")
    pool.digests = digests(config)
    return pool


def digests(config: ExpertsConfig) -> dict[str, str]:
    """What tells each expert's files from others', by its name, and those of their base; of folders a hash of their content.

    Args:
        config: Which experts.

    Raises:
        ValueError: If a folder holds none.
    """
    told = {name: adapter_digest(folder) for name, folder in config.adapters.items()}
    networks = {name: BackboneConfig(name=model) for name, model in config.models.items()}
    for name, network in (networks | ({"experts.base": config.base} if config.base else {})).items():
        identity = network.identity() or {}
        told[name] = identity.get("digest") or f"{identity.get('name')}@{identity.get('revision')}"
    return told


def check_text(networks: Mapping[str, str], text_format: TextFormat) -> None:
    """Refuse networks whose tokenizers number tokens otherwise than that of the data; those without one are not looked at.

    Args:
        networks: Name or folder of a tokenizer, by the setting that it is of.
        text_format: Of the data.

    Raises:
        ValueError: Naming both.
    """
    name, number = str(text_format.get("tokenizer")), text_format.get("vocabulary")
    ours: dict[str, int] | None = None
    for where, network in networks.items():
        if network == name or (theirs := _vocabulary(network)) is None:
            continue
        ours = ours or _vocabulary(name)
        if ours is None:  # a built-in one
            differ = number is not None and number != len(theirs)
        else:
            common = ours.keys() & theirs.keys()
            few = len(common) < ALIKE * min(len(ours), len(theirs))
            differ = few or any(ours[token] != theirs[token] for token in common)
        if differ:
            raise ValueError(
                f"the tokenizers of data.text.tokenizer ({name!r}) and {where} ({network!r}) number tokens differently, and what "
                "the one writes is no text to the other: control network, experts and data need one tokenizer; choose networks "
                "of one family, and set data.text.tokenizer to theirs"
            )


def _vocabulary(name: str) -> dict[str, int] | None:
    """Numbers of a tokenizer's tokens; None where there is none, as in a folder with weights alone."""
    from transformers import AutoTokenizer

    try:
        vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(name).get_vocab()
    except (OSError, ValueError, KeyError):
        return None
    return vocabulary


def _check_tokenizers(models: Mapping[str, str]) -> None:
    """Refuse models whose tokenizers give other numbers; those without a tokenizer are not looked at.

    Raises:
        ValueError: Naming the models.
    """
    known: dict[str, str] = {}
    for expert, name in models.items():
        if (vocabulary := _vocabulary(name)) is not None:
            content = json.dumps(sorted(vocabulary.items()))
            known[expert] = hashlib.sha256(content.encode()).hexdigest()
    if len(set(known.values())) > 1:
        first = next(iter(known))
        other = next(name for name, digest in known.items() if digest != known[first])
        raise ValueError(
            f"experts must have one tokenizer, and {first} ({models[first]!r}) and {other} ({models[other]!r}) number tokens "
            "differently: choose experts.models of one family"
        )
