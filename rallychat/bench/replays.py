"""Recorded conversations with questions about them: the format of `rallychat bench context`, read and made.

One JSON file a conversation: `{"messages": [{"id", "role", "content", "date"}], "probes": [{"after", "question",
"evidence": [ids]}]}`. `date` and `after` may be absent; a probe without `after` is asked at the end. Ordinary
talk, without probes, is read from JSON lines, a dialogue each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rallychat.bench.talk import exchanges
from rallychat.errors import InvalidRequest

EXCHANGES = 1000
"""Of a file of dialogues, those that are replayed."""


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Said(_Read):
    """One message."""

    id: str
    role: Literal["user", "assistant"]
    content: str
    date: str | None = None

    @property
    def when(self) -> datetime | None:
        """Its date, if it is written as one."""
        try:
            return datetime.fromisoformat(self.date).replace(tzinfo=UTC) if self.date else None
        except ValueError:
            return None


class Probe(_Read):
    """A question, and the messages that hold its answer."""

    question: str
    evidence: tuple[str, ...] = Field(min_length=1)
    after: str | None = None


class Replay(_Read):
    """One conversation with its probes."""

    messages: tuple[Said, ...] = Field(min_length=1)
    probes: tuple[Probe, ...] = ()


def read(path: Path) -> Replay:
    """The replay in a file; of a .jsonl file, its dialogues as one conversation without probes.

    Raises:
        InvalidRequest: it is no replay; the sentence names the first thing that is wrong.
    """
    if path.suffix == ".jsonl":
        return Replay(messages=tuple(_talk(path)))
    try:
        replay = Replay.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be read: {exc.strerror}.") from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"{path} is no replay: {place}: {first['msg']}.") from exc
    ids = {said.id for said in replay.messages}
    for probe in replay.probes:
        unknown = {*probe.evidence, *([probe.after] if probe.after else [])} - ids
        if unknown:
            raise InvalidRequest(f"{path} is no replay: a probe names '{min(unknown)}', which is no message.")
    return replay


def _talk(path: Path) -> Iterator[Said]:
    for number, (asked, told) in enumerate(islice(exchanges(path), EXCHANGES)):
        yield Said(id=f"m{2 * number}", role="user", content=asked)
        yield Said(id=f"m{2 * number + 1}", role="assistant", content=told)


# --- made ones --------------------------------------------------------------------------------------------

_NAMES, _CITIES, _THINGS, _FOODS, _JOBS, _COLOURS = (
    tuple(line.split())
    for line in (
        "Mara Jonas Elif Tomas Priya Anton Lucia Henrik Sofia Deniz Clara Mateo Yuki Farid Nora Emil",
        "Lisbon Graz Bergen Porto Ghent Turin Krakow Malmo Bilbao Riga Zadar Cork Basel Lyon Delft Tartu",
        "bicycle kettle tent camera guitar lamp sofa laptop watch microscope kayak piano drone toaster",
        "ramen lasagna curry paella dumplings falafel risotto tacos borscht pancakes moussaka pho",
        "nurse carpenter translator pilot botanist accountant baker geologist tailor cartographer",
        "green blue red yellow purple orange grey white",
    )
)

_FACTS: tuple[tuple[str, str], ...] = (
    (
        "My sister {name} works as a {job} now, she started last month.",
        "What does my sister do for a living?",
    ),
    (
        "I finally bought a {thing}, a {colour} one, for {number} euros.",
        "How much did I pay for the {thing}?",
    ),
    ("We are moving to {city} in spring, the lease is signed.", "Which town will I live in soon?"),
    (
        "By the way, my dentist is Dr. {name} and the appointment is on the {day}th.",
        "When do I see the dentist?",
    ),
    ("For my birthday I want to eat {food}, nothing else.", "What meal did I wish for on my birthday?"),
    (
        "The door code of the cabin is {number}, in case I forget it.",
        "What was the code for the cabin again?",
    ),
    ("{name}, my neighbour, is allergic to nuts, so I bake without them.", "Who can't eat nuts?"),
    (
        "My flight to {city} leaves at {hour}:40, gate opens an hour before.",
        "What time does my plane to {city} go?",
    ),
    ("I named the cat {name}, because of the eyes.", "What is my cat called?"),
    ("The team meets every {weekday}, that is when I cannot talk.", "On which weekday is my team meeting?"),
)
_UPDATES: tuple[tuple[str, str, str], ...] = (
    ("My budget for the trip is {number} euros.", "I changed my mind, the trip may cost {other} euros.",
     "How much may the trip cost?"),
    ("I train for the run on {weekday}s.", "My running day moved, it is {weekday2} from now on.",
     "Which day do I go running?"),
    ("I'm reading a novel by {name} at the moment.", "I gave up on that novel, I'm reading {name2} instead.",
     "Whose novel am I reading now?"),
    ("I'm vegetarian, please keep that in mind.", "I started to eat fish again, so I'm not strictly vegetarian.",
     "Do I eat fish?"),
)  # fmt: skip
_CHATTER: tuple[tuple[str, str], ...] = (
    (
        "Can you explain how {thing}s are made?",
        "A {thing} is made in several steps. First the parts are cut.",
    ),
    (
        "Write a short poem about {city} in winter.",
        "Snow on the roofs of {city}, and bells. The river keeps its voice.",
    ),
    (
        "Give me a recipe for {food}.",
        "For {food} you need an onion, oil and patience. Chop, fry and stir slowly.",
    ),
    (
        "What is a good gift for a {job}?",
        "A {job} would like something useful. A notebook or a good lamp will do.",
    ),
    ("How do I get a {colour} stain out of a shirt?", "Cold water first, then soap. Leave it for an hour."),
    ("Tell me a joke about a {job}.", "A {job} walks into a bar and asks for the manual."),
    ("Which museums in {city} are worth a visit?", "In {city} the city museum is the best known one."),
    (
        "Help me word a polite mail to {name}.",
        "Dear {name}, thank you for your message. I will come back to you.",
    ),
)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")


def made(seed: int, *, exchanges: int = 300) -> Replay:
    """A conversation with planted facts, updates and contradictions amid chatter; the same for the same seed."""
    luck = random.Random(seed)  # noqa: S311 (a test set, no secret)
    places = luck.sample(range(exchanges - 12), k=len(_FACTS) + 2 * len(_UPDATES))
    facts, changes = places[: len(_FACTS)], places[len(_FACTS) :]
    values = [_values(luck) for _ in (*_FACTS, *_UPDATES)]
    said: dict[int, str] = {}
    probes: list[Probe] = []
    for (text, question), at, value in zip(_FACTS, facts, values, strict=False):
        said[at] = text.format(**value)
        probes.append(Probe(question=question.format(**value), evidence=(f"m{2 * at}",)))
    for index, (first, then, question) in enumerate(_UPDATES):
        early, late = sorted(changes[2 * index : 2 * index + 2])
        value = values[len(_FACTS) + index]
        said[early], said[late] = first.format(**value), then.format(**value)
        probes.append(Probe(question=question.format(**value), evidence=(f"m{2 * late}",)))
    return Replay(messages=tuple(_messages(luck, exchanges, said)), probes=tuple(probes))


def _messages(luck: random.Random, exchanges: int, said: dict[int, str]) -> list[Said]:
    day, found = date(2024, 1, 8), []
    for index in range(exchanges):
        day += timedelta(days=luck.random() < 0.2)
        value = _values(luck)
        question, answer = (text.format(**value) for text in luck.choice(_CHATTER))
        if index in said:
            question, answer = said[index], "Noted. Is there anything I can do with that for you?"
        answer = " ".join([answer, *(luck.choice(_FILLER) for _ in range(luck.randint(1, 5)))])
        found += [
            Said(id=f"m{2 * index}", role="user", content=question, date=day.isoformat()),
            Said(id=f"m{2 * index + 1}", role="assistant", content=answer, date=day.isoformat()),
        ]
    return found


_FILLER = (
    "It depends on the season and on how much time you have.",
    "Many people prefer to do this in the morning.",
    "If you want, I can make a list of the next steps.",
    "There are cheaper ways too, and some of them are better.",
    "Take your time and check the result twice.",
    "The details differ from place to place, so ask on the spot.",
)


def _values(luck: random.Random) -> dict[str, object]:
    name, name2 = luck.sample(_NAMES, 2)
    weekday, weekday2 = luck.sample(_WEEKDAYS, 2)
    number, other = luck.sample(range(120, 990, 7), 2)
    return {
        "name": name, "name2": name2, "city": luck.choice(_CITIES), "thing": luck.choice(_THINGS),
        "food": luck.choice(_FOODS), "job": luck.choice(_JOBS), "colour": luck.choice(_COLOURS), "number": number,
        "other": other, "weekday": weekday, "weekday2": weekday2, "day": luck.randint(4, 20),
        "hour": luck.randint(6, 22),
    }  # fmt: skip


def write(replays: Sequence[Replay], folder: Path, *, stem: str) -> list[Path]:
    """One file each, numbered."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}-{number:03}.json" for number in range(1, len(replays) + 1)]
    for path, replay in zip(paths, replays, strict=True):
        path.write_text(replay.model_dump_json(exclude_none=True, indent=1), encoding="utf-8")
    return paths
