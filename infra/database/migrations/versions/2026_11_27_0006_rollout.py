"""Tables of rollouts: what is on its way to serve, what was decided, and what came of each call."""

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    time = sa.DateTime(timezone=True)
    op.create_table(
        "rollout",
        sa.Column("id", number, nullable=False),
        sa.Column("workload", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("reference", sa.String(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("step_began", time, nullable=False),
        sa.Column("tally", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("ended", time, nullable=True),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("flow_run_id", sa.String(), nullable=True),
        sa.Column("mlflow_run_id", sa.String(), nullable=True),
        sa.Column("created", time, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_rollout"),
    )
    op.create_index("ix_rollout_workload", "rollout", ["workload"])
    under_way = sa.text("ended IS NULL")
    op.create_index(
        "uq_rollout_under_way", "rollout", ["workload"], unique=True,
        sqlite_where=under_way, postgresql_where=under_way,
    )  # fmt: skip
    op.create_table(
        "rollout_decision",
        sa.Column("id", number, nullable=False),
        sa.Column("rollout_id", number, nullable=False),
        sa.Column("at", time, nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollout.id"], name="fk_rollout_decision_rollout_id_rollout"),
        sa.PrimaryKeyConstraint("id", name="pk_rollout_decision"),
    )
    op.create_index("ix_rollout_decision_rollout_id", "rollout_decision", ["rollout_id"])
    op.create_table(
        "rollout_call",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("arm", sa.String(length=16), nullable=False),
        sa.Column("rollout_id", number, nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("conversation", sa.String(length=32), nullable=False),
        sa.Column("at", time, nullable=False),
        sa.Column("failed", sa.Boolean(), nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=False),
        sa.Column("opinion", sa.Integer(), nullable=True),
        sa.Column("answer", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollout.id"], name="fk_rollout_call_rollout_id_rollout"),
        sa.PrimaryKeyConstraint("id", "arm", name="pk_rollout_call"),
    )
    op.create_index("ix_rollout_call_conversation", "rollout_call", ["rollout_id", "step", "arm", "conversation"])


def downgrade() -> None:
    for table in ("rollout_call", "rollout_decision", "rollout"):
        op.drop_table(table)
