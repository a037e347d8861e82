//! The scripts: what is compared and done in one step.
//!
//! Each is about one key, so that it runs on whichever node of a cluster has it. They compare the first 17 bytes of a
//! value, which name one state of it; see `frame`.

use redis::{Cmd, Pipeline, ServerError, Value};

/// A script of larder's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// Stores a value in place of exactly this state: its head, the value, the milliseconds to keep it or none.
    Fill,
    /// Removes exactly this state.
    Release,
    /// Places a placeholder where nothing of this incarnation is; else gives what is there. Arguments: the incarnation,
    /// the placeholder, its milliseconds.
    Lease,
}

impl Script {
    const ALL: [Self; 3] = [Self::Fill, Self::Release, Self::Lease];

    const fn text(self) -> &'static str {
        match self {
            Self::Fill => {
                "if redis.call('GETRANGE', KEYS[1], 0, 16) ~= ARGV[1] then return 0 end \
                 if ARGV[3] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) \
                 else redis.call('SET', KEYS[1], ARGV[2]) end \
                 return 1"
            }
            Self::Release => {
                "if redis.call('GETRANGE', KEYS[1], 0, 16) ~= ARGV[1] then return 0 end \
                 return redis.call('UNLINK', KEYS[1])"
            }
            Self::Lease => {
                "local head = redis.call('GETRANGE', KEYS[1], 0, 16) \
                 if #head == 17 and string.sub(head, 2, 9) == ARGV[1] then return redis.call('GET', KEYS[1]) end \
                 redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) \
                 return false"
            }
        }
    }
}

/// What the server calls them.
#[derive(Debug)]
pub(super) struct Scripts([String; 3]);

impl Scripts {
    /// Asks the server to keep them all.
    pub(super) fn load(pipeline: &mut Pipeline) {
        for script in Script::ALL {
            Self::load_one(pipeline, script);
        }
    }

    /// Asks the server to keep this one.
    pub(super) fn load_one(pipeline: &mut Pipeline, script: Script) {
        pipeline.cmd("SCRIPT").arg("LOAD").arg(script.text());
    }

    /// What it answered; the error is the server's, or none if it can't be understood.
    pub(super) fn loaded(next: &mut impl FnMut() -> Value) -> Result<Self, Option<ServerError>> {
        let mut name = || match next() {
            Value::BulkString(name) => String::from_utf8(name).map_err(|_| None),
            Value::SimpleString(name) => Ok(name),
            Value::ServerError(error) => Err(Some(error)),
            _ => Err(None),
        };
        Ok(Self([name()?, name()?, name()?]))
    }

    /// The beginning of a command that runs this script on this key, with room for so many bytes of arguments.
    pub(super) fn call(&self, script: Script, key: &[u8], room: usize) -> Cmd {
        let name = match script {
            Script::Fill => &self.0[0],
            Script::Release => &self.0[1],
            Script::Lease => &self.0[2],
        };
        let mut call = Cmd::with_capacity(7, 16 + name.len() + key.len() + room);
        call.arg("EVALSHA").arg(name).arg(1).arg(key);
        call
    }
}
