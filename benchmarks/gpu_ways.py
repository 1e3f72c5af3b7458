"""Ways to train the same reward model on the same records: the package's, candidates for it, and plain transformers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

import gpu_varlen
import torch
from gpu_data import batch_of
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch
from pluralign.datamodules.tokens import TokenRow
from pluralign.losses import bradley_terry_loss
from pluralign.models import BackboneConfig, BradleyTerryRM

__all__ = ["Ours", "Padded", "Varlen", "Way", "layouts", "losses_and_gradients", "peer_name", "texts_of"]


def peer_name(name: str) -> str:
    """Name of one of our parameters in a sequence classifier of transformers."""
    return "score.weight" if name == "head.weight" else name.removeprefix("backbone.")


def texts_of(rows: Sequence[TokenRow]) -> list[list[int]]:
    """Ids of every response of these records, each after those of its prompt, in the order that batches have them."""
    texts = []
    for row in rows:
        first, *lengths = row.lengths.tolist()
        tokens = row.tokens.tolist()
        at = first
        for length in lengths:
            texts.append(tokens[:first] + tokens[at : at + length])
            at += length
    return texts


def pairs_of(rows: Sequence[TokenRow]) -> list[tuple[int, int]]:
    """Chosen and rejected response of every comparison, counted over all records."""
    pairs, before = [], 0
    for row in rows:
        pairs += [(before + chosen, before + rejected) for chosen, rejected in row.comparisons.tolist()]
        before += len(row.lengths) - 1
    return pairs


class Way(ABC):
    """A model, and how it takes records.

    Attributes:
        model: Whose parameters are trained.
    """

    model: nn.Module

    @abstractmethod
    def prepare(self, rows: Sequence[TokenRow]) -> Any:  # noqa: ANN401  each way has inputs of its own
        """The records as this way takes them, on the device."""

    @abstractmethod
    def rewards(self, inputs: Any) -> Tensor:  # noqa: ANN401
        """Of all responses, (R,) float32; of both responses of every comparison where these are run apart, (2 P,)."""

    @abstractmethod
    def loss(self, inputs: Any) -> Tensor:  # noqa: ANN401
        """Bradley-Terry loss of all comparisons, a scalar."""

    def state(self) -> dict[str, Tensor]:
        """Weights, by the names that they have in transformers."""
        return {peer_name(name): value for name, value in self.model.state_dict().items()}

    def gradients(self) -> dict[str, Tensor]:
        """Gradients by those names."""
        named = self.model.named_parameters()
        return {peer_name(name): each.grad for name, each in named if each.grad is not None}


def module_of(fields: dict[str, object], device: torch.device, **settings: Any) -> BradleyTerryRM:  # noqa: ANN401
    """The package's module with seeded weights, built on a device as a Trainer builds it."""
    module = BradleyTerryRM(BackboneConfig(config=fields, **settings))
    torch.manual_seed(0)
    with device:
        module.configure_model()
    return module.train()


class Ours(Way):
    """The package's module."""

    def __init__(self, fields: dict[str, object], device: torch.device, **settings: Any) -> None:  # noqa: ANN401
        """Build it.

        Args:
            fields: Of the network's configuration.
            device: Where it runs.
            **settings: Of its backbone.
        """
        self.device, self.module = device, module_of(fields, device, **settings)
        self.model = self.module

    def load(self, state: dict[str, Tensor]) -> None:
        """Take weights over, by their names in transformers."""
        self.module.load_state_dict({name: state[peer_name(name)] for name in self.module.state_dict()})

    def layout(self) -> str:
        """What the backbone settled on."""
        backbone = self.module.built_backbone()
        return str(getattr(backbone, "layout", "none"))

    def prepare(self, rows: Sequence[TokenRow]) -> PreferenceBatch:
        """In the layout that the backbone takes, as a data module would make it."""
        return batch_of(rows, self.device, self.layout())

    def rewards(self, inputs: PreferenceBatch) -> Tensor:
        """Of all responses."""
        return self.module(inputs)["reward"]

    def loss(self, inputs: PreferenceBatch) -> Tensor:
        """The module's own."""
        loss = self.module.compute_loss(self.module(inputs), inputs)
        assert isinstance(loss, Tensor)  # this method has one term
        return loss


class Varlen(Ours):
    """The same network with :mod:`gpu_varlen`'s attention, as it might run inside the package."""

    def __init__(self, fields: dict[str, object], device: torch.device, *, copied: bool, dtype: str) -> None:
        """Build it, in plain rows first."""
        super().__init__(fields, device, layout="separate", attention="sdpa", dtype=dtype)
        gpu_varlen.register()
        self.copied, self.network = copied, self.module.built_backbone().model
        self.network.set_attn_implementation(gpu_varlen.VARLEN)

    def prepare(self, rows: Sequence[TokenRow]) -> tuple[gpu_varlen.PackedTexts, Tensor]:
        """Places, and the comparisons."""
        pairs = torch.tensor(pairs_of(rows)).to(self.device)
        return gpu_varlen.packed_texts(rows, self.device), pairs

    def rewards(self, inputs: tuple[gpu_varlen.PackedTexts, Tensor]) -> Tensor:
        """Of all responses."""
        assert self.module.head is not None  # it was built
        states = gpu_varlen.varlen_states(self.network, inputs[0], copied=self.copied)
        return self.module.head(states).squeeze(1)

    def loss(self, inputs: tuple[gpu_varlen.PackedTexts, Tensor]) -> Tensor:
        """As the module has it."""
        chosen, rejected = self.rewards(inputs)[inputs[1]].unbind(1)
        return bradley_terry_loss(chosen, rejected)


class Padded(Way):
    """A sequence classifier of transformers over rows that are padded to the longest one."""

    def __init__(
        self,
        fields: dict[str, object],
        device: torch.device,
        *,
        dtype: str,
        each_pair: bool = True,
        attention: str = "sdpa",
        recompute: bool = False,
    ) -> None:
        """Build it.

        Args:
            fields: Of the network's configuration.
            device: Where it runs.
            dtype: Of its weights.
            each_pair: Run both responses of every comparison, as trainers of pairs do; each response once otherwise.
            attention: As transformers names it.
            recompute: Whether activations are computed again in the backward pass.
        """
        from transformers import AutoConfig, AutoModelForSequenceClassification

        config = AutoConfig.for_model(**fields, num_labels=1)
        self.device, self.each_pair = device, each_pair
        with device:
            self.model = AutoModelForSequenceClassification.from_config(
                config, dtype=getattr(torch, dtype), attn_implementation=attention
            )
        if recompute:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()

    def load(self, state: dict[str, Tensor]) -> None:
        """Take weights over."""
        self.model.load_state_dict(state)

    def prepare(self, rows: Sequence[TokenRow]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask, and comparisons as pairs of rows."""
        texts, pairs = texts_of(rows), pairs_of(rows)
        if self.each_pair:
            texts = [texts[pair[side]] for side in (0, 1) for pair in pairs]
            pairs = [(i, i + len(pairs)) for i in range(len(pairs))]
        width = max(map(len, texts))
        ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
        return ids.to(self.device), (ids != 0).long().to(self.device), torch.tensor(pairs).to(self.device)

    def rewards(self, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Of the rows."""
        ids, mask, _ = inputs
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0].float()

    def loss(self, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Over the pairs."""
        chosen, rejected = self.rewards(inputs)[inputs[2]].unbind(1)
        return -nn.functional.logsigmoid(chosen - rejected).mean()


def layouts(device: torch.device) -> dict[str, dict[str, Any]]:
    """Settings of a backbone for every layout and attention that a configuration may ask for on a device.

    FlexAttention has no backward pass on the CPU, and separate rows of one response need no mask, so that their attention
    is tried in one form there.
    """
    attentions = get_args(get_type_hints(BackboneConfig)["attention"])
    ways: dict[str, dict[str, Any]] = {
        f"shared, {attention}": {"layout": "shared", "attention": attention}
        for attention in attentions
        if attention != "auto" and (device.type == "cuda" or attention != "flex_attention")
    }
    return {"auto": {}, **ways, "separate rows": {"layout": "separate", "attention": "sdpa"}}


def losses_and_gradients(way: Way, rows: Sequence[TokenRow]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Rewards, loss and gradients of one pass over records, in float64 on the CPU."""
    way.model.zero_grad(set_to_none=True)
    inputs = way.prepare(rows)
    with torch.no_grad():
        rewards = way.rewards(inputs)
    loss = way.loss(inputs)
    loss.backward()
    gradients = {name: value.double().cpu() for name, value in way.gradients().items()}
    way.model.zero_grad(set_to_none=True)
    return rewards.detach().double().cpu(), loss.detach().double().cpu(), gradients
