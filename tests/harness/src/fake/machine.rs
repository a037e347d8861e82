//! The server without its sockets: frames in, replies out, byte for byte those of memcached 1.6.18.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::command::{BAD_LINE, Command, Flags, KEY_MAX, MetaSet, OPAQUE_MAX, Update};
use super::framer::Frame;
use super::store::{Item, Mode, Settings, Store, Stored};
use super::text::encode_base64;

/// `stats settings` of 1.6.18 as Debian builds it, started without arguments; three of them follow [`Settings`].
const SETTINGS: &[(&str, &str)] = &[
    ("maxbytes", "67108864"),
    ("maxconns", "1024"),
    ("tcpport", "11211"),
    ("udpport", "0"),
    ("inter", "NULL"),
    ("verbosity", "0"),
    ("oldest", "0"),
    ("evictions", "on"),
    ("domain_socket", "NULL"),
    ("umask", "700"),
    ("shutdown_command", "no"),
    ("growth_factor", "1.25"),
    ("chunk_size", "48"),
    ("num_threads", "4"),
    ("num_threads_per_udp", "4"),
    ("stat_key_prefix", ":"),
    ("detail_enabled", "no"),
    ("reqs_per_event", "20"),
    ("cas_enabled", "yes"),
    ("tcp_backlog", "1024"),
    ("binding_protocol", "auto-negotiate"),
    ("auth_enabled_sasl", "no"),
    ("auth_enabled_ascii", "no"),
    ("item_size_max", "1048576"),
    ("maxconns_fast", "yes"),
    ("hashpower_init", "0"),
    ("slab_reassign", "yes"),
    ("slab_automove", "1"),
    ("slab_automove_ratio", "0.80"),
    ("slab_automove_window", "30"),
    ("slab_chunk_max", "524288"),
    ("lru_crawler", "yes"),
    ("lru_crawler_sleep", "100"),
    ("lru_crawler_tocrawl", "0"),
    ("tail_repair_time", "0"),
    ("flush_enabled", "yes"),
    ("dump_enabled", "yes"),
    ("hash_algorithm", "murmur3"),
    ("lru_maintainer_thread", "yes"),
    ("lru_segmented", "yes"),
    ("hot_lru_pct", "20"),
    ("warm_lru_pct", "40"),
    ("hot_max_factor", "0.20"),
    ("warm_max_factor", "2.00"),
    ("temp_lru", "no"),
    ("temporary_ttl", "61"),
    ("idle_timeout", "0"),
    ("watcher_logbuf_size", "262144"),
    ("worker_logbuf_size", "65536"),
    ("read_buf_mem_limit", "0"),
    ("track_sizes", "no"),
    ("inline_ascii_response", "no"),
    ("ext_item_size", "512"),
    ("ext_item_age", "4294967295"),
    ("ext_low_ttl", "0"),
    ("ext_recache_rate", "2000"),
    ("ext_wbuf_size", "4194304"),
    ("ext_compact_under", "0"),
    ("ext_drop_under", "0"),
    ("ext_max_sleep", "1000000"),
    ("ext_max_frag", "0.80"),
    ("slab_automove_freeratio", "0.010"),
    ("ext_drop_unread", "no"),
    ("ssl_enabled", "no"),
    ("ssl_chain_cert", "(null)"),
    ("ssl_key", "(null)"),
    ("ssl_verify_mode", "0"),
    ("ssl_keyformat", "1"),
    ("ssl_ciphers", "NULL"),
    ("ssl_ca_cert", "NULL"),
    ("ssl_wbuf_size", "16384"),
    ("ssl_session_cache", "no"),
    ("ssl_kernel_tls", "no"),
    ("ssl_min_version", "tlsv1.2"),
    ("num_napi_ids", "(null)"),
    ("memory_file", "(null)"),
];

/// What a command was answered with.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// Nothing for a quiet command that went well.
    pub(super) bytes: Vec<u8>,
    /// Whether the server closes the connection after it.
    pub(super) hang_up: bool,
}

impl Reply {
    fn line(text: &str) -> Self {
        Self {
            bytes: [text.as_bytes(), b"\r\n"].concat(),
            hang_up: false,
        }
    }

    fn line_unless(quiet: bool, text: &str) -> Self {
        if quiet {
            Self::default()
        } else {
            Self::line(text)
        }
    }
}

/// One server: its items, its clock, what it counts.
#[derive(Debug)]
pub(super) struct Machine {
    settings: Settings,
    store: Store,
    counts: Counts,
    /// Lines that memcached understands and this doesn't.
    pub(super) unmodelled: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    gets: u64,
    hits: u64,
    misses: u64,
    sets: u64,
    stored: u64,
    evicted: u64,
}

impl Machine {
    pub(super) fn new(settings: Settings, wall: SystemTime) -> Self {
        Self {
            store: Store::new(&settings, unix(wall)),
            settings,
            counts: Counts::default(),
            unmodelled: Vec::new(),
        }
    }

    /// As after `kill -9` and a new start: nothing is left, and the first item has CAS number 1.
    pub(super) fn restart(&mut self, wall: SystemTime) {
        self.store = Store::new(&self.settings, unix(wall));
        self.counts = Counts::default();
    }

    /// As [`Self::restart`], but the items are still there.
    pub(super) fn restart_warm(&mut self) {
        self.store.restart_warm();
        self.counts = Counts::default();
    }

    pub(super) fn set_time(&mut self, wall: SystemTime) {
        self.store.set_time(unix(wall));
    }

    pub(super) fn set_full(&mut self, full: bool) {
        self.store.full = full;
    }

    pub(super) fn evict(&mut self, key: &[u8]) -> bool {
        let evicted = self.store.remove(key);
        self.counts.evicted += u64::from(evicted);
        evicted
    }

    /// The value, whatever its CAS number and flags, without touching the item.
    pub(super) fn peek(&mut self, key: &[u8]) -> Option<Bytes> {
        self.store.get(key).map(|item| item.value.clone())
    }

    /// How long an item that doesn't stay for good has to live.
    pub(super) fn ttl(&mut self, key: &[u8]) -> Option<Duration> {
        let now = self.store.now();
        let expires = self.store.get(key)?.expires;
        (expires != 0).then(|| Duration::from_secs(u64::from(expires.saturating_sub(now))))
    }

    pub(super) fn execute(&mut self, frame: &Frame, connections: usize) -> Reply {
        match &frame.command {
            Command::MetaGet { key, flags } => self.meta_get(key, flags),
            Command::MetaSet(set) => self.meta_set(set, frame),
            Command::MetaDelete { key, flags } => self.meta_delete(key, flags),
            Command::MetaNoop => Reply::line("MN"),
            Command::Get {
                keys,
                with_cas,
                touch,
            } => self.classic_get(keys, *with_cas, *touch),
            Command::Set(update) => self.classic_set(update, frame),
            Command::Delete { key, quiet } => {
                let found = self.store.get(key).is_some();
                self.store.remove(key);
                Reply::line_unless(*quiet, if found { "DELETED" } else { "NOT_FOUND" })
            }
            Command::Touch { key, ttl, quiet } => {
                let found = self.touch(key, *ttl).is_some();
                Reply::line_unless(*quiet, if found { "TOUCHED" } else { "NOT_FOUND" })
            }
            Command::FlushAll { ttl, quiet } => {
                self.store.flush(*ttl);
                Reply::line_unless(*quiet, "OK")
            }
            Command::Version => Reply::line(&format!("VERSION {}", self.settings.version)),
            Command::Stats(None) => self.stats(connections),
            Command::Stats(Some(which)) if which == "settings" => self.stats_settings(),
            Command::Stats(Some(_)) => {
                self.counts = Counts::default();
                Reply::line("RESET")
            }
            Command::Refused { reply, .. } => reply.map_or_else(Reply::default, Reply::line),
            Command::Hangup => Reply {
                bytes: Vec::new(),
                hang_up: true,
            },
            Command::Unmodelled => {
                let line = String::from_utf8_lossy(&frame.line).into_owned();
                let words = format!("SERVER_ERROR the fake memcached doesn't model `{line}`");
                self.unmodelled.push(line);
                Reply {
                    hang_up: true,
                    ..Reply::line(&words)
                }
            }
        }
    }

    fn meta_get(&mut self, key: &Bytes, flags: &Flags) -> Reply {
        self.counts.gets += 1;
        let mut created = false;
        if self.store.get(key).is_none() {
            if flags.vivify.is_none() || self.store.full {
                self.counts.misses += 1;
                return meta_miss(key, flags);
            }
            // Its TTL is set only when the answer gets to `N`: a `t` before that says -1.
            self.store.link(key, Item::new(Bytes::new(), 0));
            created = true;
        } else {
            self.counts.hits += 1;
        }
        let now = self.store.now();
        let ttl = flags.ttl.map(|ttl| self.store.expiry(ttl));
        let lease = flags.vivify.map(|ttl| self.store.expiry(ttl));
        let recache = flags.recache.map(|ttl| self.store.expiry(ttl));
        let Some(item) = self.store.get(key) else {
            return meta_miss(key, flags);
        };

        // Who wants to know about earlier fetches is told before this one counts; for others it counts though refused.
        let counts_late = flags.locks();
        if !counts_late && !flags.no_update {
            Store::bump(item, now);
        }
        let mut reply = if flags.value {
            format!("VA {}", item.value.len()).into_bytes()
        } else {
            b"HD".to_vec()
        };
        let mut won = false;
        for (letter, token) in flags.iter() {
            match letter {
                b'T' => item.expires = ttl.unwrap_or(item.expires),
                b'N' if created => {
                    item.expires = lease.unwrap_or(item.expires);
                    won = true;
                }
                b'R' => {
                    let grows_old = recache.is_some_and(|limit| item.expires < limit);
                    won |= !item.token_sent && !created && item.expires != 0 && grows_old;
                }
                b's' => push(&mut reply, 's', item.value.len()),
                b't' if item.expires == 0 => push(&mut reply, 't', "-1"),
                b't' => push(&mut reply, 't', item.expires.wrapping_sub(now)),
                b'c' => push(&mut reply, 'c', item.cas),
                b'f' => push(&mut reply, 'f', item.client_flags),
                b'l' => push(&mut reply, 'l', now.wrapping_sub(item.used)),
                b'h' => push(&mut reply, 'h', u8::from(item.fetched)),
                b'O' if token.len() > OPAQUE_MAX => {
                    return Reply::line("CLIENT_ERROR opaque token too long");
                }
                b'O' => push_token(&mut reply, token),
                b'k' => push_key(&mut reply, key, item.binary_key),
                _ => {}
            }
        }
        if item.token_sent {
            reply.extend_from_slice(b" Z");
        }
        if item.stale {
            reply.extend_from_slice(b" X");
            won |= !item.token_sent;
        }
        if won {
            reply.extend_from_slice(b" W");
            item.token_sent = true;
        }
        reply.extend_from_slice(b"\r\n");
        if flags.value {
            reply.extend_from_slice(&item.value);
            reply.extend_from_slice(b"\r\n");
        }
        if counts_late && !flags.no_update {
            Store::bump(item, now);
        }
        Reply {
            bytes: reply,
            hang_up: false,
        }
    }

    fn meta_set(&mut self, set: &MetaSet, frame: &Frame) -> Reply {
        let MetaSet {
            key,
            len,
            flags,
            mode,
        } = set;
        self.counts.sets += 1;
        if let Some(words) = self.no_room(key, flags.client_flags, *len) {
            // What is there would be older than what the client wanted to be there.
            self.store.remove(key);
            return Reply::line(words);
        }
        let Some(value) = value_of(frame) else {
            return Reply::line("CLIENT_ERROR bad data chunk");
        };
        let mut item = Item::new(value, self.store.expiry(flags.ttl.unwrap_or(0)));
        item.client_flags = flags.client_flags;
        item.binary_key = flags.binary_key;
        let cas = flags.cas.unwrap_or(0);
        let stored = self.store.store(key, item, *mode, cas, flags.stale);
        let (code, cas) = match stored {
            Stored::Yes(cas) => ("HD", cas),
            Stored::No => ("NS", 0),
            Stored::Exists => ("EX", 0),
            Stored::NotFound => ("NF", 0),
        };
        if let Stored::Yes(_) = stored {
            self.counts.stored += 1;
            if flags.quiet {
                return Reply::default();
            }
        }
        let mut reply = code.as_bytes().to_vec();
        for (letter, token) in flags.iter() {
            match letter {
                b'O' => push_token(&mut reply, token),
                b'k' => push_key(&mut reply, key, flags.binary_key),
                b'c' => push(&mut reply, 'c', cas),
                _ => {}
            }
        }
        reply.extend_from_slice(b"\r\n");
        Reply {
            bytes: reply,
            hang_up: false,
        }
    }

    fn meta_delete(&mut self, key: &Bytes, flags: &Flags) -> Reply {
        let ttl = flags.ttl.map(|ttl| self.store.expiry(ttl));
        let code = match self.store.get(key) {
            None => "NF",
            Some(item) if flags.cas.is_some_and(|cas| cas != item.cas) => "EX",
            Some(_) if !flags.stale => {
                self.store.remove(key);
                "HD"
            }
            Some(item) => {
                item.expires = ttl.unwrap_or(item.expires);
                item.stale = true;
                item.token_sent = false;
                let cas = self.store.next_cas();
                if let Some(item) = self.store.get(key) {
                    item.cas = cas;
                }
                "HD"
            }
        };
        if code == "HD" && flags.quiet {
            return Reply::default();
        }
        Reply {
            bytes: with_names(code, key, flags),
            hang_up: false,
        }
    }

    fn classic_get(&mut self, keys: &[Bytes], with_cas: bool, touch: Option<i32>) -> Reply {
        let mut reply = Vec::new();
        for key in keys {
            if key.len() > KEY_MAX {
                // The real one also forgets earlier commands' replies that have not left yet.
                return Reply::line(BAD_LINE);
            }
            self.counts.gets += 1;
            let item = match touch {
                Some(ttl) => self.touch(key, ttl),
                None => self.fetch(key),
            };
            let Some(item) = item else {
                self.counts.misses += 1;
                continue;
            };
            reply.extend_from_slice(b"VALUE ");
            reply.extend_from_slice(key);
            push_token(&mut reply, item.client_flags.to_string().as_bytes());
            push_token(&mut reply, item.value.len().to_string().as_bytes());
            if with_cas {
                push_token(&mut reply, item.cas.to_string().as_bytes());
            }
            reply.extend_from_slice(b"\r\n");
            reply.extend_from_slice(&item.value);
            reply.extend_from_slice(b"\r\n");
            self.counts.hits += 1;
        }
        reply.extend_from_slice(b"END\r\n");
        Reply {
            bytes: reply,
            hang_up: false,
        }
    }

    fn classic_set(&mut self, update: &Update, frame: &Frame) -> Reply {
        let Update {
            key,
            client_flags,
            quiet,
            ..
        } = update;
        self.counts.sets += 1;
        if let Some(words) = self.no_room(key, *client_flags, update.len) {
            if update.mode == Mode::Set {
                self.store.remove(key);
            }
            return Reply::line_unless(*quiet, words);
        }
        let Some(value) = value_of(frame) else {
            return Reply::line_unless(*quiet, "CLIENT_ERROR bad data chunk");
        };
        let mut item = Item::new(value, self.store.expiry(update.ttl));
        item.client_flags = *client_flags;
        let words = match self.store.store(key, item, update.mode, update.cas, false) {
            Stored::Yes(_) => {
                self.counts.stored += 1;
                "STORED"
            }
            Stored::No => "NOT_STORED",
            Stored::Exists => "EXISTS",
            Stored::NotFound => "NOT_FOUND",
        };
        Reply::line_unless(*quiet, words)
    }

    fn fetch(&mut self, key: &[u8]) -> Option<&mut Item> {
        let now = self.store.now();
        let item = self.store.get(key)?;
        Store::bump(item, now);
        Some(item)
    }

    fn touch(&mut self, key: &[u8], ttl: i32) -> Option<&mut Item> {
        let expires = self.store.expiry(ttl);
        let item = self.fetch(key)?;
        item.expires = expires;
        Some(item)
    }

    fn no_room(&self, key: &[u8], client_flags: u32, len: usize) -> Option<&'static str> {
        if !self.store.fits(key, client_flags, len) {
            Some("SERVER_ERROR object too large for cache")
        } else if self.store.full {
            Some("SERVER_ERROR out of memory storing object")
        } else {
            None
        }
    }

    /// The lines a client could want; a real server has five times as many.
    fn stats(&self, connections: usize) -> Reply {
        let Counts {
            gets,
            hits,
            misses,
            sets,
            stored,
            evicted,
        } = self.counts;
        let lines = [
            ("uptime", self.store.uptime().to_string()),
            ("time", self.store.unix_now().to_string()),
            ("version", self.settings.version.clone()),
            ("pointer_size", "64".to_owned()),
            ("max_connections", self.settings.maxconns.to_string()),
            ("curr_connections", connections.to_string()),
            ("cmd_get", gets.to_string()),
            ("cmd_set", sets.to_string()),
            ("get_hits", hits.to_string()),
            ("get_misses", misses.to_string()),
            ("limit_maxbytes", (64 << 20).to_string()),
            ("threads", "4".to_owned()),
            ("bytes", self.store.bytes().to_string()),
            ("curr_items", self.store.len().to_string()),
            ("total_items", stored.to_string()),
            ("evictions", evicted.to_string()),
        ];
        stat_lines(lines.iter().map(|(name, value)| (*name, value.as_str())))
    }

    fn stats_settings(&self) -> Reply {
        let maxconns = self.settings.maxconns.to_string();
        let item_size_max = self.settings.item_size_max.to_string();
        let cas_enabled = if self.settings.cas_enabled {
            "yes"
        } else {
            "no"
        };
        stat_lines(SETTINGS.iter().map(|&(name, value)| {
            let value = match name {
                "maxconns" => &maxconns,
                "item_size_max" => &item_size_max,
                "cas_enabled" => cas_enabled,
                _ => value,
            };
            (name, value)
        }))
    }
}

fn unix(wall: SystemTime) -> i64 {
    wall.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64)
}

/// The data block without its line end, if it has one.
fn value_of(frame: &Frame) -> Option<Bytes> {
    let data = frame.data.as_ref()?;
    data.ends_with(b"\r\n")
        .then(|| data.slice(..data.len() - 2))
}

fn meta_miss(key: &Bytes, flags: &Flags) -> Reply {
    if flags
        .iter()
        .any(|(letter, token)| letter == b'O' && token.len() > OPAQUE_MAX)
    {
        return Reply::line("CLIENT_ERROR opaque token too long");
    }
    if flags.quiet {
        return Reply::default();
    }
    Reply {
        bytes: with_names("EN", key, flags),
        hang_up: false,
    }
}

/// A status with the opaque and the key, if they were asked for.
fn with_names(code: &str, key: &Bytes, flags: &Flags) -> Vec<u8> {
    let mut reply = code.as_bytes().to_vec();
    for (letter, token) in flags.iter() {
        match letter {
            b'O' => push_token(&mut reply, token),
            b'k' => push_key(&mut reply, key, flags.binary_key),
            _ => {}
        }
    }
    reply.extend_from_slice(b"\r\n");
    reply
}

fn push(reply: &mut Vec<u8>, letter: char, value: impl ToString) {
    push_token(reply, format!("{letter}{}", value.to_string()).as_bytes());
}

fn push_token(reply: &mut Vec<u8>, token: &[u8]) {
    reply.push(b' ');
    reply.extend_from_slice(token);
}

fn push_key(reply: &mut Vec<u8>, key: &[u8], binary: bool) {
    reply.extend_from_slice(b" k");
    if binary {
        reply.extend_from_slice(&encode_base64(key));
        reply.extend_from_slice(b" b");
    } else {
        reply.extend_from_slice(key);
    }
}

fn stat_lines<'a>(lines: impl Iterator<Item = (&'a str, &'a str)>) -> Reply {
    let mut reply = String::new();
    for (name, value) in lines {
        reply += &format!("STAT {name} {value}\r\n");
    }
    Reply::line(&(reply + "END"))
}
