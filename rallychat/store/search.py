"""Full-text search over what was said: an FTS5 table that triggers keep in step with the messages.

Words are compared without case and accents and by their English stem. The one place that knows FTS5.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
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
WHERE said MATCH :query ORDER BY bm25(said, 0.0, 1.0) LIMIT :limit"""
"""Message ids and BM25 scores (higher is better), best first."""

FIND_HERE = """
SELECT rowid, -bm25(said, 0.0, 1.0) FROM said WHERE said MATCH :query
ORDER BY bm25(said, 0.0, 1.0) LIMIT 200"""
"""The same by row, where there are no passages."""

_WORD = re.compile(r"\w+")
MOST_WORDS = 32
_MONTHS = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    "nov(?:ember)?|dec(?:ember)?"
)
DATE = re.compile(
    rf"\b(?:\d{{4}}-(?P<m>\d\d)-(?P<d>\d\d)"
    rf"|(?P<name>{_MONTHS})\.? (?P<day>\d{{1,2}})(?:st|nd|rd|th)?"
    rf"|(?P<day2>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<name2>{_MONTHS}))\b",
    re.IGNORECASE,
)
"""A day, as English and ISO write it."""
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


def query(asked: Iterable[str], *, conversation_id: str | None) -> str:
    """An FTS5 query for any of these words, in one conversation or all. Nothing in it is an operator.

    Words of other scripts match by their beginning too, for endings change there and the stemmer is English.
    """
    terms = " OR ".join(
        f'"{word}"' if word.isascii() or len(word) < 3 else f'"{word[:-1]}" *' for word in asked
    )
    here = f'conversation : "{conversation_id[5:]}" AND ' if conversation_id else ""
    return f"{here}text : ({terms})" if terms else ""


def found(said: Mapping[str, str], question: str) -> list[tuple[str, float]]:
    """The same search over texts by id that are in no store."""
    asked = query(words(question), conversation_id=None)
    if not asked or not available():
        return []
    ids = list(said)
    with closing(sqlite3.connect(":memory:")) as index:
        index.execute(SCHEMA[0])
        index.executemany(
            "INSERT INTO said (rowid, conversation, text) VALUES (?, '', ?)", enumerate(said.values())
        )
        rows = index.execute(FIND_HERE, {"query": asked}).fetchall()
    return [(ids[row], score) for row, score in rows]


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
