-- Interactions in partitions by month, on PostgreSQL: an option for tens of millions of rows, of which old months go.
--
--     psql "$FLYWHEEL_DATABASE" -v ON_ERROR_STOP=1 -1 -f infra/database/partitions.sql      once
--     psql "$FLYWHEEL_DATABASE" -c "SELECT interaction_months()"                            each month, from cron
--     psql "$FLYWHEEL_DATABASE" -c "SELECT interaction_drop('2026-01-01')"                  then `flywheel prune`
--
-- What it is for. `prune` deletes row by row, and PostgreSQL gives the room to new rows, not to the disk. A partition
-- is dropped whole, and its room is the disk's at once. Of 300,000 interactions of ten months, five months went in 2
-- and 7 seconds instead of 15 (two runs, on a busy machine), and with them half of the bytes, of which `prune` gave
-- none back. Curation and ingest look into the months they are about; ingest was as fast as before.
--
-- What it costs. A unique key of a partitioned table must have the column it is partitioned by, but an interaction is
-- unique by (source, external id) whatever its time. So these keys are kept once more, in a table of their own: a
-- tenth more bytes. Foreign keys to it become triggers for the same reason. A search for an id whose
-- time nobody knows goes through every partition. Below some ten million rows leave it be: steady traffic fills the
-- room that `prune` made.
--
-- It runs in one transaction, in which nobody else reads or writes. What is there becomes the first partition,
-- `interaction_before`, up to the end of this month, and is not copied; three indexes are built. Months (UTC) after
-- that have partitions of their own. PGOPTIONS="-c flywheel.first_month=2026-01-01" before the command says from when
-- on they have; what is there of them is copied then. What is of no month that has a partition yet goes to
-- `interaction_other`, and from there to its month when `interaction_months` makes it. Later migrations that add
-- columns or indexes add them to partitions as well.

SET LOCAL timezone = 'UTC';
SELECT set_config(
    'flywheel.first_month',
    date_trunc('month', coalesce(
        nullif(current_setting('flywheel.first_month', true), '')::timestamptz, now() + interval '1 month'
    ))::text,
    true
);
LOCK TABLE interaction, dataset_item, teacher_answer IN ACCESS EXCLUSIVE MODE;

-- -- Every key, whatever the month ------------------------------------------------------------------------------------

CREATE TABLE interaction_key AS SELECT external_id, source FROM interaction;
ALTER TABLE interaction_key ADD CONSTRAINT pk_interaction_key PRIMARY KEY (external_id, source);

-- -- The table, and what is there as its first partition --------------------------------------------------------------

ALTER TABLE dataset_item DROP CONSTRAINT fk_dataset_item_interaction_id_interaction;
ALTER TABLE teacher_answer DROP CONSTRAINT fk_teacher_answer_interaction_id_interaction;
ALTER TABLE interaction DROP CONSTRAINT uq_interaction_external_id_source, DROP CONSTRAINT pk_interaction;
ALTER TABLE interaction RENAME TO interaction_before;
ALTER INDEX ix_interaction_workload_at RENAME TO ix_interaction_before_workload_at;

CREATE TABLE interaction (
    LIKE interaction_before INCLUDING DEFAULTS,
    CONSTRAINT pk_interaction PRIMARY KEY (id, at),
    CONSTRAINT uq_interaction_external_id_source UNIQUE (external_id, source, at)
) PARTITION BY RANGE (at);
CREATE INDEX ix_interaction_workload_at ON interaction (workload, at, id);
ALTER SEQUENCE interaction_id_seq OWNED BY interaction.id;

CREATE TABLE interaction_other PARTITION OF interaction DEFAULT;
WITH later AS (
    DELETE FROM interaction_before WHERE at >= current_setting('flywheel.first_month')::timestamptz RETURNING *
)
INSERT INTO interaction_other SELECT * FROM later;
ALTER TABLE interaction ATTACH PARTITION interaction_before
    FOR VALUES FROM (MINVALUE) TO (current_setting('flywheel.first_month')::timestamptz);

-- -- What the keys promised, by triggers ------------------------------------------------------------------------------

CREATE FUNCTION interaction_stored() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- In one order everywhere, as the rows themselves: two writers would otherwise wait for each other's.
    INSERT INTO interaction_key
        SELECT external_id, source FROM fresh ORDER BY source COLLATE "C", external_id COLLATE "C";
    RETURN NULL;
END $$;
CREATE TRIGGER stored AFTER INSERT ON interaction REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION interaction_stored();

CREATE FUNCTION interaction_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM dataset_item WHERE interaction_id = ANY (ARRAY(SELECT id FROM gone)))
        OR EXISTS (SELECT FROM teacher_answer WHERE interaction_id = ANY (ARRAY(SELECT id FROM gone))) THEN
        RAISE foreign_key_violation USING MESSAGE = 'an interaction that a dataset or an answer has cannot be deleted';
    END IF;
    DELETE FROM interaction_key USING gone
        WHERE interaction_key.external_id = gone.external_id AND interaction_key.source = gone.source;
    RETURN NULL;
END $$;
CREATE TRIGGER deleted AFTER DELETE ON interaction REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION interaction_deleted();

CREATE FUNCTION interaction_named() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    found bigint;
BEGIN
    PERFORM FROM interaction WHERE id = ANY (ARRAY(SELECT interaction_id FROM fresh)) FOR KEY SHARE;
    GET DIAGNOSTICS found = ROW_COUNT;
    IF found < (SELECT count(DISTINCT interaction_id) FROM fresh) THEN
        RAISE foreign_key_violation USING MESSAGE = 'an interaction of the dataset, or of the answer, has been deleted';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER stored AFTER INSERT ON dataset_item REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION interaction_named();

-- -- Months come and go -----------------------------------------------------------------------------------------------

CREATE VIEW interaction_partition AS
    SELECT
        pg_class.oid::regclass AS name,
        (regexp_match(pg_get_expr(relpartbound, pg_class.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz AS until
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'interaction'::regclass;

CREATE FUNCTION interaction_months(ahead integer DEFAULT 3) RETURNS SETOF text
    LANGUAGE plpgsql SET timezone = 'UTC' AS $$
DECLARE
    month timestamptz := (SELECT coalesce(max(until), date_trunc('month', now())) FROM interaction_partition);
    made text;
BEGIN
    LOCK TABLE interaction IN SHARE ROW EXCLUSIVE MODE;
    WHILE month <= now() + make_interval(months => ahead) LOOP
        made := to_char(month, '"interaction_"YYYY_MM');
        EXECUTE format('CREATE TABLE %I (LIKE interaction INCLUDING DEFAULTS)', made);
        EXECUTE format(
            'WITH moved AS (DELETE FROM interaction_other WHERE at >= %L AND at < %L RETURNING *) '
            'INSERT INTO %I SELECT * FROM moved',
            month, month + interval '1 month', made
        );
        EXECUTE format(
            'ALTER TABLE interaction ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
            made, month, month + interval '1 month'
        );
        RETURN NEXT made;
        month := month + interval '1 month';
    END LOOP;
END $$;

-- Drop the months that are over before a day, but for what datasets were made of, which moves to `interaction_other`,
-- and delete what was said of the rest. `flywheel prune` of the same day does what else is to be done. Nobody reads or
-- writes meanwhile.
CREATE FUNCTION interaction_drop(before date) RETURNS SETOF text
    LANGUAGE plpgsql SET timezone = 'UTC' AS $$
DECLARE
    old text;
BEGIN
    IF before > now() THEN
        RAISE invalid_parameter_value USING MESSAGE = format('before %s would drop months to come', before);
    END IF;
    LOCK TABLE interaction, dataset_item, teacher_answer IN SHARE ROW EXCLUSIVE MODE;
    FOR old IN SELECT name FROM interaction_partition WHERE until <= before ORDER BY until LOOP
        EXECUTE format('ALTER TABLE interaction DETACH PARTITION %I', old);
        EXECUTE format(
            'DELETE FROM interaction_key USING %I AS old '
            'WHERE interaction_key.external_id = old.external_id AND interaction_key.source = old.source',
            old
        );
        EXECUTE format(
            'INSERT INTO interaction SELECT * FROM %I WHERE id IN (SELECT interaction_id FROM dataset_item)', old
        );
        EXECUTE format(
            'DELETE FROM feedback USING %I AS old WHERE record_id = old.external_id '
            'AND NOT EXISTS (SELECT FROM interaction WHERE interaction.external_id = record_id)',
            old
        );
        EXECUTE format(
            'DELETE FROM teacher_answer USING %I AS old WHERE interaction_id = old.id '
            'AND NOT EXISTS (SELECT FROM interaction WHERE interaction.id = interaction_id)',
            old
        );
        EXECUTE format('DROP TABLE %I', old);
        RETURN NEXT old;
    END LOOP;
END $$;

SELECT interaction_months();
ANALYZE interaction;
