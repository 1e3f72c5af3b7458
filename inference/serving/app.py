"""The endpoints: forms in, rewards out, and one form of error."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..scorer import Scorer
from .body import BoundedBody
from .forms import (
    AnyRerank,
    AnyScore,
    ChatForm,
    Form,
    PolicyForm,
    PredictForm,
    ScoreForm,
    TextsForm,
)
from .limits import ServingLimits
from .request_queue import Asked, QueueFullError, RequestQueue

__all__ = ["make_app"]

GONE = 499
"""Status of a request whose client went away; nobody reads it."""
LABEL = "reward"


class RewardService:
    """A model, its queue, and the checks before it."""

    def __init__(self, scorer: Scorer, limits: ServingLimits, special: Sequence[str]) -> None:
        """Know the model.

        Args:
            scorer: The model.
            limits: Bounds.
            special: Texts of special tokens besides those of the model's own tokenizer.
        """
        self.scorer, self.limits = scorer, limits
        self.name = scorer.opened.name
        own = scorer.tokenizer.tokenizer.all_special_tokens
        self.special = tuple(dict.fromkeys((*special, *own)))
        self.queue = RequestQueue(scorer, max_waiting=limits.max_waiting, max_batch=limits.max_batch)

    async def rewards(
        self, request: Request, form: Form, asked: Sequence[Asked] | None = None
    ) -> list[float]:
        """Rewards of what a form asks for.

        Args:
            request: Whose client may go away.
            form: What it asked.
            asked: The responses; None for those that the form says.

        Raises:
            HTTPException: With the status that says what is wrong.
        """
        try:
            self._check_names(form)
            found = form.asked() if asked is None else asked
            self._check_size(found)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return await self._waited(request, found) if found else []

    def _check_names(self, form: Form) -> None:
        """Refuse a model, user or domain that there is not.

        Raises:
            HTTPException: If the model is another one.
            ValueError: If there is no such user or domain.
        """
        if form.model is not None and form.model != self.name:
            raise HTTPException(
                404, f"model {form.model!r} is not served here: name {self.name!r}, or leave model out"
            )
        fixed = {"user": self.scorer.user, "domain": self.scorer.domain}
        for column, value in (("user", form.user), ("domain", form.domain)):
            if value is None or value == fixed[column]:
                continue
            if fixed[column] is not None:
                raise ValueError(
                    f"{column}: this server rates for {column} {fixed[column]!r} alone; got {value!r}"
                )
            self.scorer.check_asked(column, value)

    def _check_size(self, asked: Sequence[Asked]) -> None:
        """Refuse what is too much.

        Raises:
            ValueError: Naming the field and the bound.
        """
        limits = self.limits
        if len(asked) > limits.max_responses:
            raise ValueError(
                f"a request may hold {limits.max_responses:,} responses (--max_responses); got {len(asked):,}: send several requests"
            )
        for place, each in enumerate(asked):
            prompt = (
                each.prompt
                if isinstance(each.prompt, str)
                else "".join(message.get("content", "") for message in each.prompt)
            )
            for field, text in (("prompt", prompt), ("response", each.response)):
                if len(text) > limits.max_characters:
                    raise ValueError(
                        f"{field} of response {place} may have {limits.max_characters:,} characters (--max_characters); got "
                        f"{len(text):,}"
                    )

    async def _waited(self, request: Request, asked: Sequence[Asked]) -> list[float]:
        """Rewards, unless the client goes away or it takes too long."""
        if self.queue.closing:
            raise HTTPException(503, "the server is being stopped: ask another one, or later")
        answer = asyncio.ensure_future(self.queue.rewards(asked))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait(
                {answer, gone}, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if answer.done():
                return answer.result()
            if gone.done():
                raise HTTPException(GONE, "the client went away")
            raise HTTPException(
                503,
                f"there was no answer within {self.limits.timeout:g} s (--timeout): ask for fewer responses a request",
            )
        except QueueFullError as error:
            raise HTTPException(429, str(error), {"Retry-After": str(error.seconds)}) from error
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        except torch.OutOfMemoryError as error:
            raise HTTPException(503, "the device's memory did not suffice: lower --max_tokens") from error
        finally:
            for task in (answer, gone):
                task.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)

    def head(self, kind: str) -> dict[str, object]:
        """The first fields of an answer of vLLM's forms."""
        return {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": self.name,
        }


async def _gone(request: Request) -> None:
    """Return when a client has gone away; its body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(scorer: Scorer, limits: ServingLimits, special: Sequence[str]) -> FastAPI:
    """The app of a model; :func:`serving_app` says more.

    Args:
        scorer: The model.
        limits: Bounds.
        special: Texts of a policy's special tokens.
    """
    service = RewardService(scorer, limits, special)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(scorer.place_module)
        service.queue.start()
        yield
        await service.queue.close()

    app = FastAPI(title=f"pluralign: {service.name}", lifespan=running, docs_url=None, redoc_url=None)
    app.state.queue = service.queue
    app.add_middleware(BoundedBody, max_body=limits.max_body, seconds=limits.timeout, refusal=refusal)
    _add_own(app, service)
    _add_vllm(app, service)
    _add_others(app, service)
    _add_errors(app)
    return app


def _add_own(app: FastAPI, service: RewardService) -> None:
    """What the server is, and whether it runs."""

    @app.get("/health")
    async def health() -> JSONResponse:
        closing = service.queue.closing
        said = {"status": "closing" if closing else "ok", "waiting": service.queue.waiting}
        return JSONResponse(said, 503 if closing else 200)

    @app.get("/models")
    async def models() -> dict[str, object]:
        scorer = service.scorer
        model = {
            "id": service.name,
            "object": "model",
            "method": type(scorer.module).__name__,
            "users": len(scorer.users),
            "domains": scorer.domains,
            "max_length": scorer.tokenizer.config.max_length,
        }
        return {"object": "list", "data": [model]}


def _add_vllm(app: FastAPI, service: RewardService) -> None:
    """The forms of vLLM, and beside them the collection's own score."""

    @app.post("/score")
    async def score(form: AnyScore, request: Request) -> dict[str, object]:
        rewards = await service.rewards(request, form)
        if isinstance(form, ScoreForm):
            return {"model": service.name, "rewards": rewards}
        data = [
            {"index": i, "object": "score", "score": value} for i, value in enumerate(form.shown(rewards))
        ]
        return {**service.head("score"), "data": data}

    @app.post("/classify")
    async def classify(form: ChatForm, request: Request) -> dict[str, object]:
        shown = form.shown(await service.rewards(request, form))
        data = [{"index": 0, "label": LABEL, "probs": shown, "num_classes": 1}]
        return {**service.head("classify"), "data": data}

    @app.post("/pooling")
    async def pooling(form: ChatForm, request: Request) -> dict[str, object]:
        shown = form.shown(await service.rewards(request, form))
        return {**service.head("pool"), "data": [{"index": 0, "object": "pooling", "data": shown}]}

    @app.post("/rerank", response_model=None)
    async def rerank(form: AnyRerank, request: Request) -> dict[str, object] | list[dict[str, object]]:
        shown = form.shown(await service.rewards(request, form))
        order = sorted(range(len(shown)), key=lambda place: -shown[place])
        if isinstance(form, TextsForm):
            ranks: list[dict[str, object]] = [{"index": i, "score": shown[i]} for i in order]
            for rank, i in zip(ranks, order, strict=True):
                if form.return_text:
                    rank["text"] = form.texts[i]
            return ranks
        results = [
            {"index": i, "document": {"text": form.documents[i]}, "relevance_score": shown[i]}
            for i in order[: form.top_n or None]
        ]
        return {"id": service.head("rerank")["id"], "model": service.name, "results": results}


def _add_others(app: FastAPI, service: RewardService) -> None:
    """The forms of text-embeddings-inference and OpenRLHF."""

    @app.post("/predict", response_model=None)
    async def predict(form: PredictForm, request: Request) -> list[object]:
        shown = form.shown(await service.rewards(request, form))
        answers: list[object] = [[{"score": value, "label": LABEL}] for value in shown]
        return [{"score": shown[0], "label": LABEL}] if form.alone else answers

    @app.post("/get_reward")
    async def get_reward(form: PolicyForm, request: Request) -> dict[str, object]:
        try:
            asked = form.without(service.special)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return {"rewards": await service.rewards(request, form, asked)}


# Errors ------------------------------------------------------------------------------------------------


def refusal(
    status: int, message: str, field: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error as servers of OpenAI's form say it.

    Args:
        status: Of HTTP.
        message: What is wrong, and what to change.
        field: Which field it is about.
        headers: Of the answer.
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": field, "code": status}
    return JSONResponse({"error": error}, status, headers)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part not in ("body", "ours", "vllm", "tei")]
        field = ".".join(place) or None
        return refusal(422, f"{field or 'body'}: {first['msg']}", field)

    @app.exception_handler(HTTPException)
    async def told(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers) if error.headers else None
        return refusal(error.status_code, str(error.detail), headers=headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        # What it was stands in the server's log; a message may hold what is nobody else's business.
        return refusal(500, f"{type(error).__name__}: see the server's log")
