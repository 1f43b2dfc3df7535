"""The tables, as the migrations make them. Times are seconds since the epoch, durations milliseconds.

Two families. The control plane (functions to jobs) hangs from `functions` by foreign keys that cascade: deleting
the function row deletes all of it. The records (`invocations`, `logs`, `slots`) know a function by its names
alone: they are written in bulk by nodes, pruned by age and size, and nothing waits for them. Each record table has
a `seq` that only grows: the order of arrival, the cursor of readers and the order of pruning.

Locks (PostgreSQL; SQLite has one writer anyway): a transaction that changes anything of a function locks the
function row first, and the routing row last. Only the job queue and the build log skip it, and lock nothing else.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

# Outcomes that are the function's or the platform's failure; the text is shared with a partial index, which a query
# can use only when it repeats the condition word by word. It is tried for every row written: NOT IN costs a quarter
# of SQLite's insert rate, this nothing.
FAILED = "outcome <> 'ok' AND outcome <> 'client_gone' AND outcome <> 'rejected'"
IN_A_CALL = "invocation <> ''"

_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite: an alias of the rowid

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _id(name: str = "id") -> Column[int]:
    return Column(name, _ID, primary_key=True, autoincrement=True)


def _function_id() -> Column[int]:
    return Column("function_id", _ID, ForeignKey("functions.id", ondelete="CASCADE"), nullable=False)


routing = Table(
    "routing",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # one row, 1
    Column("revision", BigInteger, nullable=False),
)

functions = Table(
    "functions",
    metadata,
    _id(),
    Column("namespace", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("access", Text, nullable=False),
    Column("balancing", Text, nullable=False),
    Column("sticky", Boolean, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("last_number", Integer, nullable=False),  # highest version number ever given
    Column("revision", BigInteger, nullable=False),  # routing.revision when something of it last changed
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    UniqueConstraint("namespace", "name"),
    sqlite_autoincrement=True,
)

versions = Table(
    "versions",
    metadata,
    _id(),
    _function_id(),
    Column("number", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("digest", Text, nullable=False),
    Column("layer", Text),
    Column("config", JSON, nullable=False),
    Column("config_digest", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("log_lines", Integer, nullable=False),
    Column("log_bytes", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("built_at", Double),
    UniqueConstraint("function_id", "number"),
    sqlite_autoincrement=True,
)

build_logs = Table(
    "build_logs",
    metadata,
    Column("version_id", _ID, ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),  # 1 for the first line
    Column("text", Text, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("function_id", _ID, ForeignKey("functions.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("generation", Integer, nullable=False),  # goes on growing when a deleted alias comes back
    Column("traffic", JSON, nullable=False),  # {"3": 100}; {} when deleted
    Column("moved_at", Double, nullable=False),
)

moves = Table(
    "moves",
    metadata,
    Column("function_id", _ID, ForeignKey("functions.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("alias", Text, primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("action", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("traffic", JSON, nullable=False),
    Column("previous", JSON, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    _id(),
    Column("kind", Text, nullable=False),
    Column("payload", JSON, nullable=False),
    Column("version_id", _ID, ForeignKey("versions.id", ondelete="CASCADE")),  # the version this job holds
    Column("attempts", Integer, nullable=False),
    Column("due_at", Double, nullable=False),
    Column("lease", Text),
    Column("lease_until", Double),
    Column("error", Text),  # of the last attempt
    Column("created_at", Double, nullable=False),
    Index(None, "version_id"),
    Index(None, "due_at"),
    sqlite_autoincrement=True,
)

tokens = Table(
    "tokens",
    metadata,
    _id(),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False),  # SHA-256 hex of the secret
    Column("scopes", JSON, nullable=False),
    Column("namespaces", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    UniqueConstraint("name"),
    UniqueConstraint("hash"),
    sqlite_autoincrement=True,
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("address", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("info", JSON, nullable=False),
)

# Columns up to `error` in the field order of model.Invocation: nodes hand over tuples.
invocations = Table(
    "invocations",
    metadata,
    _id("seq"),
    Column("id", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("function", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("instance", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("queue_ms", Double, nullable=False),
    Column("start_ms", Double, nullable=False),
    Column("run_ms", Double, nullable=False),
    Column("status", Integer, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_out", BigInteger, nullable=False),
    Column("error", Text),  # JSON
    Column("error_type", Text),
    UniqueConstraint("id"),
    Index("ix_invocations_newest", "namespace", "function", "started_at", "seq"),
    Index(
        "ix_invocations_failed",
        "namespace",
        "function",
        "started_at",
        "seq",
        sqlite_where=text(FAILED),
        postgresql_where=text(FAILED),
    ),
    sqlite_autoincrement=True,
)

# Columns in the field order of model.LogLine, `seq` first.
logs = Table(
    "logs",
    metadata,
    _id("seq"),
    Column("at", Double, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("function", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("invocation", Text, nullable=False),
    Column("instance", Text, nullable=False),
    Column("stream", Text, nullable=False),
    Column("level", Text, nullable=False),
    Column("text", Text, nullable=False),
    Index("ix_logs_oldest", "namespace", "function", "seq", "at"),
    Index("ix_logs_invocation", "invocation", "seq", sqlite_where=text(IN_A_CALL), postgresql_where=text(IN_A_CALL)),
    sqlite_autoincrement=True,
)

slots = Table(
    "slots",
    metadata,
    _id("seq"),
    Column("at", Double, nullable=False),
    Column("node", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("function", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("outcomes", JSON, nullable=False),
    Column("cold_starts", Integer, nullable=False),
    Column("throttled", Integer, nullable=False),
    Column("histogram", JSON, nullable=False),
    Column("max_ms", Double, nullable=False),
    Column("concurrency", Integer, nullable=False),
    Column("instances", Integer, nullable=False),
    Index("ix_slots_at", "namespace", "function", "at"),
    sqlite_autoincrement=True,
)
