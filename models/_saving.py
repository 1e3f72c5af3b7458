"""SavedModule: a module whose checkpoints hold what the backbone's own files lack, and that starts from another's."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self, cast

import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.core import saving
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from pluralign import __version__
from pluralign.datamodules.batch import TextFormat

from . import _averages as averages
from ._base_files import Identity, check_base, check_scales, network_changes
from ._callbacks import HostModule
from ._initial_weights import begins, makes_module, mapped_content, read_checkpoint
from ._shipped_code import refuse_shipped_code
from .backbone import BackboneConfig, added_keys, renamed, start_magnitudes

__all__ = ["SavedModule"]


class SavedModule(HostModule):
    """A module whose checkpoints are complete and small, whatever averages or prunes its weights.

    Attributes:
        backbone_config: Which network, in which state.
        text_format: Format of the text it was trained on.
        max_tokens: Most tokens of its batches, where that was found.
        init_from: Checkpoint that weights start from; None once others were loaded.
        init_may_differ: Beginnings of the names of weights that are not taken over from there.
    """

    backbone_config: BackboneConfig
    text_format: TextFormat | None
    max_tokens: int | None
    init_from: str | None
    init_may_differ: tuple[str, ...]

    def __init__(self) -> None:
        """Begin with nothing loaded."""
        super().__init__()
        self._loaded_keys: frozenset[str] = frozenset()
        self._trained_keys: frozenset[str] = frozenset()  # when it was built
        self._started = False
        self._base: tuple[Identity | None, ...] = ()  # once it was looked up
        self._base_of_checkpoint: Identity | None = None

    # Checkpoints ---------------------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,  # noqa: ANN401  as torch and Lightning have it
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **settings: Any,  # noqa: ANN401  of any module
    ) -> Self:
        """As Lightning has it, but that a checkpoint lets no code run that ships with a network's weights.

        Args:
            checkpoint_path: The file.
            map_location: Where weights go.
            hparams_file: Settings in place of the checkpoint's.
            strict: Kept for the interface.
            weights_only: False runs whatever the file holds, which is to trust it.
            **settings: In place of the checkpoint's.

        Raises:
            ValueError: If the settings of the checkpoint, or of ``hparams_file``, would let such code run, or it is no checkpoint.
        """
        if weights_only is not False:
            weights_only = True  # None is False to Lightning where the file is somebody else's, behind http
            kept = _hyperparameters(checkpoint_path, hparams_file)
            advice = "give the settings anew, such as backbone={..., 'trust_remote_code': True},"
            decided = {name: value for name, value in kept.items() if name not in settings}
            refuse_shipped_code(decided, str(hparams_file or checkpoint_path), advice=advice)
        with makes_module(checkpoint_path, cls.__name__):
            return super().load_from_checkpoint(
                checkpoint_path, map_location, hparams_file, strict, weights_only, **settings
            )

    def saved_keys(self) -> set[str]:
        """Names of the state that a checkpoint holds: all that the backbone's own files lack.

        That is what is trained; every adapter and every copy of a layer beside them, trained now or not; all outside the
        backbone; what came from another run's checkpoint; and all of a network made from nothing.
        """
        keys = set(self.state_dict())
        if self.backbone_config.name is None:
            return keys  # random weights cannot be loaded again from anywhere else
        base = {name for name in keys if name.startswith("backbone.")} - added_keys(self, keys)
        # What a callback freezes for a while was trained before, or will be.
        return keys - (base - self._keys_in_training() - self._trained_keys - self._loaded_keys)

    def _keys_in_training(self) -> frozenset[str]:
        return frozenset(name for name, parameter in self.named_parameters() if parameter.requires_grad)

    def _absent_keys(self) -> set[str]:
        return set(self.state_dict()) - self.saved_keys()

    def base_identity(self) -> Identity | None:
        """Which base's files checkpoints rely on; looked up once, since they may move while a run goes on."""
        if not self._base:
            self._base = (self.backbone_config.identity(),)
        return self._base[0]

    def _averaged_weights(self) -> dict[str, Any] | None:
        """The average that is validated in the fit that goes on; callbacks put it into whole checkpoints only."""
        trainer = self.attached_trainer
        if trainer is None or not self.fitting or trainer.state.status != TrainerStatus.RUNNING:
            return None
        averages.follow_until_updated(trainer, self)
        return averages.average_weights(trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen weights out; keep class and text format, and what the run needs to go on, beside the rest."""
        if "optimizer_states" not in checkpoint:
            checkpoint["state_dict"] = self._averaged_weights() or checkpoint["state_dict"]
        absent = self._absent_keys()

        def saved(state: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in averages.permanent(state).items() if name not in absent}

        for name in averages.SAVED_STATES:
            if name in checkpoint:
                checkpoint[name] = saved(checkpoint[name])
        for state in averages.states_of_callbacks(checkpoint):
            state["average_model_state"] = saved(state["average_model_state"])
        kept = checkpoint.setdefault("pluralign", {})
        # FSDP2 puts a class of its own before that of a module whose weights it shards.
        own = next(each for each in type(self).__mro__ if not issubclass(each, FSDPModule))
        name = f"{own.__module__}.{own.__qualname__}"
        kept |= {"version": __version__, "text_format": self.text_format, "class_path": name}
        if self.max_tokens is not None:
            kept["max_tokens"] = self.max_tokens
        whole = any(name.startswith("backbone.") for name in self.state_dict()) and not absent
        if self.backbone_config.name is not None and not whole:
            kept["base"] = self.base_identity()
        self.keep_run(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back the text format, and see what there is to do for a run that goes on.

        Raises:
            ValueError: If its adapters were trained with another scale, or DeepSpeed keeps the weights elsewhere.
        """
        if "state_dict" not in checkpoint:
            raise ValueError(
                "the checkpoint is one of DeepSpeed's, which keeps weights and state of the optimiser apart, so that no run goes on from "
                "it as it was; its zero_to_fp32.py writes the weights. Checkpoints of trainer.strategy=fsdp2 go on anywhere"
            )
        check_scales(checkpoint.get("hyper_parameters", {}), self.hparams, "the checkpoint")
        kept = checkpoint.get("pluralign", {})
        self.text_format, self._base_of_checkpoint = kept.get("text_format"), kept.get("base")
        self.max_tokens = kept.get("max_tokens")
        self._loaded_keys = frozenset(checkpoint["state_dict"])
        if self.groundwork is None or not self.groundwork.settled:  # a tuner puts back what was there
            self.init_from = None
        if not self.fitting:
            return
        self.resume_run(checkpoint)
        if "current_model_state" in checkpoint:
            # Its average is loaded by Lightning, which wants every weight to be there.
            absent = self._absent_keys()
            checkpoint["state_dict"] |= {
                name: value for name, value in self.state_dict().items() if name in absent
            }

    def make_room(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what the sizes of the weights depend on, before they are loaded; nothing, unless overridden."""

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:  # noqa: ANN401  torch's own type is private
        """Load what :meth:`saved_keys` names; frozen weights come from the backbone's own files.

        Args:
            state_dict: Values by name.
            strict: Kept for the interface; a missing or unknown key is an error in any case.
            assign: As in torch.

        Raises:
            RuntimeError: If a saved value is missing or a name is unknown.
            ValueError: If they are of a checkpoint that relies on another base.
        """
        self.make_room(state_dict)
        self.configure_model()  # a spawned run hands its weights to a module that was never built here
        if self._base_of_checkpoint is not None:
            check_base(self._base_of_checkpoint, self.base_identity(), "the checkpoint")
        self._check_names(
            state_dict, self.saved_keys(), f"the checkpoint does not fit {type(self).__name__}", shapes=True
        )
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def _check_names(
        self,
        state_dict: Mapping[str, Tensor],
        needed: set[str],
        problem: str,
        *,
        shapes: bool = False,
        advice: str = "",
    ) -> None:
        present = self.state_dict()
        wrong = {
            "missing": sorted(needed - set(state_dict)),
            "unknown": sorted(set(state_dict) - set(present)),
        }
        if shapes:
            wrong["of another shape"] = sorted(
                name
                for name in set(state_dict) & set(present)
                if not name.endswith("_extra_state") and state_dict[name].shape != present[name].shape
            )
        if any(wrong.values()):
            lists = (
                f"{kind} {names[:5] or 'nothing'}{' ...' if len(names) > 5 else ''}"
                for kind, names in wrong.items()
            )
            raise RuntimeError(f"{problem}: {', '.join(lists)}{advice}")

    def initial_state(self, content: Mapping[str, Any]) -> tuple[dict[str, Tensor], set[str]]:
        """Weights of the run that this one starts from, by this module's names, whatever wraps the network here and there.

        Args:
            content: The other run's checkpoint.

        Returns:
            The weights, and names of own weights that may be missing there without ``init_may_differ`` saying so.
        """
        state: dict[str, Tensor] = content["state_dict"]
        names = renamed(state, self.state_dict())
        return {names.get(name, name): value for name, value in state.items()}, set()

    @torch.no_grad()
    def load_initial_weights(self) -> None:
        """Start from the weights of ``init_from``; the last thing that ``configure_model`` does when it has built.

        A file that is gone does not matter to a run whose checkpoint is restored later; any other is refused at its start.

        Raises:
            FileNotFoundError: If there is no such file, and no trainer that could restore a checkpoint.
            ValueError: If it is no checkpoint, relies on another base, scales adapters differently, or ``init_may_differ``
                has a name that no weight begins with.
            RuntimeError: If weights that ``init_may_differ`` does not name are missing there, unknown or of another shape.
        """
        self._trained_keys = self._keys_in_training()
        self.base_identity()  # its files are there now
        if self.init_from is None:
            return
        if self.attached_trainer is not None and not Path(self.init_from).is_file():
            return
        content = read_checkpoint(self.init_from)
        if (base := content.get("pluralign", {}).get("base")) is not None:
            check_base(base, self.base_identity(), f"init_from={self.init_from!r}")
        settings = content.get("hyper_parameters", {})
        check_scales(settings, self.hparams, f"init_from={self.init_from!r}")
        initial, new = self.initial_state(content)
        names = {*initial, *self.state_dict()}
        for start in self.init_may_differ:
            if not any(begins(name, start) for name in names):
                raise ValueError(
                    f"init_may_differ: {start!r} is the beginning of no weight's name, here or in {self.init_from!r}"
                )
        state = {name: value for name, value in initial.items() if not self._may_differ(name)}
        self.make_room(state)
        needed = {name for name in self.saved_keys() - new if not self._may_differ(name)}
        changes = "; ".join(network_changes(settings, self.hparams))
        self._check_names(
            state,
            needed,
            f"init_from={self.init_from!r} does not fit {type(self).__name__} (init_may_differ could say so)",
            shapes=True,
            advice=f". It is of another backbone ({changes}): set these as they were there"
            if changes
            else "",
        )
        super().load_state_dict(state, strict=False)
        start_magnitudes(self, state)  # of new adapters, where the base beneath came from there
        self.text_format = content.get("pluralign", {}).get("text_format")
        self._loaded_keys, self._started = frozenset(state), True

    def _may_differ(self, name: str) -> bool:
        return any(begins(name, start) for start in self.init_may_differ)


def _hyperparameters(file: str | Path | IO[bytes], hparams_file: str | Path | None) -> Mapping[str, Any]:
    """Those that Lightning makes of a checkpoint; the weights of a file of this machine stay on the disk."""
    if not isinstance(file, str | Path):
        start = file.tell()
        content = torch.load(file, map_location="cpu", weights_only=True)
        file.seek(start)
    elif "://" in str(file):
        with get_filesystem(file).open(str(file), "rb") as stream:
            content = torch.load(cast(IO[bytes], stream), map_location="cpu", weights_only=True)
    else:
        content = mapped_content(str(file))
    if not isinstance(content, dict):
        return {}
    if hparams_file is not None:
        read = saving.load_hparams_from_tags_csv if str(hparams_file).endswith("csv") else _yaml
        content["hyper_parameters"] = read(hparams_file)
    keys = (*saving.CHECKPOINT_PAST_HPARAMS_KEYS, "hyper_parameters")
    found: dict[str, Any] = {}
    for key in keys:
        settings = content.get(key) or {}
        if not isinstance(settings, Mapping):
            raise ValueError(  # noqa: TRY004  the file is wrong
                f"{file} is no checkpoint of a run: {key} must be settings by name, got {settings!r:.80}"
            )
        found |= settings
    return found


def _yaml(file: str | Path) -> dict[str, Any]:
    return saving.load_hparams_from_yaml(file, use_omegaconf=False)
