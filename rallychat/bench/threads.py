"""The 2023 way: Transformers, one `generate` thread per user. Speaks as `rallychat.bench.raw` does; needs torch."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any


def answer(model: Any, ids: list[int], max_tokens: int, device: str = "cpu") -> tuple[int, float]:
    """One greedy answer; returns its tokens and the seconds to the first one."""
    import torch
    from transformers.generation.streamers import BaseStreamer

    began = time.monotonic()
    times: list[float] = []

    class Clock(BaseStreamer):  # type: ignore[misc]
        def put(self, value: Any) -> None:
            times.append(time.monotonic() - began)

        def end(self) -> None:
            """Nothing is left to do."""

    prompt = torch.tensor([ids], device=device)
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=max_tokens,
        do_sample=False,
        streamer=Clock(),
    )
    return int(out.shape[1]) - len(ids), times[1] if len(times) > 1 else 0.0  # the first put is the prompt


def main() -> None:
    """Loads the same weights as fp32, then answers line by line."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = Path(json.loads(sys.stdin.readline())["path"])
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        began = time.monotonic()
        with ThreadPoolExecutor(len(job["prompts"])) as threads:
            done = list(threads.map(partial(answer, model, max_tokens=job["max_tokens"]), job["prompts"]))
        report = {
            "tokens": sum(t for t, _ in done),
            "seconds": time.monotonic() - began,
            "first": [f for _, f in done],
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
