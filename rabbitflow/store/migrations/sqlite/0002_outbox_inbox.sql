-- Events that were written with a state, until a relay has announced them. What may not be
-- announced has its reason in refused, and stays.
CREATE TABLE rabbitflow_outbox (
    position integer PRIMARY KEY AUTOINCREMENT,
    id       text    NOT NULL,
    lane     integer NOT NULL,
    body     text    NOT NULL,
    added_at real    NOT NULL,
    refused  text
);

CREATE INDEX rabbitflow_outbox_waiting ON rabbitflow_outbox (lane, position)
    WHERE refused IS NULL;

-- Events that a consumer has handled, written with its work. follow_ups holds what it announces,
-- until that is confirmed.
CREATE TABLE rabbitflow_inbox (
    consumer   text    NOT NULL,
    event_id   text    NOT NULL,
    attempt    integer NOT NULL,
    is_replay  boolean NOT NULL,
    handled_at real    NOT NULL,
    follow_ups text,
    PRIMARY KEY (consumer, event_id)
) WITHOUT ROWID;

CREATE INDEX rabbitflow_inbox_event ON rabbitflow_inbox (event_id);
CREATE INDEX rabbitflow_inbox_age ON rabbitflow_inbox (handled_at);
