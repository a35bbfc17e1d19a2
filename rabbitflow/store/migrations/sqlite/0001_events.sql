-- Events in commit order. Times are microseconds since 1970-01-01 UTC; data is JSON text.
CREATE TABLE rabbitflow_events (
    position       INTEGER PRIMARY KEY,
    stream         TEXT    NOT NULL,
    version        INTEGER NOT NULL,
    id             TEXT    NOT NULL UNIQUE,
    type           TEXT    NOT NULL,
    schema_version INTEGER NOT NULL,
    timestamp      INTEGER NOT NULL,
    recorded_at    INTEGER NOT NULL,
    data           TEXT    NOT NULL,
    source         TEXT,
    correlation_id TEXT,
    causation_id   TEXT,
    key            TEXT,
    hash           BLOB    NOT NULL,
    UNIQUE (stream, version)
);

-- Where each stream ends; an end that was cut off is missed here.
CREATE TABLE rabbitflow_streams (
    stream  TEXT    PRIMARY KEY,
    version INTEGER NOT NULL,
    hash    BLOB    NOT NULL
) WITHOUT ROWID;

CREATE TRIGGER rabbitflow_events_no_update BEFORE UPDATE ON rabbitflow_events
BEGIN
    SELECT RAISE(ABORT, 'rabbitflow_events is append-only: an event is never changed');
END;

CREATE TRIGGER rabbitflow_events_no_delete BEFORE DELETE ON rabbitflow_events
BEGIN
    SELECT RAISE(ABORT, 'rabbitflow_events is append-only: an event is never removed');
END;

-- INSERT OR REPLACE removes the row in its way without firing the trigger above.
CREATE TRIGGER rabbitflow_events_no_replace BEFORE INSERT ON rabbitflow_events
WHEN EXISTS (SELECT 1 FROM rabbitflow_events WHERE position = NEW.position)
    OR EXISTS (SELECT 1 FROM rabbitflow_events WHERE id = NEW.id)
    OR EXISTS (SELECT 1 FROM rabbitflow_events WHERE stream = NEW.stream AND version = NEW.version)
BEGIN
    SELECT RAISE(ABORT, 'rabbitflow_events is append-only: this event is already stored');
END;

CREATE TRIGGER rabbitflow_streams_only_grow BEFORE UPDATE ON rabbitflow_streams
WHEN NEW.version <= OLD.version OR NEW.stream <> OLD.stream
BEGIN
    SELECT RAISE(ABORT, 'rabbitflow_streams is append-only: a stream only grows');
END;

CREATE TRIGGER rabbitflow_streams_no_delete BEFORE DELETE ON rabbitflow_streams
BEGIN
    SELECT RAISE(ABORT, 'rabbitflow_streams is append-only: a stream is never removed');
END;

-- Disposable: what a fold made of the first events of a stream. latest is their latest time.
CREATE TABLE rabbitflow_snapshots (
    stream  TEXT    NOT NULL,
    fold    TEXT    NOT NULL,
    schema  TEXT    NOT NULL,
    version INTEGER NOT NULL,
    hash    BLOB    NOT NULL,
    latest  INTEGER NOT NULL,
    state   TEXT    NOT NULL,
    PRIMARY KEY (stream, fold, schema, version)
) WITHOUT ROWID;

-- How far each projection has come.
CREATE TABLE rabbitflow_checkpoints (
    projection TEXT    PRIMARY KEY,
    position   INTEGER NOT NULL
) WITHOUT ROWID;
