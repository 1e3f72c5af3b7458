"""TransformersRM: a reward model in the form of transformers, as a module that scores and is trained like every other."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import Basis, PreferenceBatch, RewardOutput

from .._initial_weights import makes_module
from ..backbone import Backbone, BackboneConfig, WholeClassifier
from ..base import ModuleSettings
from ..bradley_terry import BradleyTerryRM
from ..reward import compared
from .adapter import Adapter, adapter_base, adapter_config
from .files import files_config
from .folder import check_given_base, folder_text, stored_dtype
from .loading import Classifier, load_classifier

if TYPE_CHECKING:
    from pluralign.datamodules import TextConfig

__all__ = ["TransformersRM"]


class TransformersRM(BradleyTerryRM):
    """A reward model of transformers: a network with a classification head, from the hub or a folder, with its own head.

    It gives the rewards that plain transformers gives, and can be trained further as :class:`BradleyTerryRM` is. Where the
    class computes a linear layer on the last token's state (Llama, Qwen, Gemma, Mistral, GPT-2 and others, which is tried when
    it is loaded), a prompt's responses share a row, and adapters, frozen networks and stored settings work as for every
    method. Other classes (BERT, ModernBERT, DeBERTa) run as they are, on one row for each response. Folders that ``pluralign
    export`` wrote are read without running the code that ships with them.

    A head is never made anew: a folder without one is refused. A class of several outputs needs ``output``; the ``basis`` then
    has all of them, and training moves them all. With one output, and no bias, a checkpoint has the names of
    :class:`BradleyTerryRM`, which starts from it by ``init_from`` with network and head.

    Where the configuration pads with an end token, plain transformers reads the reward at the token before a text's last end
    token, and so does this; it says so when it loads. No other token of a text is taken for padding.

    Attributes:
        outputs: Names of the class's numbers; empty before the network is there.
        column: Which of them is the reward.
        head_settings: Kind and settings of the head, as an exported folder has them; empty where the whole class runs.
        pads_with_end: Whether the configuration pads with an end token.

    Source:
        The classes of https://github.com/huggingface/transformers; training as :class:`BradleyTerryRM`.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        output: int | str | None = None,
        adapter: str | None = None,
        adapter_revision: str | None = None,
        label_smoothing: float = 0.0,
        reward_centering: float = 0.0,
        **settings: Unpack[ModuleSettings],
    ) -> None:
        """Keep the settings; ``configure_model`` loads the network with its head.

        Args:
            backbone: Which network, in which state; ``name`` is what holds the head, too. Without a name it is random, and so is
                its head.
            output: Which number is the reward, by its name or place; None where there is one alone.
            adapter: Folder, or name on the hub, of an adapter of PEFT with the head (``modules_to_save``) over the network; it is
                merged.
            adapter_revision: Branch, tag or commit of the adapter on the hub.
            label_smoothing: As :class:`BradleyTerryRM` has it.
            reward_centering: As :class:`BradleyTerryRM` has it.
            **settings: As :class:`BaseModule` has them.

        Raises:
            ValueError: If a setting is outside its range.
        """
        super().__init__(
            backbone, label_smoothing=label_smoothing, reward_centering=reward_centering, **settings
        )
        self.output, self.adapter = output, None if adapter is None else Adapter(adapter, adapter_revision)
        self.outputs: tuple[str, ...] = ()
        self.column, self.pads_with_end = 0, False
        self.head_settings: dict[str, Any] = {}
        self._pad_id: int | None = None

    @classmethod
    def from_folder(
        cls,
        name: str,
        *,
        revision: str | None = None,
        tokenizer: str | None = None,
        base: str | None = None,
        trust_remote_code: bool = False,
        settings: Mapping[str, Any] | None = None,
        text: "TextConfig | None" = None,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    ) -> tuple["TransformersRM", "TextConfig"]:
        """Open a reward model of transformers with the format of the texts that it reads.

        Args:
            name: Folder or name on the hub: a network with a classification head, what ``pluralign export`` wrote, or an adapter
                of PEFT over one.
            revision: Branch, tag or commit on the hub.
            tokenizer: Where the tokenizer lies, if not there.
            base: Of an adapter: where its base lies now, if not where its folder says.
            trust_remote_code: Whether code that ships with it may run; an exported folder needs none.
            settings: Settings of the module, such as ``{"output": "helpfulness"}``.
            text: The format, where the folder does not say it: what the tokenizer has is its chat template, which ends a text.
            dtype: Of the network's weights; None for what the folder says, else what they are stored in.

        Returns:
            The module, built, on the CPU, frozen and in evaluation mode, and the format.

        Raises:
            ValueError: If it holds no reward model, has several outputs and none is chosen, or nothing says how a text is
                written.
        """
        place, of_place, said = name, revision, dict[str, Any]()
        found = adapter_base(name, revision)
        if found is not None:
            place, of_place = _base_of(name, revision, found, base)
            said = adapter_config(name, revision)
        elif base is not None:
            raise ValueError(f"base={base!r}: only of adapters, and {name!r} is none")
        with makes_module(name, cls.__name__), torch.random.fork_rng(devices=[]):
            kind = dtype or stored_dtype(said, files_config(place, of_place))
            format = text or folder_text(name, revision, tokenizer, trust_remote_code=trust_remote_code)
            config = BackboneConfig(
                name=place,
                revision=of_place,
                dtype=kind,
                trust_remote_code=trust_remote_code,
                tokenizer=format.tokenizer,
            )
            over: dict[str, Any] = {} if found is None else {"adapter": name, "adapter_revision": revision}
            module = cls(config, **over, **dict(settings or {}))
            module.configure_model()
        module.eval().requires_grad_(False)
        return module, format

    # Network -------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the network with its head, unless they are there.

        Raises:
            ValueError: If there is no head, or several outputs and none chosen, or the data are stored features.
        """
        if self.backbone is not None:
            return
        if self._check_store() is not None:
            raise ValueError(
                "TransformersRM loads network and head together, and loader.features gives stored features: set "
                "loader.features=null"
            )
        parts = load_classifier(self.backbone_config, adapter=self.adapter)
        self.column = self._place(parts.outputs)
        self.outputs = parts.outputs
        if parts.body is None:
            self.backbone, self.head = WholeClassifier(self.backbone_config, parts.whole), nn.Identity()
        else:
            self.backbone = Backbone(self._pooled(parts), body=parts.body)
            self.head, self.head_settings = parts.head, parts.settings
            self._pad_id, self.pads_with_end = parts.pad_id, parts.pads_with_end
        self.load_initial_weights()

    def _place(self, outputs: tuple[str, ...]) -> int:
        """Which column is the reward."""
        wished = self.output
        if wished is None and len(outputs) == 1:
            return 0
        if isinstance(wished, str) and wished in outputs:
            return outputs.index(wished)
        if isinstance(wished, int) and 0 <= wished < len(outputs):
            return wished
        named = ", ".join(f"{i} ({name})" for i, name in enumerate(outputs))
        said = "gives several numbers" if wished is None else f"has no output {wished!r}"
        raise ValueError(
            f"{self.backbone_config.name or 'the network'!r} {said}: set output to the one that is the reward, of {named}"
        )

    def _pooled(self, parts: Classifier) -> BackboneConfig:
        """The backbone's configuration, with the state that the head was made for."""
        config = self.backbone_config
        if config.pooling not in ("auto", parts.pooling):
            raise ValueError(
                f"backbone.pooling={config.pooling!r}: the head of {config.name!r} was trained on the state that pooling="
                f"{parts.pooling} gives: leave backbone.pooling at auto"
            )
        return replace(config, pooling=cast(Literal["last", "mean", "cls"], parts.pooling))

    # Forward -------------------------------------------------------------------------------------------

    def forward(self, batch: PreferenceBatch) -> RewardOutput:
        """Score every response once and read each comparison's two rewards.

        Args:
            batch: Token batch; ``comparisons`` may be absent.

        Returns:
            ``reward`` (R,) and, with comparisons, ``chosen`` and ``rejected`` (P,), float32; of several outputs also the
            ``basis`` (R, outputs).
        """
        states = self.built_backbone()(self._ended(batch))
        assert self.head is not None  # built together with the backbone
        numbers: Tensor = self.head(states).float()
        output = RewardOutput(reward=numbers[:, self.column])
        if len(self.outputs) > 1:
            output["basis"] = Basis(numbers, self.outputs, "outputs", linear=True)
        return compared(output, batch)

    def _ended(self, batch: PreferenceBatch) -> PreferenceBatch:
        """The batch with responses read where the class reads them: at the last token that is not its pad token."""
        if self._pad_id is None or "input_ids" not in batch:
            return batch
        ids, row, end = batch["input_ids"], batch["response_row"], batch["response_end"]
        segments = batch["segment_ids"]
        mine = (segments[row] == 0) | (segments[row] == segments[row, end].unsqueeze(1))
        read = mine & (ids[row] != self._pad_id)
        place = torch.arange(ids.shape[1], device=ids.device)
        changed = batch.copy()
        changed["response_end"] = torch.where(read, place, 0).amax(1)
        return changed


def _base_of(
    name: str, revision: str | None, found: tuple[str | None, str | None], given: str | None
) -> tuple[str, str | None]:
    """Where the base of an adapter lies, and at which revision.

    Raises:
        ValueError: If neither its folder nor anybody else says so, or another base is given.
    """
    said, of_said = found
    if given is not None:
        check_given_base(name, revision, given)
        return given, of_said if given == said else None
    if said is None:
        raise ValueError(
            f"{name!r} is an adapter whose folder does not name its base, such as one that lay on the machine of training: give base, "
            "the folder or the name on the hub where it lies (--base)"
        )
    return said, of_said
