"""Full-text search over what was said: an FTS5 table that triggers keep in step with the messages.

Words are compared without case and accents and by their English stem. The one place that knows FTS5.
"""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections.abc import Iterable
from functools import cache

TABLE = "said"
"""The FTS5 table; SQLite keeps what belongs to it in tables of names that begin so."""

_PUT = """
  DELETE FROM said WHERE rowid = (SELECT id FROM passages WHERE message_id = new.id);
  INSERT INTO passages (message_id) VALUES (new.id) ON CONFLICT (message_id) DO NOTHING;
  INSERT INTO said (rowid, conversation, text) SELECT id, $values FROM passages WHERE message_id = new.id;
"""
_VALUES = """substr(new.conversation_id, 6),
  (SELECT group_concat(json_extract(value, '$.text'), ' ') FROM json_each(new.parts)
   WHERE json_extract(value, '$.kind') = 'text')"""
SCHEMA = tuple(
    statement.replace("$put", _PUT).replace("$values", _VALUES)
    for statement in (
        """CREATE VIRTUAL TABLE IF NOT EXISTS said USING fts5(
             conversation, text, tokenize = "porter unicode61 remove_diacritics 2")""",
        """CREATE TRIGGER IF NOT EXISTS said_inserted AFTER INSERT ON messages
           WHEN new.status = 'complete' BEGIN $put END""",
        # Growing answers are not indexed: each is written many times, and read by nobody yet.
        """CREATE TRIGGER IF NOT EXISTS said_changed AFTER UPDATE OF parts, status ON messages
           WHEN new.status = 'complete' AND (old.status <> 'complete' OR old.parts <> new.parts)
           BEGIN $put END""",
        """CREATE TRIGGER IF NOT EXISTS said_deleted AFTER DELETE ON messages BEGIN
             DELETE FROM said WHERE rowid = (SELECT id FROM passages WHERE message_id = old.id);
             DELETE FROM passages WHERE message_id = old.id;
           END""",
    )
)
"""Run after every migration: one that rebuilds `messages` loses its triggers."""
FILL = (
    """INSERT INTO passages (message_id) SELECT m.id FROM messages m LEFT JOIN passages p ON p.message_id = m.id
       WHERE m.status = 'complete' AND p.id IS NULL""",
    """INSERT INTO said (rowid, conversation, text) SELECT p.id, $values
       FROM passages p JOIN messages new ON new.id = p.message_id
       WHERE p.id NOT IN (SELECT rowid FROM said)""".replace("$values", _VALUES),
)
"""Indexes what was said before there was an index."""
FIND = """
SELECT p.message_id AS message_id, -bm25(said, 0.0, 1.0) AS score
FROM said JOIN passages p ON p.id = said.rowid
JOIN messages m ON m.id = p.message_id JOIN conversations c ON c.id = m.conversation_id
WHERE said MATCH :query AND c.user_id = :user AND c.deleted_at IS NULL AND (c.listed OR NOT :every)
ORDER BY bm25(said, 0.0, 1.0) LIMIT :limit"""
"""Message ids and BM25 scores (higher is better), best first."""

PASSAGES = 'CREATE VIRTUAL TABLE said USING fts5(text, tokenize = "porter unicode61 remove_diacritics 2")'
"""The same table in memory, for the passages of one conversation (`rallychat.context.index`)."""
PUT_PASSAGE = "INSERT INTO said (rowid, text) VALUES (?, ?)"
DROP_PASSAGE = "DELETE FROM said WHERE rowid = ?"
FIND_PASSAGES = """
SELECT rowid, -bm25(said) FROM said WHERE said MATCH :query ORDER BY bm25(said), rowid LIMIT :limit"""

_WORD = re.compile(r"\w+")
_SPACELESS = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"
    r"|[\U00020000-\U0003ffff]"
)
"""A character of a script that writes no spaces between words (Thai, Lao, Burmese, Khmer, Chinese, Japanese), or of
Korean, which writes particles without one."""
MOST_WORDS = 32
_MONTHS = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    "nov(?:ember)?|dec(?:ember)?"
)
DATE = re.compile(
    rf"\b(?:\d{{4}}-(?P<m>\d\d)-(?P<d>\d\d)"
    rf"|(?P<name>{_MONTHS})\.? (?P<day>\d{{1,2}})(?:st|nd|rd|th)?"
    rf"|(?P<day2>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<name2>{_MONTHS}))\b"
    r"|(?P<m2>\d{1,2}) ?[月월] ?(?P<d2>\d{1,2}) ?[日號号일]"
    r"|\b(?P<d3>0?[1-9]|[12]\d|3[01])\. ?(?P<m3>1[0-2]|0?[1-9])\.",
    re.IGNORECASE,
)
"""A day, as English, ISO, East Asian languages, and most of Europe write it in numbers."""
_COMMON = (
    "a about above after again all also am an and any are as at be because been before being below between both but "
    "by can could did do does doing don down during each else ever few for from further get got had has have having "
    "he her here hers him his how i if in into is it its just know let like me mine more most my myself no nor not "
    "now of off on once only or other our out over own please said same say she should so some such tell than that "
    "the their them then there these they thing things this those through to told too under until up us very want "
    "was we well were what when where which while who whom why will with would yes you your yours "
)
STOPWORDS = frozenset(_WORD.findall(_COMMON))
"""English words that say nothing of the subject."""


def words(text: str) -> list[str]:
    """The words of a question that say what it is about, each once, in order, at most `MOST_WORDS`."""
    found = dict.fromkeys(word.lower() for word in _WORD.findall(DATE.sub(" ", text)))
    telling = [word for word in found if word not in STOPWORDS and (len(word) > 1 or not word.isascii())]
    return (telling or list(found))[:MOST_WORDS]


def query(asked: Iterable[str], *, conversation_id: str | None, every: bool = False) -> str:
    """An FTS5 query for any (`every`: all) of these words, in one conversation or all. Nothing in it is an operator.

    Words of other scripts match by their beginning too, for endings change there and the stemmer is English.
    """
    terms = (" AND " if every else " OR ").join(map(_term, asked))
    here = f'conversation : "{conversation_id[5:]}" AND ' if conversation_id else ""
    return f"{here}text : ({terms})" if terms else ""


def spaced(text: str) -> str:
    """A text with each character of the scripts that write no spaces as a word of its own."""
    return _SPACELESS.sub(r" \g<0> ", text)


def passage_query(question: str) -> str:
    """The same query for passages that were indexed `spaced`: there, pairs of characters stand for words."""
    terms: dict[str, None] = {}
    for word in words(question):
        parts = spaced(word).split()
        single = dict.fromkeys(part for part in parts if not _SPACELESS.fullmatch(part))
        if len(parts) == 1 or all(part in single for part in parts):
            terms |= dict.fromkeys(map(_term, parts))
            continue
        terms |= dict.fromkeys(map(_term, single))
        pairs = itertools.pairwise(parts)
        terms |= dict.fromkeys(
            f'"{one} {other}"' for one, other in pairs if one not in single and other not in single
        )
    return f"text : ({' OR '.join([*terms][: 2 * MOST_WORDS])})" if terms else ""


def _term(word: str) -> str:
    if word.isascii() or len(word) < 3:
        return f'"{word}"'
    return f'"{word[: max(3, len(word) - 1 - (len(word) > 5))]}" *'


@cache
def available() -> bool:
    """This Python's SQLite has FTS5."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(SCHEMA[0])
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True
