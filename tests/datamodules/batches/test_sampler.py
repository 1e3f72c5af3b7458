"""Batches: within budget, whole, random at large, equal on all ranks, resumable."""

import pickle
from collections import Counter

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from pluralign.datamodules.base import LoaderConfig
from pluralign.datamodules.batches.plans import BatchPlan
from pluralign.datamodules.batches.sampler import PreferenceDataLoader, TokenBudgetBatchSampler


def lognormal_sizes(n, seed=0, responses=2):
    rng = np.random.default_rng(seed)
    own = np.clip(rng.lognormal(4.0, 0.8, (n, responses)), 1, 800).astype(np.int32)
    prefix = np.clip(rng.lognormal(4.0, 1.0, n), 1, 1500).astype(np.int32)
    return np.stack([np.full(n, responses), prefix, own.sum(1), own.max(1)], axis=1).astype(np.int32)


def cost(sizes, layout):
    """Rows and length of every record, written out."""
    responses, prefix, own_sum, own_max = np.asarray(sizes, dtype=np.int64).T
    if layout == "shared":
        return np.ones_like(responses), prefix + own_sum
    return responses, prefix + own_max


def cells(batch, rows, lengths):
    return int(rows[batch].sum() * lengths[batch].max())


@st.composite
def cases(draw):
    sizes = []
    for _ in range(draw(st.integers(1, 40))):
        own = draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
        sizes.append((len(own), draw(st.integers(0, 40)), sum(own), max(own)))
    bounds = draw(st.sampled_from(["tokens", "records", "both"]))
    replicas = draw(st.integers(1, min(4, len(sizes))))
    return np.asarray(sizes, dtype=np.int32), {
        "layout": draw(st.sampled_from(["shared", "separate"])),
        "max_tokens": draw(st.integers(1, 400)) if bounds != "records" else None,
        "batch_size": draw(st.integers(1, 8)) if bounds != "tokens" else None,
        "mega_batch": draw(st.integers(1, 8)),
        "seed": draw(st.integers(0, 3)),
        "num_replicas": replicas,
    }


def epoch_of(sizes, options, epoch, **more):
    """Every rank's batches of an epoch."""
    ranks = []
    for rank in range(options["num_replicas"]):
        sampler = TokenBudgetBatchSampler(sizes, rank=rank, **options, **more)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        ranks.append(batches)
    return ranks


@given(cases())
@settings(max_examples=150, deadline=None)
def test_training_epoch(case):
    sizes, options = case
    rows, lengths = cost(sizes, options["layout"])
    counts = set()
    for epoch in (0, 1, 5):
        ranks = epoch_of(sizes, options, epoch)
        counts |= {len(batches) for batches in ranks}
        seen = Counter(i for batches in ranks for batch in batches for i in batch)
        assert set(seen) == set(range(len(sizes))), "every record"
        repeats = sum(seen.values()) - len(sizes)
        # Repeats only where every batch is down to one record and ranks need equally many.
        assert repeats < options["num_replicas"]
        if repeats:
            assert all(len(batch) == 1 for batches in ranks for batch in batches)
        for batches in ranks:
            for batch in batches:
                assert len(set(batch)) == len(batch) > 0
                if options["batch_size"] is not None:
                    assert len(batch) <= options["batch_size"]
                if options["max_tokens"] is not None and len(batch) > 1:
                    assert cells(batch, rows, lengths) <= options["max_tokens"]
    assert len(counts) == 1, "equally many batches on every rank and in every epoch"


@given(cases())
@settings(max_examples=100, deadline=None)
def test_evaluation_counts_each_record_once(case):
    sizes, options = case
    ranks = epoch_of(sizes, options, 0, shuffle=False)
    assert ranks == epoch_of(sizes, options, 3, shuffle=False), "the same order every time"
    seen = [i for batches in ranks for batch in batches for i in batch]
    assert sorted(seen) == list(range(len(sizes)))
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


def test_evaluation_with_fewer_records_than_ranks():
    sizes = lognormal_sizes(3)
    ranks = epoch_of(sizes, {"max_tokens": 4000, "num_replicas": 5}, 0, shuffle=False)
    assert sorted(i for batches in ranks for batch in batches for i in batch) == [0, 1, 2]


@given(cases())
@settings(max_examples=50, deadline=None)
def test_training_without_shuffling_gives_every_rank_equally_many_batches(case):
    sizes, options = case
    once, even = (epoch_of(sizes, {**options, "even": even}, 0, shuffle=False) for even in (False, True))
    assert len({len(batches) for batches in even}) == 1
    seen = Counter(i for batches in even for batch in batches for i in batch)
    assert set(seen) == set(range(len(sizes)))
    assert sum(seen.values()) - len(sizes) == sum(map(len, even)) - sum(map(len, once))


def test_budget_is_used_not_only_kept():
    sizes = lognormal_sizes(2000)
    sampler = TokenBudgetBatchSampler(sizes, max_tokens=8192)
    rows, lengths = cost(sizes, "shared")
    filled = np.asarray([cells(batch, rows, lengths) for batch in sampler])
    assert filled.max() <= 8192
    assert filled.mean() > 0.8 * 8192


def test_oversized_records_stand_alone_and_are_counted():
    sizes = np.asarray([(2, 5, 5, 3)] * 6 + [(2, 50, 60, 40), (2, 90, 20, 10)], dtype=np.int32)
    sampler = TokenBudgetBatchSampler(sizes, max_tokens=100, mega_batch=100)
    assert sampler.num_oversized == 2
    batches = [sorted(batch) for batch in sampler]
    assert [6] in batches and [7] in batches


def test_exact_batches_without_shuffle():
    sizes = np.asarray([(1, 1, n, n) for n in (4, 9, 2, 7, 1)], dtype=np.int32)  # lengths 5 10 3 8 2
    sampler = TokenBudgetBatchSampler(sizes, max_tokens=20, shuffle=False)
    assert list(sampler) == [[1, 3], [0, 2, 4]]
    assert list(TokenBudgetBatchSampler(sizes, batch_size=2, shuffle=False)) == [[1, 3], [0, 2], [4]]


def test_separate_layout_counts_every_response_as_a_row():
    sizes = np.asarray([(4, 6, 16, 4)] * 4, dtype=np.int32)  # 4 rows of 10 each; 22 tokens if shared
    assert {
        len(b) for b in TokenBudgetBatchSampler(sizes, layout="separate", max_tokens=80, shuffle=False)
    } == {2}
    assert {
        len(b) for b in TokenBudgetBatchSampler(sizes, layout="shared", max_tokens=88, shuffle=False)
    } == {4}


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_the_heaviest_batch_is_counted_as_rows_are_read_in_the_layout(layout):
    lengths = [
        100,
        1,
        1,
        1,
        40,
        40,
        40,
        40,
    ]  # sorted within two: the one long text makes three others as long
    sizes = np.asarray([(1, 1, n - 1, n - 1) for n in lengths], np.int32)
    sampler = TokenBudgetBatchSampler(sizes, layout=layout, batch_size=4, shuffle=False)
    sampler._first = BatchPlan(np.arange(8), np.asarray([0, 4]), np.asarray([4, 8]))
    records, tokens = sampler.heaviest()
    assert (sorted(records), tokens) == (([4, 5, 6, 7], 160) if layout == "shared" else ([0, 1, 2, 3], 400))


def test_the_tokens_of_a_heavy_batch_fit_into_no_32_bits():
    sizes = np.tile(np.asarray([(2**16, 1, 2**15, 2**15)], np.int32), (2, 1))
    assert (
        TokenBudgetBatchSampler(sizes, layout="separate", batch_size=2, shuffle=False).heaviest()[1] > 2**32
    )


def test_single_records_are_not_repeated_on_one_rank():
    sizes = np.asarray([(1, 50, 60, 60)] * 100, dtype=np.int32)
    for mega in (1, 4, 64):
        batches = list(TokenBudgetBatchSampler(sizes, max_tokens=100, mega_batch=mega))
        assert sorted(batches) == [[i] for i in range(100)]


def test_order_depends_on_seed_and_epoch_only():
    sizes = lognormal_sizes(400)

    def order(epoch, seed=0):
        sampler = TokenBudgetBatchSampler(sizes, max_tokens=4096, seed=seed)
        sampler.set_epoch(epoch)
        torch.rand(3)
        np.random.rand(3)
        return list(sampler)

    assert order(0) == order(0)
    assert order(4) == order(4)
    different = [order(0), order(1), order(2), order(0, seed=1)]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])
    together = [{frozenset(batch) for batch in batches} for batches in different]
    assert len(together[0] & together[1]) < 0.2 * len(together[0]), (
        "other epochs have other batches, not only order"
    )


def test_ranks_are_disjoint_and_steps_alike_in_length():
    sizes = lognormal_sizes(2000)
    ranks = epoch_of(sizes, {"max_tokens": 4096, "num_replicas": 4}, 1)
    sets = [{i for batch in batches for i in batch} for batches in ranks]
    assert all(not a & b for i, a in enumerate(sets) for b in sets[:i])
    _, lengths = cost(sizes, "shared")
    longest = np.asarray([[lengths[batch].max() for batch in batches] for batches in ranks])
    mixed = np.random.default_rng(0).permutation(longest.ravel()).reshape(longest.shape)
    within, at_random = (np.median(table.max(0) / table.min(0)) for table in (longest, mixed))
    assert within < 1.25 and at_random > 2.5, "no rank waits long for another"


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_bucketing_lowers_padding_and_order_stays_random(layout):
    sizes = lognormal_sizes(6000)
    rows, lengths = cost(sizes, layout)
    real = int((rows * lengths).sum())
    sampler = TokenBudgetBatchSampler(sizes, layout=layout, max_tokens=8192, mega_batch=32)

    def padding(batches):
        return 1 - real / sum(cells(batch, rows, lengths) for batch in batches)

    # Random batches of as many records each, as a plain shuffled loader gives them.
    ours = list(sampler)
    rng = np.random.default_rng(0)
    random = np.array_split(rng.permutation(len(sizes)), len(ours))
    assert padding(random) > 0.50
    assert padding(ours) < 0.06
    # At large the order is random: neither length nor number in the file goes with the place in the epoch.
    for epoch in range(3):
        sampler.set_epoch(epoch)
        ours = list(sampler)
        place = np.arange(len(ours))
        for values in (lengths, np.arange(len(sizes))):
            means = [values[batch].mean() for batch in ours]
            assert abs(np.corrcoef(place, means)[0, 1]) < 4 / np.sqrt(len(ours))
            # Nor does a batch tell the next one's: the sorted order within a mega-batch is not the epoch's.
            assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 4 / np.sqrt(len(ours))


def test_composition_stays_random_over_many_epochs():
    """The count is fixed in advance; other shuffles must fit it without falling back on the first one."""
    sizes = lognormal_sizes(1500)
    sampler = TokenBudgetBatchSampler(sizes, max_tokens=4096, mega_batch=8)
    first = {frozenset(batch.tolist()) for batch in sampler.plan(0)}
    for epoch in range(1, 40):
        now = {frozenset(batch.tolist()) for batch in sampler.plan(epoch)}
        assert len(first & now) < 0.3 * len(first), epoch


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_is_planned_once_however_often_it_is_asked_for(shuffle, monkeypatch):
    compose, planned = TokenBudgetBatchSampler._compose, []

    def noted(self, epoch, attempt):
        planned.append((epoch, attempt))
        return compose(self, epoch, attempt)

    monkeypatch.setattr(TokenBudgetBatchSampler, "_compose", noted)
    sampler = TokenBudgetBatchSampler(lognormal_sizes(200), max_tokens=4096, shuffle=shuffle)
    first = list(sampler)
    assert len(first) == len(sampler) == len(sampler.plan(0)) and list(sampler) == first
    assert planned == [(0, 0)]
    sampler.set_epoch(1)
    second = list(sampler)
    assert len(second) == len(sampler) == len(first) and list(sampler) == second
    assert planned == ([(0, 0), (1, 0)] if shuffle else [(0, 0)])


def test_larger_mega_batches_pad_less():
    sizes = lognormal_sizes(4000)
    rows, lengths = cost(sizes, "shared")
    spent = [
        sum(cells(b, rows, lengths) for b in TokenBudgetBatchSampler(sizes, max_tokens=4096, mega_batch=m))
        for m in (1, 8, 64)
    ]
    assert spent[0] > spent[1] > spent[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give max_tokens, batch_size or both"),
        ({"batch_size": 2, "layout": "packed"}, "layout must be shared or separate, got 'packed'"),
        ({"batch_size": 2, "num_replicas": 9}, "5 records cannot be divided among 9 ranks"),
        ({"batch_size": 2, "num_replicas": 2, "rank": 2}, "rank"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        TokenBudgetBatchSampler(lognormal_sizes(5), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": None}, "max_tokens and batch_size are both null"),
        ({"max_tokens": 0}, "loader.max_tokens must be finite and >= 1; got 0"),
        ({"batch_size": 0}, "loader.batch_size must be finite and >= 1; got 0"),
        ({"mega_batch": 0}, "loader.mega_batch must be finite and >= 1; got 0"),
        ({"num_workers": -1}, "loader.num_workers must be finite and >= 0; got -1"),
        ({"layout": "rows"}, "loader.layout must be one of auto, shared, separate; got 'rows'"),
    ],
)
def test_loader_settings_name_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        LoaderConfig(**options)


# Resuming ------------------------------------------------------------------------------------------------


@given(cases(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_restored_sampler_gives_exactly_the_rest(case, data):
    sizes, options = case
    epoch = data.draw(st.integers(0, 3))
    whole = TokenBudgetBatchSampler(sizes, **options)
    whole.set_epoch(epoch)
    batches = list(whole)
    done = data.draw(st.integers(0, len(batches)))
    again = TokenBudgetBatchSampler(sizes, **options)
    saved = whole.state_dict() | {"epoch": epoch, "position": done}
    again.load_state_dict(saved)
    assert again.state_dict() == saved
    again.set_epoch(epoch)  # Lightning does so before the first batch
    assert list(again) == batches[done:]
    assert list(again) == batches, "the next pass is a whole one"


def test_a_state_at_the_end_of_an_epoch_does_not_empty_the_next():
    sampler = TokenBudgetBatchSampler(lognormal_sizes(30), batch_size=4)
    sampler.load_state_dict(sampler.state_dict() | {"position": len(sampler)})
    sampler.set_epoch(1)
    assert len(list(sampler)) == len(sampler)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 5}, "batches was 8, is 6"),
        ({"batch_size": 4, "seed": 1}, "seed was 0, is 1"),
        ({"batch_size": 4, "num_replicas": 2}, "ranks was 1, is 2"),
    ],
)
def test_a_state_of_other_batches_is_refused(options, message):
    state = TokenBudgetBatchSampler(lognormal_sizes(30), batch_size=4).state_dict()
    with pytest.raises(ValueError, match=f"with other batches.*{message}"):
        TokenBudgetBatchSampler(lognormal_sizes(30), **options).load_state_dict(state)


class Numbers(Dataset):
    def __getitem__(self, rows):
        return rows


def identity(rows):
    return rows


def loader(workers, **options):
    sampler = TokenBudgetBatchSampler(lognormal_sizes(48), batch_size=4, **options)
    return PreferenceDataLoader(
        Numbers(),
        batch_size=None,
        sampler=sampler,
        collate_fn=identity,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_state_is_what_was_consumed(workers):
    whole = list(loader(workers))
    assert len(whole) == len(loader(workers)) == 12
    first = loader(workers)
    iterator = iter(first)
    seen = [next(iterator) for _ in range(5)]  # workers have fetched more by now
    state = pickle.loads(pickle.dumps(first.state_dict()))
    assert (state["epoch"], state["position"]) == (0, 5)
    resumed = loader(workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert seen + list(resumed) == whole
    assert (resumed.state_dict()["epoch"], resumed.state_dict()["position"]) == (0, 0)
    resumed.sampler.set_epoch(1)
    second = list(resumed)
    assert len(second) == 12 and second != whole
    del iterator


def test_an_abandoned_pass_does_not_shorten_the_next():
    data = loader(0)
    whole = list(data)
    for consumed in (1, 12):
        iterator = iter(data)
        for _ in range(consumed):
            next(iterator)
        iterator.close()
        assert list(data) == whole


class Recorder(L.LightningModule):
    """Notes every batch it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, tuple(batch)))
        return self.weight.sum() + 1

    def predict_step(self, batch, batch_idx):
        return tuple(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, *callbacks, **options):
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        **options,
    )


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:Be aware that when using")
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_steps": 36}], ids=["epochs", "steps"])
@pytest.mark.parametrize("step", [5, 11, 12, 13, 24])
def test_lightning_resumes_with_exactly_the_remaining_batches(tmp_path, step, limit):
    """In the middle, before and at the end of an epoch; each of three epochs has 12 batches."""
    whole = Recorder()
    keep = L.pytorch.callbacks.ModelCheckpoint(
        dirpath=tmp_path, filename="at-{step}", every_n_train_steps=step, save_top_k=-1
    )
    trainer(tmp_path, keep, **limit).fit(whole, loader(0))
    assert len(whole.seen) == 36
    for epoch in range(3):
        assert sorted(i for e, batch in whole.seen if e == epoch for i in batch) == list(range(48))
    resumed = Recorder()
    trainer(tmp_path, **limit).fit(
        resumed, loader(0), ckpt_path=tmp_path / f"at-step={step}.ckpt", weights_only=True
    )
    assert resumed.seen == whole.seen[step:]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:Be aware that when using")
def test_lightning_resumes_from_a_checkpoint_at_an_epochs_end(tmp_path):
    whole = Recorder()
    keep = L.pytorch.callbacks.ModelCheckpoint(
        dirpath=tmp_path, filename="at-{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True
    )
    trainer(tmp_path, keep, max_epochs=3).fit(whole, loader(0))
    resumed = Recorder()
    trainer(tmp_path, max_epochs=3).fit(
        resumed, loader(0), ckpt_path=tmp_path / "at-epoch=0.ckpt", weights_only=True
    )
    assert resumed.seen == whole.seen[12:]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_lightning_leaves_the_sampler_in_place(tmp_path):
    data = loader(0, shuffle=False)
    predicted = trainer(tmp_path).predict(Recorder(), data)
    assert predicted == [tuple(batch) for batch in data]
