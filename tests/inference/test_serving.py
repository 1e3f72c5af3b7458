"""A server gives the scorer's rewards in every form, alone or beside others, and says what is wrong with a request."""

import asyncio
import json
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from pluralign.datamodules import LocalDataModule, TextConfig
from pluralign.inference import OpenedModel, Scorer, load
from pluralign.inference.serving import Asked, QueueFullError, RequestQueue, ServingLimits, serving_app
from pluralign.models import BackboneConfig, BradleyTerryRM

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx, as the extra test has it")

SAVED = Path(__file__).parents[1] / "saved"
PROMPT, RESPONSES = "Name a fruit.", ["A fig.", "A chair, or so.", "Plums, when they are ripe"]


@pytest.fixture
def scorer(tiny):
    """A scorer over an untrained network that reads bytes."""
    torch.manual_seed(5)
    module = BradleyTerryRM(BackboneConfig(config=tiny()))
    module.configure_model()
    text = TextConfig(max_length=96)
    module.text_format = LocalDataModule(train="never.jsonl", text=text).text_format()
    opened = OpenedModel(module.eval().requires_grad_(False), text, "made", "made", kind="checkpoint")
    return Scorer(opened, device="cpu")


@asynccontextmanager
async def client(scorer, *, raise_app_exceptions=True, **settings):
    app = serving_app(scorer, ServingLimits(**settings), special=["<end>"])
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=raise_app_exceptions)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as made,
    ):
        yield made


def answered(scorer, *requests, **settings):
    """Status and answer of each request, (path, body), one after the other."""

    async def run():
        async with client(scorer, **settings) as asking:
            answers = [
                await (asking.post(path, json=body) if body is not None else asking.get(path))
                for path, body in requests
            ]
            return [(answer.status_code, answer.json()) for answer in answers]

    return asyncio.run(run())


def close(values, wanted, tolerance=1e-6):
    torch.testing.assert_close(torch.tensor(values), torch.as_tensor(wanted).float(), atol=tolerance, rtol=0)


# Forms -------------------------------------------------------------------------------------------------


def test_every_form_gives_the_scorers_rewards(scorer):
    rewards = scorer.score(PROMPT, RESPONSES)
    best = rewards.argsort(descending=True).tolist()
    talk = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSES[0]}]
    pairs = [[PROMPT, text] for text in RESPONSES]
    written = [f"{PROMPT}{text}<end></s>" for text in RESPONSES]
    answers = answered(
        scorer,
        ("/score", {"prompt": PROMPT, "responses": RESPONSES}),
        ("/score", {"prompt": talk[:1], "responses": RESPONSES[0]}),
        ("/score", {"queries": PROMPT, "documents": RESPONSES, "model": "made"}),
        ("/score", {"text_1": [PROMPT] * 3, "text_2": RESPONSES, "use_activation": True}),
        ("/classify", {"messages": talk}),
        ("/pooling", {"messages": talk, "task": "classify"}),
        ("/rerank", {"query": PROMPT, "documents": RESPONSES, "top_n": 2}),
        ("/rerank", {"query": PROMPT, "texts": RESPONSES, "raw_scores": True, "return_text": True}),
        ("/predict", {"inputs": pairs, "raw_scores": True}),
        ("/predict", {"inputs": pairs[0]}),
        ("/get_reward", {"query": written, "prompts": [PROMPT] * 3, "labels": [None] * 3}),
    )
    assert [status for status, _ in answers] == [200] * len(answers)
    own, talked, score, activated, classified, pooled, vllm, tei, predicted, one, openrlhf = (
        answer for _, answer in answers
    )
    assert own["model"] == "made" and openrlhf.keys() == {"rewards"}
    close(own["rewards"], rewards)
    close(talked["rewards"], rewards[:1])
    close([row["score"] for row in score["data"]], rewards)
    close([row["score"] for row in activated["data"]], rewards.sigmoid())
    assert score["object"] == "list" and [row["index"] for row in score["data"]] == [0, 1, 2]
    assert classified["data"][0]["num_classes"] == 1 and classified["data"][0]["label"] == "reward"
    close(classified["data"][0]["probs"], rewards[:1])
    close(pooled["data"][0]["data"], rewards[:1])
    assert [row["index"] for row in vllm["results"]] == best[:2]
    close([row["relevance_score"] for row in vllm["results"]], rewards[best[:2]])
    assert [row["text"] for row in tei] == [RESPONSES[i] for i in best]
    close([row["score"] for row in tei], rewards[best])
    close([row[0]["score"] for row in predicted], rewards)
    close([one[0]["score"]], rewards[:1].sigmoid())
    close(openrlhf["rewards"], rewards)


def test_whose_reward_it_is():
    scorer = load(SAVED / "pal" / "last.ckpt", device="cpu")
    user = scorer.users[0]
    form = {"prompt": PROMPT, "responses": RESPONSES}
    answers = answered(
        scorer,
        ("/score", form | {"user": user}),
        ("/score", form),
        ("/score", form | {"user": "nobody here"}),
        ("/score", form | {"domain": "law"}),
        ("/models", None),
        ("/health", None),
    )
    close(answers[0][1]["rewards"], scorer.score(PROMPT, RESPONSES, user=user))
    close(answers[1][1]["rewards"], scorer.score(PROMPT, RESPONSES))
    assert [status for status, _ in answers] == [200, 200, 422, 422, 200, 200]
    assert "nobody here" in answers[2][1]["error"]["message"]
    assert "one reward whatever the domain" in answers[3][1]["error"]["message"]
    (model,) = answers[4][1]["data"]
    assert (model["method"], model["users"]) == ("PAL", len(scorer.users))
    assert answers[5][1] == {"status": "ok", "waiting": 0}
    fixed = load(SAVED / "pal" / "last.ckpt", device="cpu", user=user)
    ((status, said),) = answered(fixed, ("/score", form | {"user": scorer.users[1]}))
    assert status == 422 and f"rates for user {user!r} alone" in said["error"]["message"]


# What is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/score", {"prompt": PROMPT}, 422, "responses: Field required"),
        ("/score", {"prompt": PROMPT, "responses": [1]}, 422, "responses"),
        ("/score", {"prompt": PROMPT, "responses": "a", "truncate": True}, 422, "truncate: Extra inputs"),
        ("/score", {"prompt": PROMPT, "responses": ["a", " "]}, 422, "response 1 is without text"),
        (
            "/score",
            {"prompt": PROMPT, "responses": "long " * 30},
            422,
            "longer than the text format's max_length",
        ),
        (
            "/score",
            {"prompt": PROMPT, "responses": "a" * 301},
            422,
            "response of response 0 may have 300 characters",
        ),
        (
            "/score",
            {"prompt": PROMPT, "responses": ["a"] * 5},
            422,
            "may hold 4 responses (--max_responses); got 5",
        ),
        ("/score", {"prompt": PROMPT, "responses": "a", "model": "other"}, 404, "name 'made'"),
        ("/score", {"prompt": [{"role": "king", "content": "a"}], "responses": "a"}, 422, "king"),
        ("/score", {"queries": [PROMPT] * 2, "documents": RESPONSES}, 422, "queries must be one, or as many"),
        ("/classify", {"input": "a"}, 422, "a text alone is not taken"),
        ("/classify", {"messages": [{"role": "user", "content": "a"}]}, 422, "role assistant"),
        ("/predict", {"inputs": "a"}, 422, "inputs[0] must be [prompt, response]"),
        ("/predict", {"inputs": [["a", "b"]], "truncate": True}, 422, "truncate"),
        ("/get_reward", {"query": ["b"], "prompts": ["a"]}, 422, "query[0] must begin with prompts[0]"),
        ("/nothing", {}, 404, "Not Found"),
    ],
)
def test_what_cannot_be_answered_says_what_to_change(scorer, path, body, status, said):
    ((got, answer),) = answered(scorer, (path, body), max_responses=4, max_characters=300)
    assert got == status
    assert said in answer["error"]["message"] and answer["error"]["code"] == status


def test_bodies_are_bounded_in_bytes_and_must_be_json(scorer):
    async def run():
        async with client(scorer, max_body=200) as asking:
            told = await asking.post("/score", content=b"x" * 201)

            async def drops():
                for _ in range(50):
                    yield b"x" * 10

            untold = await asking.post("/score", content=drops())
            broken = await asking.post("/score", content=b"{", headers={"content-type": "application/json"})
            form = json.dumps({"prompt": PROMPT, "responses": "a"})
            page = await asking.post("/score", content=form, headers={"content-type": "text/plain"})
            return told, untold, broken, page

    told, untold, broken, page = asyncio.run(run())
    assert told.status_code == untold.status_code == 413
    assert "more than 200 bytes" in untold.json()["error"]["message"]
    assert broken.status_code == 422 and page.status_code == 422  # a page of another site cannot ask


def test_a_body_in_many_pieces_is_counted_once():
    from pluralign.inference.serving.app import refusal
    from pluralign.inference.serving.body import BoundedBody

    counted, got = [], []

    class Piece(bytes):
        def __len__(self):
            counted.append(self)
            return super().__len__()

    async def app(scope, receive, send):
        got.append((await receive())["body"])

    async def run(pieces, max_body):
        messages = iter(
            {"type": "http.request", "body": piece, "more_body": i + 1 < len(pieces)}
            for i, piece in enumerate(pieces)
        )

        async def receive():
            return next(messages)

        async def send(message):
            got.append(message.get("status"))

        bounded = BoundedBody(app, max_body=max_body, seconds=5, refusal=refusal)
        await bounded({"type": "http", "headers": [], "method": "POST"}, receive, send)

    pieces = [Piece(b"x")] * 500
    asyncio.run(run(pieces, max_body=500))
    assert got == [b"x" * 500] and len(counted) <= 2 * 500
    asyncio.run(run(pieces, max_body=499))
    assert got[1] == 413


def test_a_slow_body_is_given_up():
    from pluralign.inference.serving.app import refusal
    from pluralign.inference.serving.body import BoundedBody

    sent = []

    async def run():
        async def receive():
            await asyncio.sleep(60)

        async def send(message):
            sent.append(message)

        bounded = BoundedBody(None, max_body=10, seconds=0.05, refusal=refusal)
        await bounded({"type": "http", "headers": [], "method": "POST"}, receive, send)

    asyncio.run(run())
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_batch": 0}, "max_batch must be finite and >= 1"),
        ({"max_responses": 9, "max_waiting": 8}, "at most max_waiting, 8"),
    ],
)
def test_bounds_are_checked(settings, said):
    with pytest.raises(ValueError, match=said):
        ServingLimits(**settings)


# The queue ---------------------------------------------------------------------------------------------


class Held:
    """A reward that waits until it may go on, and keeps the sizes of its batches."""

    def __init__(self):
        self.go, self.began, self.sizes = threading.Event(), threading.Event(), []

    def __call__(self, prompts, responses, columns):
        self.sizes.append(len(responses))
        self.began.set()
        assert self.go.wait(20)
        if "bad" in responses:
            raise ValueError("a bad text")
        return torch.tensor([float(len(text)) for text in responses])


@asynccontextmanager
async def queue(**settings):
    reward = Held()
    made = RequestQueue(reward, **{"max_waiting": 10, "max_batch": 6, **settings})
    made.start()
    try:
        yield made, reward
    finally:
        reward.go.set()
        await made.close()


def request(*texts):
    return [Asked("p", text) for text in texts]


async def begun(made, reward, *groups):
    """Futures of requests, the first of which runs while the others wait."""
    first = asyncio.ensure_future(made.rewards(groups[0]))
    await asyncio.to_thread(reward.began.wait, 20)
    rest = [asyncio.ensure_future(made.rewards(group)) for group in groups[1:]]
    await asyncio.sleep(0)
    return [first, *rest]


def test_what_waits_together_is_scored_together():
    async def run():
        async with queue() as (made, reward):
            asked = await begun(
                made, reward, request("a"), request("bb", "ccc"), request("d"), request(*"eeee")
            )
            assert made.waiting == 7
            reward.go.set()
            return await asyncio.gather(*asked), reward.sizes, made.waiting

    rewards, sizes, waiting = asyncio.run(run())
    assert rewards == [[1.0], [2.0, 3.0], [1.0], [1.0] * 4]
    assert sizes == [1, 3, 4] and waiting == 0


def test_a_full_queue_says_when_to_come_back():
    async def run():
        async with queue() as (made, reward):
            asked = await begun(made, reward, request("a"), request(*"bbbbbbbbb"))
            with pytest.raises(QueueFullError, match="9 responses wait already") as full:
                await made.rewards(request("c", "d"))
            reward.go.set()
            await asyncio.gather(*asked)
            return full.value.seconds, await made.rewards(request("ccc"))

    seconds, after = asyncio.run(run())
    assert seconds >= 1 and after == [3.0]


def test_an_error_is_of_the_request_that_made_it():
    async def run():
        async with queue() as (made, reward):
            asked = await begun(made, reward, request("a"), request("bb"), request("bad"), request("ccc"))
            reward.go.set()
            return await asyncio.gather(*asked, return_exceptions=True)

    first, second, bad, third = asyncio.run(run())
    assert (first, second, third) == ([1.0], [2.0], [3.0])
    assert isinstance(bad, ValueError)


def test_who_goes_away_costs_nothing():
    async def run():
        async with queue() as (made, reward):
            running, waits, stays = await begun(made, reward, request("a"), request("bb"), request("ccc"))
            running.cancel(), waits.cancel()
            await asyncio.gather(running, waits, return_exceptions=True)
            assert made.waiting == 1
            reward.go.set()
            return await stays, reward.sizes

    assert asyncio.run(run()) == ([3.0], [1, 1])


def test_closing_answers_what_waits_and_takes_nothing_more():
    async def run():
        async with queue() as (made, reward):
            asked = await begun(made, reward, request("a"), request("bb"))
            closing = asyncio.ensure_future(made.close())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="being closed"):
                await made.rewards(request("c"))
            reward.go.set()
            await closing
            return [each.result() for each in asked], threading.enumerate()

    rewards, threads = asyncio.run(run())
    assert rewards == [[1.0], [2.0]]
    assert not [thread for thread in threads if thread.name.startswith("pluralign-model")]


def test_what_waits_too_long_and_what_is_too_much_over_http(scorer, monkeypatch):
    held = Held()
    body = {"prompt": PROMPT, "responses": ["a", "b"]}

    async def run():
        async with client(scorer, timeout=0.3, max_waiting=2, max_responses=2) as asking:
            monkeypatch.setattr(asking._transport.app.state.queue, "reward", held)
            late = [asyncio.ensure_future(asking.post("/score", json=body))]
            await asyncio.to_thread(held.began.wait, 20)
            late += [asyncio.ensure_future(asking.post("/score", json=body)) for _ in range(2)]
            answers = await asyncio.gather(*late)
            left = (await asking.get("/health")).json()["waiting"]
            held.go.set()
            return answers, left

    (running, waits, full), left = asyncio.run(run())
    assert (running.status_code, waits.status_code, full.status_code, left) == (503, 503, 429, 0)
    assert int(full.headers["Retry-After"]) >= 1
    assert "within 0.3 s" in waits.json()["error"]["message"]


def test_a_client_that_goes_away_leaves_the_queue(scorer, monkeypatch):
    held = Held()
    body = json.dumps({"prompt": PROMPT, "responses": ["a", "b"]}).encode()
    messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]
    headers = [(b"content-type", b"application/json")]

    async def run():
        async with client(scorer) as asking:
            app = asking._transport.app
            monkeypatch.setattr(app.state.queue, "reward", held)
            running = asyncio.ensure_future(asking.post("/score", json={"prompt": PROMPT, "responses": "a"}))
            await asyncio.to_thread(held.began.wait, 20)

            async def receive():
                return messages.pop(0)

            async def send(message):
                pass

            path = {"path": "/score", "raw_path": b"/score", "query_string": b"", "root_path": ""}
            scope = {"type": "http", "method": "POST", "headers": headers, "http_version": "1.1", **path}
            await app(scope, receive, send)
            held.go.set()
            return app.state.queue.waiting, (await running).status_code

    assert asyncio.run(run()) == (0, 200)
    assert held.sizes == [1]


def test_an_error_that_nobody_foresaw_says_no_more_than_its_kind(scorer, monkeypatch):
    def broken(*_):
        raise RuntimeError("a text of somebody's")

    monkeypatch.setattr(scorer, "read", broken)
    ((status, answer),) = answered(
        scorer, ("/score", {"prompt": PROMPT, "responses": "a"}), raise_app_exceptions=False
    )
    assert status == 500 and answer["error"]["message"] == "RuntimeError: see the server's log"


def test_rewards_are_equal_alone_and_among_many(scorer):
    bodies = [
        {"prompt": f"Fruit {i % 7}?", "responses": [f"A {'very ' * (i % 5)}ripe one"]} for i in range(40)
    ]

    async def run():
        async with client(scorer) as asking:
            return await asyncio.gather(*(asking.post("/score", json=body) for body in bodies))

    together = [answer.json()["rewards"] for answer in asyncio.run(run())]
    alone = [scorer.score(body["prompt"], body["responses"]).tolist() for body in bodies]
    close(together, alone)


def test_a_server_that_is_being_stopped_says_so(scorer):
    async def run():
        async with client(scorer) as asking:
            await asking._transport.app.state.queue.close()
            answer = await asking.post("/score", json={"prompt": PROMPT, "responses": "a"})
            return answer, await asking.get("/health")

    answer, health = asyncio.run(run())
    assert (answer.status_code, health.status_code) == (503, 503)
    assert "being stopped" in answer.json()["error"]["message"] and health.json()["status"] == "closing"


def test_without_the_extra_it_names_it(scorer, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "pluralign.inference.serving.app", raising=False)
    with pytest.raises(ImportError, match=r'pip install "pluralign\[serve\]"'):
        serving_app(scorer)
