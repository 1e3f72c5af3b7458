"""One LightningModule per method, over one shared core."""

from .autoregressive_rm import AutoregressiveRM
from .backbone import Backbone, BackboneConfig, BackboneOutput, LoRAConfig, RewardHead, StoredFeatures
from .base import BaseModule
from .bradley_terry import BradleyTerryRM
from .customized import CustomizedRM
from .dprm import DPRM
from .ensemble_vote import ContrastiveRM, EnsembleVoteRM, MetaRM
from .generation import Generated, LanguageModelSource, TokenSource, generate
from .pal import PAL, FewShotCurve, UserAccuracy, few_shot_curve, user_accuracy
from .pcm import PCM, AdapterExperts, BlackBoxExperts, ExpertPool, ExpertsConfig, ModelExperts
from .policy import PolicyTuner
from .relative import RolloutModule
from .responding import RespondingModule
from .restored import restored_module
from .reward import RewardModule
from .rollouts import Rollouts, RolloutStore
from .sharding import FullyShardedStrategy, consolidate
from .transformers_rm import TransformersRM

__all__ = [
    "DPRM",
    "PAL",
    "PCM",
    "AdapterExperts",
    "AutoregressiveRM",
    "Backbone",
    "BackboneConfig",
    "BackboneOutput",
    "BaseModule",
    "BlackBoxExperts",
    "BradleyTerryRM",
    "ContrastiveRM",
    "CustomizedRM",
    "EnsembleVoteRM",
    "ExpertPool",
    "ExpertsConfig",
    "FewShotCurve",
    "FullyShardedStrategy",
    "Generated",
    "LanguageModelSource",
    "LoRAConfig",
    "MetaRM",
    "ModelExperts",
    "PolicyTuner",
    "RespondingModule",
    "RewardHead",
    "RewardModule",
    "RolloutModule",
    "RolloutStore",
    "Rollouts",
    "StoredFeatures",
    "TokenSource",
    "TransformersRM",
    "UserAccuracy",
    "consolidate",
    "few_shot_curve",
    "generate",
    "restored_module",
    "user_accuracy",
]
