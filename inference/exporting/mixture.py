"""PCM as a folder that plain transformers loads and writes with: base or models, experts, control network, and a file that mixes them."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from pluralign import __version__
from pluralign.datamodules import PersonalizedPromptsDataModule, TextConfig
from pluralign.datamodules.prompt_batch import PromptBatch
from pluralign.models import PCM, restored_module
from pluralign.models.pcm import AdapterExperts, ModelExperts
from pluralign.models.restored import checkpoint_content

from .base import refuse_own_class
from .body import OWN_ADAPTER, in_float32, merged_weights
from .classification import Dtype, stored
from .language_model import TRIED, write_causal, writing_tokenizer
from .mixture_notes import mixture_card
from .training import told_format
from .whole_folder import MARK, check_target, folder_written_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .mixture_generate import Said

__all__ = ["MixtureReport", "export_mixture"]

GENERATE_FILE = Path(__file__).with_name("mixture_generate.py")
"""What a folder ships as ``custom_generate/generate.py``."""
MOST_TRIED = 16
"""Tokens of a response that a folder is tried with, at most."""


class MixtureReport(NamedTuple):
    """What was written."""

    folder: Path
    method_class: type[PCM]
    checkpoint: Path
    """Where it was read from."""
    bases: tuple[str, ...]
    """What the networks started from, names on the hub or paths."""
    experts: tuple[str, ...]
    kind: str
    """``adapters`` over one base, or whole ``models``."""
    dimensions: tuple[str, ...]
    """What a response may be asked for."""
    dtypes: tuple[str, ...]
    """Of the networks' weights: as they decode in training, but for a control network with adapters, which are merged in float32."""
    end_token: str
    tried: int
    """Greedy responses that plain transformers' were compared with."""
    same: int
    """Those of them that have the same tokens."""


def export_mixture(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    axes: Mapping[str, Mapping[str, str]],
    class_path: str | None = None,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    allow_difference: bool = False,
    overwrite: bool = False,
    notes: Callable[[MixtureReport], str] = mixture_card,
) -> MixtureReport:
    """Write a PCM as a folder with a ``custom_generate`` file, which needs torch, transformers and safetensors alone.

    Args:
        checkpoint: Of :class:`PCM`, with weights by a control network, by the base's states or by the preference alone.
        folder: To be written.
        axes: Sentence that says each pole of each axis, as the data of training had them; ``{}`` for none.
        class_path: The module's class, where it is not the collection's.
        tokenizer: Where the tokenizer lies now, if not where it was in training.
        trust_remote_code: Whether code that ships with a base or the tokenizer may run.
        allow_difference: Write the folder although greedy tokens differ; the report says how many responses do.
        overwrite: Replace a folder that an export wrote.
        notes: Writes README.md.

    Returns:
        What was written, and how many of the tried responses are equal.

    Raises:
        FileExistsError: If there is something that is not to be replaced.
        OSError: If the disk is full, or the like; what was there stays as it was.
        RuntimeError: If plain transformers reads other tokens, or writes others where all is float32.
        TypeError: If the checkpoint is of another method.
        ValueError: If its experts are black boxes, were loaded with few bits, or nothing of it was trained.
    """
    target = Path(folder)
    check_target(target, overwrite=overwrite, source=str(checkpoint))
    content = checkpoint_content(checkpoint)
    hyper = content.get("hyper_parameters", {})
    if "experts" in hyper and hyper["experts"] is None:
        raise ValueError(
            f"{checkpoint}: its experts were set by hand, such as black boxes behind a server, and a folder cannot hold them; export "
            "needs experts.adapters or experts.models"
        )
    restored = restored_module(checkpoint, class_path=class_path, trust_remote_code=trust_remote_code)
    module = _exportable(restored, str(checkpoint))
    assert module.text_format is not None  # it was looked at
    text = TextConfig.of_format(module.text_format, tokenizer=tokenizer, trust_remote_code=trust_remote_code)
    with tempfile.TemporaryDirectory() as place:
        data = _trial_data(module, text, axes, Path(place))
    module.prompt_source = data
    with folder_written_whole(target) as part, torch.no_grad():
        dtypes = _write(part, module, data)
        tried, same = _tried(part, module, data)
        if same < tried and set(dtypes) == {"float32"} and not allow_difference:
            raise RuntimeError(
                f"{target} was not written: plain transformers writes other tokens in {tried - same} of {tried} greedy responses; add "
                "--allow_difference, and the folder says so"
            )
        report = MixtureReport(
            folder=target,
            method_class=type(module),
            checkpoint=Path(checkpoint),
            bases=_bases(module),
            experts=module.expert_names,
            kind="adapters" if isinstance(module.experts, AdapterExperts) else "models",
            dimensions=data.dimensions,
            dtypes=dtypes,
            end_token=str(data.tokenizer.tokenizer.convert_ids_to_tokens(data.end_id)),
            tried=tried,
            same=same,
        )
        facts = json.dumps(_facts(report, module, content), indent=2, ensure_ascii=False, allow_nan=False)
        (part / MARK).write_text(facts + "\n", encoding="utf-8")
        (part / "README.md").write_text(notes(report), encoding="utf-8")
    return report


def _exportable(module: object, checkpoint: str) -> PCM:
    """A mixture that a folder can hold.

    Raises:
        TypeError: If it is none.
        ValueError: If it is more than a folder can hold, or less than a mixture.
    """
    if not isinstance(module, PCM):
        raise TypeError(
            f"{checkpoint} is of {type(module).__name__}, and export_mixture writes mixtures of experts (PCM)"
        )
    if not module.text_format:
        raise ValueError(
            f"{checkpoint} keeps no text format: it was trained without a data module of this collection, and a folder needs its tokenizer"
        )
    merging = module.merging
    if merging.weights not in ("control", "static") or merging.mixing != "linear":
        raise ValueError(
            f"baseline={module.baseline!r}, mixing={merging.mixing!r}: a folder holds what was trained, which is weights of a linear "
            "mixture (baseline none or static); use `pluralign generate` for the others"
        )
    config = module.experts_config
    bases = [
        module.backbone_config,
        *([config.base] if config is not None and config.base is not None else []),
    ]
    if any(base.quantization is not None for base in bases):
        raise ValueError("quantization: weights of few bits are not written; export with networks whole")
    if module.on_base and module.backbone_config.lora is not None:
        raise ValueError(
            "backbone.lora: the base beneath the experts has an adapter of its own, which a folder does not hold"
        )
    return module


def _bases(module: PCM) -> tuple[str, ...]:
    """What its networks started from, each once: base or models of the experts, and that of the control network."""
    config = module.experts_config
    assert config is not None  # no pool that was set by hand
    experts = [config.base.name] if config.base is not None else [*config.models.values()]
    control = module.backbone_config.name
    return tuple(dict.fromkeys(name for name in (*experts, control) if name is not None))


# Writing ----------------------------------------------------------------------------------------------------


def _write(folder: Path, module: PCM, data: PersonalizedPromptsDataModule) -> tuple[str, ...]:
    """All files but the notes; the dtypes of the networks."""
    pool = module.pool()
    networks: list[PreTrainedModel] = []
    tensors: dict[str, Tensor] = {}
    if isinstance(pool, AdapterExperts):
        networks.append(pool.network)
        for number, name in enumerate(module.expert_names):
            for layer, pair in pool.factors(name).items():
                tensors[f"expert.{number}.{layer}.down"] = pair.down
                tensors[f"expert.{number}.{layer}.up"] = pair.up
    else:
        assert isinstance(pool, ModelExperts)  # there is no other pool of files
        networks.extend(cast("list[PreTrainedModel]", list(pool.networks)))
    dtypes = []
    for number, network in enumerate(networks):
        place = folder / "experts" / str(number) if number else folder
        place.mkdir(parents=True, exist_ok=True)
        dtype = _dtype(network)
        refuse_own_class(network.config)
        write_causal(
            place, merged_weights(network), network.config, dtype, end_id=data.end_id, pad_id=data.pad_id
        )
        dtypes.append(str(dtype))
    weights = "static" if module.merging.weights == "static" else "base" if module.on_base else "control"
    if weights == "control":
        dtypes.append(_write_control(folder / "control", module))
    tensors |= _weights(module, weights)
    _write_said(folder, module, data, weights)
    _save(folder, tensors)
    writing_tokenizer(data.tokenizer).save_pretrained(str(folder))
    (folder / "custom_generate").mkdir()
    shutil.copyfile(GENERATE_FILE, folder / "custom_generate" / "generate.py")
    return tuple(dtypes)


def _save(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(whole, folder / "mixture.safetensors", metadata={"format": "pt"})


def _dtype(network: "PreTrainedModel") -> Dtype:
    return cast("Dtype", str(network.dtype).removeprefix("torch."))


def _weights(module: PCM, weights: str) -> dict[str, Tensor]:
    """What weighs the experts beside the control network."""
    if weights == "static":
        assert module.static is not None  # built for this baseline
        return {"static": module.static.data}
    assert module.head is not None  # built with the experts
    linear = module.head.linear
    return {"head.weight": linear.weight.data, "head.bias": linear.bias.data}


def _write_control(folder: Path, module: PCM) -> str:
    """The control network, adapters merged; its dtype."""
    from copy import deepcopy

    from transformers import AutoModel

    backbone: Any = module.backbone
    network: PreTrainedModel = getattr(backbone.model, "get_base_model", lambda: backbone.model)()
    dtype = _dtype(network)
    adapters: tuple[str, ...] = ()
    if module.backbone_config.lora is not None:
        dtype, adapters = "float32", (OWN_ADAPTER,)
    with in_float32(network) if adapters else torch.no_grad():
        weights = merged_weights(network, adapters)
    config = deepcopy(network.config)
    config.dtype = dtype
    with torch.device("meta"):
        written: PreTrainedModel = AutoModel.from_config(config, attn_implementation="eager")
    written.load_state_dict(stored(weights, dtype), assign=True)
    written.save_pretrained(folder)
    return str(dtype)


def _write_said(folder: Path, module: PCM, data: PersonalizedPromptsDataModule, weights: str) -> None:
    """What the generating file is to know."""
    config = module.experts_config
    assert config is not None  # no pool that was set by hand
    by_pole = module.preference_as == "tokens" and weights == "control"
    said: Said = {
        "experts": list(module.expert_names),
        "kind": "adapters" if config.adapters else "models",
        "told": config.prompts,
        "weights": weights,
        "first_pole": module.first_pole if by_pole else None,
        "dimensions": dict(zip(data.dimensions, data.space.sentences, strict=True)),
        "max_length": data.tokenizer.config.max_length,
        "max_new_tokens": module.max_new_tokens,
    }
    text = json.dumps(said, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "mixture.json").write_text(text + "\n", encoding="utf-8")


# Trying -----------------------------------------------------------------------------------------------------


def _trial_data(
    module: PCM, text: TextConfig, axes: Mapping[str, Mapping[str, str]], place: Path
) -> PersonalizedPromptsDataModule:
    """Two prompts with the first and the last dimension of each axis that an expert is for."""
    file = place / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in TRIED), encoding="utf-8")
    names = {f"{axis}.{pole}" for axis, poles in axes.items() for pole in poles}
    if module.experts_config is not None and names & set(module.experts_config.names):
        names &= set(module.experts_config.names)
    asked = [
        [f"{axis}.{pole}" for pole in poles if f"{axis}.{pole}" in names] for axis, poles in axes.items()
    ]
    asked = [poles for poles in asked if poles]
    wanted = [[poles[place] for poles in asked] for place in (0, -1)]
    data = PersonalizedPromptsDataModule(
        predict=str(file),
        axes={axis: dict(poles) for axis, poles in axes.items()},
        text=text,
        preferences=wanted[: 1 + (wanted[0] != wanted[1])] if asked else "all",
        max_new_tokens=min(MOST_TRIED, module.max_new_tokens),
    )
    data.setup("predict")
    return data


def _tried(folder: Path, module: PCM, data: PersonalizedPromptsDataModule) -> tuple[int, int]:
    """Greedy responses that were compared, and those of them with equal tokens.

    Raises:
        RuntimeError: If prompts have other tokens.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    from .mixture_generate import generate, mixture_of

    batch: PromptBatch = next(iter(data.batches("predict")))
    most = min(MOST_TRIED, module.max_new_tokens)
    config = GenerationConfig(max_new_tokens=most, eos_token_id=data.end_id, pad_token_id=data.pad_id)
    expected = module.respond(batch, config=config).tokens
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto").eval()
    prompts, preferences = cast("list[str]", batch["prompt"]), batch["preference"]
    read = mixture_of(model)
    for prompt, preference, ids, mask in zip(
        prompts, preferences, batch["input_ids"], batch["attention_mask"], strict=True
    ):
        if read.item(prompt, preference, most).told != ids[mask.bool()].tolist():
            raise RuntimeError(
                f"{folder.name}: the chat template gives other tokens of {prompt!r} than training had"
            )
    given = generate(model, prompts, preferences, max_new_tokens=most)
    width = max(given.shape[1], expected.shape[1])
    rows = [
        torch.nn.functional.pad(each, (0, width - each.shape[1]), value=data.pad_id)
        for each in (given, expected)
    ]
    return len(prompts), int((rows[0] == rows[1]).all(1).sum())


def _facts(report: MixtureReport, module: PCM, content: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder says of itself."""
    kind = type(module)
    return {
        "version": __version__,
        "class_path": f"{kind.__module__}.{kind.__qualname__}",
        "form": "mixture",
        "experts": list(report.experts),
        "dtypes": list(report.dtypes),
        "text_format": told_format(module.text_format),
        "end_token": report.end_token,
        "parity": {"responses": report.tried, "equal": report.same},
        "trained_on": {name: content[name] for name in ("epoch", "global_step") if name in content},
    }
