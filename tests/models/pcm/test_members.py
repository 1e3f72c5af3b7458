"""Items that ask for several dimensions, for one, or for none: who takes part, and what is said where nobody does."""

import json

import pytest
import torch

from .conftest import DIMENSIONS

ASKED = ([], ["size.long"], ["tone.cold", "size.short"])


@pytest.fixture
def uneven(prompts, tmp_path):
    """Data whose prompts ask for no, one, and two dimensions, in one batch."""

    def build():
        path = tmp_path / "uneven.jsonl"
        rows = [{"prompt": f"lamp {i}", "preference": asked} for i, asked in enumerate(ASKED)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = prompts(train=None, predict=str(path))
        data.setup("predict")
        return data, next(iter(data.predict_dataloader()))

    return build


@pytest.mark.parametrize("baseline", ["none", "uniform", "product_soup", "forward_kl"])
def test_an_item_in_which_no_expert_takes_part_is_named(pcm, uneven, baseline):
    module = pcm(baseline=baseline)
    module.prompt_source, batch = uneven()
    module.configure_model()
    with pytest.raises(
        ValueError, match=r"item '\w+' asks for none of the dimensions .* \(1 of 3 items"
    ) as caught:
        module.respond(batch)
    assert "experts: tone.warm" in str(caught.value) and "data.preferences" in str(caught.value)


def test_an_expert_called_like_no_dimension_takes_part_in_all(pcm, experts, experts_folder, uneven):
    names = {**{name: name for name in DIMENSIONS}, "always": DIMENSIONS[0]}
    folders = {name: str(experts_folder / folder) for name, folder in names.items()}
    module = pcm(experts=experts(adapters=folders))
    module.prompt_source, batch = uneven()
    module.configure_model()
    rollouts = module.respond(batch, num_samples=2, sample=True)
    weights = rollouts.token_values["weights"][:, 0]
    asked = [[name in (*given, "always") for name in names] for given in batch["preference"]]
    members = torch.tensor(asked).float()
    torch.testing.assert_close(weights[::2], members / members.sum(1, keepdim=True))
    torch.testing.assert_close(module.log_probs(rollouts).detach(), rollouts.log_prob, rtol=0, atol=1e-4)
