"""RewardHead: from pooled states to rewards."""

import torch
from torch import Tensor, nn

__all__ = ["RewardHead"]


class RewardHead(nn.Linear):
    """Linear map from pooled states to rewards that computes in float32, whatever it is stored in; float64 stays float64."""

    def __init__(self, in_features: int, out_features: int = 1) -> None:
        """Initialise with standard deviation 1 / sqrt(in_features + 1), without bias.

        A bias cancels in every comparison, so nothing would determine it.

        Args:
            in_features: Size of the pooled state.
            out_features: Numbers per response.
        """
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.normal_(self.weight, std=(self.in_features + 1) ** -0.5)

    def forward(self, input: Tensor) -> Tensor:
        """Map (R, H) of any float dtype to (R, out) float32, of float64 to float64."""
        single = torch.float64 if input.dtype == torch.float64 else torch.float32
        with torch.autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.to(single), self.weight.to(single))
