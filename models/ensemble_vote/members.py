"""What each member of an ensemble sees of the data, and where its weights start: by its seed, and by nothing else."""

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Resample", "draws", "generator_of", "hash_uniform", "left_out", "num_left_out"]

Resample = Literal["none", "bootstrap", "folds"]
"""What a member trains on: all of the data, prompts drawn with replacement, or all but one fold of the prompts."""

STREAMS = {"bootstrap": 1, "folds": 2}
"""Keep what is drawn for one purpose from being what is drawn for another by the same seed."""
MIX = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""Odd constants of splitmix64 as signed integers: the step from one seed to the next, and two multipliers."""


def generator_of(seed: int, member: int) -> torch.Generator:
    """Random numbers of a member's first weights, which are the same however many members there are."""
    return torch.Generator("cpu").manual_seed(seed + member)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shifted right, zeros coming in from the left; torch has no unsigned shifts."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def hash_uniform(key: Tensor, seed: int, number: int, stream: int) -> Tensor:
    """Numbers in (0, 1) for each key, the same for one key and seed wherever and whenever they are computed.

    Args:
        key: Any integers, (N,) int64.
        seed: Of the first column; those that follow have the next ones.
        number: Columns.
        stream: What they are drawn for.

    Returns:
        (N, number) float32: multiples of 2^-23 and a half of it, which float32 holds.

    Source:
        Steele et al., *Fast Splittable Pseudorandom Number Generators*, OOPSLA 2014: the mixing function of splitmix64.
        Departures: none.
    """
    step, first, second = MIX
    # Integers of torch overflow as those of C do, modulo 2^64.
    start = torch.arange(seed, seed + number, device=key.device) * step
    start = start + torch.full_like(start, stream) * second
    bits = key.unsqueeze(1) ^ start
    for _ in range(2):  # keys of neighbouring seeds differ in few bits, which one round leaves a trace of
        bits = bits + step
        bits = (bits ^ _shifted(bits, 30)) * first
        bits = (bits ^ _shifted(bits, 27)) * second
        bits = bits ^ _shifted(bits, 31)
    return (_shifted(bits, 41).to(torch.float32) + 0.5) * 2.0**-23


POISSON = (0.36787944, 0.73575888, 0.91969860, 0.98101184, 0.99634015, 0.99940582, 0.99991676, 0.99998975)
"""Probabilities that a Poisson variable of mean 1 is at most 0, 1, 2, ..."""


def _poisson(uniform: Tensor) -> Tensor:
    """Numbers that are Poisson distributed with mean 1, from uniform ones: as often as a bootstrap draws an item."""
    # One comparison each: a table of the bounds would have to be copied to the device, for which the host would wait.
    return torch.stack([uniform >= bound for bound in POISSON]).sum(0).to(torch.float32)


def num_left_out(num_members: int, num_folds: int) -> int:
    """How many members leave each prompt out, and vote on it: M // K."""
    return num_members // num_folds


def left_out(key: Tensor, num_members: int, num_folds: int, seed: int) -> Tensor:
    """Which members leave a prompt out: the same number of them for every prompt, drawn anew for each.

    So every pair has equally many votes of members that have not seen it, and each member leaves out about one prompt in
    ``num_folds``.

    Args:
        key: What names the prompts, (N,) int64.
        num_members: M.
        num_folds: K >= 2.
        seed: Of the first member.

    Returns:
        (N, M) bool, :func:`num_left_out` of each row true.
    """
    # Ranks, in place of the smallest numbers: two of them may be equal.
    rank = hash_uniform(key, seed, num_members, STREAMS["folds"]).argsort(dim=1, stable=True).argsort(dim=1)
    return rank < num_left_out(num_members, num_folds)


def draws(key: Tensor, num_members: int, resample: Resample, *, num_folds: int, seed: int) -> Tensor:
    """How often each member sees a prompt, 1 on the average, so that all of them have the denominator of the whole.

    Args:
        key: What names the prompts, (N,) int64.
        num_members: M.
        resample: ``none``: once. ``bootstrap``: as often as a Poisson variable of mean 1 says, which is the bootstrap of
            data that come in batches. ``folds``: not at all by the members that leave it out, else M / (M - M // K) times.
        num_folds: K.
        seed: Of the first member.

    Returns:
        (N, M) float32 >= 0.

    Source:
        N. Oza and S. Russell, *Online Bagging and Boosting*, AISTATS 2001: Poisson draws in place of the bootstrap's.
        Departures: by prompt, since judgements of one prompt are not independent; drawn by a hash of the prompt, so that
        an epoch, a resumed run and a run of one member alone see the same.
    """
    if resample == "none":
        return torch.ones(len(key), num_members, device=key.device)
    if resample == "folds":
        kept = ~left_out(key, num_members, num_folds, seed)
        return kept.to(torch.float32) * (num_members / (num_members - num_left_out(num_members, num_folds)))
    return _poisson(hash_uniform(key, seed, num_members, STREAMS["bootstrap"]))
