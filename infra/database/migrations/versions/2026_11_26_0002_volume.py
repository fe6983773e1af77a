"""Tables for tens of millions of rows: fewer indexes, wider numbers, and a digest of what each record says."""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

NUMBERED = ("interaction", "feedback", "quarantine")


def upgrade() -> None:
    for name in ("interaction", "feedback"):
        op.add_column(name, sa.Column("digest", sa.String(length=32), server_default="", nullable=False))
    op.drop_index("ix_interaction_conversation", "interaction")
    op.drop_index("ix_interaction_external_id", "interaction")
    op.drop_index("ix_interaction_workload_at", "interaction")
    op.create_index("ix_interaction_workload_at", "interaction", ["workload", "at", "id"])
    with op.batch_alter_table("interaction") as table:
        table.drop_constraint("uq_interaction_source_external_id", type_="unique")
        table.create_unique_constraint("uq_interaction_external_id_source", ["external_id", "source"])
    if op.get_bind().dialect.name == "postgresql":
        for name in NUMBERED:
            op.alter_column(name, "id", type_=sa.BigInteger())
            op.execute(f"ALTER SEQUENCE {name}_id_seq AS bigint")
        op.alter_column("dataset_item", "interaction_id", type_=sa.BigInteger())


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("dataset_item", "interaction_id", type_=sa.Integer())
        for name in NUMBERED:
            op.alter_column(name, "id", type_=sa.Integer())
    with op.batch_alter_table("interaction") as table:
        table.drop_constraint("uq_interaction_external_id_source", type_="unique")
        table.create_unique_constraint("uq_interaction_source_external_id", ["source", "external_id"])
    op.drop_index("ix_interaction_workload_at", "interaction")
    op.create_index("ix_interaction_workload_at", "interaction", ["workload", "at"])
    op.create_index("ix_interaction_external_id", "interaction", ["external_id"])
    op.create_index("ix_interaction_conversation", "interaction", ["conversation"])
    for name in ("interaction", "feedback"):
        op.drop_column(name, "digest")
