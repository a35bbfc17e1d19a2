-- Events in commit order. data is json, not jsonb: the chain of hashes covers its very text.
CREATE TABLE rabbitflow_events (
    position       bigint      PRIMARY KEY,
    stream         text        NOT NULL COLLATE "C",
    version        bigint      NOT NULL,
    id             text        NOT NULL COLLATE "C" UNIQUE,
    type           text        NOT NULL,
    schema_version integer     NOT NULL,
    timestamp      timestamptz NOT NULL,
    recorded_at    timestamptz NOT NULL,
    data           json        NOT NULL,
    source         text,
    correlation_id text,
    causation_id   text,
    key            text,
    hash           bytea       NOT NULL,
    UNIQUE (stream, version)
);

-- Where each stream ends; an end that was cut off is missed here.
CREATE TABLE rabbitflow_streams (
    stream  text   PRIMARY KEY COLLATE "C",
    version bigint NOT NULL,
    hash    bytea  NOT NULL
) WITH (fillfactor = 70);

CREATE FUNCTION rabbitflow_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: what happened is never changed or removed', TG_TABLE_NAME;
END
$$;

CREATE TRIGGER rabbitflow_events_append_only BEFORE UPDATE OR DELETE ON rabbitflow_events
    FOR EACH ROW EXECUTE FUNCTION rabbitflow_refuse();
CREATE TRIGGER rabbitflow_events_no_truncate BEFORE TRUNCATE ON rabbitflow_events
    FOR EACH STATEMENT EXECUTE FUNCTION rabbitflow_refuse();
CREATE TRIGGER rabbitflow_streams_only_grow BEFORE UPDATE ON rabbitflow_streams
    FOR EACH ROW WHEN (NEW.version <= OLD.version OR NEW.stream <> OLD.stream)
    EXECUTE FUNCTION rabbitflow_refuse();
CREATE TRIGGER rabbitflow_streams_no_delete BEFORE DELETE ON rabbitflow_streams
    FOR EACH ROW EXECUTE FUNCTION rabbitflow_refuse();
CREATE TRIGGER rabbitflow_streams_no_truncate BEFORE TRUNCATE ON rabbitflow_streams
    FOR EACH STATEMENT EXECUTE FUNCTION rabbitflow_refuse();

-- Also in a session that replays a replication stream (session_replication_role = replica).
ALTER TABLE rabbitflow_events ENABLE ALWAYS TRIGGER rabbitflow_events_append_only;
ALTER TABLE rabbitflow_events ENABLE ALWAYS TRIGGER rabbitflow_events_no_truncate;
ALTER TABLE rabbitflow_streams ENABLE ALWAYS TRIGGER rabbitflow_streams_only_grow;
ALTER TABLE rabbitflow_streams ENABLE ALWAYS TRIGGER rabbitflow_streams_no_delete;
ALTER TABLE rabbitflow_streams ENABLE ALWAYS TRIGGER rabbitflow_streams_no_truncate;

-- Disposable: what a fold made of the first events of a stream. latest is their latest time, in
-- microseconds since 1970-01-01 UTC.
CREATE TABLE rabbitflow_snapshots (
    stream  text   NOT NULL COLLATE "C",
    fold    text   NOT NULL,
    schema  text   NOT NULL,
    version bigint NOT NULL,
    hash    bytea  NOT NULL,
    latest  bigint NOT NULL,
    state   text   NOT NULL,
    PRIMARY KEY (stream, fold, schema, version)
);

-- How far each projection has come.
CREATE TABLE rabbitflow_checkpoints (
    projection text   PRIMARY KEY,
    position   bigint NOT NULL
);

-- Appends events to the end of a stream, in one round trip. Returns where they ended, or only the
-- stream's version (last_position null) where it is not the expected one.
--
-- One transaction at a time gives positions, and keeps the lock until it is committed: whoever
-- reads position n sees every position below n. The lock belongs to this very table, so that two
-- stores in one database (two schemas) do not wait for each other.
--
-- in_events is a JSON array of events as the client writes them: all values as text, the digest of
-- the content in hexadecimal.
CREATE FUNCTION rabbitflow_append(
    in_stream text, in_expected bigint, in_recorded_at timestamptz, in_events json,
    OUT last_version bigint, OUT last_position bigint
) LANGUAGE plpgsql AS $$
DECLARE
    head_hash bytea;
    head_version bigint;
    new record;
BEGIN
    PERFORM pg_advisory_xact_lock(1918987876, 'rabbitflow_events'::regclass::oid::integer);
    SELECT version, hash INTO head_version, head_hash
        FROM rabbitflow_streams WHERE stream = in_stream;
    IF NOT FOUND THEN
        head_version := 0;
        head_hash := decode(repeat('00', 32), 'hex');
    END IF;
    last_version := head_version;
    IF in_expected IS NOT NULL AND in_expected <> head_version THEN
        RETURN;
    END IF;
    SELECT coalesce(max(position), 0) INTO last_position FROM rabbitflow_events;
    FOR new IN SELECT * FROM json_to_recordset(in_events) AS (
        id text, type text, schema_version integer, timestamp timestamptz, data text, source text,
        correlation_id text, causation_id text, key text, digest text
    ) LOOP
        last_version := last_version + 1;
        last_position := last_position + 1;
        head_hash := sha256(head_hash || int8send(last_version) || decode(new.digest, 'hex'));
        INSERT INTO rabbitflow_events (position, stream, version, id, type, schema_version,
                timestamp, recorded_at, data, source, correlation_id, causation_id, key, hash)
            VALUES (last_position, in_stream, last_version, new.id, new.type, new.schema_version,
                new.timestamp, in_recorded_at, new.data::json, new.source, new.correlation_id,
                new.causation_id, new.key, head_hash);
    END LOOP;
    INSERT INTO rabbitflow_streams (stream, version, hash)
        VALUES (in_stream, last_version, head_hash)
        ON CONFLICT (stream) DO UPDATE SET version = excluded.version, hash = excluded.hash;
    PERFORM pg_notify('rabbitflow_events', '');
END
$$;
