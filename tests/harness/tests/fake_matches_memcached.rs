//! The fake answers as the real server does: the same random scripts go to both, and every byte of the replies is
//! compared.
//!
//! Both start fresh, so CAS numbers agree too. The real server's clock is read from its statistics and the fake's is
//! set to it; a script during which the real one ticked proves nothing and is run again on new servers.
//!
//! `LARDER_TEST_SEED` replays one script. Against another version than 1.6.18, scripts keep to what larder's client
//! sends, less what is known to have changed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream as BlockingStream;
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use larder_core::Rt;
use larder_harness::fake::{Fake, Pipe, Settings};
use larder_harness::server::{Listen, MemcachedServer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::TcpStream;

const SCRIPTS: u64 = 40;
const BATCHES: usize = 30;

/// What ends a batch: a line longer than what any command may swallow of its successor, and one that is answered with
/// what no other reply holds.
const CLOSING: &[u8] = b"xxxxxxxxxxxxxxxxxxxxxxxx\r\nmg end-of-batch k\r\n";
const CLOSED: &[u8] = b"EN kend-of-batch\r\n";

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn random_scripts_get_the_same_replies() {
    let seeds = match std::env::var("LARDER_TEST_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("LARDER_TEST_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..SCRIPTS,
    };
    for seed in seeds {
        while !run_script(seed).await {}
    }
}

/// One script on fresh servers; false if the real one ticked in the middle of a batch.
async fn run_script(seed: u64) -> bool {
    let mut pair = Pair::start().await;
    let mut script = Script {
        rng: Rng::with_seed(seed),
        seen: vec![1],
        strict: pair.is_reference,
    };
    for batch in 0..BATCHES {
        let commands = script.batch();
        // A megabyte byte by byte would take more than a second.
        let chunk = script.rng.usize(1..=200).max(commands.len() / 500);
        let Some((real, fake)) = pair.batch(&commands, chunk).await else {
            return false;
        };
        script.learn(&fake);
        assert!(
            real == fake,
            "script {seed}, batch {batch} (LARDER_TEST_SEED={seed} replays it); sent\n{}\n{}",
            show(&commands),
            difference(&real, &fake),
        );
    }
    assert_eq!(pair.fake.unmodelled(), [""; 0]);
    true
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn items_expire_in_the_same_second() {
    while !run_expiry().await {}
}

async fn run_expiry() -> bool {
    let mut pair = Pair::start().await;
    let (mut fill, mut look) = (Vec::new(), Vec::new());
    for ttl in 0..6 {
        fill.extend_from_slice(format!("ms set-{ttl} 1 T{ttl}\r\nx\r\n").as_bytes());
        fill.extend_from_slice(format!("mg lease-{ttl} N{ttl} t c\r\n").as_bytes());
        fill.extend_from_slice(format!("set classic-{ttl} 0 {ttl} 1\r\nx\r\n").as_bytes());
        for kind in ["set", "lease", "classic"] {
            look.extend_from_slice(format!("mg {kind}-{ttl} t v c k\r\n").as_bytes());
        }
    }
    fill.extend_from_slice(b"flush_all 4\r\n");
    for commands in [&fill, &look, &look, &look, &look, &look] {
        let Some((real, fake)) = pair.batch(commands, usize::MAX).await else {
            return false;
        };
        assert_eq!(show(&real), show(&fake));
        pair.wait_for_tick();
    }
    true
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn lines_that_end_a_connection_end_it_alike() {
    let mut pair = Pair::start().await;
    for line in [
        &b"quit\r\n"[..],
        b"GET /index.html HTTP/1.1\r\nHost: cache\r\n\r\n",
        &[b'x'; 3000],
        &[&b"mg "[..], &[b'k'; 3000]].concat(),
    ] {
        let (real, fake) = pair.exchange(line, usize::MAX).await;
        assert_eq!((show(&real), show(&fake)), Default::default());
        pair.reconnect().await;
    }
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn settings_read_alike() {
    let mut pair = Pair::start().await;
    let ask = [b"stats settings\r\n", CLOSING].concat();
    let (real, fake) = pair.exchange(&ask, usize::MAX).await;
    let (real, fake) = (show(&real), show(&fake));
    for name in ["cas_enabled yes", "item_size_max 1048576", "maxconns 1024"] {
        assert!(real.contains(name) && fake.contains(name), "{name}");
    }
    if pair.is_reference {
        // All but where it listens, and what another build leaves out or adds.
        let name = |line: &str| line.split(' ').nth(1).map(str::to_owned);
        let names: Vec<_> = real.lines().map(name).collect();
        for line in fake.lines().filter(|&line| names.contains(&name(line))) {
            let own = line.contains(" tcpport ") || line.contains(" inter ");
            assert!(own || real.contains(line), "{line}\n{real}");
        }
    }
}

/// A real server and a fake of the same age.
struct Pair {
    server: MemcachedServer,
    is_reference: bool,
    clock: Clock,
    real: TcpStream,
    fake: Fake,
    fake_uptime: u64,
    pipe: Pipe,
}

impl Pair {
    async fn start() -> Self {
        let server = MemcachedServer::start(Listen::Tcp, &[]);
        let mut clock = Clock::new(&server);
        let stats = clock.stats();
        // Uptime begins at 2.
        let started = Duration::from_secs(stats.time - stats.uptime + 2);
        // tokio's clock stands still, and nothing here has a timer that would move it.
        let rt = Rt::following_tokio(UNIX_EPOCH + started);
        let fake = Fake::with_rt(Settings::default(), rt);
        Self {
            is_reference: stats.version == "1.6.18",
            real: connect(&server).await,
            pipe: fake.connect().await.unwrap(),
            fake,
            fake_uptime: 2,
            clock,
            server,
        }
    }

    async fn reconnect(&mut self) {
        self.real = connect(&self.server).await;
        self.pipe = self.fake.connect().await.unwrap();
    }

    /// Both replies to these commands, given in one second; `None` if the second ended in between.
    async fn batch(&mut self, commands: &[u8], chunk: usize) -> Option<(Vec<u8>, Vec<u8>)> {
        let uptime = self.clock.stats().uptime;
        let older = Duration::from_secs(uptime - self.fake_uptime);
        self.fake.advance(older);
        self.fake_uptime = uptime;
        let replies = self.exchange(&[commands, CLOSING].concat(), chunk).await;
        (self.clock.stats().uptime == uptime).then_some(replies)
    }

    async fn exchange(&mut self, bytes: &[u8], chunk: usize) -> (Vec<u8>, Vec<u8>) {
        let real = exchange(&mut self.real, bytes, chunk).await;
        (real, exchange(&mut self.pipe, bytes, chunk).await)
    }

    fn wait_for_tick(&mut self) {
        let uptime = self.clock.stats().uptime;
        while self.clock.stats().uptime == uptime {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

async fn connect(server: &MemcachedServer) -> TcpStream {
    let stream = TcpStream::connect(server.address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A connection beside the script's, to read the real server's clock.
struct Clock(BufReader<BlockingStream>);

struct Stats {
    time: u64,
    uptime: u64,
    version: String,
}

impl Clock {
    fn new(server: &MemcachedServer) -> Self {
        let stream = BlockingStream::connect(server.address()).unwrap();
        Self(BufReader::new(stream))
    }

    fn stats(&mut self) -> Stats {
        self.0.get_mut().write_all(b"stats\r\n").unwrap();
        let mut answer = String::new();
        while !answer.ends_with("END\r\n") {
            self.0.read_line(&mut answer).unwrap();
        }
        let stat = |name| {
            let start = format!("STAT {name} ");
            let mut lines = answer.lines();
            lines.find_map(|line| line.strip_prefix(&start)).unwrap()
        };
        Stats {
            time: stat("time").parse().unwrap(),
            uptime: stat("uptime").parse().unwrap(),
            version: stat("version").to_owned(),
        }
    }
}

/// Sends this in pieces of this size, and reads until the connection or the batch ends.
async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    bytes: &[u8],
    chunk: usize,
) -> Vec<u8> {
    let (mut reader, mut writer) = split(stream);
    let send = async {
        for chunk in bytes.chunks(chunk) {
            // The server may have closed the connection by now, which is seen in the replies.
            if writer.write_all(chunk).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    let receive = async {
        let mut replies = Vec::new();
        while !replies.ends_with(CLOSED) {
            match reader.read_buf(&mut replies).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        replies
    };
    tokio::join!(send, receive).1
}

const KEYS: u8 = 5;

const TTLS: &[i64] = &[
    0,
    60,
    30,
    5,
    3600,
    2_592_000,
    2_592_001,
    2_000_000_000,
    -1,
    1,
    2,
];

const ODD_FLAGS: &[&str] = &[
    "T",
    "Tx",
    "T+5",
    "T-0",
    "T5x",
    "T\t7",
    "T5\tx",
    "N",
    "N-",
    "N99999999999",
    "C",
    "C-1",
    "C-0",
    "C99999999999999999999",
    "F-1",
    "F4294967296",
    "Fx",
    "T9223372036854775808",
    "\u{e9}",
    "J",
    "Dx",
    "D-1",
    "M",
    "MSS",
    "MX",
    "b",
    "b=",
    "I",
    "R30",
    "Rx",
    "P",
    "L5",
    "E5",
    "S",
    "x",
    "?",
    "vv",
    "kx",
    "u",
];

const ODD_LINES: &[&str] = &[
    "",
    "x",
    "mg",
    "ms",
    "md",
    "mg  key:1  v ",
    "ms key:1",
    "ms key:1 x",
    "ms key:1 -1",
    "ms key:1 S3",
    "md key:1 x",
    "mx key:1",
    "mgx",
    "get",
    "gets",
    "gat",
    "gat 10",
    "gat x key:1",
    "set key:1",
    "set key:1 0 0",
    "set key:1 a 0 1",
    "set key:1 0 b 1 noreply",
    "cas key:1 0 0 1",
    "delete",
    "delete key:1 0",
    "delete key:1 1",
    "delete key:1 noreply",
    "delete key:1 0 noreply",
    "delete key:1 1 noreply",
    "touch key:1",
    "touch key:1 x",
    "touch key:1 5 noreply",
    "flush_all 0",
    "flush_all noreply",
    "flush_all x",
    "VERSION",
    "version x",
    "mn key:1",
    "hello HTTP",
    "\0mn",
    "mn\0x",
    "bget key:1",
    "stats reset",
    "gxx key:1",
    "mg key:0 v 1 2 3 4 5 6 7 8 9 a b c d e f g h i j",
    "md key:0 1 2 3 4 5 6 7 8 9 a b c d e f g h i j k",
    "ms key:0 0 1 2 3 4 5 6 7 8 9 a b c d e f g h i j k l m n o p",
];

/// Makes commands.
struct Script {
    rng: Rng,
    /// CAS numbers that replies showed, the last ones at the end.
    seen: Vec<u64>,
    /// Whether to send what only 1.6.18 answers so.
    strict: bool,
}

impl Script {
    fn batch(&mut self) -> Vec<u8> {
        let mut commands = Vec::new();
        if self.strict && self.one_in(10) {
            // It takes unsent replies of earlier commands with it, so there must be none.
            commands.extend_from_slice(format!("get a {} b\r\n", "k".repeat(251)).as_bytes());
        }
        for _ in 0..self.rng.usize(1..=25) {
            commands.extend_from_slice(&self.command());
        }
        commands
    }

    fn command(&mut self) -> Vec<u8> {
        match self.rng.u8(0..100) {
            0..35 => self.meta_get(),
            35..60 => self.meta_set(),
            60..75 => self.meta_delete(),
            75..80 => b"mn\r\n".to_vec(),
            80..88 => self.classic_get(),
            88..94 => self.classic_set(),
            94 => format!("delete {}\r\n", self.key()).into_bytes(),
            95 => format!("touch {} {}\r\n", self.key(), self.ttl()).into_bytes(),
            96..99 if self.strict => format!("{}\r\n", self.choose(ODD_LINES)).into_bytes(),
            99 if self.strict => self.huge_set(),
            _ => b"version\r\n".to_vec(),
        }
    }

    fn meta_get(&mut self) -> Vec<u8> {
        let special = if self.strict && self.one_in(4) {
            "TR"
        } else {
            ""
        };
        let flags = self.flags("vstckfhlquON", special);
        // Without a carriage return it is the same line.
        let end = if self.one_in(10) { "\n" } else { "\r\n" };
        format!("mg {}{flags}{end}", self.key()).into_bytes()
    }

    fn meta_delete(&mut self) -> Vec<u8> {
        // A quiet delete of what isn't there is answered by 1.6.18, and by no later server.
        let flags = if self.strict {
            let special = self.choose(&["C", "C", "I", "IT"]);
            self.flags("qkO", special)
        } else {
            self.flags("kO", "C")
        };
        format!("md {}{flags}\r\n", self.key()).into_bytes()
    }

    fn meta_set(&mut self) -> Vec<u8> {
        let value = self.value();
        let special = match self.strict {
            true => self.choose(&["C", "T", "CT", "F", "M", "CI", "CM"]),
            false => self.choose(&["C", "T", "CT", "F", "M"]),
        };
        let flags = self.flags("qkOc", special);
        let header = format!("ms {} {}{flags}\r\n", self.key(), self.claim(&value));
        [header.as_bytes(), &value, b"\r\n"].concat()
    }

    fn classic_get(&mut self) -> Vec<u8> {
        let mut line = self.choose(&["get", "gets", "gat 60", "gats 0"]).to_owned();
        for _ in 0..self.rng.usize(1..40) {
            line += &format!(" key:{}", self.rng.u8(0..=KEYS));
        }
        (line + "\r\n").into_bytes()
    }

    fn classic_set(&mut self) -> Vec<u8> {
        let value = self.value();
        let name = self.choose(&["set", "add", "replace", "append", "prepend", "cas"]);
        let (key, flags, ttl) = (self.key(), self.rng.u8(0..3), self.ttl());
        let len = self.claim(&value);
        let cas = match name {
            "cas" => format!(" {}", self.cas()),
            _ => String::new(),
        };
        let quiet = if self.one_in(5) { " noreply" } else { "" };
        let header = format!("{name} {key} {flags} {ttl} {len}{cas}{quiet}\r\n");
        [header.as_bytes(), &value, b"\r\n"].concat()
    }

    /// A value that just fits, or just doesn't: header, key, CAS number and line end count too.
    fn huge_set(&mut self) -> Vec<u8> {
        let len = 1_048_576 - 48 - "key:0".len() - 1 - 8 - 2 + self.rng.usize(0..2);
        let header = match self.rng.u8(0..3) {
            0 => format!("ms key:0 {len} q Obig\r\n"),
            1 => format!("ms key:0 {len} c k\r\n"),
            _ => format!("set key:0 0 0 {len}\r\n"),
        };
        // The line before it is for a command that swallows more than is its own.
        let header = format!("xxxx\r\n{header}");
        [header.as_bytes(), &vec![b'x'; len], b"\r\n"].concat()
    }

    /// Some of the usual flags, in any order, half the time the special ones, and now and then an odd or repeated one.
    fn flags(&mut self, usual: &str, special: &str) -> String {
        let mut letters: Vec<char> = usual.chars().collect();
        self.rng.shuffle(&mut letters);
        letters.truncate(self.rng.usize(0..=letters.len().min(8)));
        if self.rng.bool() {
            letters.extend(special.chars());
        }
        let mut flags: Vec<String> = letters.iter().map(|&letter| self.flag(letter)).collect();
        if self.strict && self.one_in(10) {
            let odd = self.choose(ODD_FLAGS).to_owned();
            flags.insert(self.rng.usize(0..=flags.len()), odd);
        }
        flags.iter().map(|flag| format!(" {flag}")).collect()
    }

    fn flag(&mut self, letter: char) -> String {
        match letter {
            'O' => {
                let longest = if self.strict { 33 } else { 31 };
                let len = self.choose(&[1, 4, 8, longest - 1, longest]);
                format!("O{}", "x".repeat(len - 1))
            }
            'N' | 'T' | 'R' => format!("{letter}{}", self.ttl()),
            'C' => format!("C{}", self.cas()),
            'F' => format!("F{}", self.choose(&[0, 1, 7, u32::MAX])),
            'M' => format!("M{}", self.choose(&["S", "E", "A", "P", "R"])),
            _ => letter.to_string(),
        }
    }

    fn key(&mut self) -> String {
        match self.rng.u8(0..60) {
            0 => "k".repeat(250),
            1 if self.strict => "k".repeat(251),
            2 if self.strict => "kl\u{fc}\u{20ac}".to_owned(),
            // With `b`, the key of six bytes that this is in base64.
            3 => "a2V5OjEx".to_owned(),
            n => format!("key:{}", n % KEYS),
        }
    }

    fn cas(&mut self) -> u64 {
        match self.rng.u8(0..10) {
            0 => 0,
            1 => self.rng.u64(1..1000),
            _ => {
                let recent = self.seen.len().saturating_sub(6);
                self.seen[self.rng.usize(recent..self.seen.len())]
            }
        }
    }

    fn ttl(&mut self) -> i64 {
        self.choose(TTLS)
    }

    fn value(&mut self) -> Vec<u8> {
        // Taken for commands, more than 2,048 bytes without a line end close the connection, if they come in pieces.
        let len = self.choose(&[0, 1, 2, 5, 40, 300, 1500]);
        // What looks like commands, line ends and zeros, a number, no text at all.
        match self.rng.u8(0..4) {
            0 => b"\r\nmg key:1 v"
                .iter()
                .copied()
                .cycle()
                .take(len)
                .collect(),
            1 => (0..len).map(|_| self.choose(b"\r\n \0x")).collect(),
            2 => (0..len).map(|_| self.choose(b"0123456789")).collect(),
            _ => (0..len).map(|_| self.rng.u8(0x80..)).collect(),
        }
    }

    /// How long the value is said to be: almost always as long as it is.
    fn claim(&mut self, value: &[u8]) -> usize {
        match self.rng.u8(0..40) {
            0 if self.strict => value.len() + self.rng.usize(1..4),
            1 if self.strict => value.len().saturating_sub(1),
            _ => value.len(),
        }
    }

    fn one_in(&mut self, count: u8) -> bool {
        self.rng.u8(0..count) == 0
    }

    fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.rng.usize(0..choices.len())]
    }

    /// Notes the CAS numbers in these replies, so that later commands can name them.
    fn learn(&mut self, replies: &[u8]) {
        for line in String::from_utf8_lossy(replies).lines() {
            let tokens = line.split(' ').filter_map(|token| token.strip_prefix('c'));
            self.seen
                .extend(tokens.filter_map(|number| number.parse::<u64>().ok()));
        }
    }
}

/// Where two replies part.
fn difference(real: &[u8], fake: &[u8]) -> String {
    let (real, fake) = (show(real), show(fake));
    let same = real.lines().zip(fake.lines()).take_while(|(a, b)| a == b);
    let same = same.count();
    let rest = |text: &str| {
        let lines: Vec<_> = text.lines().skip(same).take(10).collect();
        lines.join("\n")
    };
    format!(
        "after {same} lines of reply that agree\nmemcached\n{}\nfake\n{}",
        rest(&real),
        rest(&fake)
    )
}

/// For people to read: a line for a line, and of long ones the start.
fn show(bytes: &[u8]) -> String {
    let lines = bytes.split_inclusive(|&byte| byte == b'\n').map(|line| {
        let start = line[..line.len().min(200)].escape_ascii();
        format!("{start} ({} bytes)\n", line.len())
    });
    lines.collect()
}
