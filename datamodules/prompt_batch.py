"""What travels from prompts to policies: items of a prompt and the preference asked for, and what rates their responses.

A batch has N items, D dimensions of style and L tokens. Responses are not in it: a policy writes them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypedDict, runtime_checkable

from torch import Tensor

from .batch import TextFormat

__all__ = ["Prompt", "PromptBatch", "PromptSource", "RewardFunction"]

Prompt = str | list[dict[str, str]]
"""Text, or messages with ``role`` and ``content``, as the source gives them."""

# jsonargparse takes any callable class and any function for a callable that returns anything, and none of them for one that
# returns a type: what comes back is looked at where it is used.
RewardFunction = Callable[[Sequence[Prompt], Sequence[str], Mapping[str, Sequence[object]]], Any]
"""What rates responses: (prompts, responses, columns) to a number for each response, (S,), higher is better: a tensor or numbers.

Prompts and responses are S each, as text; columns hold S values each of what else is known of an item, such as ``user``,
``domain``, and ``preference``, the names of the dimensions asked for. What rewards said of responses may be read from files again: an
object whose ``identity`` is a text changes it whenever it would say something else.
"""


class PromptBatch(TypedDict, total=False):
    """N items. Rows of tokens are padded on the left, as decoding wants them; each ends where a response begins."""

    id: list[str]
    """N names: of the prompt and the preference."""
    item_key: Tensor
    """(N,) int64: hash of the name, the prompt, what is said of the preference, the columns and the tokens, by which rollouts and
    reference answers find an item again."""
    prompt: list[Prompt]
    """N prompts as the source gives them, without what is said of the preference."""
    preference: list[tuple[str, ...]]
    """Names of the dimensions that each item asks for, in the order of the axes; empty without a preference."""
    wanted: Tensor
    """(N, D) bool: the dimensions that each item asks for."""
    columns: dict[str, list[object]]
    """What else the source says of each item, N values each."""
    input_ids: Tensor
    """(N, L) int64: the prompt with the sentences of all dimensions that it asks for."""
    attention_mask: Tensor
    """(N, L) int64: 1 on tokens, 0 on padding."""
    plain_ids: Tensor
    """(N, L) int64, of a length of its own: the prompt alone."""
    plain_mask: Tensor
    """(N, L) int64."""
    own_ids: Tensor
    """(N, D, L) int64, of a length of its own: the prompt with one dimension's sentence; all padding where it is not asked for."""
    own_mask: Tensor
    """(N, D, L) int64."""


@runtime_checkable
class PromptSource(Protocol):
    """What policies, callbacks and commands ask of data that give prompts."""

    name: str
    dimensions: tuple[str, ...]
    """D names, ``axis.pole``, such as ``tone.friendly``."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that the data have."""
        ...

    @property
    def pad_id(self) -> int:
        """What pads rows of tokens."""
        ...

    @property
    def end_id(self) -> int:
        """What ends a response."""
        ...

    @property
    def axes(self) -> Mapping[str, Sequence[str]]:
        """Poles of each axis, of which an item asks for one at most."""
        ...

    def text_format(self) -> TextFormat:
        """The settled text format."""
        ...

    def decode(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """Text of the tokens of responses, without special tokens and without what the format puts before a response."""
        ...

    def pieces(self, response: Sequence[int]) -> list[str]:
        """Text of each token of a response."""
        ...
