"""The full-text search of `search.py` for PostgreSQL: a table of word vectors that triggers keep in step, and BM25.

Words are compared as there: without case and accents and by their English stem, no word left out. Needs no extension.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.identity import current

LONGEST = 200_000
"""Characters of a message that are indexed: PostgreSQL refuses a vector of over a megabyte."""

SCHEMA = (
    """DO $$ BEGIN
         IF NOT EXISTS (SELECT FROM pg_ts_config
                        WHERE cfgname = 'rallychat' AND cfgnamespace = current_schema()::regnamespace) THEN
           CREATE TEXT SEARCH DICTIONARY rallychat_stem (TEMPLATE = snowball, LANGUAGE = english);
           CREATE TEXT SEARCH CONFIGURATION rallychat (COPY = pg_catalog.simple);
           ALTER TEXT SEARCH CONFIGURATION rallychat ALTER MAPPING FOR
             asciiword, asciihword, hword_asciipart, word, hword, hword_part WITH rallychat_stem;
         END IF;
       END $$""",
    # Punctuation goes, else the parser makes one word of an address, a path or a number with its unit.
    r"""CREATE OR REPLACE FUNCTION rallychat_plain(said text) RETURNS text IMMUTABLE LANGUAGE sql AS $$
          SELECT regexp_replace(
            regexp_replace(normalize(left(said, 200000), NFKD), '[\u0300-\u036f]', '', 'g'),
            '[\u0021-\u002f\u003a-\u0040\u005b-\u0060\u007b-\u007e]', ' ', 'g') $$""",
    """CREATE TABLE IF NOT EXISTS said (
         message_id varchar(40) PRIMARY KEY REFERENCES messages (id) ON DELETE CASCADE,
         conversation_id varchar(40) NOT NULL, words integer NOT NULL, terms tsvector NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS said_terms ON said USING gin (terms)",
    "CREATE INDEX IF NOT EXISTS said_conversation ON said (conversation_id)",
    """CREATE OR REPLACE FUNCTION rallychat_put(id text, conversation text, parts json) RETURNS void
       LANGUAGE sql AS $$
         INSERT INTO said (message_id, conversation_id, words, terms)
         SELECT id, conversation,
                coalesce((SELECT sum(cardinality(positions)) FROM unnest(terms)), 0), terms
         FROM (SELECT to_tsvector('rallychat', rallychat_plain(coalesce(string_agg(part ->> 'text', ' '), '')))
               AS terms FROM json_array_elements(parts) AS part WHERE part ->> 'kind' = 'text') AS told
         ON CONFLICT (message_id) DO UPDATE SET words = excluded.words, terms = excluded.terms $$""",
    """CREATE OR REPLACE FUNCTION rallychat_said() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
         PERFORM rallychat_put(new.id, new.conversation_id, new.parts); RETURN NULL; END $$""",
    "DROP TRIGGER IF EXISTS said_inserted ON messages",
    """CREATE TRIGGER said_inserted AFTER INSERT ON messages FOR EACH ROW
       WHEN (new.status = 'complete') EXECUTE FUNCTION rallychat_said()""",
    "DROP TRIGGER IF EXISTS said_changed ON messages",
    """CREATE TRIGGER said_changed AFTER UPDATE OF parts, status ON messages FOR EACH ROW
       WHEN (new.status = 'complete' AND (old.status <> 'complete' OR old.parts::text <> new.parts::text))
       EXECUTE FUNCTION rallychat_said()""",
    """SELECT count(rallychat_put(m.id, m.conversation_id, m.parts)) FROM messages m
       LEFT JOIN said ON said.message_id = m.id WHERE m.status = 'complete' AND said.message_id IS NULL""",
)
"""Run after every migration, each by itself."""

_FIND = text("""
WITH asked AS (
  SELECT DISTINCT term.lexeme, wanted.begins
  FROM unnest(CAST(:words AS text[]), CAST(:begins AS boolean[])) AS wanted (word, begins),
       unnest(to_tsvector('rallychat', rallychat_plain(wanted.word))) AS term
), query AS (
  SELECT CAST(string_agg(quote_literal(lexeme) || CASE WHEN begins THEN ':*' ELSE '' END,
                         CASE WHEN CAST(:every AS boolean) THEN ' & ' ELSE ' | ' END) AS tsquery) AS q
  FROM asked
), texts AS NOT MATERIALIZED (
  SELECT said.* FROM said JOIN conversations c ON c.id = said.conversation_id
  WHERE c.user_id = :user AND c.deleted_at IS NULL AND (c.listed OR NOT CAST(:every AS boolean))
    AND (CAST(:conversation AS text) IS NULL OR c.id = CAST(:conversation AS text))
), every AS (
  SELECT count(*) AS texts, greatest(avg(words), 1) AS mean FROM texts
), hits AS (
  SELECT texts.message_id, texts.words, asked.lexeme, sum(coalesce(cardinality(term.positions), 1)) AS times
  FROM texts CROSS JOIN query CROSS JOIN LATERAL unnest(texts.terms) AS term
  JOIN asked ON term.lexeme = asked.lexeme OR (asked.begins AND starts_with(term.lexeme, asked.lexeme))
  WHERE texts.terms @@ query.q
  GROUP BY texts.message_id, texts.words, asked.lexeme
), common AS (
  SELECT lexeme, count(*) AS texts FROM hits GROUP BY lexeme
)
SELECT hits.message_id, CAST(sum(
    ln(1 + (every.texts - common.texts + 0.5) / (common.texts + 0.5))
    * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * words / every.mean))) AS double precision) AS score
FROM hits JOIN common USING (lexeme) CROSS JOIN every
GROUP BY hits.message_id ORDER BY score DESC, hits.message_id DESC LIMIT :limit""")


async def find(
    db: AsyncConnection, asked: list[str], *, conversation_id: str | None, limit: int, every: bool = False
) -> list[tuple[str, float]]:
    """Message ids and BM25 scores (higher is better), best first."""
    begins = [not word.isascii() and len(word) >= 3 for word in asked]
    given: dict[str, Any] = {
        "words": [word[:-1] if cut else word for word, cut in zip(asked, begins, strict=True)],
        "begins": begins,
        "user": current().id,
        "conversation": conversation_id,
        "limit": limit,
        "every": every,
    }
    found = await db.execute(_FIND, given)
    return [(row.message_id, row.score) for row in found]
