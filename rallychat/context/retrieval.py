"""Older turns that fit the question, quoted beside it. Pure: the search itself is asked elsewhere.

Quotes stand in the new user's message only, dated, and stay there as that message's tokens: nothing in front of
them changes, so they cost their own length once and nothing of the cache.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Literal

from rallychat.context.index import Hit
from rallychat.context.passages import passages, sentences
from rallychat.context.selection import tokens_of_text
from rallychat.context.types import Turn
from rallychat.store import search

HEADER = "[From earlier in this conversation:"
ELSEWHERE = "[From other conversations with the same person:"
USER_FIRST = 2.0
"""How much more a user's message counts than an answer with the same words; the other way round where the question
is after what the model said."""
NEIGHBOUR = 0.35
"""What an answer gets of the score of the message it answers."""
SAME_DAY = 3.0
"""How much more a message counts that was said on a day the question names."""
WORTH = 0.12
"""Share of the best score below which nothing is quoted."""
ALIKE = 0.5
"""Share of its words that a message of no personal kind must share with an older one for that to be quoted."""
SURE, SURE_OWN = 0.4, 0.3
"""Share of the question's words that one of the `BEST` must have where reading quotes is felt: of a question that looks
back, and of one that asks for what the person alone can have said."""
BEST = 6
NEAR = 40
"""How many of the best are looked at for that."""
RANKS = 10
"""How slowly the worth of a rank falls where two searches are joined: 1 / (RANKS + rank), summed."""
MEANING = 0.4
"""What a rank by meaning is worth beside one by words."""
MEANT = 12
"""How many of the best by meaning alone are quoted, at most."""
_ASKS = re.compile(
    r"[?？؟⸮]|^\W*(?:what|which|who|whom|whose|when|where|why|how|do|does|did|is|are|was|were|have|has|can|could|remind"
    r"|wie|wer|wo|wann|welche\w?|warum|wem|wen|qui|quelle?s?|où|quand|comment|combien|pourquoi|qué|quién|cuál|dónde"
    r"|cuándo|cómo|як\w*|що|хто|де|коли|скільки|чому|кого|что|кто|где|когда|как\w*|сколько|почему)\b"
    r"|什[么麼]|哪|[谁誰]|多少|怎|[吗嗎]|何|いつ|どこ|なに|なん|いくら|どう|뭐|뭔|무엇|무슨|누구|누가|어디|언제|얼마|왜|어떻게|어떤",
    re.IGNORECASE,
)
_PERSONAL = re.compile(
    r"\b(?:I|I'm|I've|my|mine|me|we|our|us|remember|recall|earlier|before|previously|again|last time|mentioned|told"
    r"|ich|mich|mir|mein\w*|wir|uns\w*|je|moi|mon|ma|mes|notre|nos|yo|mis?|nuestr\w+|я|мене|мені|мій|моя|моє|моєї|мого"
    r"|моєму|мої|наш\w*|меня|мне|мой|моё|моей|моего|моему|мои)\b"
    r"|[我咱俺私僕]|自分|[记記]得|覚え|내|나의|나는|내가|제가|저는|저의|우리|기억|아까|전에",
    re.IGNORECASE,
)
ENGLISH = 0.25
"""Share of English stopwords from which on a text is English."""
_NAMED = re.compile(r"(?<=[\w,;] )[A-Z]\w+|\d")
_MODEL_SAID = re.compile(
    r"\byou (?:\w+ ){0,2}?(?:recommend|suggest|tell|told|sa(?:y|id)|mention|g[ai]ve|list|wr[io]te|explain|describe|"
    r"provide|propose|advise|share|answer|come up)|\byour (?:\w+ )?(?:list|recommendation|suggestion|answer|advice)",
    re.IGNORECASE,
)
_BACK = re.compile(
    r"\b(?:remember|recall|remind|earlier|before|previously|last time|mentioned|told|talked about|spoke of|discussed)\b"
    r"|\bdid (?:I|we|you)\b"
    r"|\b(?:I|we|you) (?:just |once |already |had |have )*(?:said|(?!need\b)\w+ed|bought|went|saw|read|gave|"
    r"made|took|met|ate|wrote|chose|got)\b|\b(?:what|who|when|where|which)(?:'s| is| was| are| were) (?:my|our)\b",
    re.IGNORECASE,
)
_OWN = re.compile(
    r"\b(?:what|which|who|whose|whom|when|where|how (?:much|many|old|long|often|far))\b[^?.!,]{0,40}?"
    r"\b(?:do|did|does|am|is|are|was|were|will|has|have|had) (?:I|we|my|our)\b"
    r"|(?:^|[.!?,] )\W{0,3}(?:(?:do|did|am|was|have|had) (?:I|we)|(?:is|does|did|was|has) (?:my|our))\b|\bagain\?",
    re.IGNORECASE,
)
_SUPPOSES = re.compile(r"\b(?:what|how about) if\b|\bif (?:I|we|you)\b", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
SHORT = 2
"""Sentences of a question that are read as one; of a longer one, those with a question mark."""
By = Literal["words", "meaning", "both"]
Key = tuple[str, int, int]
"""A passage: its message, where it begins in it, where it ends."""


@dataclass(frozen=True, slots=True)
class Found:
    """A passage that fits the question, how well, and by what it was found."""

    id: str
    start: int
    end: int
    score: float
    by: By = "words"


@dataclass(frozen=True, slots=True)
class Quote:
    """An older passage that is quoted: its line, and how well it fits.

    `of` is the title of the conversation it is from, None where that is the one at hand.
    """

    id: str
    line: str
    score: float
    tokens: int
    by: By = "words"
    of: str | None = None


def wanted(question: str) -> bool:
    """A message that asks for something personal, or of a name or a day: it may be about what was said earlier.

    Of languages whose words are not known here, each question counts.
    """
    if _ASKS.search(question) is None:
        return False
    if _PERSONAL.search(question) or _NAMED.search(question) or search.DATE.search(question):
        return True
    said = [word.lower() for word in _WORD.findall(question)]
    english = sum([word in search.STOPWORDS for word in said]) > ENGLISH * len(said)
    return not english and not question.isascii()


def looks_back(question: str) -> bool:
    """A question that says it is about what was said earlier, or asks for what the person alone can have said.

    Stricter than `wanted`, for machines where reading quotes is felt. Of other languages than English, as `wanted`.
    """
    if not wanted(question) or not _is_english(question):
        return wanted(question)
    if _SUPPOSES.search(question):
        return False
    said = _SENTENCE.split(question.strip())
    asking = " ".join(said if len(said) <= SHORT else (each for each in said if "?" in each))
    return _is_own(question) or bool(_BACK.search(asking) or search.DATE.search(asking))


def _is_own(question: str) -> bool:
    """It asks what the person has, does or is: "What is my cat called?", not "How can I bake bread?"."""
    said = _SENTENCE.split(question.strip())
    return _OWN.search(" ".join([each for each in said if "?" in each] or said)) is not None


def sure(found: Sequence[Found], turns: Sequence[Turn], question: str) -> bool:
    """One of the best shares so many words with the question that it is worth a wait. Of English questions only."""
    texts, asked = {turn.id: turn.text for turn in turns}, set(_stems(question))
    least = SURE_OWN if _is_own(question) else SURE
    return not _is_english(question) or any(
        _alike(asked, texts[each.id][each.start : each.end]) >= least for each in found[:BEST]
    )


def _is_english(question: str) -> bool:
    return any(word.lower() in search.STOPWORDS for word in _WORD.findall(question))


def scores(turns: Sequence[Turn], hits: Iterable[Hit], question: str) -> list[Found]:
    """How well each passage fits the question, the best first: its own words, its day, a share of what it answers.

    Where the question is not of the kind that looks back, only near repetitions of it score. What was found by its
    meaning too is joined by rank, for the two scores cannot be compared.
    """
    hits = list(hits)
    by_words = _by_words(turns, hits, question)
    if not wanted(question):
        return _near(turns, hits, by_words, question)
    ranked = sorted(by_words, key=lambda key: -by_words[key])
    if not any(hit.meaning for hit in hits):
        return [Found(*key, by_words[key]) for key in ranked]
    return _joined(ranked, by_words, {(hit.id, hit.start, hit.end): hit.meaning for hit in hits}, turns)


def _by_words(turns: Sequence[Turn], hits: Collection[Hit], question: str) -> dict[Key, float]:
    user, model = (1.0, USER_FIRST) if _MODEL_SAID.search(question) else (USER_FIRST, 1.0)
    days = days_in(question)
    by_day = max((hit.words for hit in hits), default=1.0) / 2 if days else 0.0
    by_turn: dict[str, list[Hit]] = {}
    for hit in hits:
        if hit.words:
            by_turn.setdefault(hit.id, []).append(hit)
    found: dict[Key, float] = {}
    asked = 0.0
    for turn in turns:
        of_day = turn.date is not None and (turn.date.month, turn.date.day) in days
        shared = NEIGHBOUR * asked if turn.role == "assistant" else 0.0
        asked = 0.0
        for hit in by_turn.get(turn.id) or ([_beginning(turn)] if of_day or shared else ()):
            score = hit.words * (user if turn.role == "user" else model)
            if of_day:
                score = score * SAME_DAY + (by_day if turn.role == "user" else 0.0)
            if turn.role == "user":
                asked = max(asked, score)
            if score + shared > 0:
                found[hit.id, hit.start, hit.end] = score + shared
    return found


def _beginning(turn: Turn) -> Hit:
    return Hit(turn.id, *next(iter(passages(turn.text)), (0, 0)))


def _near(
    turns: Sequence[Turn], hits: Collection[Hit], by_words: Mapping[Key, float], question: str
) -> list[Found]:
    texts, asked = {turn.id: turn.text for turn in turns}, set(_stems(question))
    own = {(hit.id, hit.start, hit.end) for hit in hits if hit.id in texts and hit.words}
    best = sorted(own, key=lambda key: -by_words.get(key, 0.0))[:NEAR]
    return [
        Found(*key, by_words[key])
        for key in best
        if key in by_words and _alike(asked, texts[key[0]][key[1] : key[2]]) >= ALIKE
    ]


def _joined(
    ranked: Sequence[Key], by_words: Mapping[Key, float], meant: Mapping[Key, float], turns: Sequence[Turn]
) -> list[Found]:
    """The two rankings as one (reciprocal rank fusion); what fits far worse than the best by both is left out."""
    least = by_words[ranked[0]] * WORTH if ranked else 0.0
    said = {key: place for place, key in enumerate(ranked) if by_words[key] >= least}
    roles = {turn.id: turn.role for turn in turns}
    alike = {key: meaning for key, meaning in meant.items() if meaning and key[0] in roles}
    order = sorted(alike, key=lambda key: -alike[key] * (1.0 if roles[key[0]] == "user" else 0.9))
    means = {key: place for place, key in enumerate(order)}
    found = []
    for key in {**said, **dict.fromkeys(order[:MEANT])}:
        score = 1 / (RANKS + said[key]) if key in said else 0.0
        score += MEANING / (RANKS + means[key]) if key in means else 0.0
        by: By = "both" if key in said and key in means else "words" if key in said else "meaning"
        found.append(Found(*key, score, by))
    return sorted(found, key=lambda each: -each.score)


def days_in(text: str) -> set[tuple[int, int]]:
    """The days a text names, as (month, day)."""
    found = set()
    for match in search.DATE.finditer(text):
        named = match["name"] or match["name2"]
        month = (
            _MONTHS.index(named[:3].lower()) + 1 if named else int(match["m"] or match["m2"] or match["m3"])
        )
        found.add((month, int(match["d"] or match["day"] or match["day2"] or match["d2"] or match["d3"])))
    return found


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def _stems(text: str) -> list[str]:
    return [word[:5] for word in search.words(text)]


def _alike(asked: set[str], text: str) -> float:
    return (
        len(asked & {word.lower()[:5] for word in _WORD.findall(text)}) / len(asked)
        if len(asked) > 1
        else 0.0
    )


def recalled(
    turns: Sequence[Turn],
    hits: Iterable[Hit],
    question: str,
    *,
    out: Collection[str],
    room: int,
    slow: bool,
    again: bool = False,
) -> list[Quote]:
    """Quotes for a question, within `room` tokens.

    Args:
        turns: all that was said before it, oldest first; `out`: ids of those that may be quoted.
        slow: reading quotes is felt: only a question that looks back has some, if what fits it best is not in the
            prompt; they must be sure, and are short.
        again: it had quotes already, so it may have them.
    """
    if slow and not again and not looks_back(question):
        return []
    found = scores(turns, hits, question)
    if slow and not again and not (found and found[0].id in out and sure(found, turns, question)):
        return []
    older = [turn for turn in turns if turn.id in out]
    return quotes(older, _shortened(found, older, question) if slow else found, room=room)


def _shortened(found: Iterable[Found], turns: Sequence[Turn], question: str) -> Iterator[Found]:
    """The same, of each passage the sentences that fit the question best."""
    texts, asked = {turn.id: turn.text for turn in turns}, set(_stems(question))
    for each in found:
        if each.id in texts:
            start, end = sentences(texts[each.id], (each.start, each.end), worth=partial(_alike, asked))
            yield replace(each, start=start, end=end)


def quotes(turns: Sequence[Turn], found: Iterable[Found], *, room: int) -> list[Quote]:
    """The best of `found` as quotes that fill at most `room` tokens, in the order in which they were said.

    Args:
        turns: older turns that are not in the prompt and were not excluded, oldest first; of others nothing is
            quoted.
        found: what fits the question.
    """
    by_id = {turn.id: turn for turn in turns}
    age = {turn.id: index for index, turn in enumerate(turns)}
    best = sorted(
        (each for each in found if each.id in by_id),
        key=lambda each: (each.score, age[each.id], -each.start),
        reverse=True,
    )
    if not best:
        return []
    least = best[0].score * WORTH
    left = room - tokens_of_text(HEADER, turns) - 2
    taken: list[tuple[Found, Quote]] = []
    for each in best:
        if each.score < least:
            break
        turn = by_id[each.id]
        line = line_of(turn, each.start, each.end)
        size = _size(turn, line)
        if size <= left:
            left -= size
            taken.append((each, Quote(each.id, line, each.score, size, each.by)))
    return [quote for _, quote in sorted(taken, key=lambda pair: (age[pair[0].id], pair[0].start))]


def line_of(turn: Turn, start: int = 0, end: int | None = None) -> str:
    """A turn, or a passage of it, as it is quoted: dated, word by word, with … where something is left out."""
    end = len(turn.text) if end is None else end
    before = "… " if turn.text[:start].strip() else ""
    after = " …" if turn.text[end:].strip() else ""
    return f"{_said_by(turn)}{before}{turn.text[start:end].strip()}{after}"


def _said_by(turn: Turn) -> str:
    return f"{_stamp(turn.date)}{'User' if turn.role == 'user' else 'You'}: "


def holds_words_of(quoted: str, turn: Turn) -> bool:
    """One of the lines that were quoted in front of a question is of that turn."""
    for part in quoted.split(f"\n{_said_by(turn)}")[1:]:
        said = part.partition("\n")[0].removesuffix("]").removesuffix(" …").removeprefix("… ").strip()
        if said and said in turn.text:
            return True
    return False


def block(taken: Sequence[Quote]) -> str:
    """The text that goes in front of the question."""
    return "".join(_blocks(taken))


def _blocks(taken: Sequence[Quote]) -> Iterator[str]:
    for header, lines in (
        (ELSEWHERE, [quote.line for quote in taken if quote.of is not None]),
        (HEADER, [quote.line for quote in taken if quote.of is None]),
    ):
        if lines:
            yield "\n".join([header, *lines]) + "]\n\n"


def _stamp(date: datetime | None) -> str:
    return f"{date:%Y-%m-%d} " if date else ""


def _size(turn: Turn, line: str) -> int:
    return tokens_of_text(line, [turn]) + 1
