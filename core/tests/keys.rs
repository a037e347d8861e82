//! Keys: different arguments make different keys, every key is legal, and a batch is what was pushed.

use std::collections::HashMap;
use std::fmt::Debug;

use larder_core::{ErrorKind, KeyPart, KeyWriter, Keys, MAX_KEY, MAX_PREFIX, Pool, Prefix, Reach};
use proptest::prelude::*;

/// As long as a prefix gets.
fn prefix() -> Prefix {
    let pool = Pool::new("memory", Reach::Process);
    let prefix = Prefix::new("deployment-2025.01-a").unwrap().for_pool(&pool);
    assert_eq!(prefix.as_str().len(), MAX_PREFIX);
    prefix
}

/// A batch of one.
fn one(accessor: &str, arguments: &(impl KeyPart + ?Sized)) -> Keys {
    let mut keys = Keys::new();
    keys.push(prefix(), accessor, arguments).unwrap();
    keys
}

fn key(arguments: &(impl KeyPart + ?Sized)) -> String {
    one("accessor", arguments).get(0).as_str().to_owned()
}

/// A text of which only the digest is in the key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Digested(String);

impl KeyPart for Digested {
    fn write(&self, key: &mut KeyWriter<'_>) {
        key.digest(self.0.as_bytes());
    }
}

/// Short texts of what a careless encoding would confuse: separators, escapes, the words of options.
fn hostile_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[:%/!=aA25 .é\u{0}-]{0,4}",
        "%(25|3A|2F|21){1,2}",
        "\\PC{0,6}"
    ]
}

fn digested() -> impl Strategy<Value = Digested> {
    hostile_text().prop_map(Digested)
}

/// Arguments with a part of every kind.
fn arguments() -> impl Strategy<Value = impl KeyPart + Clone + Debug + PartialEq> {
    (
        prop::option::of(prop::option::of(hostile_text())),
        hostile_text(),
        (-12_i64..12, any::<u128>()),
        (any::<bool>(), prop::char::any()),
        digested(),
        prop::option::of(prop::option::of(any::<bool>())),
    )
}

proptest! {
    #[test]
    fn equal_keys_mean_equal_arguments(one in arguments(), other in arguments()) {
        prop_assert_eq!(one == other, key(&one) == key(&other));
        prop_assert_eq!(key(&one), key(&one.clone()));
    }

    // Random arguments differ in many places; these in one.
    #[test]
    fn one_part_makes_the_difference(
        (a, b, c) in (hostile_text(), hostile_text(), hostile_text()),
        (x, y) in (any::<i128>(), any::<i128>()),
    ) {
        prop_assert_eq!(a == b, key(&(&a, &c)) == key(&(&b, &c)));
        prop_assert_eq!(a == b, key(&(&c, &a)) == key(&(&c, &b)));
        prop_assert_eq!(a == b, key(&(Some(&a), &c)) == key(&(Some(&b), &c)));
        prop_assert_eq!(a == b, key(&Digested(a.clone())) == key(&Digested(b.clone())));
        prop_assert_eq!(x == y, key(&(x, &a)) == key(&(y, &a)));
        // Where one part ends and the next begins can't be shifted.
        let (joined, empty) = (format!("{a}{b}"), String::new());
        prop_assert_eq!((&a, &b) == (&joined, &empty), key(&(&a, &b)) == key(&(&joined, &empty)));
    }

    #[test]
    fn keys_are_printable_ascii(arguments in arguments()) {
        let key = key(&arguments);
        prop_assert!(key.len() <= MAX_KEY);
        prop_assert!(key.bytes().all(|byte| byte.is_ascii_graphic()), "{}", key);
    }

    #[test]
    fn text_can_be_read_back_from_its_key(text in "\\PC{0,10}") {
        let key = key(&text);
        prop_assert_eq!(unescape(key.rsplit_once(':').unwrap().1), text.as_bytes());
    }

    #[test]
    fn too_long_key_is_refused_and_leaves_the_batch_alone(
        before in prop::collection::vec(digested(), 0..4),
        length in MAX_KEY - 60..2 * MAX_KEY,
    ) {
        let mut keys = Keys::new();
        for text in &before {
            keys.push(prefix(), "accessor", text).unwrap();
        }
        let whole = MAX_PREFIX + "/accessor:".len() + length;

        let pushed = keys.push(prefix(), "accessor", "x".repeat(length).as_str());

        prop_assert_eq!(pushed.is_ok(), whole <= MAX_KEY);
        match pushed {
            Ok(()) => prop_assert_eq!(keys.get(before.len()).as_bytes().len(), whole),
            Err(error) => {
                let message = error.to_string();
                prop_assert_eq!(error.kind(), ErrorKind::Key);
                prop_assert!(message.contains("`accessor`") && message.contains(&whole.to_string()), "{}", message);
                prop_assert_eq!(keys.len(), before.len());
            }
        }
        // Whatever happened, its neighbours are what they would be without it.
        keys.push(prefix(), "accessor", &7).unwrap();
        let last = keys.get(keys.len() - 1);
        prop_assert_eq!((last.without_prefix(), last.hidden()), ("accessor:7", 0));
        for (position, text) in before.iter().enumerate() {
            let alone = one("accessor", text);
            prop_assert_eq!(keys.get(position), alone.get(0));
        }
    }

    #[test]
    fn get_iter_and_select_agree(
        pushed in prop::collection::vec((any::<u64>(), prop::option::of(digested())), 1..20),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let mut keys = Keys::with_capacity(pushed.len());
        for arguments in &pushed {
            keys.push(prefix(), "accessor", arguments).unwrap();
        }
        prop_assert_eq!((keys.len(), keys.iter().len()), (pushed.len(), pushed.len()));
        for ((position, key), arguments) in keys.iter().enumerate().zip(&pushed) {
            prop_assert_eq!(key, keys.get(position));
            let alone = one("accessor", arguments);
            prop_assert_eq!(key, alone.get(0));
            prop_assert_eq!(key.hidden() != 0, arguments.1.is_some());
        }

        let picks: Vec<_> = picks.iter().map(|pick| pick.index(pushed.len())).collect();
        let selected = keys.select(picks.iter().copied());
        prop_assert_eq!((selected.len(), selected.is_empty()), (picks.len(), picks.is_empty()));
        for (key, pick) in selected.iter().zip(picks) {
            prop_assert_eq!(key, keys.get(pick));
        }
    }
}

/// The reverse of the escaping, written here a second time.
fn unescape(text: &str) -> Vec<u8> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap().as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(&piece[..2], 16).unwrap());
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    bytes
}

/// All of them, not samples: texts of up to two hostile characters, and options of them.
#[test]
fn no_two_of_all_short_arguments_share_a_key() {
    let characters = [":", "%", "/", "!", "=", "2", "A", "é", " ", ""];
    let mut texts: Vec<_> = characters
        .iter()
        .flat_map(|first| characters.map(|second| format!("{first}{second}")))
        .collect();
    texts.sort();
    texts.dedup();
    let mut options = vec![None, Some(None)];
    options.extend(texts.iter().map(|text| Some(Some(text))));

    let mut seen = HashMap::new();
    for arguments in options
        .iter()
        .flat_map(|option| texts.iter().map(move |text| (option, text)))
    {
        if let Some(earlier) = seen.insert(key(&arguments), arguments) {
            panic!("{earlier:?} and {arguments:?} share a key");
        }
    }
}

#[test]
fn digest_depends_on_accessor_and_part() {
    fn digest(accessor: &str, arguments: &impl KeyPart, part: usize) -> String {
        let keys = one(accessor, arguments);
        keys.get(0)
            .as_str()
            .split(':')
            .nth(part)
            .unwrap()
            .to_owned()
    }
    let bob = || Digested("bob@example.com".into());
    let digests = [
        digest("users", &(bob(), 1), 1),
        digest("users", &(1, bob()), 2),
        digest("bots", &(bob(), 1), 1),
    ];
    assert!(
        digests.iter().all(|digest| digest.len() == 27),
        "{digests:?}"
    );
    assert!(digests[0] != digests[1] && digests[0] != digests[2] && digests[1] != digests[2]);
    assert_eq!(digests[0], digest("users", &(bob(), 2), 1));
}

/// Anything as one part of fixed length.
struct DigestOf<T>(T);

impl<T: KeyPart> KeyPart for DigestOf<T> {
    fn write(&self, key: &mut KeyWriter<'_>) {
        key.digest_of(&self.0);
    }
}

proptest! {
    #[test]
    fn digests_of_parts_differ_where_the_parts_do(a in arguments(), b in arguments()) {
        prop_assert_eq!(a == b, key(&DigestOf(a.clone())) == key(&DigestOf(b)));
        prop_assert_eq!(key(&DigestOf(a)).len(), prefix().as_str().len() + "/accessor:".len() + 27);
    }
}

#[test]
fn hidden_tells_digested_texts_apart_and_only_those() {
    let text = |text: &str| Digested(text.to_owned());
    let hidden = |keys: Keys| keys.get(0).hidden();
    let digests = hidden(one("a", &(text("x"), text("y"))));
    assert_ne!(digests, 0);
    assert_ne!(digests, hidden(one("a", &(text("y"), text("x")))));
    assert_eq!(hidden(one("a", &("x", "y"))), 0);
}

#[test]
fn accessor_name_that_would_break_a_key_is_refused() {
    for name in ["", "a b", "a:1", "a/b", "a\n", "naïve"] {
        let mut keys = Keys::new();
        let error = keys.push(prefix(), name, &7).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Key);
        assert!(
            error.to_string().contains("its name must be made of"),
            "{error}"
        );
        assert!(keys.is_empty());
    }
}

#[test]
fn raw_key_is_checked() {
    #[track_caller]
    fn check(key: &str, expected: Result<(), &str>) {
        match (Keys::one(key), expected) {
            (Ok(keys), Ok(())) => assert_eq!(keys.get(0).as_str(), key),
            (Err(error), Err(reason)) => {
                assert_eq!(error.kind(), ErrorKind::Key);
                assert!(error.to_string().contains(reason), "{error}");
            }
            (got, _) => panic!("{key:?} made {got:?}"),
        }
    }
    check("a", Ok(()));
    check("p/n:1", Ok(()));
    check(&"k".repeat(MAX_KEY), Ok(()));
    check("", Err("is empty"));
    check(&"k".repeat(MAX_KEY + 1), Err("251 bytes long"));
    for key in ["a b", "a\r\n", "\u{7f}", "é"] {
        check(key, Err("isn't printable ASCII"));
    }
}

#[test]
fn prefix_is_taken_off_where_it_was_put_on() {
    let keys = one("accessor", &("a/b", 7));
    assert_eq!(keys.get(0).without_prefix(), "accessor:a%2Fb:7");
}
