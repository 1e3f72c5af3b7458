"""CustomizedRM over tiny networks, over numbers given by hand, and the checkpoints that runs start from."""

import pytest
import torch
from torch import nn

from pluralign.models import BackboneConfig, CustomizedRM, StoredFeatures
from pluralign.models.backbone import Backbone, BackboneOutput

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


class GivenStates(Backbone):
    """A network that has been read already: states of the tokens, and one state for each response."""

    frozen = False
    layout = "separate"

    def __init__(self, pooled, tokens=None, vocabulary=None):
        nn.Module.__init__(self)
        self.pooled, self.tokens, self.model = pooled, tokens, nn.Identity()
        if vocabulary is not None:
            self.language_head = nn.Linear(vocabulary.shape[1], len(vocabulary), bias=False)
            self.language_head.weight.data.copy_(vocabulary)

    def train(self, mode=True):
        return nn.Module.train(self, mode)

    def forward(self, batch):
        return self.pooled

    def read(self, batch):
        return BackboneOutput(self.pooled, self.tokens, batch)


@pytest.fixture
def model(llama):
    """Build a module; fields of the backbone and of the network's configuration go where they belong."""

    def build(**settings):
        backbone = {
            name: settings.pop(name) for name in list(settings) if name in BackboneConfig.__dataclass_fields__
        }
        module = CustomizedRM(llama(**backbone), **settings)
        module.configure_model()
        return module

    return build


@pytest.fixture
def rated():
    """A module whose rewards are what it is given, and a batch of rated responses: every strict pair is compared."""

    def build(rewards, scores, **settings):
        module = CustomizedRM(BackboneConfig(config={"model_type": "llama"}, frozen=True), **settings)
        module.make_backbone = lambda: StoredFeatures(1)
        module.configure_model()
        nn.init.ones_(module.head.weight)
        pairs, start = [], 0
        for row in scores:
            places = range(len(row))
            pairs += [(start + i, start + j) for i in places for j in places if row[i] > row[j]]
            start += len(row)
        number = torch.tensor([i for i, row in enumerate(scores) for _ in row])
        flat = torch.tensor([reward for row in rewards for reward in row])
        batch = {
            "features": flat.unsqueeze(1),
            "response_row": number,
            "response_prompt": number,
            "comparisons": torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
            "score": torch.tensor([score for row in scores for score in row]),
            "id": [str(i) for i in range(len(scores))],
        }
        return module, batch

    return build


@pytest.fixture
def given_states():
    return GivenStates


@pytest.fixture
def domains_of():
    """The batch with a domain for each comparison, by turns; -1 is none."""

    def name(batch, *indices):
        number = len(batch["comparisons"])
        batch["domain_id"] = torch.tensor([indices[i % len(indices)] for i in range(number)])
        batch["domains_present"] = sorted(set(batch["domain_id"].tolist()))
        return batch

    return name


@pytest.fixture
def saved(tmp_path):
    """Write what a run would start from; returns the file's name."""

    def write(module, name="start.ckpt"):
        kept = module.saved_keys()
        state = {key: value.clone() for key, value in module.state_dict().items() if key in kept}
        content = {"state_dict": state, "hyper_parameters": dict(module.hparams)}
        content["pluralign"] = {"left_language_head": module._left_head}
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.fixture
def base(tmp_path):
    """Folder of a pretrained tiny network, with its language-model head unless told otherwise."""

    def write(*, tied=False, head=True, **changes):
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

        folder = tmp_path / f"base-{tied}-{head}-{len(changes)}"
        if not folder.exists():
            config = AutoConfig.for_model(
                "llama", vocab_size=64, tie_word_embeddings=tied, **{**SIZES, **changes}
            )
            torch.manual_seed(1)
            (AutoModelForCausalLM if head else AutoModel).from_config(config).save_pretrained(folder)
        return str(folder)

    return write
