"""How much a server takes at once, and how long anything may take."""

from dataclasses import dataclass, fields

from pluralign.datamodules.checks import check_range

__all__ = ["ServingLimits"]


@dataclass(frozen=True)
class ServingLimits:
    """Bounds of a server; each is checked before the model sees anything.

    Raises:
        ValueError: If a bound is below one, or a request may hold more responses than may wait.
    """

    max_waiting: int = 4096
    """Responses that wait at most; beyond that requests are turned away with status 429."""
    max_batch: int = 512
    """Responses of several requests that go to the model together; a larger request goes alone."""
    max_responses: int = 1024
    """Responses of a request."""
    max_characters: int = 200_000
    """Characters of a prompt or a response."""
    max_body: int = 8 * 2**20
    """Bytes of a request."""
    max_connections: int = 256
    """Connections at once."""
    timeout: float = 60.0
    """Seconds until a request must be answered, and until its body must be there."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "timeout":
                check_range("timeout", value, above=0)
            else:
                check_range(each.name, value, at_least=1)
        if self.max_responses > self.max_waiting:
            raise ValueError(
                f"max_responses must be at most max_waiting, {self.max_waiting:,}, or such a request could never wait; got "
                f"{self.max_responses:,}"
            )
