-- Events that were written with a state, until a relay has announced them. What may not be
-- announced has its reason in refused, and stays.
CREATE TABLE rabbitflow_outbox (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id       text             NOT NULL,
    lane     smallint         NOT NULL,
    body     text             NOT NULL,
    added_at double precision NOT NULL,
    refused  text
);

CREATE INDEX rabbitflow_outbox_waiting ON rabbitflow_outbox (lane, position)
    WHERE refused IS NULL;

CREATE FUNCTION rabbitflow_outbox_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('rabbitflow_outbox', '');
    RETURN NULL;
END
$$;

CREATE TRIGGER rabbitflow_outbox_tell AFTER INSERT ON rabbitflow_outbox
    FOR EACH STATEMENT EXECUTE FUNCTION rabbitflow_outbox_added();

-- Events that a consumer has handled, written with its work. follow_ups holds what it announces,
-- until that is confirmed.
CREATE TABLE rabbitflow_inbox (
    consumer   text             NOT NULL COLLATE "C",
    event_id   text             NOT NULL COLLATE "C",
    attempt    integer          NOT NULL,
    is_replay  boolean          NOT NULL,
    handled_at double precision NOT NULL,
    follow_ups text,
    PRIMARY KEY (consumer, event_id)
);

CREATE INDEX rabbitflow_inbox_event ON rabbitflow_inbox (event_id);
CREATE INDEX rabbitflow_inbox_age ON rabbitflow_inbox (handled_at);
