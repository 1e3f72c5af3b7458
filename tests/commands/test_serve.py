"""A server as a process: many clients at once, one that goes away, and an end that answers who waits."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pluralign.inference import load
from pluralign.train import main

pytest.importorskip("uvicorn", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx, as the extra test has it")

SAVED = Path(__file__).parents[1] / "saved" / "pal" / "last.ckpt"


def test_what_cannot_be_served_says_so(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="timeout must be"):
        main(["serve", str(SAVED), "--timeout", "0"])
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        main(["serve", str(tmp_path)])


def test_a_port_that_is_taken_is_named():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(OSError, match=rf"nothing can listen at 127.0.0.1, port {port} .*set --port"):
            main(["serve", str(SAVED), "--device", "cpu", "--port", port])


@contextmanager
def server(*words):
    """A server's process and its address."""
    code = f"from pluralign.train import main; main({['serve', str(SAVED), '--device', 'cpu', '--port', '0', *words]!r})"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "300"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        line = process.stdout.readline()
        assert "answers at http://127.0.0.1:" in line, process.stderr.read()
        yield process, line.split("answers at ")[1].split()[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_many_clients_of_a_process():
    scorer = load(SAVED, device="cpu")
    users = [*scorer.users, None]
    bodies = [
        {
            "prompt": f"Name {i % 17} fruits.",
            "responses": [f"A {'very ' * ((i + j) % 9)}ripe one" for j in range(1 + i % 4)],
            "user": users[i % len(users)],
        }
        for i in range(200)
    ]

    async def run(address):
        limits = httpx.Limits(max_connections=40)
        async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60) as asking:
            answers = await asyncio.gather(*(asking.post("/score", json=body) for body in bodies))
            return [answer.json()["rewards"] for answer in answers]

    with server() as (process, address):
        rewards = asyncio.run(run(address))
        with httpx.Client(base_url=address) as asking:  # who goes away in the middle
            asking.get("/health")  # the connection is there: what times out is the answer
            many = [f"{i} figs. " * 8 for i in range(1000)]
            with pytest.raises(httpx.ReadTimeout):
                asking.post("/score", json=bodies[0] | {"responses": many}, timeout=0.01)
            deadline = time.monotonic() + 30
            while asking.get("/health").json()["waiting"] and time.monotonic() < deadline:
                time.sleep(0.05)
            assert asking.get("/health").json() == {"status": "ok", "waiting": 0}
        process.send_signal(signal.SIGTERM)
        printed, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors, errors
        assert "ripe" not in printed + errors, "no text stands in a log"
    for body, found in zip(bodies, rewards, strict=True):
        wanted = scorer.score(body["prompt"], body["responses"], user=body["user"])
        torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_end_answers_who_waits():
    async def run(process, address):
        body = {"prompt": "Name fruits.", "responses": [f"{i} figs " * 4 for i in range(500)]}
        async with httpx.AsyncClient(base_url=address, timeout=60) as asking:
            late = [asyncio.ensure_future(asking.post("/score", json=body)) for _ in range(4)]
            while not (await asking.get("/health")).json()["waiting"]:
                await asyncio.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*late)

    with server() as (process, address):
        answers = asyncio.run(run(process, address))
        assert [len(answer.json().get("rewards", ())) for answer in answers] == [500] * 4
        assert process.wait(60) in (0, -signal.SIGTERM, 143)
