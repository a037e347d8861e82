//! Asks a node of a cluster for many keys.
//!
//! A node takes no keys of two slots in one command. So what the crate sends as an `MGET` is written as a `GET` for each of its
//! keys, and `tap` makes one answer of all of theirs, refusals included. To the crate it is one question and one answer,
//! like any other: a pipeline of a thousand questions would cost it more time than the cluster takes to answer them.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::AsyncWrite;

use super::tap::{Announced, announced};

/// What goes out beyond the socket's own buffer; more has to wait.
const GATHERED: usize = 64 << 10;

/// How a question for one key begins.
const GET: &[u8] = b"*2\r\n$3\r\nGET\r\n";

/// The name of a question for many, as an argument.
const MGET: &[u8] = b"$4\r\nMGET\r\n";

/// Answers that are to come, in order, as far as is known.
#[derive(Debug, Default)]
pub(super) struct Due(VecDeque<Answers>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    /// So many, each to a question of its own.
    Single(usize),
    /// So many that are to become one.
    Joined(usize),
}

impl Due {
    /// The next question's: how many are to become its answer, if they are.
    pub(super) fn next(&mut self) -> Option<usize> {
        let Answers::Single(count) = self.0.front_mut()? else {
            return match self.0.pop_front() {
                Some(Answers::Joined(count)) => Some(count),
                _ => None,
            };
        };
        *count -= 1;
        if *count == 0 {
            self.0.pop_front();
        }
        None
    }

    /// Notes the answers to these commands.
    #[cfg(test)]
    pub(super) fn note(&mut self, commands: &[u8]) {
        Splitter::default().split(commands, &mut BytesMut::new(), self);
    }

    fn single(&mut self) {
        match self.0.back_mut() {
            Some(Answers::Single(count)) => *count += 1,
            _ => self.0.push_back(Answers::Single(1)),
        }
    }

    fn joined(&mut self, count: usize) {
        self.0.push_back(Answers::Joined(count));
    }
}

/// A writer that takes commands apart.
pub(super) struct Gets {
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    splitter: Splitter,
    /// What the socket hasn't taken yet.
    output: BytesMut,
}

impl Gets {
    pub(super) fn new(writer: Box<dyn AsyncWrite + Send + Unpin>) -> Self {
        Self {
            writer,
            splitter: Splitter::default(),
            output: BytesMut::new(),
        }
    }

    /// Takes all of these bytes, and notes which answers they will have; says how many go out for them.
    pub(super) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
        due: &mut Due,
        mut sent: impl FnMut(usize),
    ) -> Poll<io::Result<usize>> {
        if self.output.len() >= GATHERED {
            ready!(self.poll_output(context, &mut sent))?;
        }
        self.splitter.split(bytes, &mut self.output, due);
        // What the socket doesn't take now goes out with the flush.
        match self.poll_output(context, &mut sent) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(bytes.len())),
        }
    }

    pub(super) fn poll_flush(
        &mut self,
        context: &mut Context<'_>,
        sent: impl FnMut(usize),
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_output(context, sent))?;
        Pin::new(&mut self.writer).poll_flush(context)
    }

    pub(super) fn poll_shutdown(
        &mut self,
        context: &mut Context<'_>,
        sent: impl FnMut(usize),
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_output(context, sent))?;
        Pin::new(&mut self.writer).poll_shutdown(context)
    }

    fn poll_output(
        &mut self,
        context: &mut Context<'_>,
        mut sent: impl FnMut(usize),
    ) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = Pin::new(&mut self.writer).poll_write(context, &self.output);
            let count = ready!(written)?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            sent(count);
            self.output.advance(count);
        }
        Poll::Ready(Ok(()))
    }
}

/// Takes `MGET`s apart, and lets everything else pass.
#[derive(Default)]
struct Splitter {
    /// The beginning of a command whose end is still to come.
    held: Vec<u8>,
    /// What came isn't a command as the crate writes them, so all of it passes.
    is_lost: bool,
}

impl Splitter {
    fn split(&mut self, bytes: &[u8], output: &mut BytesMut, due: &mut Due) {
        if self.held.is_empty() {
            let taken = self.take(bytes, output, due);
            self.held.extend_from_slice(&bytes[taken..]);
        } else {
            let mut input = std::mem::take(&mut self.held);
            input.extend_from_slice(bytes);
            let taken = self.take(&input, output, due);
            input.drain(..taken);
            self.held = input;
        }
    }

    /// Takes what is complete, and says how much that is.
    fn take(&mut self, input: &[u8], output: &mut BytesMut, due: &mut Due) -> usize {
        let mut taken = 0;
        while taken < input.len() && !self.is_lost {
            let start = output.len();
            match take_one(&input[taken..], output, due) {
                Taken::Whole(length) => taken += length,
                Taken::Half => {
                    output.truncate(start);
                    return taken;
                }
                Taken::Odd => {
                    output.truncate(start);
                    self.is_lost = true;
                }
            }
        }
        output.extend_from_slice(&input[taken..]);
        input.len()
    }
}

enum Taken {
    Whole(usize),
    Half,
    Odd,
}

/// Takes the command at the beginning of this.
fn take_one(input: &[u8], output: &mut BytesMut, due: &mut Due) -> Taken {
    let (count, mut end) = match (input[0], announced(input)) {
        (b'*', Announced::Length(count @ 1.., line)) => (count, line),
        (b'*', Announced::Incomplete) => return Taken::Half,
        _ => return Taken::Odd,
    };
    let keys = count - 1;
    let is_split = keys > 0 && input[end..].starts_with(MGET);
    for number in 0..count {
        let argument = &input[end..];
        let length = match (argument.first(), announced(argument)) {
            (Some(b'$'), Announced::Length(length, line)) => {
                line.saturating_add(length).saturating_add(2)
            }
            (None | Some(b'$'), Announced::Incomplete) => return Taken::Half,
            _ => return Taken::Odd,
        };
        let Some(argument) = argument.get(..length) else {
            return Taken::Half;
        };
        if is_split && number > 0 {
            output.extend_from_slice(GET);
            output.extend_from_slice(argument);
        }
        end += length;
    }
    if is_split {
        due.joined(keys);
    } else {
        output.extend_from_slice(&input[..end]);
        due.single();
    }
    Taken::Whole(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However it is cut.
    #[track_caller]
    fn check(commands: &str, sent: &str, answers: &[Answers]) {
        for length in 1..=commands.len() {
            let (mut splitter, mut output, mut due) = Default::default();
            for piece in commands.as_bytes().chunks(length) {
                Splitter::split(&mut splitter, piece, &mut output, &mut due);
            }
            assert_eq!(
                output.escape_ascii().to_string(),
                sent.as_bytes().escape_ascii().to_string(),
                "in pieces of {length}"
            );
            assert_eq!(due.0, answers, "in pieces of {length}");
        }
    }

    #[test]
    fn a_question_for_many_becomes_many() {
        check(
            "*1\r\n$4\r\nTIME\r\n*3\r\n$4\r\nMGET\r\n$1\r\na\r\n$4\r\n\r\n$1\r\n*2\r\n$4\r\nMGET\r\n$1\r\nb\r\n",
            "*1\r\n$4\r\nTIME\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n*2\r\n$3\r\nGET\r\n$4\r\n\r\n$1\r\n*2\r\n$3\r\nGET\r\n$1\r\nb\r\n",
            &[Answers::Single(1), Answers::Joined(2), Answers::Joined(1)],
        );
    }

    #[test]
    fn everything_else_passes() {
        let commands = "*3\r\n$3\r\nSET\r\n$4\r\nMGET\r\n$10\r\n$4\r\nMGET\r\n\r\n*1\r\n$4\r\nMGET\r\n*2\r\n$3\r\nGET\r\n$0\r\n\r\n";
        check(commands, commands, &[Answers::Single(3)]);
    }

    #[test]
    fn what_is_no_command_passes_with_all_that_follows() {
        let bytes = "PING\r\n*2\r\n$4\r\nMGET\r\n$1\r\na\r\n";
        check(bytes, bytes, &[]);
        let bytes = "*1\r\n$4\r\nTIME\r\n*2\r\n:4\r\n$1\r\na\r\n";
        check(bytes, bytes, &[Answers::Single(1)]);
    }

    #[test]
    fn answers_are_due_in_order() {
        let mut due = Due::default();
        assert_eq!(due.next(), None);
        due.single();
        due.single();
        due.joined(7);
        due.single();
        let order: Vec<_> = (0..5).map(|_| due.next()).collect();
        assert_eq!(order, [None, None, Some(7), None, None]);
        assert!(due.0.is_empty());
    }
}
