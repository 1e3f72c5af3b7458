"""Requests of many clients that wait for one model: whatever waits together is scored together."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from pluralign.datamodules.prompt_batch import Prompt

__all__ = ["Asked", "QueueFullError", "RequestQueue"]

log = logging.getLogger(__name__)

RECENT = 0.3
"""Weight of the last batch in the mean time that a response takes."""


class BatchReward(Protocol):
    """Rewards of many responses, as :class:`Scorer` gives them."""

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Mapping[str, Sequence[object]], /
    ) -> Tensor:
        """Rewards, (S,) float32."""
        ...


class Asked(NamedTuple):
    """A response whose reward is asked for, and as whom it is rated."""

    prompt: Prompt
    response: str
    user: str | None = None
    domain: str | None = None


class QueueFullError(Exception):
    """As many responses wait as may.

    Attributes:
        seconds: After how many seconds it is worth asking again, >= 1.
    """

    def __init__(self, waiting: int, seconds: int) -> None:
        """Say how many wait.

        Args:
            waiting: Responses that wait.
            seconds: Until they are likely to be done.
        """
        super().__init__(f"{waiting:,} responses wait already; ask again in {seconds} s, or ask for fewer")
        self.seconds = seconds


@dataclass(eq=False)
class Waiting:
    """A request that waits."""

    asked: Sequence[Asked]
    rewards: asyncio.Future[list[float]]


class RequestQueue:
    """One queue before one model, which runs in a thread of its own, one batch after the other.

    Nothing waits for company: an idle model gets a request at once, and what comes while it runs makes the next batch. A
    request that fails beside others is asked alone again, so that nobody gets another one's error. Who goes away before it
    is their turn costs nothing.
    """

    def __init__(self, reward: BatchReward, *, max_waiting: int, max_batch: int) -> None:
        """Know the model and the bounds.

        Args:
            reward: Rewards of many responses.
            max_waiting: Responses that may wait, >= 1.
            max_batch: Responses that are scored together, >= 1; a larger request is scored alone.
        """
        self.reward, self.max_waiting, self.max_batch = reward, max_waiting, max_batch
        self.closing = False
        self._requests: deque[Waiting] = deque()
        self._waiting = 0
        self._awake = asyncio.Event()
        self._seconds = 0.0  # that a response takes, of late
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pluralign-model")
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Responses that wait for their turn."""
        return self._waiting

    def start(self) -> None:
        """Begin to answer, in the event loop that runs."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Answer what waits, take nothing more, and let the thread go."""
        self.closing = True
        self._awake.set()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def rewards(self, asked: Sequence[Asked]) -> list[float]:
        """Wait for the rewards of a request's responses.

        Args:
            asked: One response or more.

        Returns:
            Rewards, in their order.

        Raises:
            QueueFullError: If too many wait already.
            RuntimeError: If the queue is being closed.
            ValueError: If a text cannot be read; says which.
        """
        if self.closing:
            raise RuntimeError("the queue is being closed")
        if self._waiting + len(asked) > self.max_waiting:
            raise QueueFullError(self._waiting, max(1, math.ceil(self._waiting * self._seconds)))
        request = Waiting(asked, asyncio.get_running_loop().create_future())
        self._requests.append(request)
        self._waiting += len(asked)
        self._awake.set()
        try:
            return await request.rewards
        finally:
            with suppress(ValueError):  # it has had its turn
                self._requests.remove(request)
                self._waiting -= len(asked)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._requests:
                if self.closing:
                    return
                self._awake.clear()
                await self._awake.wait()
            requests = self._together()
            begun = time.monotonic()
            groups = [request.asked for request in requests]
            outcomes = await loop.run_in_executor(self._thread, self._outcomes, groups)
            spent = (time.monotonic() - begun) / sum(map(len, groups))
            self._seconds += (RECENT if self._seconds else 1.0) * (spent - self._seconds)
            for request, outcome in zip(requests, outcomes, strict=True):
                if request.rewards.done():  # its client went away meanwhile
                    continue
                if isinstance(outcome, Exception):
                    request.rewards.set_exception(outcome)
                else:
                    request.rewards.set_result(outcome)

    def _together(self) -> list[Waiting]:
        """The requests of the next batch, in the order in which they came; one at least."""
        requests: list[Waiting] = []
        number = 0
        while self._requests and (not requests or number + len(self._requests[0].asked) <= self.max_batch):
            requests.append(self._requests.popleft())
            number += len(requests[-1].asked)
        self._waiting -= number
        return requests

    def _outcomes(self, groups: Sequence[Sequence[Asked]]) -> list[list[float] | Exception]:
        """Rewards of each request, or what was wrong with it."""
        every = [each for group in groups for each in group]
        columns = {"user": [each.user for each in every], "domain": [each.domain for each in every]}
        try:
            rewards = self.reward(
                [each.prompt for each in every], [each.response for each in every], columns
            ).tolist()
        except Exception as error:  # whatever it is, the server goes on
            if len(groups) > 1:
                return [outcome for group in groups for outcome in self._outcomes([group])]
            if not isinstance(error, ValueError):
                log.exception("a batch of %d responses failed", len(every))
            return [error]
        parts = iter(rewards)
        return [[float(next(parts)) for _ in group] for group in groups]
