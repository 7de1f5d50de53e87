"""MemoryBank's conversations (zhongwanjun/MemoryBank-SiliconFriend, MIT) as replays, amid other dialogues.

    python -m rallychat.bench.memorybank memory_bank_en.json probing_questions_en.jsonl mtbench101.jsonl FOLDER

Its probes have no gold answers. `memorybank_evidence.json` beside this file has them, found by reading, by one rule:
the fewest messages that, read alone, answer the question; a probe that nothing answers, or that asks for a whole
conversation, is left out. They were read cut to about their first 170 to 230 characters, so an answer that stands
further on in a message was not seen. They are named by the number of the exchange and by who speaks: `17u`, `32a`.

A person's ten days take 4,000 tokens, which any window holds. So dialogues of MT-Bench-101 (Apache-2.0) are put in
between, thirty after each day, taken in their order and from the start again at their end: each
conversation then has 70,000 to 140,000 tokens.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rallychat.bench.replays import Probe, Replay, Said, write

BETWEEN = 30


def converted(bank: Path, probing: Path, filler: Path) -> dict[str, list[Replay]]:
    """A replay for each person whose probes have evidence: those used for tuning, and those held back from it."""
    people = {name.strip(): person for name, person in json.loads(bank.read_text(encoding="utf-8")).items()}
    probes: dict[str, list[str]] = {}
    for line in probing.read_text(encoding="utf-8").splitlines():
        probes |= {name.strip(): asked for name, asked in json.loads(line).items()} if line.strip() else {}
    evidence = json.loads(Path(__file__).with_name("memorybank_evidence.json").read_text(encoding="utf-8"))
    dialogues = cycle(
        [json.loads(line)["history"] for line in filler.read_text(encoding="utf-8").splitlines()]
    )
    return {
        part: [_replay(people[name], probes[name], gold, dialogues) for name, gold in golds.items()]
        for part, golds in evidence.items()
    }


def _replay(
    person: dict[str, Any], asked: list[str], gold: dict[str, list[str]], dialogues: Iterator[Any]
) -> Replay:
    messages: list[Said] = []
    number = other = 0
    for day, exchanges in person["history"].items():
        for exchange in exchanges:
            messages.append(Said(id=f"{number}u", role="user", content=exchange["query"], date=day))
            messages.append(Said(id=f"{number}a", role="assistant", content=exchange["response"], date=day))
            number += 1
        for dialogue in islice(dialogues, BETWEEN):
            for exchange in dialogue:
                messages.append(Said(id=f"x{other}u", role="user", content=exchange["user"], date=day))
                messages.append(Said(id=f"x{other}a", role="assistant", content=exchange["bot"], date=day))
                other += 1
    probes = [Probe(question=asked[int(index)], evidence=tuple(ids)) for index, ids in gold.items()]
    return Replay(messages=tuple(messages), probes=tuple(probes))


if __name__ == "__main__":
    *sources, folder = map(Path, sys.argv[1:])
    for part, replays in converted(*sources).items():
        print(*write(replays, folder / part, stem="memorybank"), sep="\n")
