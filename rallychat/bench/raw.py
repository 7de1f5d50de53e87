"""The raw engine: xllamacpp called directly, one thread per user, the same weights and settings as the worker's.

A process of its own that answers on its standard output what it is asked on its standard input, a JSON line each:
`{"prompts": [[ids]], "max_tokens": n}` -> `{"tokens": n, "seconds": s, "first": [s, …]}`. The clock runs here,
beside the engine, so the comparison owes nothing to this protocol.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from rallychat.engines.llamacpp_params import common_params
from rallychat.engines.protocol import WorkerSpec


def answer(server: Any, ids: list[int], slot: int, max_tokens: int) -> tuple[int, float]:
    """One greedy answer; returns its tokens and the seconds to the first one."""
    began = time.monotonic()
    first = 0.0
    tokens = 0

    def on_chunk(chunk: Any) -> bool:
        nonlocal first, tokens
        if not first and chunk["choices"] and chunk["choices"][0]["text"]:
            first = time.monotonic() - began
        if chunk.get("usage"):
            tokens = chunk["usage"]["completion_tokens"]
        return False

    body = {
        "prompt": ids,
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_prompt": True,
        "id_slot": slot,
    }
    server.handle_completions(body, on_chunk)
    return tokens, first


def in_turn(server: Any, ids: list[int], free: SimpleQueue[int], max_tokens: int) -> tuple[int, float]:
    """`answer` on the first slot that is free."""
    slot = free.get()
    try:
        return answer(server, ids, slot, max_tokens)
    finally:
        free.put(slot)


def main() -> None:
    """Loads the weights named by the first line, then answers line by line."""
    import xllamacpp

    spec = WorkerSpec(**json.loads(sys.stdin.readline()))
    server = xllamacpp.Server(common_params(spec, spec.window))
    print(json.dumps({"ready": True}), flush=True)
    with ThreadPoolExecutor(spec.slots) as threads:
        for line in sys.stdin:
            job = json.loads(line)
            began = time.monotonic()
            free: SimpleQueue[int] = (
                SimpleQueue()
            )  # with more prompts than slots, each takes the next that is free
            for slot in range(spec.slots):
                free.put(slot)
            answers = [
                threads.submit(in_turn, server, ids, free, job["max_tokens"]) for ids in job["prompts"]
            ]
            done = [future.result() for future in answers]
            seconds = time.monotonic() - began
            report = {"tokens": sum(t for t, _ in done), "seconds": seconds, "first": [f for _, f in done]}
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
