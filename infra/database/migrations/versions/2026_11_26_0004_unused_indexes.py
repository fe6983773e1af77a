"""Without the indexes of verdicts, by which nobody looks."""

from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.drop_index("ix_verdict_workload", "verdict")
    op.drop_index("ix_verdict_candidate_id", "verdict")


def downgrade() -> None:
    op.create_index("ix_verdict_candidate_id", "verdict", ["candidate_id"])
    op.create_index("ix_verdict_workload", "verdict", ["workload"])
