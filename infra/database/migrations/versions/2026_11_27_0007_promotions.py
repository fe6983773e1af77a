"""Tables of who served when and why, and of the webhook deliveries that have been taken."""

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    op.create_table(
        "promotion",
        sa.Column("workload", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(), nullable=True),
        sa.Column("replaced", sa.String(), nullable=True),
        sa.Column("by", sa.String(length=16), nullable=False),
        sa.Column("noticed", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("verdict_id", sa.String(length=64), nullable=True),
        sa.Column("flow_run_id", sa.String(), nullable=True),
        sa.Column("at", time, nullable=True),
        sa.Column("created", time, nullable=False),
        sa.ForeignKeyConstraint(["verdict_id"], ["verdict.id"], name="fk_promotion_verdict_id_verdict"),
        sa.PrimaryKeyConstraint("workload", "number", name="pk_promotion"),
    )
    op.create_table(
        "delivery",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("created", time, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_delivery"),
    )


def downgrade() -> None:
    op.drop_table("delivery")
    op.drop_table("promotion")
