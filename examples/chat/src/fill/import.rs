//! Messages from a file: JSON lines in the shape of Zulip's message dictionaries, plain or compressed with zstd.
//!
//! People and streams come out of the messages: everybody who wrote into a stream is subscribed to it. Fields the chat
//! doesn't know are skipped; a line it can't use stops the import and is named, and nothing is imported.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Display;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use indicatif::ProgressBar;
use serde::Deserialize;
use tracing::{info, warn};

use super::{Filling, progress_bar};
use crate::data::{Edit, Email, Message, MessageId, Reaction, Stream, StreamId, User, UserId};
use crate::{During as _, StartError, StartResult};

/// The longest line: far more than a message, and little enough to refuse what isn't a text of lines at all.
const LONGEST_LINE: u64 = 16 << 20;

/// Imports the whole file.
pub(super) async fn import(filling: &mut Filling<'_>, path: &Path) -> StartResult<()> {
    let mut lines = Lines::open(path)?;
    let mut found = Found::default();
    while let Some(line) = lines.next()? {
        let line: Line = serde_json::from_slice(&line).map_err(|error| lines.bad(error))?;
        if let Some(message) = found.take(line).map_err(|reason| lines.bad(reason))? {
            filling
                .message(message)
                .await
                .map_err(|error| lines.bad(error))?;
        }
    }
    let what = format!("{}: can't import", path.display());
    filling.flush().await.during(&what)?;
    filling
        .people(found.users.into_values())
        .await
        .during(&what)?;
    filling
        .streams(found.streams.into_values())
        .await
        .during(&what)?;
    for (stream, user) in found.subscriptions {
        filling.subscription(stream, user).await.during(&what)?;
    }
    if found.private > 0 {
        warn!(
            left_out = found.private,
            "messages outside streams are not imported"
        );
    }
    if found.shared_emails > 0 {
        info!(
            users = found.shared_emails,
            "e-mail addresses that several users share got the user's id"
        );
    }
    Ok(())
}

/// The lines of a file, with their numbers, and a bar that follows the file.
struct Lines<'a> {
    path: &'a Path,
    reader: Box<dyn BufRead + Send>,
    number: u64,
    bar: ProgressBar,
}

impl<'a> Lines<'a> {
    fn open(path: &'a Path) -> StartResult<Self> {
        let what = format!("{}: can't import", path.display());
        let file = File::open(path).during(&what)?;
        let length = file.metadata().during(&what)?.len();
        let bar = progress_bar(
            length,
            "importing {wide_bar} {binary_bytes} of {binary_total_bytes} ({eta})",
        );
        let file = bar.wrap_read(file);
        let reader: Box<dyn BufRead + Send> = if path.extension().is_some_and(|ext| ext == "zst") {
            Box::new(BufReader::new(zstd::Decoder::new(file).during(&what)?))
        } else {
            Box::new(BufReader::new(file))
        };
        Ok(Self {
            path,
            reader,
            number: 0,
            bar,
        })
    }

    /// The next line that isn't blank.
    fn next(&mut self) -> StartResult<Option<Vec<u8>>> {
        loop {
            let mut line = Vec::new();
            self.number += 1;
            self.reader
                .by_ref()
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut line)
                .map_err(|error| self.bad(error))?;
            if line.is_empty() {
                self.bar.finish_and_clear();
                return Ok(None);
            }
            if line.len() as u64 == LONGEST_LINE {
                return Err(self.bad("longer than 16 MiB"));
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }

    /// The last line can't be used, for this reason.
    fn bad(&self, reason: impl Display) -> StartError {
        StartError::new(format!(
            "{} line {}: {reason}; each line is one message as a JSON object, nothing was imported",
            self.path.display(),
            self.number
        ))
    }
}

/// The people and streams of the lines so far.
#[derive(Default)]
struct Found {
    messages: HashSet<MessageId>,
    users: BTreeMap<UserId, User>,
    emails: HashSet<Email>,
    streams: BTreeMap<StreamId, Stream>,
    subscriptions: BTreeSet<(StreamId, UserId)>,
    private: u64,
    shared_emails: u64,
}

impl Found {
    /// The line's message, unless it isn't in a stream; or why the line can't be used.
    fn take(&mut self, line: Line) -> Result<Option<Message>, String> {
        let (Some(stream_id), Recipient::Stream(stream)) = (line.stream_id, line.display_recipient)
        else {
            self.private += 1;
            return Ok(None);
        };
        if !self.messages.insert(line.id) {
            return Err(format!("a second message with the id {}", line.id));
        }
        match self.users.get_mut(&line.sender_id) {
            // The last line knows the newest name.
            Some(user) => user.full_name = line.sender_full_name,
            None => {
                let email = self.own_email(&line.sender_email, line.sender_id)?;
                self.users.insert(
                    line.sender_id,
                    User {
                        id: line.sender_id,
                        full_name: line.sender_full_name,
                        email,
                        is_active: true,
                        version: 1,
                    },
                );
            }
        }
        self.streams.entry(stream_id).or_insert_with(|| Stream {
            id: stream_id,
            description: format!("Messages imported from {stream}"),
            name: stream,
            version: 1,
        });
        self.subscriptions.insert((stream_id, line.sender_id));
        Ok(Some(Message {
            id: line.id,
            stream_id,
            sender_id: line.sender_id,
            subject: line.subject,
            content: line.content,
            rendered_content: line.rendered_content,
            client: line.client,
            timestamp: line.timestamp,
            last_edit_timestamp: line.last_edit_timestamp,
            edit_history: line.edit_history.unwrap_or_default(),
            reactions: line
                .reactions
                .into_iter()
                .map(|reaction| reaction.to(line.id))
                .collect(),
            version: 1,
        }))
    }

    /// The address if nobody has it yet, otherwise the same mailbox with the user's id behind a plus.
    fn own_email(&mut self, text: &str, id: UserId) -> Result<Email, String> {
        let mut email = Email::new(text).map_err(|error| format!("sender_email: {error}"))?;
        if self.emails.contains(&email) {
            self.shared_emails += 1;
            let own = email.as_str().replacen('@', &format!("+{id}@"), 1);
            email = Email::new(&own).map_err(|error| format!("sender_email: {error}"))?;
        }
        if !self.emails.insert(email.clone()) {
            return Err(format!(
                "two other users have the e-mail addresses of user {id}"
            ));
        }
        Ok(email)
    }
}

/// What the chat takes from a line.
#[derive(Deserialize)]
struct Line {
    id: MessageId,
    sender_id: UserId,
    sender_full_name: String,
    sender_email: String,
    stream_id: Option<StreamId>,
    display_recipient: Recipient,
    subject: String,
    content: String,
    rendered_content: String,
    #[serde(default)]
    client: String,
    timestamp: i64,
    last_edit_timestamp: Option<i64>,
    edit_history: Option<Vec<Edit>>,
    #[serde(default)]
    reactions: Vec<LineReaction>,
}

#[derive(Deserialize)]
struct LineReaction {
    emoji_name: String,
    emoji_code: String,
    reaction_type: String,
    user_id: UserId,
}

impl LineReaction {
    fn to(self, message_id: MessageId) -> Reaction {
        Reaction {
            message_id,
            user_id: self.user_id,
            emoji_name: self.emoji_name,
            emoji_code: self.emoji_code,
            reaction_type: self.reaction_type,
            version: 1,
        }
    }
}

/// The name of a stream, or the people of a private conversation.
#[derive(Deserialize)]
#[serde(untagged)]
enum Recipient {
    Stream(String),
    People(serde::de::IgnoredAny),
}
