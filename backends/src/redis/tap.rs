//! Takes the values out of the stream before the crate parses it.
//!
//! The crate's parser allocates and copies every value, and takes as long for a thousand of them as the server does to send
//! them. So what a server answers to `MGET`, an array of strings, is kept here as slices of the read buffer, and the crate is
//! told a number in its place, by which whoever asked fetches them. The same is done with the answers to the `GET`s that `gets`
//! made of an `MGET`: they become one. Everything else passes through as it is: which request an answer belongs to stays the
//! crate's business.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use foldhash::fast::RandomState;
use redis::{ServerError, Value};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

use super::gets::Due;

/// As much is read at once.
const READ: usize = 128 << 10;

/// A line that announces something is never longer.
const LINE: usize = 32;

/// A line that refuses something is never longer.
const REFUSAL: usize = 4 << 10;

/// No server sends a longer value.
const LONGEST: usize = 512 << 20;

/// So much room is made for what is announced; beyond, it grows with what comes.
const TRUSTED: usize = 1 << 20;

/// What was asked for under one key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Got {
    Nothing,
    Bytes(Bytes),
    Refused(ServerError),
    /// Something that no such question is answered with.
    Odd,
}

/// The strings of one array, or the answers that became one.
pub(super) type Gots = Vec<Got>;

/// What was taken out, until it is fetched.
#[derive(Debug, Default)]
pub(super) struct Shelf(Mutex<Arrays>);

#[derive(Debug, Default)]
struct Arrays {
    last: i64,
    by_number: HashMap<i64, Gots, RandomState>,
}

impl Shelf {
    /// The array with this number, once.
    pub(super) fn fetch(&self, number: i64) -> Option<Gots> {
        self.lock().by_number.remove(&number)
    }

    fn put(&self, strings: Gots) -> i64 {
        let mut arrays = self.lock();
        arrays.last += 1;
        let number = arrays.last;
        arrays.by_number.insert(number, strings);
        number
    }

    fn lock(&self) -> MutexGuard<'_, Arrays> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader with arrays of strings taken out.
pub(super) struct Tap {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What was read and not looked at.
    input: BytesMut,
    /// What the crate is to read.
    output: BytesMut,
    scanner: Scanner,
    first: First,
}

/// What the first bytes of a stream tell of who sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Unread,
    Redis,
    /// A record by which TLS says that it can't read what it was sent.
    Tls,
}

/// Where in the stream it is.
struct Scanner {
    shelf: Arc<Shelf>,
    state: State,
    due: Due,
}

enum State {
    /// Before an answer, of whatever question.
    Start,
    /// Before an answer to a question of its own.
    Single,
    /// In answers that become one, of so many, with those that have come.
    Joined { count: usize, answers: Gots },
    /// In an array of so many strings, with those that have come.
    Array { count: usize, strings: Gots },
    /// In an answer that passes through, with so many of its parts still to come.
    Passing { parts: usize },
    /// So many bytes of a string pass through, and then so many parts.
    Bytes { left: usize, parts: usize },
    /// What came isn't understood, so all of it passes through.
    Lost,
}

impl Tap {
    pub(super) fn new(reader: Box<dyn AsyncRead + Send + Unpin>, shelf: Arc<Shelf>) -> Self {
        Self {
            reader,
            input: BytesMut::new(),
            output: BytesMut::new(),
            scanner: Scanner {
                shelf,
                state: State::Start,
                due: Due::default(),
            },
            first: First::Unread,
        }
    }

    /// Whether the server turned out to speak TLS where nothing was encrypted.
    pub(super) fn is_tls(&self) -> bool {
        self.first == First::Tls
    }

    /// The answers that are to come, as far as whoever writes the questions says.
    pub(super) fn due(&mut self) -> &mut Due {
        &mut self.scanner.due
    }

    /// Fills this from the socket, with what isn't taken out, and says how many bytes were read for it; none at the end.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
        mut heard: impl FnMut(usize),
    ) -> Poll<io::Result<()>> {
        while self.output.is_empty() {
            let count = ready!(self.poll_input(context))?;
            heard(count);
            if self.first == First::Unread && count > 0 {
                self.first = match self.input[0] {
                    21 => First::Tls,
                    _ => First::Redis,
                };
            }
            if count == 0 {
                // What is left is half an answer: the crate shall say so.
                std::mem::swap(&mut self.output, &mut self.input);
                break;
            }
            self.scanner.scan(&mut self.input, &mut self.output);
        }
        let count = self.output.len().min(buffer.remaining());
        buffer.put_slice(&self.output[..count]);
        self.output.advance(count);
        Poll::Ready(Ok(()))
    }

    fn poll_input(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.capacity() - self.input.len() < READ / 8 {
            self.input.reserve(READ);
        }
        pin!(self.reader.read_buf(&mut self.input)).poll(context)
    }
}

impl Scanner {
    /// Takes from the input what is complete.
    fn scan(&mut self, input: &mut BytesMut, output: &mut BytesMut) {
        while !input.is_empty() {
            let went_on = match &mut self.state {
                State::Start => {
                    self.start(input[0]);
                    true
                }
                State::Single => self.single(input, output),
                State::Joined { .. } => self.joined(input, output),
                State::Array { .. } => self.array(input, output),
                State::Passing { parts: 0 } => {
                    self.state = State::Start;
                    true
                }
                State::Passing { parts } => {
                    let parts = *parts;
                    self.pass(input, output, parts)
                }
                State::Bytes { left, parts } => {
                    let count = input.len().min(*left);
                    output.extend_from_slice(&input[..count]);
                    input.advance(count);
                    *left -= count;
                    if *left == 0 {
                        self.state = State::Passing { parts: *parts };
                    }
                    true
                }
                State::Lost => {
                    output.extend_from_slice(input);
                    input.clear();
                    true
                }
            };
            if !went_on {
                return;
            }
        }
    }

    /// Sees which question's answer begins here.
    fn start(&mut self, first: u8) {
        self.state = match first {
            // A message that nobody asked for.
            b'>' => State::Single,
            _ => match self.due.next() {
                Some(count) => State::Joined {
                    count,
                    answers: Vec::with_capacity(count),
                },
                None => State::Single,
            },
        };
    }

    /// Takes answers that become one, as many as are complete.
    fn joined(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> bool {
        let State::Joined { count, answers } = &mut self.state else {
            return true;
        };
        match Part::of(input) {
            Part::Got(got) => answers.push(got),
            Part::Incomplete => return false,
            Part::Odd if input[0] == b'-' => {
                let end = match memchr::memchr(b'\n', input) {
                    Some(end) => end + 1,
                    None if input.len() < REFUSAL => return false,
                    None => input.len(),
                };
                let refusal = redis::parse_redis_value(&input.split_to(end));
                answers.push(match refusal {
                    Ok(Value::ServerError(error)) => Got::Refused(error),
                    _ => Got::Odd,
                });
            }
            Part::Odd => {
                // Which answer belongs to which question can't be told any more: the crate shall give up.
                output.extend_from_slice(b"?\r\n");
                self.state = State::Lost;
                return true;
            }
        }
        if answers.len() == *count {
            let answers = std::mem::take(answers);
            self.shelve(answers, output);
        }
        true
    }

    /// Begins an answer, once its first line is complete.
    fn single(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> bool {
        if input[0] != b'*' {
            return self.pass(input, output, 1);
        }
        match announced(input) {
            Announced::Length(count @ 1.., line) => {
                input.advance(line);
                self.state = State::Array {
                    count,
                    // As many as were asked for, if it is true; it needn't be.
                    strings: Vec::with_capacity(count.min(1024)),
                };
                true
            }
            Announced::Incomplete => false,
            Announced::Length(..) | Announced::Nothing | Announced::Odd => {
                self.pass(input, output, 1)
            }
        }
    }

    /// Takes strings of an array, as many as are complete.
    fn array(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> bool {
        let State::Array { strings, .. } = &mut self.state else {
            return true;
        };
        match Part::of(input) {
            Part::Got(got) => strings.push(got),
            Part::Incomplete => return false,
            Part::Odd => return self.pass_array(input, output),
        }
        if let State::Array { count, strings } = &mut self.state
            && strings.len() == *count
        {
            let strings = std::mem::take(strings);
            self.shelve(strings, output);
        }
        true
    }

    /// Puts this on the shelf, and its number in its place.
    fn shelve(&mut self, gots: Gots, output: &mut BytesMut) {
        let number = self.shelf.put(gots);
        output.extend_from_slice(b":");
        output.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        output.extend_from_slice(b"\r\n");
        self.state = State::Start;
    }

    /// It has something else than strings in it: what was taken is given back, and all of it passes through.
    fn pass_array(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> bool {
        let State::Array { count, strings } = std::mem::replace(&mut self.state, State::Lost)
        else {
            return true;
        };
        let mut digits = itoa::Buffer::new();
        let mut line = |kind: &[u8], number: usize, output: &mut BytesMut| {
            output.extend_from_slice(kind);
            output.extend_from_slice(digits.format(number).as_bytes());
            output.extend_from_slice(b"\r\n");
        };
        line(b"*", count, output);
        for string in &strings {
            match string {
                Got::Bytes(string) => {
                    line(b"$", string.len(), output);
                    output.extend_from_slice(string);
                    output.extend_from_slice(b"\r\n");
                }
                // An array has no refusals in it.
                Got::Nothing | Got::Refused(_) | Got::Odd => output.extend_from_slice(b"_\r\n"),
            }
        }
        self.pass(input, output, count - strings.len())
    }

    /// Passes one part of an answer on, of so many, once its first line is complete.
    fn pass(&mut self, input: &mut BytesMut, output: &mut BytesMut, parts: usize) -> bool {
        let Some(end) = memchr::memchr(b'\n', input) else {
            self.state = State::Passing { parts };
            // Only texts may be long.
            if input.len() > LINE && !matches!(input[0], b'+' | b'-' | b',' | b'(') {
                self.state = State::Lost;
                return true;
            }
            return false;
        };
        let length = match announced(input) {
            Announced::Length(length, _) => length,
            _ => 0,
        };
        let parts = parts - 1;
        self.state = match input[0] {
            b'$' | b'!' | b'=' if length > 0 || input[1] == b'0' => State::Bytes {
                left: length.saturating_add(2),
                parts,
            },
            b'*' | b'~' | b'>' => State::Passing {
                parts: parts.saturating_add(length),
            },
            b'%' => State::Passing {
                parts: parts.saturating_add(length).saturating_add(length),
            },
            // What it is about follows, as an answer of its own.
            b'|' => State::Passing {
                parts: parts
                    .saturating_add(length)
                    .saturating_add(length)
                    .saturating_add(1),
            },
            _ => State::Passing { parts },
        };
        output.extend_from_slice(&input[..=end]);
        input.advance(end + 1);
        true
    }
}

/// A string at the beginning of what came.
enum Part {
    Got(Got),
    Incomplete,
    /// It is something else.
    Odd,
}

impl Part {
    /// Takes it, once it is complete.
    fn of(input: &mut BytesMut) -> Self {
        let Some(first) = input.first() else {
            return Self::Incomplete;
        };
        match (first, announced(input)) {
            (b'$', Announced::Length(length, line)) if length <= LONGEST => {
                let whole = line + length + 2;
                if input.len() < whole {
                    // The rest of a long one comes in a few pieces, not in many.
                    input.reserve((whole - input.len()).min(TRUSTED));
                    return Self::Incomplete;
                }
                input.advance(line);
                let string = input.split_to(length).freeze();
                input.advance(2);
                Self::Got(Got::Bytes(string))
            }
            (b'_', Announced::Nothing) if input[1] == b'\r' => {
                input.advance(3);
                Self::Got(Got::Nothing)
            }
            (b'$', Announced::Nothing) if input[1] == b'-' => {
                input.advance(5);
                Self::Got(Got::Nothing)
            }
            (b'_' | b'$', Announced::Incomplete) => Self::Incomplete,
            _ => Self::Odd,
        }
    }
}

/// What a line announces.
pub(super) enum Announced {
    /// So many, or so long; and the line's own length.
    Length(usize, usize),
    /// That there is nothing.
    Nothing,
    Incomplete,
    Odd,
}

/// What the first line of this announces: `$5`, `*3`, `$-1`, `_`.
pub(super) fn announced(input: &[u8]) -> Announced {
    let mut length = 0_usize;
    for (position, byte) in input.iter().enumerate().skip(1).take(LINE) {
        match byte {
            b'0'..=b'9' => {
                length = match length
                    .checked_mul(10)
                    .and_then(|length| length.checked_add(usize::from(byte - b'0')))
                {
                    Some(length) => length,
                    None => return Announced::Odd,
                };
            }
            b'\r' => {
                return match (input.get(position + 1), &input[1..position]) {
                    (None, _) => Announced::Incomplete,
                    (Some(b'\n'), [] | [b'-', b'1']) => Announced::Nothing,
                    (Some(b'\n'), [b'-', ..]) => Announced::Odd,
                    (Some(b'\n'), _) => Announced::Length(length, position + 2),
                    (Some(_), _) => Announced::Odd,
                };
            }
            b'-' if position == 1 => {}
            _ => return Announced::Odd,
        }
    }
    match input.len() > LINE {
        true => Announced::Odd,
        false => Announced::Incomplete,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What passes through when this comes in pieces of these lengths, and what is taken out.
    fn tapped(
        stream: &[u8],
        pieces: impl Iterator<Item = usize>,
        due: Due,
    ) -> (Vec<u8>, Vec<Gots>) {
        let shelf = Arc::new(Shelf::default());
        let mut scanner = Scanner {
            shelf: Arc::clone(&shelf),
            state: State::Start,
            due,
        };
        let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
        let mut rest = stream;
        for length in pieces {
            let (piece, others) = rest.split_at(length.clamp(1, rest.len()));
            input.extend_from_slice(piece);
            scanner.scan(&mut input, &mut output);
            rest = others;
            if rest.is_empty() {
                break;
            }
        }
        assert!(rest.is_empty() && input.is_empty(), "something is left");
        let last = shelf.lock().last;
        let taken = (1..=last).filter_map(|number| shelf.fetch(number));
        (output.to_vec(), taken.collect())
    }

    /// However it is cut.
    #[track_caller]
    fn check(stream: &str, passes: &str, taken: &[&[Option<&str>]]) {
        check_due(Due::default, stream, passes, taken);
    }

    /// The same with answers that are to be joined; what is refused is shown by its code.
    #[track_caller]
    fn check_due(due: impl Fn() -> Due, stream: &str, passes: &str, taken: &[&[Option<&str>]]) {
        let shown = |got: Got| match got {
            Got::Nothing => None,
            Got::Bytes(bytes) => Some(bytes.escape_ascii().to_string()),
            Got::Refused(error) => Some(error.code().to_owned()),
            Got::Odd => Some("odd".to_owned()),
        };
        for length in 1..=stream.len() {
            let (output, arrays) = tapped(stream.as_bytes(), std::iter::repeat(length), due());
            assert_eq!(
                output.escape_ascii().to_string(),
                passes.as_bytes().escape_ascii().to_string(),
                "in pieces of {length}"
            );
            let arrays: Vec<Vec<_>> = arrays
                .into_iter()
                .map(|gots| gots.into_iter().map(shown).collect())
                .collect();
            let taken: Vec<Vec<_>> = taken
                .iter()
                .map(|texts| {
                    let texts = texts.iter();
                    texts
                        .map(|text| text.map(|text| text.escape_default().to_string()))
                        .collect()
                })
                .collect();
            assert_eq!(arrays, taken, "in pieces of {length}");
        }
    }

    #[test]
    fn arrays_of_strings_are_taken_out() {
        check("*1\r\n$2\r\nhi\r\n", ":1\r\n", &[&[Some("hi")]]);
        check(
            "+OK\r\n*3\r\n$0\r\n\r\n_\r\n$2\r\n\r\n\r\n:5\r\n*1\r\n$-1\r\n",
            "+OK\r\n:1\r\n:5\r\n:2\r\n",
            &[&[Some(""), None, Some("\r\n")], &[None]],
        );
    }

    #[test]
    fn everything_else_passes_through() {
        for stream in [
            "$5\r\nhello\r\n",
            "*0\r\n:7\r\n",
            "$-1\r\n_\r\n*-1\r\n",
            "-ERR a long text that says what is wrong, in many words and more\r\n",
            "%1\r\n$4\r\nrole\r\n*2\r\n:1\r\n$1\r\nx\r\n+OK\r\n",
            ">2\r\n$1\r\na\r\n*1\r\n$1\r\nb\r\n",
            "*2\r\n*1\r\n$1\r\na\r\n*1\r\n$1\r\nb\r\n",
            "=5\r\ntxt:x\r\n!3\r\nERR\r\n~1\r\n$1\r\n*\r\n#t\r\n,1.5\r\n",
            "|1\r\n+ttl\r\n:5\r\n*1\r\n:1\r\n",
        ] {
            check(stream, stream, &[]);
        }
    }

    #[test]
    fn an_array_that_turns_out_to_be_mixed_is_given_back() {
        check(
            "*4\r\n$6\r\nmaster\r\n_\r\n:10\r\n*0\r\n*1\r\n$1\r\nx\r\n",
            "*4\r\n$6\r\nmaster\r\n_\r\n:10\r\n*0\r\n:1\r\n",
            &[&[Some("x")]],
        );
    }

    /// Those of `TIME`, of an `MGET` of three keys, of one of two, and of something else.
    fn some_joined() -> Due {
        let mut due = Due::default();
        for command in [
            "*1\r\n$4\r\nTIME\r\n",
            "*4\r\n$4\r\nMGET\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n",
            "*3\r\n$4\r\nMGET\r\n$1\r\na\r\n$1\r\nb\r\n",
            "*1\r\n$4\r\nPING\r\n",
        ] {
            due.note(command.as_bytes());
        }
        due
    }

    #[test]
    fn answers_to_a_question_that_was_taken_apart_become_one() {
        check_due(
            some_joined,
            "*2\r\n$1\r\n7\r\n$1\r\n8\r\n$2\r\nhi\r\n_\r\n$0\r\n\r\n-MOVED 1 h:1\r\n$-1\r\n$4\r\nPONG\r\n*1\r\n$1\r\nx\r\n",
            ":1\r\n:2\r\n:3\r\n$4\r\nPONG\r\n:4\r\n",
            &[
                &[Some("7"), Some("8")],
                &[Some("hi"), None, Some("")],
                &[Some("MOVED"), None],
                &[Some("x")],
            ],
        );
    }

    #[test]
    fn what_nobody_asked_for_comes_between() {
        check_due(
            some_joined,
            "+OK\r\n>2\r\n$1\r\na\r\n$1\r\nb\r\n-ERR no\r\n-ERR no\r\n-ERR no\r\n_\r\n_\r\n+PONG\r\n",
            "+OK\r\n>2\r\n$1\r\na\r\n$1\r\nb\r\n:1\r\n:2\r\n+PONG\r\n",
            &[&[Some("ERR"), Some("ERR"), Some("ERR")], &[None, None]],
        );
    }

    #[test]
    fn an_answer_of_another_kind_is_the_end() {
        check_due(
            some_joined,
            "+OK\r\n$1\r\na\r\n:5\r\n_\r\n",
            "+OK\r\n?\r\n:5\r\n_\r\n",
            &[],
        );
    }

    proptest! {
        /// Whatever a server sends, in whatever pieces: nothing is held back that can be told, and nothing is made up.
        #[test]
        fn any_bytes_are_survived(
            stream in proptest::collection::vec(
                prop_oneof![
                    Just(b"*2\r\n".to_vec()), Just(b"$1\r\nx\r\n".to_vec()), Just(b"_\r\n".to_vec()),
                    Just(b"$-1\r\n".to_vec()), Just(b"$\r\n".to_vec()), Just(b"*99999999999999999999\r\n".to_vec()),
                    Just(b"$999999999999\r\n".to_vec()), Just(b"%3\r\n".to_vec()),
                    proptest::collection::vec(any::<u8>(), 0..12),
                ],
                0..20,
            ),
            cut in 1_usize..40,
            joins: bool,
        ) {
            let stream = stream.concat();
            let shelf = Arc::new(Shelf::default());
            let due = if joins { some_joined() } else { Due::default() };
            let mut scanner = Scanner { shelf: Arc::clone(&shelf), state: State::Start, due };
            let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
            for piece in stream.chunks(cut) {
                input.extend_from_slice(piece);
                scanner.scan(&mut input, &mut output);
            }
            let arrays = std::mem::take(&mut shelf.lock().by_number);
            let length = |got: &Got| match got {
                Got::Bytes(bytes) => bytes.len(),
                _ => 0,
            };
            let taken: usize = arrays.values().flatten().map(length).sum();
            prop_assert!(taken <= stream.len());
            prop_assert!(output.len() <= stream.len() + 40 * (arrays.len() + 1));
        }
    }
}
