-- How often a row was written: answers show it, so that anybody can tell an older copy of a row from a newer one.
ALTER TABLE users ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE streams ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
-- That of a message also counts its reactions.
ALTER TABLE messages ADD COLUMN version INTEGER NOT NULL DEFAULT 1;

-- Who leaves a stream keeps the row, so that its version goes on when the user comes back.
ALTER TABLE subscriptions ADD COLUMN is_active INTEGER NOT NULL DEFAULT 1;
ALTER TABLE subscriptions ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
CREATE INDEX subscriptions_by_user ON subscriptions (user_id);

CREATE TABLE reactions (
    id            INTEGER PRIMARY KEY,
    message_id    INTEGER NOT NULL REFERENCES messages,
    -- Not always one of the users: an imported archive knows only those who wrote.
    user_id       INTEGER NOT NULL,
    emoji_name    TEXT NOT NULL,
    -- A code point in hexadecimal, or the id of a custom emoji.
    emoji_code    TEXT NOT NULL,
    reaction_type TEXT NOT NULL,
    version       INTEGER NOT NULL DEFAULT 1,
    UNIQUE (message_id, user_id, reaction_type, emoji_code)
) STRICT;

INSERT OR IGNORE INTO reactions (message_id, user_id, emoji_name, emoji_code, reaction_type)
SELECT messages.id, value ->> 'user_id', value ->> 'emoji_name', value ->> 'emoji_code', value ->> 'reaction_type'
FROM messages, json_each(messages.reactions)
ORDER BY messages.id, json_each.key;

ALTER TABLE messages DROP COLUMN reactions;

-- A topic is moved as a whole.
CREATE INDEX messages_by_topic ON messages (stream_id, subject);
