"""Networks that do not speak of the same tokens: control network, experts and data."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from pluralign.datamodules import TextConfig
from pluralign.models import PCM, BackboneConfig, BlackBoxExperts

WORDS = ["<pad>", "<unk>", "</s>", "a", "hat", "red", "boat", "the", "sea", "one", "moss", "Be", "warm"]


def with_tokenizer(network, folder, words):
    """A copy of a network's folder, with a tokenizer that knows some words, beside it."""
    AutoModelForCausalLM.from_pretrained(network).save_pretrained(folder)
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("order", ["same", "more", "turned"])
def test_tokenizers_that_number_tokens_differently_are_refused(
    order, pcm, prompts, experts, experts_folder, trainer, tmp_path
):
    """Every number is a token to both, so that nothing else would tell."""
    words = {"same": WORDS, "more": [*WORDS, "<new>"], "turned": [*WORDS[:3], *WORDS[:2:-1]]}[order]
    control = with_tokenizer(experts_folder / "base", tmp_path / "control", WORDS)
    base = with_tokenizer(experts_folder / "base", tmp_path / "base", words)
    module = pcm(
        backbone=BackboneConfig(name=control),
        experts=experts(base=BackboneConfig(name=base, frozen=True)),
        rewards={"length": lambda prompts, responses, columns: [float(len(one)) for one in responses]},
        max_new_tokens=2,
    )
    run = trainer(limit_train_batches=1, limit_val_batches=0)
    data = prompts(text=TextConfig(tokenizer=control))
    if order != "turned":
        run.fit(module, datamodule=data)
        return
    with pytest.raises(
        ValueError, match=r"data.text.tokenizer \('.*control'\) and experts.base .* number tokens differently"
    ):
        run.fit(module, datamodule=data)


def test_experts_that_lack_tokens_of_the_prompts_are_refused(prompts, tiny):
    def says(rows):
        return torch.full((len(rows), 1), 3), torch.zeros(len(rows), 1)

    module = PCM({"config": tiny(vocab_size=90)}, max_new_tokens=2)
    module.experts = BlackBoxExperts({"one": says, "other": says}, 90)
    module.prompt_source = data = prompts()
    module.configure_model()
    data.setup("fit")
    with pytest.raises(
        ValueError, match=r"token id \d+ of a prompt is outside the vocabulary of model.experts, 90"
    ):
        module.respond(next(iter(data.train_dataloader())))
