"""Tables of files and batches, beside those of `tables.py`."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Index, Integer, String, Table, Text

from rallychat.store.tables import UtcDateTime, metadata

files = Table(
    "files",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("user_id", String(64), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Index("ix_files_of_user", "user_id", "id"),
    Index("ix_files_expires_at", "expires_at"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("user_id", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    # The process that works on it.
    Column("owner", String(40)),
    Column("endpoint", String(64), nullable=False),
    Column("completion_window", String(8), nullable=False),
    # No foreign keys: files go before the batches that name them.
    Column("input_file_id", String(40), nullable=False),
    Column("output_file_id", String(40)),
    Column("error_file_id", String(40)),
    Column("output_expires_after", Integer),
    Column("model", Text),
    Column("metadata", JSON(none_as_null=True)),
    Column("errors", JSON(none_as_null=True)),
    Column("usage", JSON(none_as_null=True)),
    Column("total", Integer, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("in_progress_at", UtcDateTime),
    Column("finalizing_at", UtcDateTime),
    Column("completed_at", UtcDateTime),
    Column("failed_at", UtcDateTime),
    Column("expired_at", UtcDateTime),
    Column("cancelling_at", UtcDateTime),
    Column("cancelled_at", UtcDateTime),
    Index("ix_batches_of_user", "user_id", "id"),
    Index("ix_batches_status", "status"),
)
