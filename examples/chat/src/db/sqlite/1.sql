CREATE TABLE users (
    id        INTEGER PRIMARY KEY,
    full_name TEXT NOT NULL,
    -- In lower case: see `Email`.
    email     TEXT NOT NULL UNIQUE,
    is_active INTEGER NOT NULL DEFAULT 1
) STRICT;

CREATE TABLE streams (
    id          INTEGER PRIMARY KEY,
    name        TEXT NOT NULL,
    description TEXT NOT NULL
) STRICT;

CREATE TABLE subscriptions (
    stream_id INTEGER NOT NULL REFERENCES streams,
    user_id   INTEGER NOT NULL REFERENCES users,
    PRIMARY KEY (stream_id, user_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE messages (
    id                  INTEGER PRIMARY KEY,
    stream_id           INTEGER NOT NULL REFERENCES streams,
    sender_id           INTEGER NOT NULL REFERENCES users,
    subject             TEXT NOT NULL,
    content             TEXT NOT NULL,
    rendered_content    TEXT NOT NULL,
    client              TEXT NOT NULL,
    -- Seconds since 1970.
    timestamp           INTEGER NOT NULL,
    last_edit_timestamp INTEGER,
    -- JSON lists, as `Edit` and `Reaction` describe them.
    edit_history        TEXT NOT NULL DEFAULT '[]',
    reactions           TEXT NOT NULL DEFAULT '[]'
) STRICT;

-- An index ends with the row's id: a stream's page is one range of this one, in order.
CREATE INDEX messages_by_stream ON messages (stream_id);

-- What compresses messages: entries are unreadable without the dictionary they were made with, so none is ever deleted.
CREATE TABLE dictionaries (
    id         INTEGER PRIMARY KEY,
    bytes      BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    is_current INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX one_current_dictionary ON dictionaries (is_current) WHERE is_current = 1;

-- One row once the database was filled, by the generator or an import.
CREATE TABLE filling (
    only_row INTEGER PRIMARY KEY DEFAULT 1 CHECK (only_row = 1),
    origin   TEXT NOT NULL,
    at       INTEGER NOT NULL
) STRICT;
