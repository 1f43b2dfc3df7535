"""Foundation: functions, versions, aliases and their audit, jobs, tokens, nodes, records.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FAILED = sa.text("outcome <> 'ok' AND outcome <> 'client_gone' AND outcome <> 'rejected'")
IN_A_CALL = sa.text("invocation <> ''")


def upgrade() -> None:
    routing_and_functions()
    versions()
    aliases()
    jobs()
    tokens_and_nodes()
    invocations()
    logs()
    slots()


def downgrade() -> None:
    for table in (
        "slots",
        "logs",
        "invocations",
        "nodes",
        "tokens",
        "jobs",
        "moves",
        "aliases",
        "build_logs",
        "versions",
        "functions",
        "routing",
    ):
        op.drop_table(table)


def routing_and_functions() -> None:
    routing = op.create_table(
        "routing",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_routing")),
    )
    op.bulk_insert(routing, [{"id": 1, "revision": 0}])
    op.create_table(
        "functions",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("access", sa.Text(), nullable=False),
        sa.Column("balancing", sa.Text(), nullable=False),
        sa.Column("sticky", sa.Boolean(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("last_number", sa.Integer(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_functions")),
        sa.UniqueConstraint("namespace", "name", name=op.f("uq_functions_namespace_name")),
        sqlite_autoincrement=True,
    )


def versions() -> None:
    op.create_table(
        "versions",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("function_id", ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("layer", sa.Text()),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("config_digest", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("log_lines", sa.Integer(), nullable=False),
        sa.Column("log_bytes", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("built_at", sa.Double()),
        of("function_id", "functions.id", "fk_versions_function_id"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("function_id", "number", name=op.f("uq_versions_function_id_number")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "build_logs",
        sa.Column("version_id", ID, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        of("version_id", "versions.id", "fk_build_logs_version_id"),
        sa.PrimaryKeyConstraint("version_id", "position", name=op.f("pk_build_logs")),
    )


def aliases() -> None:
    op.create_table(
        "aliases",
        sa.Column("function_id", ID, autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("traffic", sa.JSON(), nullable=False),
        sa.Column("moved_at", sa.Double(), nullable=False),
        of("function_id", "functions.id", "fk_aliases_function_id"),
        sa.PrimaryKeyConstraint("function_id", "name", name=op.f("pk_aliases")),
    )
    op.create_table(
        "moves",
        sa.Column("function_id", ID, autoincrement=False, nullable=False),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("traffic", sa.JSON(), nullable=False),
        sa.Column("previous", sa.JSON(), nullable=False),
        of("function_id", "functions.id", "fk_moves_function_id"),
        sa.PrimaryKeyConstraint("function_id", "alias", "generation", name=op.f("pk_moves")),
    )


def jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("version_id", ID),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("lease", sa.Text()),
        sa.Column("lease_until", sa.Double()),
        sa.Column("error", sa.Text()),
        sa.Column("created_at", sa.Double(), nullable=False),
        of("version_id", "versions.id", "fk_jobs_version_id"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_jobs_due_at"), "jobs", ["due_at"])
    op.create_index(op.f("ix_jobs_version_id"), "jobs", ["version_id"])


def tokens_and_nodes() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("namespaces", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("hash", name=op.f("uq_tokens_hash")),
        sa.UniqueConstraint("name", name=op.f("uq_tokens_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "nodes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.Column("info", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nodes")),
    )


def invocations() -> None:
    op.create_table(
        "invocations",
        sa.Column("seq", ID, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("function", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("queue_ms", sa.Double(), nullable=False),
        sa.Column("start_ms", sa.Double(), nullable=False),
        sa.Column("run_ms", sa.Double(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("bytes_in", sa.BigInteger(), nullable=False),
        sa.Column("bytes_out", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("error_type", sa.Text()),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_invocations")),
        sa.UniqueConstraint("id", name=op.f("uq_invocations_id")),
        sqlite_autoincrement=True,
    )
    newest = ["namespace", "function", "started_at", "seq"]
    op.create_index("ix_invocations_newest", "invocations", newest)
    op.create_index("ix_invocations_failed", "invocations", newest, sqlite_where=FAILED, postgresql_where=FAILED)


def logs() -> None:
    op.create_table(
        "logs",
        sa.Column("seq", ID, autoincrement=True, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("function", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("invocation", sa.Text(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_logs")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_logs_oldest", "logs", ["namespace", "function", "seq", "at"])
    op.create_index(
        "ix_logs_invocation", "logs", ["invocation", "seq"], sqlite_where=IN_A_CALL, postgresql_where=IN_A_CALL
    )


def slots() -> None:
    op.create_table(
        "slots",
        sa.Column("seq", ID, autoincrement=True, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("function", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("outcomes", sa.JSON(), nullable=False),
        sa.Column("cold_starts", sa.Integer(), nullable=False),
        sa.Column("throttled", sa.Integer(), nullable=False),
        sa.Column("histogram", sa.JSON(), nullable=False),
        sa.Column("max_ms", sa.Double(), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_slots")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_slots_at", "slots", ["namespace", "function", "at"])


def of(column: str, parent: str, name: str) -> sa.ForeignKeyConstraint:
    """Rows that go when their parent goes."""
    return sa.ForeignKeyConstraint([column], [parent], name=op.f(name), ondelete="CASCADE")
