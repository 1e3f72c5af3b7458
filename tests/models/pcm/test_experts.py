"""Experts that are adapters, whole models and black boxes: each row is what its expert says, however it is run."""

import pytest
import torch

from pluralign.models.pcm import BASE, AdapterExperts

from .conftest import VOCABULARY, network

DECODINGS = ["stacked", "mixed", "sequential"]


def prompts(lengths, seed=0):
    """Random rows of these lengths, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(VOCABULARY, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def plain(model, ids):
    """Log-probabilities after a sequence, in one pass without a cache and without padding."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)


def real(ids, mask, row):
    return ids[row, mask[row] > 0].tolist()


@pytest.mark.parametrize("decoding", DECODINGS)
def test_rows_are_what_a_plain_adapter_says(adapters, decoding):
    from peft import PeftModel

    kind, folders = adapters
    names = list(folders)
    references = [PeftModel.from_pretrained(network(kind), folder).eval() for folder in folders.values()]
    base = network(kind)
    pool = AdapterExperts(network(kind), folders, decoding=decoding)
    assert pool.names == tuple(names) and pool.vocab_size == VOCABULARY
    expert = torch.tensor([2, 0, BASE, 3, 1, 0])
    ids, mask = prompts([5, 3, 7, 4, 6, 2])
    run = pool.begin(ids, mask, expert)
    texts = [real(ids, mask, row) for row in range(len(expert))]

    def check(run, rows):
        assert run.log_probs.shape == (len(rows), VOCABULARY) and run.log_probs.dtype == torch.float32
        for place, row in enumerate(rows):
            number = int(expert[row])
            wanted = plain(base if number == BASE else references[number], texts[row])
            torch.testing.assert_close(run.log_probs[place], wanted, atol=1e-5, rtol=0)

    check(run, range(6))
    tokens = torch.tensor([1, 2, 3, 4, 5, 6])
    run.advance(tokens)
    for text, token in zip(texts, tokens.tolist(), strict=True):
        text.append(token)
    check(run, range(6))
    run.keep(torch.tensor([0, 2, 3, 5]))
    check(run, [0, 2, 3, 5])
    run.advance(torch.tensor([9, 8, 7, 6]))
    for row, token in ((0, 9), (2, 8), (3, 7), (5, 6)):
        texts[row].append(token)
    check(run, [0, 2, 3, 5])
    run.keep(torch.tensor([1]))
    run.advance(torch.tensor([11]))
    texts[2].append(11)
    check(run, [2])
