//! From a connection's bytes to whole commands, in whatever pieces they come.
//!
//! Where one command ends and the next begins depends on the bytes alone, which is what makes a command's arrival a step
//! of its own.

use bytes::{Buf as _, Bytes, BytesMut};

use super::command::Command;

/// Without a line end in this many bytes, only a classic `get` is read on.
const LINE_MAX: usize = 2048;

/// One command, with its data block if it has one.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    /// The line as it came, without its end.
    pub(super) line: Bytes,
    pub(super) command: Command,
    /// The data block with the two bytes that should be its line end.
    pub(super) data: Option<Bytes>,
}

impl Frame {
    /// How many bytes of the stream it was, give or take a line end.
    pub(super) fn len(&self) -> usize {
        self.line.len() + self.data.as_ref().map_or(0, Bytes::len)
    }
}

/// Cuts one connection's bytes into frames.
#[derive(Debug, Default)]
pub(crate) struct Framer {
    buffer: BytesMut,
    /// A line whose data block is still on its way.
    pending: Option<(Bytes, Command, usize)>,
    hung_up: bool,
}

impl Framer {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if !self.hung_up {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole command. After one that closes the connection there is none.
    pub(super) fn next(&mut self) -> Option<Frame> {
        if self.hung_up {
            return None;
        }
        let (line, command, data_len) = match self.pending.take() {
            Some(pending) => pending,
            None => {
                let line = self.next_line()?;
                let command = line.as_deref().map_or(Command::Hangup, Command::parse);
                let data_len = command.data_len().unwrap_or(0);
                (line.unwrap_or_default(), command, data_len)
            }
        };
        if self.buffer.len() < data_len {
            self.pending = Some((line, command, data_len));
            return None;
        }
        let data = (data_len > 0).then(|| self.buffer.split_to(data_len).freeze());
        self.hung_up = matches!(command, Command::Hangup);
        Some(Frame {
            line,
            command,
            data,
        })
    }

    /// The next whole command's line.
    pub(crate) fn next_line_sent(&mut self) -> Option<Bytes> {
        self.next().map(|frame| frame.line)
    }

    /// A line without its end; `Some(None)` is one too long to be anything.
    #[expect(
        clippy::option_option,
        reason = "not there yet and never there are two answers"
    )]
    fn next_line(&mut self) -> Option<Option<Bytes>> {
        let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') else {
            let is_get = {
                let text = self.buffer.trim_ascii_start();
                let blanks = self.buffer.len() - text.len();
                blanks <= 100 && (text.starts_with(b"get ") || text.starts_with(b"gets "))
            };
            return (self.buffer.len() > LINE_MAX && !is_get).then_some(None);
        };
        let mut line = self.buffer.split_to(end);
        self.buffer.advance(1);
        if line.len() > 1 && line.ends_with(b"\r") {
            line.truncate(line.len() - 1);
        }
        Some(Some(line.freeze()))
    }
}
