"""A policy, an expert or an autoregressive reward model as a folder of a causal language model, tried before it takes its place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pluralign import __version__
from pluralign.datamodules import TextConfig
from pluralign.datamodules.checks import check_choices
from pluralign.datamodules.tokens import PromptTokenizer, RecordTokenizer
from pluralign.models import PCM, AutoregressiveRM, BaseModule, PolicyTuner, restored_module
from pluralign.models.restored import checkpoint_content

from .base import base_facts, leave_out_path, refuse_own_class
from .body import OWN_ADAPTER, Body, in_float32, merged_weights
from .chat_template import exported_template
from .classification import Dtype, stored
from .language_notes import language_card
from .tokenizer_files import plain_copy
from .training import told_format
from .whole_folder import MARK, check_target, folder_written_whole

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TRIED", "LanguageModelReport", "export_language_model", "write_causal", "writing_tokenizer"]

TOLERANCE = 1e-5
"""Largest difference of logits in float32, relative to the largest one where that is above 1."""
TRIED = ("Name a fruit.", "What is the sea like in winter, and who would swim in it?")
"""Prompts that a folder is tried with, alone and padded."""


class LanguageModelReport(NamedTuple):
    """What was written."""

    folder: Path
    method: str
    """Name of the module's class."""
    method_class: type[BaseModule]
    checkpoint: Path
    """Where it was read from."""
    trained_from: str | None
    """Base of the network; None if it had random weights."""
    meaning: str
    """What the language model is for."""
    base: str | None
    """What adapters are put on, name or path; None for a whole model."""
    base_revision: str | None
    """Branch, tag or commit of a base on the hub."""
    dtype: Dtype
    pad_token: str
    end_token: str
    difference: float
    """Largest difference of next-token logits, this project's and plain transformers', in float32."""
    largest_logit: float
    """The largest of them, to compare with."""


def export_language_model(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    adapter: bool = False,
    dtype: Dtype = "float32",
    class_path: str | None = None,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    notes: Callable[[LanguageModelReport], str] = language_card,
) -> LanguageModelReport:
    """Write what a checkpoint has trained as a folder for ``AutoModelForCausalLM``, with tokenizer, chat template and what ends a text.

    Args:
        checkpoint: Of :class:`PolicyTuner`, :class:`AutoregressiveRM` or another module with one language model.
        folder: To be written.
        adapter: Write the adapter alone, as PEFT loads it over the base; else it is merged in float32.
        dtype: Of a whole model's weights. What is tried is float32; another dtype rounds the weights once, when they are written.
        class_path: The module's class, where it is not the collection's.
        tokenizer: Where the tokenizer lies now, if not where it was in training.
        trust_remote_code: Whether code that ships with the base or the tokenizer may run.
        overwrite: Replace a folder that an export wrote.
        notes: Writes README.md.

    Returns:
        What was written, and how far plain transformers' logits are from this project's.

    Raises:
        FileExistsError: If there is something that is not to be replaced.
        OSError: If the disk is full, or the like; what was there stays as it was.
        RuntimeError: If plain transformers gives other logits.
        TypeError: If the module's text is not written by one language model.
        ValueError: If it has no language model, or settings do not go together.
    """
    check_choices(export_language_model, dtype=dtype)
    target = Path(folder)
    check_target(target, overwrite=overwrite, source=str(checkpoint))
    content = checkpoint_content(checkpoint)
    module = restored_module(checkpoint, class_path=class_path, trust_remote_code=trust_remote_code)
    meaning = _meaning(module)
    if not module.text_format:
        raise ValueError(
            f"{checkpoint} keeps no text format: it was trained without a data module of this collection, and a folder needs its tokenizer"
        )
    backbone = module.language_backbone()
    if backbone.config.quantization is not None:
        raise ValueError(
            f"backbone.quantization={backbone.config.quantization!r}: weights of few bits are not written; export with the base whole"
        )
    if adapter and backbone.config.lora is None:
        raise ValueError("--adapter: the model was trained whole, without an adapter; leave --adapter out")
    refuse_own_class(backbone.language_model().config)
    text = TextConfig.of_format(module.text_format, tokenizer=tokenizer, trust_remote_code=trust_remote_code)
    records = RecordTokenizer(text)
    made, prompts = writing_tokenizer(records), PromptTokenizer(records)
    with folder_written_whole(target) as part, in_float32(module), torch.no_grad():
        adapters = () if backbone.config.lora is None else (OWN_ADAPTER,)
        body = Body(backbone, backbone.language_model(), adapters, None)
        expected = _logits(body.network, made)
        if adapter:
            module.save_language_model(part)
            leave_out_path(part)
        else:
            weights = merged_weights(body.network, body.adapters)
            ids = {"end_id": prompts.end_id, "pad_id": prompts.pad_id}
            write_causal(part, weights, body.network.config, dtype, **ids)
        made.save_pretrained(str(part))
        difference, largest = _difference(part, body, expected, made, adapter=adapter)
        rounded = not adapter and dtype != "float32"
        if not rounded and not difference <= TOLERANCE * max(1.0, largest):
            raise RuntimeError(
                f"{target} was not written: plain transformers gives logits that differ by {difference:.1e} in float32"
            )
        report = LanguageModelReport(
            folder=target,
            method=type(module).__name__,
            method_class=type(module),
            checkpoint=Path(checkpoint),
            trained_from=backbone.config.name,
            meaning=meaning,
            base=str(backbone.config.name) if adapter else None,
            base_revision=backbone.config.revision,
            dtype=dtype,
            pad_token=str(made.pad_token),
            end_token=str(records.tokenizer.convert_ids_to_tokens(prompts.end_id)),
            difference=difference,
            largest_logit=largest,
        )
        facts = json.dumps(_facts(report, module, content), indent=2, ensure_ascii=False, allow_nan=False)
        (part / MARK).write_text(facts + "\n", encoding="utf-8")
        (part / "README.md").write_text(notes(report), encoding="utf-8")
    return report


def _meaning(module: BaseModule) -> str:
    """What the language model is for.

    Raises:
        TypeError: If the module writes with several.
        ValueError: If what it does is more than its language model.
    """
    if isinstance(module, PCM):
        raise TypeError(
            "PCM mixes several language models token by token, and this is a folder of one: use export_mixture"
        )
    if isinstance(module, PolicyTuner) and module.baseline == "best_of_n":
        raise ValueError(
            "baseline='best_of_n' has trained nothing: it draws from the base and chooses by its rewards, which a language model's folder "
            "cannot hold; use `pluralign generate`"
        )
    if isinstance(module, AutoregressiveRM):
        rating = "mean" if module.length_normalised else "sum"
        return (
            f"the {rating} of the log-probabilities of a response's tokens, the end token among them, is the response's reward; it guides "
            f"another model by log p + log p_reward / {module.beta:g}, token by token"
        )
    return "it writes responses"


def writing_tokenizer(records: RecordTokenizer) -> "PreTrainedTokenizerBase":
    """The tokenizer of training, made ready to write with: padding on the left, by a token that the network has a row for.

    Args:
        records: What made tokens in training.
    """
    made = plain_copy(records)
    made.pad_token = made.convert_ids_to_tokens(PromptTokenizer(records).pad_id)
    made.chat_template = exported_template(records)
    made.padding_side = made.truncation_side = "left"
    made.model_input_names = ["input_ids", "attention_mask"]
    return made


def write_causal(
    folder: Path,
    weights: dict[str, Tensor],
    config: "PretrainedConfig",
    dtype: Dtype,
    *,
    end_id: int,
    pad_id: int,
) -> None:
    """Configuration, weights and generation settings of a whole causal language model.

    Args:
        folder: That exists.
        weights: Of the network with its head, float32, without adapters.
        config: Of the network.
        dtype: That weights are written in.
        end_id: Token that ends a response.
        pad_id: Token that pads rows.
    """
    from copy import deepcopy

    from transformers import AutoModelForCausalLM, GenerationConfig

    config = deepcopy(config)
    config.dtype = dtype
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.load_state_dict(stored(weights, dtype), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(eos_token_id=end_id, pad_token_id=pad_id)
    model.save_pretrained(folder)


def _inputs(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Tensor]:
    """Prompts of different lengths in one batch, padded on the left."""
    ids: Any = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TRIED]
    batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _logits(network: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Tensor:
    """Of the token behind each prompt, (S, vocabulary) float32."""
    inputs = _inputs(tokenizer)
    places = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    logits: Tensor = network(**inputs, position_ids=places).logits[:, -1].float()
    return logits


def _difference(
    folder: Path, body: Body, expected: Tensor, tokenizer: "PreTrainedTokenizerBase", *, adapter: bool
) -> tuple[float, float]:
    """Largest difference of the folder's logits as plain transformers loads it in float32, and the largest logit."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = body.backbone.config
    if adapter:
        assert config.name is not None  # adapters are over a base that lies somewhere
        base = AutoModelForCausalLM.from_pretrained(
            config.name, revision=config.revision or "main", dtype=torch.float32
        )
        loaded: Any = PeftModel.from_pretrained(base, str(folder))
    else:
        loaded = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    given = _logits(loaded.eval(), tokenizer)
    return float((given - expected).abs().max()), float(expected.abs().max())


def _facts(report: LanguageModelReport, module: BaseModule, content: dict[str, Any]) -> dict[str, Any]:
    """What the folder says of itself."""
    kind = type(module)
    return {
        "version": __version__,
        "class_path": f"{kind.__module__}.{kind.__qualname__}",
        "form": "language_model" if report.base is None else "language_model_adapter",
        "base": None if report.base is None else base_facts(module.backbone_config),
        "meaning": report.meaning,
        "dtype": report.dtype,
        "text_format": told_format(module.text_format),
        "pad_token": report.pad_token,
        "end_token": report.end_token,
        "parity": {"largest_difference": report.difference, "largest_logit": report.largest_logit},
        "trained_on": {name: content[name] for name in ("epoch", "global_step") if name in content},
    }
