"""Several adapters over one frozen network: a batch runs those that it asks for, and what lies beneath them once.

PEFT switches between adapters by name, and three things go wrong in silence where one loss is of several: the flags of
what is trained are switched, too, so that only the last adapter gets a gradient; activations that are recomputed in the
backward pass are those of whichever adapter was switched on last; and each adapter costs a whole pass. Here all adapters
stay trained, blocks are recomputed under the adapter that they ran with, and layers beneath the lowest adapted one run
once for all of them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn

from .lora import LoRAConfig, lora_settings, network_layers, start_magnitude

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["AdapterSet"]

T = TypeVar("T")


class _Replayed(nn.Module):
    """Stands where a layer of the trunk would, and gives what the last of them gave."""

    def __init__(self, layer: nn.Module, output: object) -> None:
        """Take a layer's place.

        Args:
            layer: Whose attributes the network may ask for.
            output: What the trunk gave.
        """
        super().__init__()
        object.__setattr__(self, "layer", layer)  # no part of this one
        self.output = output

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """Attributes of the layer, such as the kind of its attention."""
        value: Tensor | nn.Module = getattr(self.__dict__["layer"], name)
        return value

    def forward(self, *_: object, **__: object) -> object:
        """What the trunk gave, whatever comes in."""
        return self.output


class _Switched(AbstractContextManager[None]):
    """One adapter is active within; may be entered again, as a second backward pass does."""

    def __init__(self, adapters: "AdapterSet", name: str | None) -> None:
        self.adapters, self.name = adapters, name
        self.before: list[str | None] = []

    def __enter__(self) -> None:
        self.before.append(self.adapters.current)
        self.adapters.switch(self.name)

    def __exit__(self, *_: object) -> None:
        self.adapters.switch(self.before.pop())


class AdapterSet:
    """Adapters by name over one network, which is frozen, with what adapters of its own it has.

    Attributes:
        names: The adapters.
        current: Which of them is active; None for the network as it is without any of them.
        trunk: Layers that run once for all adapters; 0 where each adapter makes a whole pass.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], shape: LoRAConfig) -> None:
        """Put adapters without effect on a network, freeze everything else, and activate none.

        Args:
            model: The network, or PEFT's wrapper around it; :attr:`model` is what takes its place.
            names: Of the adapters.
            shape: Of each of them.

        Raises:
            ValueError: If a name is given twice, or is that of an adapter that the network has; if DoRA with dropout is to
                stand above another adapter; or as :func:`lora_settings` says.
        """
        from peft import PeftModel, get_peft_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        beneath = list(model.peft_config) if isinstance(model, PeftModel) else []
        given = [*beneath, *names]
        if twice := sorted({name for name in given if given.count(name) > 1}):
            raise ValueError(f"adapters need names of their own; got {', '.join(twice)} twice")
        if beneath and shape.weight_decomposed and shape.dropout:
            # PEFT scales what lies beneath in evaluation, but not where its input is dropped.
            raise ValueError(
                f"weight_decomposed=true with dropout={shape.dropout} above the adapter of backbone.lora is another network in "
                "training than in evaluation: set dropout to 0, or weight_decomposed to false"
            )
        for name in names:
            if isinstance(model, PeftModel):
                model.add_adapter(name, lora_settings(_inner(model), shape))
            else:
                network: PreTrainedModel = model  # type: ignore[assignment]
                model = get_peft_model(network, lora_settings(network, shape), adapter_name=name)
        assert isinstance(model, PeftModel)  # the caller gave names
        self.model, self.names, self.beneath = model, tuple(names), tuple(beneath)
        self.wrapped: list[BaseTunerLayer] = [
            part for part in model.modules() if isinstance(part, BaseTunerLayer)
        ]
        layers = network_layers(_inner(model))
        self.layers = nn.ModuleList() if layers is None else layers
        self.trunk = 0 if shape.last_layers is None else len(self.layers) - shape.last_layers
        self.current: str | None = None
        self.switch(None)
        self._train_all()

    def _train_all(self) -> None:
        """Have all of the adapters trained, and nothing else; PEFT trains the last that was added alone."""
        self.model.requires_grad_(False)
        for part in self.wrapped:
            for holder in part.adapter_layer_names:
                factors = getattr(part, holder)
                for name in set(self.names) & set(factors):
                    factors[name].requires_grad_(True)

    @torch.no_grad()
    def reset(self, name: str, generator: torch.Generator) -> None:
        """Draw an adapter anew, without effect, as PEFT draws it: the first factor uniform, the second zero, DoRA's lengths the base's.

        Of embeddings the first is zero and the second normal.

        Args:
            name: Which.
            generator: Of the CPU, so that an adapter is the same on every device.
        """
        from peft.tuners.lora import LoraLayer

        for part in self.wrapped:
            if not isinstance(part, LoraLayer):
                continue
            embeds = name in part.lora_embedding_A
            if embeds:
                weights = [part.lora_embedding_A[name], part.lora_embedding_B[name]]
            else:
                weights = [cast(nn.Linear, factors[name]).weight for factors in (part.lora_A, part.lora_B)]
            for weight, zero in zip(weights, (embeds, not embeds), strict=True):
                drawn = torch.zeros(
                    weight.shape, device="cpu"
                )  # as the generator, wherever modules are being built
                if embeds and not zero:
                    nn.init.normal_(drawn, generator=generator)
                elif not zero:
                    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
                weight.copy_(drawn)
            if name in part.lora_magnitude_vector:
                start_magnitude(part, name)

    def recompute_as_run(self) -> None:
        """Have checkpointed blocks recomputed under the adapter that they ran with."""
        _inner(self.model).gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": self.recomputation}
        )

    def recomputation(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For ``torch.utils.checkpoint``: what a block runs in, and what it is recomputed in."""
        return nullcontext(), _Switched(self, self.current)

    def switch(self, name: str | None) -> None:
        """Activate one adapter above those that the network has of its own; no flag of what is trained is touched.

        Args:
            name: Which; None for none of them.

        Raises:
            ValueError: If there is no such adapter.
        """
        if name is not None and name not in self.names:
            raise ValueError(f"there is no adapter {name!r}; allowed: {', '.join(self.names)}, null for none")
        active = [*self.beneath, *([] if name is None else [name])]
        for part in self.wrapped:
            part._active_adapter = active  # PEFT's own switch would have the others trained no longer
        self.current = name

    def passes(self, adapters: Sequence[str | None], run: Callable[[], T]) -> list[T]:
        """What the network gives under each adapter, its trunk run once.

        Args:
            adapters: Names; None for the network without any of them.
            run: One pass of the network over the same input; called once for each.
        """
        outputs: list[T] = []
        trunk: list[object] = []
        for name in adapters:
            with _Switched(self, name), self._trunk_of(trunk):
                outputs.append(run())
        return outputs

    @contextmanager
    def _trunk_of(self, outputs: list[object]) -> Iterator[None]:
        """Keep what the trunk gives in the first pass, and give it in place of the trunk in others."""
        if not self.trunk:
            yield
        elif not outputs:

            def keep(layer: nn.Module, inputs: object, output: object) -> object:
                # Nothing beneath is trained; embeddings may ask for gradients all the same, for checkpoints' sake.
                outputs.append(_detached(output))
                return outputs[-1]

            handle = self.layers[self.trunk - 1].register_forward_hook(keep)
            try:
                yield
            finally:
                handle.remove()
        else:
            own = list(self.layers[: self.trunk])
            for place, layer in enumerate(own):
                self.layers._modules[str(place)] = _Replayed(layer, outputs[0])
            try:
                yield
            finally:
                for place, layer in enumerate(own):
                    self.layers._modules[str(place)] = layer

    @torch.no_grad()
    def settle_trunk(self, run: Callable[[], Tensor]) -> str:
        """Give up running the trunk once if it is not exact for this network.

        Args:
            run: One pass over a small input, without dropout.

        Returns:
            Why it was given up; nothing if it was not.
        """
        if not self.trunk:
            return ""
        whole, reason = run(), ""
        try:
            outputs = self.passes([None, None], run)
            if not all(torch.equal(whole, output) for output in outputs):
                reason = f"it differs by {max(float((whole - output).abs().max()) for output in outputs):.1e}"
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error)
        if reason:
            self.trunk = 0
        return reason


def _inner(model: "PeftModel") -> "PreTrainedModel":
    network: PreTrainedModel = model.get_base_model()  # type: ignore[assignment]
    return network


def _detached(output: object) -> object:
    """A layer's output, a tensor or a tuple that holds some, without the graph beneath."""
    if isinstance(output, Tensor):
        return output.detach()
    return tuple(map(_detached, output)) if isinstance(output, tuple) else output
