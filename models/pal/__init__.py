"""PAL: ideal points, prototypes, users."""

from .adapt import fit_mixture_weights
from .module import PAL
from .shots import (
    FewShotCurve,
    UserAccuracy,
    check_settings,
    few_shot_curve,
    fitted_weights,
    placed_judgements,
    user_accuracy,
)
from .users import UserModule

__all__ = [
    "PAL",
    "FewShotCurve",
    "UserAccuracy",
    "UserModule",
    "check_settings",
    "few_shot_curve",
    "fit_mixture_weights",
    "fitted_weights",
    "placed_judgements",
    "user_accuracy",
]
