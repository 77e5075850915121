"""An agent that answers late, wrongly, or to somebody else's question first."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvm_launch.life.supervise import _awaited
from kvm_launch.talk import agent
from kvm_launch.talk.socket_names import AGENT

WRONG = [[], ["rubbish"], ["{}"], ["[]"], ["5"], ["[" * 60_000]]


def test_it_is_asked_until_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket, an end, rubbish, an old answer, and at last the right one; then it is let go."""
    monkeypatch.setattr(agent, "RETRY_SECONDS", 0.05)
    path = tmp_path / AGENT
    asked: list[object] = []
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads(await reader.readline())
        asked.append(request["execute"])
        number = request["arguments"]["id"]
        words = None if len(asked) > len(WRONG) else WRONG[len(asked) - 1]
        if words is None:
            words = [json.dumps({"return": number - 1}), json.dumps({"return": number})]
        writer.write("".join(f"{word}\n" for word in words).encode())
        if len(asked) > len(WRONG):
            await reader.read()
            gone.set()
        writer.close()

    async def story() -> None:
        waiting = asyncio.ensure_future(agent.answered(path))
        await asyncio.sleep(0.12)
        assert not waiting.done()
        async with await asyncio.start_unix_server(serve, path):
            await asyncio.wait_for(waiting, 10)
            await asyncio.wait_for(gone.wait(), 10)

    asyncio.run(story())
    assert asked == ["guest-sync"] * (len(WRONG) + 1)


@pytest.mark.parametrize("error", [None, RuntimeError("a mistake")], ids=["answers", "fails"])
def test_a_wait_that_failed_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """The guest is up when its agent answered; a failure is told, and nothing else."""

    async def answered(_: Path) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(agent, "answered", answered)
    told: list[str] = []
    reporter: Any = SimpleNamespace(up=lambda: told.append("up"), warn=told.append)
    plan: Any = SimpleNamespace(spec=SimpleNamespace(run=SimpleNamespace(ready="agent")))
    run_dir: Any = SimpleNamespace(path=tmp_path)

    async def story() -> None:
        named = asyncio.Event()
        named.set()
        async with _awaited(plan, run_dir, reporter, named):
            await asyncio.sleep(0.05)

    asyncio.run(story())
    message = "the guest's agent is not waited for any more: RuntimeError('a mistake')"
    assert told == (["up"] if error is None else [message])
