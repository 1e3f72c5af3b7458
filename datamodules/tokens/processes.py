"""Who tokenises: a thread beside the one that reads and writes, or several processes."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

from .chunk import ChunkRow, ChunkTokenizer, TokenisedChunk

__all__ = ["tokenising"]

Submit = Callable[[Sequence[ChunkRow]], Future[TokenisedChunk]]
THREADS = "TOKENIZERS_PARALLELISM"


@contextmanager
def tokenising(tokenizer: ChunkTokenizer, num_processes: int) -> Iterator[Submit]:
    """Give a function that has a chunk of rows tokenised, by whoever is free first.

    Args:
        tokenizer: Of the rows.
        num_processes: 1 for a thread of this process; otherwise so many others, each of which tokenises in one thread.
    """
    if num_processes == 1:
        with ThreadPoolExecutor(1) as thread:
            yield lambda rows: thread.submit(tokenizer, rows)
        return
    # A forked process has what is imported here at once. Elsewhere forking is not safe, and libraries are imported again.
    context = get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(num_processes, context, _begin, (tokenizer,))
    with _one_thread_each():
        try:
            yield lambda rows: pool.submit(_tokenise, rows)
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


_tokenizer: ChunkTokenizer
"""Of this process, where it tokenises for another."""


def _begin(tokenizer: ChunkTokenizer) -> None:
    global _tokenizer  # a process that tokenises does nothing else
    _tokenizer = tokenizer


def _tokenise(rows: Sequence[ChunkRow]) -> TokenisedChunk:
    return _tokenizer(rows)
