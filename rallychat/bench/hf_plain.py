"""What a checkpoint does in Transformers' own hands: `generate`, alone or in a thread per user. A process of its own.

Speaks as `rallychat.bench.raw` does. The first line is a worker's specification: the same folder, adapter, precision.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from rallychat.bench.threads import answer


def main() -> None:
    """Loads as the specification says, then answers line by line."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    spec = json.loads(sys.stdin.readline())
    options = spec["options"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        Path(spec["path"]), dtype=getattr(torch, options["dtype"]), device_map={"": device}, **_bits(options)
    )
    for folder in options["adapters"].values():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder)
        model = model.merge_and_unload() if options["merge"] else model
    model.eval()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        began = time.monotonic()
        with ThreadPoolExecutor(len(job["prompts"])) as threads, torch.inference_mode():
            run = partial(answer, model, max_tokens=job["max_tokens"], device=device)
            done = list(threads.map(run, job["prompts"]))
        report = {
            "tokens": sum(tokens for tokens, _ in done),
            "seconds": time.monotonic() - began,
            "first": [first for _, first in done],
        }
        print(json.dumps(report), flush=True)


def _bits(options: dict[str, Any]) -> dict[str, Any]:
    if options["quantize"] == "none":
        return {}
    from transformers import BitsAndBytesConfig

    eight = options["quantize"] == "int8"
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_8bit=eight, load_in_4bit=not eight, bnb_4bit_quant_type="nf4"
        )
    }


if __name__ == "__main__":
    main()
