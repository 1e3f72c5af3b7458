"""Generation by a mixture of experts in plain transformers: the file ``custom_generate/generate.py`` of an exported folder.

``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` puts :func:`generate` in the place of the network's own.
The network is the base beneath the experts' adapters, or the first of experts that are whole models; the others, the control network
and the weights lie beside it. This file needs torch, transformers and safetensors alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils.hub import cached_file

__all__ = ["Mixture", "generate", "mixture_of"]

BASE = -1
"""In place of an expert's number: the base of adapters without any of them."""
ANSWER = "abc"
"""A response, to see where a prompt's tokens end that do not depend on it."""

Conversation = str | list[dict[str, str]]
Added = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]


class Streamer(Protocol):
    """What is told of tokens."""

    def put(self, value: Tensor) -> None:
        """Take the next token of each response, (S,)."""
        ...

    def end(self) -> None:
        """Hear that it was the last."""
        ...


class Said(TypedDict):
    """What ``mixture.json`` holds."""

    experts: list[str]
    """Names; an expert that is called as a dimension takes part where that is asked for, any other always."""
    kind: str
    """``adapters`` over the folder's network, or whole ``models``, the first of which it is."""
    told: str
    """What an expert's prompt says of the preference: ``none``, its ``own`` dimension's sentence, or ``all`` sentences."""
    weights: str
    """``control``: of a network of its own; ``base``: of the base's states; ``static``: of the preference alone."""
    first_pole: int | None
    """Token that tells the control network of the first expert's dimension; None where it reads the sentences."""
    dimensions: dict[str, str]
    """Sentence of each dimension, ``axis.pole``."""
    max_length: int | None
    """Most tokens of a prompt and its response together."""
    max_new_tokens: int


class Item(NamedTuple):
    """A prompt, as each of those that take part reads it."""

    told: list[int]
    """With the sentences of all dimensions that it asks for."""
    control: list[int]
    experts: dict[int, list[int]]
    """By the numbers of the experts that take part."""


class Rows:
    """Rows that a network reads on with a cache; padded on the left, with explicit positions."""

    def __init__(self, network: PreTrainedModel, ids: Sequence[Sequence[int]]) -> None:
        width = max(map(len, ids))
        padded = [[0] * (width - len(row)) + list(row) for row in ids]
        self.network, self.cache = network, DynamicCache(config=network.config)
        names = signature(network.forward).parameters
        self.fixed: dict[str, object] = {"use_cache": True}
        self.fixed["cache" if "cache" in names else "past_key_values"] = self.cache  # as of transformers 5.24
        if "logits_to_keep" in names:
            self.fixed["logits_to_keep"] = 1
        self.takes_positions = "position_ids" in names
        self.tokens = torch.tensor(padded, device=network.device)
        real = [[0] * (width - len(row)) + [1] * len(row) for row in ids]
        self.mask = torch.tensor(real, device=network.device)
        self.position = (self.mask.cumsum(1) - 1).clamp(min=0)

    def read(self) -> Mapping[str, Tensor]:
        """What the network says of the tokens that it has not read yet."""
        positions = {"position_ids": self.position} if self.takes_positions else {}
        inputs = {"input_ids": self.tokens, "attention_mask": self.mask, **positions}
        said: Mapping[str, Tensor] = self.network(**inputs, **self.fixed)
        return said

    def add(self, tokens: Tensor) -> None:
        """Take the next token of each row, (M,)."""
        self.tokens, self.position = tokens[:, None], self.position[:, -1:] + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)


class Adapters:
    """Low-rank products of several experts beside the layers of one network, each row with those of its own expert."""

    def __init__(self, network: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
        self.mask: dict[str, Tensor] | None = None
        self.down: dict[str, Tensor] = {}
        self.up: dict[str, Tensor] = {}
        self.owner: dict[str, Tensor] = {}
        parts: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
        for key in tensors:
            if key.endswith(".down"):
                _, number, layer = key.removesuffix(".down").split(".", 2)
                pair = tensors[key], tensors[f"{key.removesuffix('.down')}.up"]
                parts.setdefault(layer, {})[int(number)] = pair
        for layer, pairs in parts.items():
            self.down[layer] = torch.cat([down for down, _ in pairs.values()]).to(network.dtype)
            self.up[layer] = torch.cat([up.T for _, up in pairs.values()]).to(network.dtype)
            owner = [number for number, (down, _) in pairs.items() for _ in range(len(down))]
            self.owner[layer] = torch.tensor(owner)
            network.get_submodule(layer).register_forward_hook(self._hook(layer))

    def _hook(self, layer: str) -> Added:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self.mask is None:
                return output
            hidden = nn.functional.linear(inputs[0], self.down[layer]) * self.mask[layer]
            return torch.addmm(output.flatten(0, 1), hidden.flatten(0, 1), self.up[layer]).view_as(output)

        return add

    def switch(self, expert: Tensor | None) -> None:
        """Serve rows of these experts, (M,); None leaves the network as it is."""
        if expert is None:
            self.mask = None
            return
        for table in (self.down, self.up, self.owner):
            table.update({layer: value.to(expert.device) for layer, value in table.items()})
        self.mask = {
            layer: (owner == expert[:, None]).to(self.down[layer].dtype)[:, None]
            for layer, owner in self.owner.items()
        }


class Mixture:
    """What lies beside the network of an exported folder."""

    def __init__(self, model: PreTrainedModel, folder: str, revision: str | None) -> None:
        """Read the rest of a folder: a path, or a name on the hub; its network is there."""
        place: dict[str, Any] = {} if revision is None else {"revision": revision}
        said = Path(str(cached_file(folder, "mixture.json", **place)))
        self.said: Said = json.loads(said.read_text(encoding="utf-8"))
        tensors = load_file(str(cached_file(folder, "mixture.safetensors", **place)))
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **place)
        self.tensors = {name: value for name, value in tensors.items() if not name.startswith("expert.")}
        self.networks: list[PreTrainedModel] = [model]
        self.adapters: Adapters | None = None
        if self.said["kind"] == "adapters":
            self.adapters = Adapters(model, tensors)
        else:
            for number in range(1, len(self.said["experts"])):
                where = f"experts/{number}"
                network = AutoModelForCausalLM.from_pretrained(folder, subfolder=where, dtype="auto", **place)
                self.networks.append(network.eval())
        self.control: PreTrainedModel | None = None
        if self.said["weights"] == "control":
            control = AutoModel.from_pretrained(folder, subfolder="control", dtype="auto", **place)
            self.control = control.eval()

    def to(self, device: torch.device) -> None:
        """Move all but the folder's network, which is there."""
        self.tensors = {name: value.to(device) for name, value in self.tensors.items()}
        for network in (*self.networks[1:], *([] if self.control is None else [self.control])):
            cast(nn.Module, network).to(device)

    # Prompts -------------------------------------------------------------------------------------------

    def tokens(self, conversation: Conversation, sentence: str = "") -> list[int]:
        """Tokens of a conversation with a sentence behind the user's last turn, up to where a response begins."""
        turns = (
            [{"role": "user", "content": conversation}]
            if isinstance(conversation, str)
            else [dict(turn) for turn in conversation]
        )
        if sentence:
            users = [turn for turn in turns if turn["role"] == "user"]
            if not users:
                raise ValueError(
                    "a conversation needs a turn of the user, behind which the preference is said"
                )
            text = users[-1]["content"]
            users[-1]["content"] = f"{text}{'' if not text or text[-1].isspace() else ' '}{sentence}"
        render = self.tokenizer.apply_chat_template
        texts = [
            render(turns, tokenize=False, add_generation_prompt=True),
            render([*turns, {"role": "assistant", "content": ANSWER}], tokenize=False),
        ]
        alone, whole = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        shared = next((i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), len(alone))
        # White space that the tokenizer joins with the first word of a response is left to the response.
        blank = not self.tokenizer.decode(alone[shared:]).strip()
        return list(alone[:shared] if blank else alone)

    def item(self, conversation: Conversation, preference: Sequence[str], room: int) -> Item:
        """A prompt with a preference, as each network reads it; a response may have ``room`` tokens."""
        said, sentences = self.said, self.said["dimensions"]
        asked = [name for name in sentences if name in preference]
        axes = [name.partition(".")[0] for name in asked]
        if len(asked) < len(preference) or len(set(axes)) < len(axes):
            raise ValueError(
                f"preference={list(preference)}: allowed is one of each axis at most, of {', '.join(sentences) or 'none'}"
            )
        names = said["experts"]
        by_name = bool(set(names) & set(sentences)) and bool(sentences)
        members = [i for i, name in enumerate(names) if not by_name or name not in sentences or name in asked]
        lacking = [name for name in asked if name not in names] if by_name else []
        if lacking or not members:
            raise ValueError(
                f"preference={list(preference)}: no expert is for {', '.join(lacking) or 'it'}; experts: {', '.join(names)}"
            )
        told = self.tokens(conversation, " ".join(sentences[name] for name in asked))
        plain = self.tokens(conversation)
        read = {i: told if said["told"] == "all" else plain for i in members}
        if said["told"] == "own":
            read |= {
                i: self.tokens(conversation, sentences[names[i]]) for i in members if names[i] in sentences
            }
        first = said["first_pole"]
        control = told if first is None else [*(first + i for i in members), *plain]
        longest = max(map(len, (told, plain)))
        if said["max_length"] is not None and longest + room > said["max_length"]:
            raise ValueError(
                f"a prompt of {longest} tokens and a response of {room} are longer than {said['max_length']}: shorten the prompt, or "
                "lower max_new_tokens"
            )
        return Item(told, control, read)


class Run:
    """Rows of all experts that take part in some items, mixed token by token."""

    def __init__(self, mixture: Mixture, items: Sequence[Item], temperature: float) -> None:
        self.mixture, self.temperature, self.number = mixture, temperature, len(items)
        device = mixture.networks[0].device
        rows = [(place, i, ids) for place, item in enumerate(items) for i, ids in item.experts.items()]
        if mixture.said["weights"] == "base":
            rows += [(place, BASE, item.told) for place, item in enumerate(items)]
        self.groups: list[tuple[Rows, Tensor, Tensor]] = []
        for number, network in enumerate(mixture.networks):
            own = [row for row in rows if mixture.adapters is not None or row[1] == number]
            if own:
                item, expert = (torch.tensor([row[i] for row in own], device=device) for i in (0, 1))
                self.groups.append((Rows(network, [ids for _, _, ids in own]), item, expert))
        self.members = torch.zeros(self.number, len(mixture.said["experts"]), dtype=torch.bool, device=device)
        for place, one in enumerate(items):
            self.members[place, list(one.experts)] = True
        control = mixture.control
        self.control = None if control is None else Rows(control, [item.control for item in items])

    def log_probs(self) -> Tensor:
        """Log-probabilities of each item's next token, (S, V) float32."""
        experts: Tensor | None = None
        states: Tensor | None = None
        for rows, item, expert in self.groups:
            logits, seen = self._read(rows, expert)
            said = logits[:, -1].float().log_softmax(-1)
            if self.temperature != 1.0:
                said = (said / self.temperature).log_softmax(-1)
            if experts is None:
                experts = said.new_full((*self.members.shape, said.shape[1]), -torch.inf)
            own = expert != BASE
            experts[item[own], expert[own]] = said[own]
            states = seen[~own]
        assert experts is not None  # every item has an expert
        weights = self._weights(states)
        return (weights.log().unsqueeze(-1) + experts).logsumexp(1)

    def _read(self, rows: Rows, expert: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and what the language-model head read, (M, H)."""
        adapters, seen = self.mixture.adapters, cast("list[Tensor]", [])

        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0][:, -1])

        head = cast(nn.Module, rows.network.get_output_embeddings())
        hook = head.register_forward_pre_hook(look)
        if adapters is not None:
            adapters.switch(expert)
        try:
            logits = rows.read()["logits"]
        finally:
            hook.remove()
            if adapters is not None:
                adapters.switch(None)
        return logits, seen[-1]

    def _weights(self, states: Tensor | None) -> Tensor:
        """Weights of the experts, (S, n) float32; 0 for those that take no part."""
        tensors = self.mixture.tensors
        if self.mixture.said["weights"] == "static":
            logits = self.members.to(tensors["static"].dtype) @ tensors["static"]
        else:
            if self.control is not None:
                states = self.control.read()["last_hidden_state"][:, -1]
            assert states is not None  # of the control network, or of the base
            logits = nn.functional.linear(states.float(), tensors["head.weight"], tensors["head.bias"])
        return logits.masked_fill(~self.members, -torch.inf).softmax(-1)

    def add(self, tokens: Tensor) -> None:
        """Take the next token of each item, (S,)."""
        for rows, item, _ in self.groups:
            rows.add(tokens[item])
        if self.control is not None:
            self.control.add(tokens)


def mixture_of(model: PreTrainedModel) -> Mixture:
    """What belongs to a folder's network; read once.

    Args:
        model: Loaded from the folder, or from the hub.
    """
    mixture: Mixture | None = model.__dict__.get("_mixture")
    if mixture is None:
        place = str(model.name_or_path)
        mixture = Mixture(model, place, getattr(model.config, "_commit_hash", None))
        model.__dict__["_mixture"] = mixture  # no submodule: it is not the network's to save
    mixture.to(model.device)
    return mixture


class Loop:
    """What transformers calls in the place of its own loop, with its processors and stopping criteria."""

    def __init__(self, run: Run, *, samples: bool, streamer: Streamer | None) -> None:
        self.run, self.samples, self.streamer = run, samples, streamer

    # transformers passes attention_mask and the like a second time where the signature names them.
    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Callable[[Tensor, Tensor], Tensor],
        stopping_criteria: Callable[[Tensor, None], Tensor],
        generation_config: GenerationConfig,
        **prepared: object,
    ) -> Tensor:
        """Prompts and responses, (S, L + T) int64."""
        padding = int(cast(int, generation_config.pad_token_id))
        going, texts = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device), input_ids
        while True:
            scores = logits_processor(texts, self.run.log_probs())
            chosen = torch.multinomial(scores.softmax(-1), 1)[:, 0] if self.samples else scores.argmax(-1)
            tokens = torch.where(going, chosen, padding)
            texts = torch.cat([texts, tokens[:, None]], 1)
            going = going & ~stopping_criteria(texts, None)
            if self.streamer is not None:
                self.streamer.put(tokens.cpu())
            if not bool(going.any()):
                return texts
            self.run.add(tokens)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    conversations: Sequence[Conversation] | None = None,
    preferences: Sequence[Sequence[str]] | None = None,
    *,
    temperature: float = 1.0,
    streamer: Streamer | None = None,
    **settings: object,
) -> Tensor:
    """Responses to conversations, each with a preference; a network reads the wording that is meant for it.

    Args:
        model: The folder's network.
        conversations: S texts or lists of messages with ``role`` and ``content``.
        preferences: Of each the dimensions that it asks for, such as ``["tone.friendly"]``; None for none.
        temperature: Of every expert, before they are mixed, where ``do_sample`` is set.
        streamer: Told of tokens as they are chosen.
        **settings: As ``generate`` of transformers has them, such as ``max_new_tokens``, ``do_sample`` and ``top_p``.

    Returns:
        Tokens of the responses alone, (S, T) int64, padded on the right.

    Raises:
        ValueError: If there are no conversations, a preference is unknown, or a prompt is too long.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    _check(given, conversations, preferences)
    assert conversations is not None  # it was looked at
    mixture, config = mixture_of(model), given.get("generation_config")
    room = getattr(config, "max_new_tokens", None) or mixture.said["max_new_tokens"]
    room = int(cast(int, given.setdefault("max_new_tokens", room)))
    samples = bool(given.get("do_sample", getattr(config, "do_sample", False)))
    if samples:
        given.setdefault(
            "top_k", getattr(config, "top_k", None) or 0
        )  # transformers keeps the 50 best otherwise
    asked = [()] * len(conversations) if preferences is None else preferences
    items = [mixture.item(text, wanted, room) for text, wanted in zip(conversations, asked, strict=True)]
    run, told = Run(mixture, items, temperature if samples else 1.0), Rows(model, [one.told for one in items])
    kind = cast(Any, type(model))  # its own generate, which this function has replaced
    made: Tensor = kind.generate(
        model,
        input_ids=told.tokens,
        attention_mask=told.mask,
        custom_generate=Loop(run, samples=samples, streamer=streamer),
        use_cache=False,
        **given,
    )
    if streamer is not None:
        streamer.end()
    return made[:, told.tokens.shape[1] :]


def _check(
    given: Mapping[str, object],
    conversations: Sequence[Conversation] | None,
    preferences: Sequence[Sequence[str]] | None,
) -> None:
    """Refuse what a mixture cannot answer.

    Raises:
        ValueError: Naming it.
    """
    if not conversations or "inputs" in given or "input_ids" in given:
        raise ValueError(
            "each expert reads another wording of a prompt, so that tokens are not enough: call generate(conversations=[...], "
            "preferences=[...]) with texts or messages"
        )
    if preferences is not None and len(preferences) != len(conversations):
        raise ValueError(f"{len(conversations)} conversations have {len(preferences)} preferences")
    config = given.get("generation_config")
    for name in ("num_beams", "num_return_sequences"):
        value = given.get(name, getattr(config, name, None))
        if value not in (None, 1):
            raise ValueError(
                f"{name}={value}: each response goes its one way; repeat a conversation for several responses to it"
            )
