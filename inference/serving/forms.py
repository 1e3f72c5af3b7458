"""What may be asked, in the form of each known reward server, and the answers in the same form.

Forms are strict: a field that a form does not have is refused, since leaving out, say, ``truncate`` would change what a
reward is of. ``user`` and ``domain`` say in all of them whose reward it is.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from pluralign.datamodules.prompt_batch import Prompt

from .request_queue import Asked

__all__ = [
    "AnyRerank",
    "AnyScore",
    "ChatForm",
    "Form",
    "PairForm",
    "PolicyForm",
    "PredictForm",
    "RerankForm",
    "ScoreForm",
    "TextsForm",
]

WHOLE_TEXT = (
    "a text alone is not taken: the server forms texts itself, as in training; send messages that end in the assistant's, "
    "or a prompt and a response"
)
Messages = list[dict[str, str]]


class Form(BaseModel):
    """What all forms have."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    model: str | None = Field(None, description="name of the model; the one that is served, or left out")
    user: str | None = Field(None, description="as whom responses are rated")
    domain: str | None = Field(None, description="in which domain they are rated")

    def asked(self) -> list[Asked]:
        """The responses whose rewards are asked for.

        Raises:
            ValueError: If fields do not fit together; names them.
        """
        raise NotImplementedError

    def _as(self, prompt: Prompt, response: str) -> Asked:
        return Asked(prompt, response, self.user, self.domain)


class ScoreForm(Form):
    """The collection's own: a prompt and its responses."""

    prompt: str | Messages
    responses: str | list[str]

    def asked(self) -> list[Asked]:
        """Each response."""
        return [self._as(self.prompt, response) for response in _listed(self.responses)]


class Activated(Form):
    """Forms of vLLM: rewards as they are, unless an activation is asked for."""

    use_activation: bool | None = Field(
        None, description="whether scores are sigmoid(reward); false by default"
    )

    def shown(self, rewards: Sequence[float]) -> list[float]:
        """Scores as they were asked for."""
        return [sigmoid(reward) for reward in rewards] if self.use_activation else list(rewards)


class PairForm(Activated):
    """vLLM's ``/score``: one text with each of others, or two lists side by side."""

    first: str | list[str] = Field(validation_alias=AliasChoices("queries", "text_1", "data_1"))
    second: str | list[str] = Field(validation_alias=AliasChoices("documents", "items", "text_2", "data_2"))

    def asked(self) -> list[Asked]:
        """Pairs of prompt and response."""
        prompts, responses = _listed(self.first), _listed(self.second)
        if len(prompts) == 1:
            prompts = prompts * len(responses)
        if len(prompts) != len(responses):
            raise ValueError(
                f"queries must be one, or as many as documents, {len(responses)}; got {len(prompts)}"
            )
        return [self._as(prompt, text) for prompt, text in zip(prompts, responses, strict=True)]


class ChatForm(Activated):
    """vLLM's ``/classify`` and ``/pooling``: a conversation that ends in the response."""

    messages: Messages
    task: Literal["classify"] | None = None

    @model_validator(mode="before")
    @classmethod
    def no_text_alone(cls, data: object) -> object:
        """Refuse a text that is formatted already."""
        if isinstance(data, dict) and "input" in data:
            raise ValueError(f"input: {WHOLE_TEXT}")
        return data

    def asked(self) -> list[Asked]:
        """The last message as the response to those before."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant" or "content" not in last:
            raise ValueError(
                f"messages must end in one of role assistant, with content, which is rated; got role {last.get('role')!r}"
            )
        return [self._as(self.messages[:-1], last["content"])]


class RerankForm(Activated):
    """vLLM's ``/rerank``: a prompt and its responses, best first."""

    query: str
    documents: list[str]
    top_n: int = Field(0, ge=0, description="how many of the best; 0 for all")

    def asked(self) -> list[Asked]:
        """Each response."""
        return [self._as(self.query, text) for text in self.documents]


class Raw(Form):
    """Forms of text-embeddings-inference: a sigmoid, unless raw scores are asked for."""

    raw_scores: bool = Field(
        False, description="whether scores are rewards as they are; otherwise sigmoid(reward)"
    )
    truncate: Literal[False] = Field(False, description="texts are never cut here")

    def shown(self, rewards: Sequence[float]) -> list[float]:
        """Scores as they were asked for."""
        return list(rewards) if self.raw_scores else [sigmoid(reward) for reward in rewards]


class PredictForm(Raw):
    """The ``/predict`` of text-embeddings-inference: a pair of texts, or several."""

    inputs: str | list[str] | list[list[str]]

    @property
    def alone(self) -> bool:
        """Whether it is one pair, whose answer is no list of answers."""
        return isinstance(self.inputs, str) or (bool(self.inputs) and isinstance(self.inputs[0], str))

    def asked(self) -> list[Asked]:
        """Pairs of prompt and response."""
        pairs = [self.inputs] if self.alone else list(self.inputs)
        asked = []
        for place, pair in enumerate(pairs):
            if isinstance(pair, str) or len(pair) != 2:
                raise ValueError(f"inputs[{place}] must be [prompt, response]: {WHOLE_TEXT}")
            asked.append(self._as(str(pair[0]), str(pair[1])))
        return asked


class TextsForm(Raw):
    """The ``/rerank`` of text-embeddings-inference."""

    query: str
    texts: list[str]
    return_text: bool = False

    def asked(self) -> list[Asked]:
        """Each response."""
        return [self._as(self.query, text) for text in self.texts]


class PolicyForm(Form):
    """OpenRLHF's ``/get_reward``: prompts, and each with what a policy wrote behind it."""

    query: list[str]
    prompts: list[str]
    labels: list[str | None] | None = Field(None, description="reference answers; a reward model reads none")

    def asked(self) -> list[Asked]:
        """What is behind each prompt."""
        return self.without(())

    def without(self, special: Sequence[str]) -> list[Asked]:
        """What is behind each prompt, without special tokens at the ends of both.

        Args:
            special: Their texts.

        Raises:
            ValueError: If a query does not begin with its prompt.
        """
        if len(self.query) != len(self.prompts):
            raise ValueError(f"prompts must be as many as query, {len(self.query)}; got {len(self.prompts)}")
        asked = []
        for place, (query, prompt) in enumerate(zip(self.query, self.prompts, strict=True)):
            bare, text = _stripped(prompt, special), _stripped(query, special)
            if not text.startswith(bare):
                raise ValueError(
                    f"query[{place}] must begin with prompts[{place}]; where special tokens of the policy stand before it, "
                    "name them with --special"
                )
            asked.append(self._as(bare, _stripped(text[len(bare) :], special)))
        return asked


def _form(data: object, keys: Sequence[str], tag: str, other: str) -> str:
    """Which of two forms it is, by the keys that it has."""
    return tag if isinstance(data, dict) and any(key in data for key in keys) else other


AnyScore = Annotated[
    Annotated[ScoreForm, Tag("ours")] | Annotated[PairForm, Tag("vllm")],
    Discriminator(lambda data: _form(data, ("prompt", "responses"), "ours", "vllm")),
]
AnyRerank = Annotated[
    Annotated[TextsForm, Tag("tei")] | Annotated[RerankForm, Tag("vllm")],
    Discriminator(lambda data: _form(data, ("texts",), "tei", "vllm")),
]


def sigmoid(reward: float) -> float:
    """What servers of classifiers make of a single logit."""
    return 1 / (1 + math.exp(-reward)) if reward >= 0 else math.exp(reward) / (1 + math.exp(reward))


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def _stripped(text: str, special: Sequence[str]) -> str:
    """A text without any of the special ones at its ends."""
    before = None
    while text != before:
        before = text
        for each in special:
            text = text.removeprefix(each).removesuffix(each)
    return text
