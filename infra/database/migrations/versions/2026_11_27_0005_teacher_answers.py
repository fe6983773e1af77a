"""A table of what teachers answered, so that none is asked, and paid, twice."""

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "teacher_answer",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("interaction_id", number, nullable=False),
        sa.Column("message", sa.JSON(), nullable=False),
        sa.Column("finish_reason", sa.String(), nullable=True),
        sa.Column("logprobs", sa.JSON(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=True),
        sa.Column("completion_tokens", sa.Integer(), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["interaction_id"], ["interaction.id"], name="fk_teacher_answer_interaction_id_interaction"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_teacher_answer"),
    )
    op.create_index("ix_teacher_answer_interaction_id", "teacher_answer", ["interaction_id"])


def downgrade() -> None:
    op.drop_table("teacher_answer")
