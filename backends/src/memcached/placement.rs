//! Which server a key lives on.
//!
//! Rendezvous hashing is larder's own: each server draws a number for the key, and the highest draw has it, so that a
//! server that comes or goes moves its own share of the keys and no other. Ketama is libmemcached's ring, point for point,
//! for pools that other clients use as well. Either way the answer follows from the configuration and the key alone: not
//! from the order of the servers, the machine or the day, and least of all from who is up.

use larder_core::Result;
use md5::{Digest as _, Md5};
use xxhash_rust::xxh3::xxh3_64;

use super::config::{Hashing, refused};
use crate::transport::Address;

/// The largest weight of a server: beyond, libmemcached's single precision could no longer tell neighbours apart.
const LARGEST_WEIGHT: u32 = 100_000;

/// One configured server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member {
    pub(super) address: Address,
    /// Its share of the keys, beside the others' weights.
    pub(super) weight: u32,
    /// Its host as it was written, without a port: libmemcached hashes `Cache-1` and `cache-1` differently.
    written: String,
}

impl Member {
    /// Reads an address, with `*weight` behind it or without.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let (place, weight) = match text.rsplit_once('*') {
            // A path may contain the sign for something else.
            Some((place, digits)) if !place.contains('/') || is_number(digits) => {
                let weight = Some(digits).filter(|digits| is_number(digits));
                let weight = weight.and_then(|digits| digits.parse().ok());
                (
                    place,
                    weight.filter(|weight| (1..=LARGEST_WEIGHT).contains(weight)),
                )
            }
            _ => (text, Some(1)),
        };
        let weight = weight.ok_or_else(|| {
            refused(format!(
                "`{}` has no weight behind its `*`; it takes 1 to {LARGEST_WEIGHT}, as in 10.0.0.5:11211*3",
                text.escape_debug()
            ))
        })?;
        let address = Address::parse(place)?;
        let written = match &address {
            Address::Tcp { .. } => Address::host_as_written(place).to_owned(),
            Address::Unix(path) => path.display().to_string(),
        };
        Ok(Self {
            address,
            weight,
            written,
        })
    }

    /// What libmemcached calls it on its ring: the default port isn't said, and a unix socket's is 0.
    fn ring_name(&self) -> String {
        match self.port() {
            Address::DEFAULT_PORT => self.written.clone(),
            port => format!("{}:{port}", self.written),
        }
    }

    /// As written, with its port, in the pool's description.
    fn full_name(&self) -> String {
        match &self.address {
            Address::Tcp { port, .. } if self.written.contains(':') => {
                format!("[{}]:{port}", self.written)
            }
            Address::Tcp { port, .. } => format!("{}:{port}", self.written),
            Address::Unix(_) => self.written.clone(),
        }
    }

    fn port(&self) -> u16 {
        match self.address {
            Address::Tcp { port, .. } => port,
            Address::Unix(_) => 0,
        }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Where every key lives, among the members in their order.
#[derive(Debug)]
pub(super) enum Placement {
    /// On the one server there is.
    Sole,
    /// Where it draws the highest number: servers of one weight together.
    Rendezvous(Vec<Peers>),
    /// On the server of the next point of the ring, from the key's own on.
    Ring {
        points: Vec<Point>,
        hash: fn(&[u8]) -> u32,
    },
}

/// Servers of one weight.
#[derive(Debug)]
pub(super) struct Peers {
    weight: u32,
    /// What each server's name adds to the hash of a key, and which server it is.
    seeds: Vec<(u64, usize)>,
}

/// A point of the ring, and whose it is. They are in order, and where two meet the earlier server comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Point {
    value: u32,
    server: usize,
}

impl Placement {
    /// The placement over these members, which are sorted.
    ///
    /// Fails for weights that it can't keep.
    pub(super) fn new(hashing: Hashing, members: &[Member]) -> Result<Self> {
        let points = match hashing {
            Hashing::Rendezvous => Vec::new(),
            Hashing::Ketama => ketama(members)?,
            Hashing::KetamaWeighted => weighted_ketama(members)?,
        };
        warn_of_shared_points(&points, members);
        Ok(match hashing {
            _ if members.len() == 1 => Self::Sole,
            Hashing::Rendezvous => Self::Rendezvous(peers(members)),
            Hashing::Ketama => Self::Ring {
                points,
                hash: one_at_a_time,
            },
            Hashing::KetamaWeighted => Self::Ring {
                points,
                hash: |key| first_word(&md5(key)),
            },
        })
    }

    /// The server of a key.
    #[inline]
    pub(super) fn owner(&self, key: &[u8]) -> usize {
        match self {
            Self::Sole => 0,
            Self::Rendezvous(peers) => rendezvous(peers, xxh3_64(key)),
            Self::Ring { points, hash } => {
                let hash = hash(key);
                let next = points.partition_point(|point| point.value < hash);
                points.get(next).unwrap_or(&points[0]).server
            }
        }
    }
}

/// The pool in one text: equal for two configurations exactly if they place every key on the same server.
pub(super) fn description(hashing: Hashing, members: &[Member]) -> String {
    let name: fn(&Member) -> String = match hashing {
        _ if members.len() == 1 => |member| member.address.to_string(),
        Hashing::Rendezvous => |member| member.address.to_string(),
        Hashing::Ketama | Hashing::KetamaWeighted => Member::full_name,
    };
    // Only how weights compare has a meaning.
    let unit = members
        .iter()
        .fold(0, |unit, member| common_divisor(member.weight, unit));
    let names: Vec<String> = members
        .iter()
        .map(|member| match member.weight / unit {
            1 => name(member),
            weight => format!("{}*{weight}", name(member)),
        })
        .collect();
    let hash = match hashing {
        _ if members.len() == 1 => "",
        Hashing::Rendezvous => "",
        Hashing::Ketama => "?hash=ketama",
        Hashing::KetamaWeighted => "?hash=ketama_weighted",
    };
    format!("memcached://{}{hash}", names.join(","))
}

fn common_divisor(one: u32, other: u32) -> u32 {
    match other {
        0 => one,
        _ => common_divisor(other, one % other),
    }
}

// --- rendezvous hashing

fn peers(members: &[Member]) -> Vec<Peers> {
    let mut peers: Vec<Peers> = Vec::new();
    for (server, member) in members.iter().enumerate() {
        let seed = (xxh3_64(member.address.to_string().as_bytes()), server);
        match peers.iter_mut().find(|peers| peers.weight == member.weight) {
            Some(peers) => peers.seeds.push(seed),
            None => peers.push(Peers {
                weight: member.weight,
                seeds: vec![seed],
            }),
        }
    }
    // The heaviest first: mostly the winner is among them.
    peers.sort_by_key(|peers| std::cmp::Reverse(peers.weight));
    peers
}

/// The server with the highest draw. A draw counts as its root of the degree of the weight, so that shares are as weights
/// are; between servers of one weight that makes no difference.
#[inline]
fn rendezvous(peers: &[Peers], hash: u64) -> usize {
    let mut champion: Option<(u64, u32, usize)> = None;
    for Peers { weight, seeds } in peers {
        let draws = seeds
            .iter()
            .map(|&(seed, server)| (mix(hash ^ seed), server));
        // Seeds differ, and mixing keeps what differs apart: no two draws are equal.
        let (draw, server) = draws.max().expect("there is a server of each weight");
        champion = match champion {
            Some(champion) if !beats((draw, *weight), (champion.0, champion.1)) => Some(champion),
            _ => Some((draw, *weight, server)),
        };
    }
    let (.., server) = champion.expect("a pool has a server");
    server
}

/// Whether a draw is higher than that of a server of a larger weight.
fn beats((draw, weight): (u64, u32), (heavier, larger): (u64, u32)) -> bool {
    // The root of a higher degree is the higher one already.
    draw > heavier
        && u128::from(shortfall(draw)) * u128::from(larger)
            < u128::from(shortfall(heavier)) * u128::from(weight)
}

/// How far the logarithm of a draw is below that of the highest.
fn shortfall(draw: u64) -> u64 {
    (64 << FRACTION) - log2(draw | 1)
}

/// Bits behind the point of a logarithm: what is beyond shifts a share by less than a millionth.
const FRACTION: u32 = 24;

/// The binary logarithm. In integers, since floating point answers differently on different machines.
fn log2(number: u64) -> u64 {
    let zeros = number.leading_zeros();
    let mut log = u64::from(63 - zeros);
    // From 1 to 2, with 63 bits behind the point. Its square is twice its logarithm, which shows the next bit.
    let mut rest = number << zeros;
    for _ in 0..FRACTION {
        let square = (u128::from(rest) * u128::from(rest)) >> 63;
        let bit = square >> 64;
        rest = u64::try_from(square >> bit).expect("it is below 2 again");
        log = log << 1 | u64::from(bit == 1);
    }
    log
}

/// Spreads every bit over all others.
#[inline]
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

// --- libmemcached's rings

/// The ring of `MEMCACHED_BEHAVIOR_KETAMA`: 100 points a server, by libmemcached's default hash.
fn ketama(members: &[Member]) -> Result<Vec<Point>> {
    const POINTS: usize = 100;
    if let Some(member) = members.iter().find(|member| member.weight != 1) {
        return Err(refused(format!(
            "{} has a weight, and `hash = \"ketama\"` knows none; use \"ketama_weighted\" if the pool's other clients do",
            member.address
        )));
    }
    let points = members.iter().enumerate().flat_map(|(server, member)| {
        let name = member.ring_name();
        (0..POINTS).map(move |number| Point {
            value: one_at_a_time(format!("{name}-{number}").as_bytes()),
            server,
        })
    });
    Ok(sorted(points))
}

/// The ring of `MEMCACHED_BEHAVIOR_KETAMA_WEIGHTED`: 160 points a server on average, four from each MD5 digest.
fn weighted_ketama(members: &[Member]) -> Result<Vec<Point>> {
    const POINTS: f32 = 160.0;
    let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    let mut points = Vec::new();
    for (server, member) in members.iter().enumerate() {
        // As libmemcached rounds: in single precision, and step by step.
        let share = member.weight as f32 / total as f32;
        let digests = (share * POINTS / 4.0 * members.len() as f32 + 1e-10).floor() as usize;
        if digests == 0 {
            return Err(refused(format!(
                "{} would get no key at all, so small is its weight beside the others'; raise it",
                member.address
            )));
        }
        let name = member.ring_name();
        for number in 0..digests {
            let digest = md5(format!("{name}-{number}").as_bytes());
            points.extend(digest.chunks_exact(4).map(|word| Point {
                value: first_word(word),
                server,
            }));
        }
    }
    Ok(sorted(points))
}

fn sorted(points: impl IntoIterator<Item = Point>) -> Vec<Point> {
    let mut points: Vec<Point> = points.into_iter().collect();
    points.sort_unstable();
    points
}

/// Where two servers have a point in common libmemcached goes by the order in which they are listed, and larder by their
/// names. One pool of 50 servers in 130 has such a point, with about as many keys as any other.
fn warn_of_shared_points(points: &[Point], members: &[Member]) {
    for pair in points.windows(2) {
        if pair[0].value == pair[1].value && pair[0].server != pair[1].server {
            let (first, second) = (&members[pair[0].server], &members[pair[1].server]);
            tracing::warn!(
                first = %first.address, second = %second.address,
                "these two memcached servers share a point of the ring: list them in this order in other clients"
            );
        }
    }
}

fn md5(text: &[u8]) -> [u8; 16] {
    Md5::digest(text).into()
}

fn first_word(digest: &[u8]) -> u32 {
    u32::from_le_bytes(digest[..4].try_into().expect("four bytes are a word"))
}

/// Jenkins's one-at-a-time hash, with bytes beyond ASCII taken as negative, as libmemcached does on x86.
fn one_at_a_time(text: &[u8]) -> u32 {
    let mut hash = text.iter().fold(0_u32, |hash, &byte| {
        let hash = hash.wrapping_add(i32::from(byte.cast_signed()).cast_unsigned());
        let hash = hash.wrapping_add(hash << 10);
        hash ^ (hash >> 6)
    });
    hash = hash.wrapping_add(hash << 3);
    hash ^= hash >> 11;
    hash.wrapping_add(hash << 15)
}

#[cfg(test)]
mod tests {
    use larder_core::ErrorKind;

    use super::*;

    /// What libmemcached does, and on loopback pylibmc with real servers; `vectors.py` beside it made it.
    const VECTORS: &str = include_str!("../../tests/ketama/vectors.txt");

    fn members<'a>(servers: impl IntoIterator<Item = &'a str>) -> Vec<Member> {
        let mut members: Vec<Member> = servers
            .into_iter()
            .map(|server| Member::parse(server).unwrap())
            .collect();
        members.sort_unstable();
        members
    }

    fn placed(hashing: Hashing, members: &[Member]) -> Placement {
        Placement::new(hashing, members).unwrap()
    }

    #[test]
    fn ketama_places_every_key_where_libmemcached_does() {
        let mut compared = 0;
        for line in VECTORS.lines().filter(|line| !line.starts_with('#')) {
            let (pool, owners) = line.rsplit_once(": ").unwrap();
            let (hashing, servers) = pool.split_once(' ').unwrap();
            let hashing = match hashing {
                "ketama" => Hashing::Ketama,
                "ketama_weighted" => Hashing::KetamaWeighted,
                other => panic!("{other}"),
            };
            let listed: Vec<&str> = servers.split(',').collect();
            let members = members(listed.iter().copied());
            let placement = placed(hashing, &members);
            for (number, digit) in owners.bytes().enumerate() {
                let key = match number % 10 {
                    9 => format!("v1/k\u{e4}se:{number}"),
                    _ => format!("v1/user:{number}"),
                };
                let expected = match digit {
                    b'0'..=b'9' => digit - b'0',
                    b'a'..=b'z' => digit - b'a' + 10,
                    _ => digit - b'A' + 36,
                };
                let expected = Member::parse(listed[usize::from(expected)]).unwrap();
                let owner = &members[placement.owner(key.as_bytes())];
                assert_eq!(*owner, expected, "{pool}: {key}");
                compared += 1;
            }
        }
        assert!(compared > 10_000, "{compared}");
    }

    /// Who upgrades one process after the other has both versions ask the same servers: a key that moved would be deleted
    /// on one and read from the other.
    #[test]
    fn a_key_stays_on_its_server_from_version_to_version() {
        #[track_caller]
        fn check(servers: [&str; 3], owners: [(&str, &str); 8]) {
            let members = members(servers);
            let placement = placed(Hashing::Rendezvous, &members);
            for (key, server) in owners {
                let owner = &members[placement.owner(key.as_bytes())];
                assert_eq!(owner.address.to_string(), server, "{key}");
            }
        }
        let (a, b, c) = ("10.0.0.5:11211", "cache-b:11212", "/run/memcached.sock");
        let session = "session:0123456789abcdef0123456789abcdef";
        let equal = [
            ("a", c),
            ("user:1", a),
            ("user:2", b),
            ("user:3", a),
            ("v1/user:7", a),
            ("v1/page:/start", a),
            ("v2/k\u{fc}che", c),
            (session, c),
        ];
        check(["10.0.0.5", "cache-b:11212", "/run/memcached.sock"], equal);
        check(
            ["10.0.0.5*7", "/run/memcached.sock*7", "cache-b:11212*7"],
            equal,
        );
        check(
            ["10.0.0.5*2", "cache-b:11212*3", "/run/memcached.sock"],
            [
                ("a", c),
                ("user:1", a),
                ("user:2", b),
                ("user:3", a),
                ("v1/user:7", a),
                ("v1/page:/start", a),
                ("v2/k\u{fc}che", b),
                (session, b),
            ],
        );
    }

    fn keys(count: usize) -> impl Iterator<Item = String> {
        (0..count).map(|number| format!("v1/user:{number}"))
    }

    #[test]
    fn shares_are_as_weights_are() {
        let members = members(["a*1", "b*2", "c*5", "d*2", "e*10"]);
        for hashing in [Hashing::Rendezvous, Hashing::KetamaWeighted] {
            let placement = placed(hashing, &members);
            let mut counts = [0_u32; 5];
            for key in keys(100_000) {
                counts[placement.owner(key.as_bytes())] += 1;
            }
            // A ring of a few hundred points is uneven by its nature.
            let slack = match hashing {
                Hashing::Rendezvous => 0.03,
                _ => 0.25,
            };
            for (member, count) in members.iter().zip(counts) {
                let share = f64::from(count) / 100_000.0;
                let wanted = f64::from(member.weight) / 20.0;
                assert!((share / wanted - 1.0).abs() < slack, "{member:?}: {share}");
            }
        }
    }

    #[test]
    fn what_changes_moves_its_own_share_only() {
        #[track_caller]
        fn check(before: &[&str], after: &[&str], changed: &str, hashing: Hashing) {
            let [before, after] = [before, after].map(|servers| members(servers.iter().copied()));
            let [old, new] = [&before, &after].map(|members| placed(hashing, members));
            let mut moved = 0;
            for key in keys(10_000) {
                let old = &before[old.owner(key.as_bytes())].address;
                let new = &after[new.owner(key.as_bytes())].address;
                if old != new {
                    assert!(
                        [old, new].iter().any(|is| is.to_string() == changed),
                        "{key}"
                    );
                    moved += 1;
                }
            }
            assert!((500..6_000).contains(&moved), "{moved}");
        }
        for hashing in [Hashing::Rendezvous, Hashing::Ketama] {
            check(&["a", "b", "c"], &["a", "b", "c", "d"], "d:11211", hashing);
            check(&["a", "b", "c"], &["a", "c"], "b:11211", hashing);
        }
        let hashing = Hashing::Rendezvous;
        check(&["a", "b", "c"], &["a", "b*2", "c"], "b:11211", hashing);
        check(&["a", "b*2", "c*3"], &["a", "b*2", "c"], "c:11211", hashing);
        check(&["a*4", "b*2", "c*3"], &["a*4", "b*2"], "c:11211", hashing);
    }

    #[test]
    fn logarithms_are_those_of_a_calculator() {
        for number in [1, 2, 3, 10, 1 << 40, u64::MAX / 3, u64::MAX] {
            let log = log2(number) as f64 / f64::from(1 << FRACTION);
            assert!(
                (log - (number as f64).log2()).abs() < 2e-7,
                "{number}: {log}"
            );
        }
    }

    #[track_caller]
    fn check_description(hashing: Hashing, servers: &[&str], expected: &str) {
        let members = members(servers.iter().copied());
        assert_eq!(description(hashing, &members), expected);
    }

    #[test]
    fn a_pool_is_described_by_what_places_its_keys() {
        let check = |servers: &[&str], expected| {
            check_description(Hashing::Rendezvous, servers, expected);
        };
        check(&["b", "A:1"], "memcached://a:1,b:11211");
        check(&["b*3", "a*3"], "memcached://a:11211,b:11211");
        check(&["b*4", "a*6"], "memcached://a:11211*3,b:11211*2");
        check(&["a*4"], "memcached://a:11211");
        check(&["::1", "/s*2"], "memcached://[::1]:11211,/s*2");
        let check = |servers: &[&str], expected| {
            check_description(Hashing::KetamaWeighted, servers, expected);
        };
        check(
            &["B", "a:1"],
            "memcached://a:1,B:11211?hash=ketama_weighted",
        );
        check(
            &["::1*2", "/s*4"],
            "memcached://[::1]:11211,/s*2?hash=ketama_weighted",
        );
        check(&["A*4"], "memcached://a:11211");
        check_description(
            Hashing::Ketama,
            &["b", "a"],
            "memcached://a:11211,b:11211?hash=ketama",
        );
    }

    #[test]
    fn weights_are_read_behind_any_address() {
        for (text, address, weight) in [
            ("10.0.0.5", "10.0.0.5:11211", 1),
            ("10.0.0.5:1*3", "10.0.0.5:1", 3),
            ("[::1]:1*100000", "[::1]:1", 100_000),
            ("::1*2", "[::1]:11211", 2),
            ("/run/a*b/sock", "/run/a*b/sock", 1),
            ("unix:/run/sock*4", "/run/sock", 4),
        ] {
            let member = Member::parse(text).unwrap();
            assert_eq!(
                (&*member.address.to_string(), member.weight),
                (address, weight)
            );
        }
        for text in [
            "a*", "a*0", "a*-1", "a*+1", "a*x", "a*100001", "a*1*", "*3", "/s*0",
        ] {
            let error = Member::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{text}: {error}");
        }
    }

    #[test]
    fn weights_that_cannot_be_kept_are_refused() {
        for (hashing, servers, reason) in [
            (Hashing::Ketama, ["a", "b*2"], "knows none"),
            (Hashing::KetamaWeighted, ["a", "b*100"], "no key at all"),
        ] {
            let error = Placement::new(hashing, &members(servers)).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
        assert!(Placement::new(Hashing::Rendezvous, &members(["a", "b*100000"])).is_ok());
    }
}
