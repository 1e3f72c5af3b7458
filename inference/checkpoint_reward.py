"""The reward of a trained model, wherever it lies, as configurations of policies and judges name it."""

from typing import Any, Literal

from .opening import Which, open_model
from .scorer import Scorer

__all__ = ["CheckpointReward"]


class CheckpointReward(Scorer):
    """The reward of a checkpoint's module: any reward model of the collection, as its run left it.

    For policies and judges: ``rewards: {helpful: {class_path: pluralign.inference.CheckpointReward, init_args: {path: ...}}}``
    in a configuration, or a callable in a program. A run's folder, a folder that ``pluralign export`` wrote, and a reward model
    of transformers do as well.

    Example:
        >>> from pluralign.inference import CheckpointReward
        >>> reward = CheckpointReward("runs/version_0/checkpoints/last.ckpt", user="ann")  # doctest: +SKIP
        >>> reward(["Name a fruit."], ["A fig."], {})  # doctest: +SKIP
        tensor([0.3715])
    """

    def __init__(
        self,
        path: str,
        *,
        class_path: str | None = None,
        settings: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        base: str | None = None,
        checkpoint: Which = "best",
        revision: str | None = None,
        trust_remote_code: bool = False,
        label: str | None = None,
        user: str | None = None,
        domain: str | None = None,
        unknown_users: Literal["error", "mean"] = "error",
        unscored: float | None = None,
        device: str | None = "auto",
        max_tokens: int = 16_384,
    ) -> None:
        """Open the model; nothing of the run's configuration or data is needed.

        Args:
            path: A checkpoint of a reward module, a run's folder, an exported folder, or a reward model of transformers.
            class_path: Of a checkpoint: its class; None for the one that it names, which must be the collection's.
            settings: Of a checkpoint: settings of the module that are to differ from it, such as ``combine`` of
                :class:`EnsembleVoteRM` or ``risk_aversion`` of :class:`DPRM`.
            tokenizer: Where the tokenizer lies now, if it is not where it was in training: a folder, or a name on the hub.
            base: Of an adapter's folder: where its base lies, if the folder does not say or it lies elsewhere now.
            checkpoint: Which checkpoint of a run's folder.
            revision: Branch, tag or commit of a name on the hub.
            trust_remote_code: Whether code that ships with weights or tokenizer may run; no file decides that.
            label: Of a :class:`DPRM` that judges responses: a label, or one of ``label_sets``, whose probability is the reward.
            user: Of :class:`PAL`: whose reward it is; None for whom the column ``user`` of each item names, and for the mean
                of all users where it names nobody or there is no such column.
            domain: Of :class:`CustomizedRM`: of which domain it is; None for that of the column ``domain`` of each item,
                and for the general one where it names none or there is no such column.
            unknown_users: What an item gets that names a user of whom the module knows nothing.
            unscored: Reward of a response that cannot be read: that has no text, or does not fit the format's
                ``max_length``; None refuses it.
            device: Where the module runs, ``auto`` for an accelerator if there is one; moved there when first called.
            max_tokens: Bound on rows x padded length of a batch, >= 1.

        Raises:
            FileNotFoundError: If there is no such file or folder.
            TypeError: If it is of a module that rates nothing.
            ValueError: If it cannot be read, its text format cannot be had any more, or it has no such
                label, user or domain.
        """
        super().__init__(
            open_model(
                path,
                class_path=class_path,
                settings=settings,
                tokenizer=tokenizer,
                base=base,
                checkpoint=checkpoint,
                revision=revision,
                trust_remote_code=trust_remote_code,
            ),
            label=label,
            user=user,
            domain=domain,
            unknown_users=unknown_users,
            unscored=unscored,
            device=device,
            max_tokens=max_tokens,
        )
