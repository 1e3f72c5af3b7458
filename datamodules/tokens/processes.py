"""Who tokenises: a thread beside the one that reads and writes, or several processes."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

from ..records import PreferenceRecord, RecordError
from .text import RecordTokenizer, TokenizedRecord

__all__ = ["Tokenised", "tokenising"]

Tokenised = list[TokenizedRecord | RecordError]
Submit = Callable[[Sequence[PreferenceRecord]], Future[Tokenised]]
THREADS = "TOKENIZERS_PARALLELISM"


@contextmanager
def tokenising(tokenizer: RecordTokenizer, num_processes: int) -> Iterator[Submit]:
    """Give a function that has a chunk of records tokenised, by whoever is free first.

    Args:
        tokenizer: Of the records.
        num_processes: 1 for a thread of this process; otherwise so many others, each of which tokenises in one thread.
    """
    if num_processes == 1:
        with ThreadPoolExecutor(1) as thread:
            yield lambda records: thread.submit(tokenizer, records)
        return
    # A forked process has what is imported here at once. Elsewhere forking is not safe, and libraries are imported again.
    context = get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(num_processes, context, _begin, (tokenizer,))
    with _one_thread_each():
        try:
            yield lambda records: pool.submit(_tokenise, records)
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep tokenizers, in processes that start meanwhile, to one thread; a user's own choice stands."""
    chosen = THREADS in os.environ
    os.environ.setdefault(THREADS, "false")
    try:
        yield
    finally:
        if not chosen:
            del os.environ[THREADS]


_tokenizer: RecordTokenizer
"""Of this process, where it tokenises for another."""


def _begin(tokenizer: RecordTokenizer) -> None:
    global _tokenizer  # a process that tokenises does nothing else
    _tokenizer = tokenizer


def _tokenise(records: Sequence[PreferenceRecord]) -> Tokenised:
    return _tokenizer(records)
