"""Which rows a network can take, found by trying it on a small input; each try leaves the network as it was.

Networks differ in what their layers read: all tokens before, the last few, states that they carry along. What decides is
whether packed rows give the states that plain rows give. Windows are made short for that, so that they act.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch

from .kinds import FULL_ATTENTION, small_batch, why_not_shared
from .last_layer import LastLayer
from .loading import BackboneConfig
from .lora import network_layers
from .packing import PACKED, PackedRows, packed_rows, register
from .rows import pool, separate_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Rows", "run_packed", "run_plain", "settle_rows"]

SHORT = 3
"""Width that windows have while a network is tried."""

FAILURES = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a network raises that does not hand its arguments on to attention, or whose last layer does not stand alone."""


class Rows(NamedTuple):
    """How a network takes a batch."""

    layout: str
    """``shared`` or ``separate``; shared rows are packed."""
    last_layer: LastLayer | None = None
    """The last layer, where it can run for the responses' ends alone; None where it cannot."""


def run_plain(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Last states of rows that hold one response each, (R, L, H).

    Args:
        model: The network.
        inputs: Ids, and what else it needs of ``attention_mask`` and ``position_ids``.
    """
    states: Tensor = model(**inputs).last_hidden_state
    return states


def run_packed(model: nn.Module, batch: PreferenceBatch, packed: PackedRows) -> Tensor:
    """Last states of a batch's tokens from one row that holds them all.

    Args:
        model: The network, with packed attention.
        batch: In either layout.
        packed: Its places.

    Returns:
        (T, H); (R, H), of the responses' ends, if these alone are asked for and the last layer can.
    """
    states: Tensor = model(
        input_ids=batch["input_ids"].flatten()[packed.cells][None],
        position_ids=packed.positions[None],
        use_cache=False,
        packed=packed,
    ).last_hidden_state
    return states[0]


def settle_rows(model: "PreTrainedModel", config: BackboneConfig, causal: bool) -> Rows:
    """Decide for a network, and give it the attention that its rows need.

    Args:
        model: As it was loaded.
        config: What is asked for.
        causal: Whether a later token leaves the states of earlier ones alone.

    Raises:
        ValueError: If ``layout="shared"`` is asked for and is not exact.
    """
    insists = config.layout == "shared"
    if config.layout == "separate":
        return Rows("separate")
    if reason := why_not_shared(model.config, causal):
        return _separate(f"it is not exact here: {reason}", insists)
    register()
    if any(parameter.is_meta for parameter in model.parameters()):
        if model.config.model_type not in FULL_ATTENTION:
            return _separate("weights are not there yet, so that it cannot be tried", insists)
        model.set_attn_implementation(PACKED)
        return Rows("shared", _stand_in(model) if FULL_ATTENTION[model.config.model_type] else None)
    before = model.config._attn_implementation or "eager"
    if not getattr(model, "_can_set_attn_implementation", lambda: True)():
        return _separate(
            f"attention of {model.config.model_type} is its own, and takes no packed rows", insists
        )
    try:
        difference, tolerance = _difference(model, config, before)
    except torch.OutOfMemoryError:  # says nothing of the network
        raise
    except FAILURES as error:
        return _separate(f"packed rows do not work here ({error})", insists)
    if not difference <= tolerance:
        message = (
            f"it differs from separate rows by {difference:.1e} (tolerance {tolerance:.0e}) on a test input"
        )
        return _separate(message, insists, surprising=True)
    rank_zero_info(
        f"backbone layout: shared rows, packed (differ from separate ones by {difference:.1e} on a test input)"
    )
    model.set_attn_implementation(PACKED)
    return Rows("shared", _settle_last_layer(model, config, tolerance))


def _separate(reason: str, insists: bool, *, surprising: bool = False) -> Rows:
    if insists:
        raise ValueError(f"backbone.layout='shared': {reason}; use auto or separate")
    say = rank_zero_warn if surprising else rank_zero_info
    say(f"backbone layout: separate rows, for with shared ones {reason}")
    return Rows("separate")


def _stand_in(model: "PreTrainedModel") -> LastLayer | None:
    layers = network_layers(model)
    return LastLayer(layers[-1]) if layers else None


@torch.no_grad()
def _difference(model: "PreTrainedModel", config: BackboneConfig, before: str) -> tuple[float, float]:
    """Largest difference between packed and plain rows, relative to the states' size, and how large it may be."""
    parameter = next(model.parameters())
    batch = small_batch(parameter.device, getattr(model.config, "vocab_size", None))
    apart = separate_rows(batch)
    was_training = model.training
    model.eval()
    try:
        with _short_windows(model):
            # Not every network's own attention has every form; the plainest one computes all that its configuration says.
            model.set_attn_implementation("eager")
            plain = run_plain(model, {"input_ids": apart["input_ids"], "position_ids": apart["position_ids"]})
            wanted = pool(plain, apart, "last").float()
            model.set_attn_implementation(PACKED)
            packed = _trial(batch, config)
            found = run_packed(model, batch, packed)[packed.ends].float()
    finally:
        model.set_attn_implementation(before)
        model.train(was_training)
    scale = float(wanted.abs().max().clamp_min(1e-6))
    return float((found - wanted).abs().max()) / scale, 1e-4 if parameter.dtype == torch.float32 else 5e-2


@torch.no_grad()
def _settle_last_layer(
    model: "PreTrainedModel", config: BackboneConfig, tolerance: float
) -> LastLayer | None:
    """The last layer, if running it for the responses' ends alone gives the same."""
    last = _stand_in(model)
    if last is None:
        return None
    batch = small_batch(next(model.parameters()).device, getattr(model.config, "vocab_size", None))
    was_training = model.training
    model.eval()
    try:
        with _short_windows(model):
            packed = _trial(batch, config)
            wanted = run_packed(model, batch, packed)[packed.ends].float()
            packed.ends_only = True
            found = run_packed(model, batch, packed).float()
    except torch.OutOfMemoryError:
        raise
    except FAILURES:
        last.leave()
        return None
    finally:
        model.train(was_training)
    scale = float(wanted.abs().max().clamp_min(1e-6))
    if found.shape == wanted.shape and float((found - wanted).abs().max()) <= tolerance * scale:
        return last
    last.leave()
    return None


def _trial(batch: PreferenceBatch, config: BackboneConfig) -> PackedRows:
    device = batch["input_ids"].device
    packed = packed_rows(batch, flex=flexible(config, device), plain=config.attention == "eager")
    packed.together = False  # small as it is, it is to show that pieces are exact
    return packed


def flexible(config: BackboneConfig, device: torch.device) -> bool:
    """Whether packed rows run through FlexAttention."""
    return config.attention == "flex_attention" or (config.attention == "auto" and device.type == "cuda")


@contextmanager
def _short_windows(model: "PreTrainedModel") -> Iterator[None]:
    """Make all windows of attention short: what is given as a number by a name that ends in "window" or "window_size"."""
    holders: list[object] = [model.config, model.config.get_text_config(), *model.modules()]
    found = {
        (id(holder), name): (holder, name, value)
        for holder in holders
        for name, value in vars(holder).items()
        if name.endswith(("window", "window_size")) and type(value) is int
    }
    try:
        for holder, name, _ in found.values():
            setattr(holder, name, SHORT)
        yield
    finally:
        for holder, name, value in found.values():
            setattr(holder, name, value)
