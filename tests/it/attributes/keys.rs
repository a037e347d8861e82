//! Key templates: the texts they write, beside those that a person would.

use std::collections::HashSet;

use larder::{Dataset, KeyPart, KeyWriter, Keys, Prefix};

use super::town::{Conn, DbResult, Town};

/// What the data set writes for this key.
#[track_caller]
fn check<D: Dataset>(key: D::Key, expected: impl KeyPart) {
    let mut keys = Keys::new();
    keys.push(Prefix::new("v").unwrap(), D::NAME, &expected)
        .unwrap();
    let written = larder::private::key_text::<D>(&key).unwrap();
    assert_eq!(written, keys.get(0).without_prefix());
}

/// A key function by hand.
struct By<F>(F);

impl<F: Fn(&mut KeyWriter<'_>)> KeyPart for By<F> {
    fn write(&self, key: &mut KeyWriter<'_>) {
        (self.0)(key);
    }
}

#[larder::cached(source = Town, key = "nothing", ttl_only = "1h")]
async fn nothing(_db: &mut Conn) -> DbResult<u8> {
    Ok(0)
}

#[larder::cached(source = Town, key = "numbers:{b}:{a}", ttl_only = "1h")]
async fn numbers(_db: &mut Conn, a: u32, b: i8) -> DbResult<u8> {
    let _ = (a, b);
    Ok(0)
}

#[larder::cached(source = Town, key = "texts:{short:escaped}:by:{long:digest}", ttl_only = "1h")]
async fn texts(_db: &mut Conn, short: &str, long: String) -> DbResult<u8> {
    let _ = (short, long);
    Ok(0)
}

#[larder::cached(source = Town, key = "words.v-1:!:a@b:{type}:=", ttl_only = "1h")]
async fn words(_db: &mut Conn, r#type: Option<bool>) -> DbResult<u8> {
    let _ = r#type;
    Ok(0)
}

#[larder::cached(source = Town, key = "skips:{a}", ttl_only = "1h", skip(hint, note))]
async fn skips(_db: &mut Conn, hint: u8, a: u32, note: &str) -> DbResult<u8> {
    let _ = (hint, a, note);
    Ok(0)
}

#[larder::cached(source = Town, key = "tuples:{of}:{eight}", ttl_only = "1h", skip(c, d, e, f, g, h))]
#[expect(clippy::too_many_arguments, reason = "as many as there may be")]
async fn tuples(
    _db: &mut Conn,
    of: (u8, char),
    eight: &u64,
    c: u8,
    d: u8,
    e: u8,
    f: u8,
    g: u8,
    h: u8,
) -> DbResult<u8> {
    let _ = (of, eight, c, d, e, f, g, h);
    Ok(0)
}

#[larder::cached(many, source = Town, key = "of_many:{ids}:in:{realm}", ttl_only = "1h")]
async fn of_many(_db: &mut Conn, realm: u32, ids: &[u64]) -> DbResult<Vec<(u64, u8)>> {
    let _ = (realm, ids);
    Ok(Vec::new())
}

#[test]
fn keys_read_as_their_templates_say() {
    let nothing = larder::private::key_text::<nothing>(&nothing::key());
    assert_eq!(nothing.unwrap(), "nothing");
    check::<numbers>(numbers::key(7, -8), (-8, 7));
    check::<texts>(
        texts::key("a:b", "long".to_owned()),
        By(|key: &mut KeyWriter<'_>| {
            key.text("a:b");
            key.word("by");
            key.digest_of("long");
        }),
    );
    check::<words>(
        words::key(Some(true)),
        By(|key: &mut KeyWriter<'_>| {
            key.word("!");
            key.word("a@b");
            Some(true).write(key);
            key.word("=");
        }),
    );
    check::<skips>(skips::key(7), 7);
    check::<tuples>(tuples::key((1, 'x'), &8), (1, 'x', 8));
    check::<of_many>(
        of_many::key(7, 8),
        By(|key: &mut KeyWriter<'_>| {
            key.integer(8);
            key.word("in");
            key.integer(7);
        }),
    );
}

#[test]
fn a_template_names_the_rule() {
    assert_eq!(
        (texts::NAME, texts::KEY),
        ("texts", "texts:{short:escaped}:by:{long:digest}")
    );
    assert_eq!((nothing::NAME, nothing::KEY), ("nothing", "nothing"));
}

/// A person.
#[derive(Clone, Debug, PartialEq, Eq, Hash, KeyPart)]
struct UserId(u64);

/// Texts in a type of their own say what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, KeyPart)]
struct Email(#[key(digest)] String);

#[derive(Clone, Debug, PartialEq, Eq, Hash, KeyPart)]
struct Place {
    #[key(escaped)]
    country: String,
    user: UserId,
    spot: Option<(u8, u8)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, KeyPart)]
enum Colour {
    Red,
    r#Green,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, KeyPart)]
struct Pair<T, U = T>(T, U);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, KeyPart)]
struct All;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, KeyPart)]
struct Lent<'a>(#[key(escaped)] &'a str);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, KeyPart)]
struct LentIds<'u, 'o>(&'u UserId, Option<&'o UserId>);

#[larder::cached(source = Town, key = "parts:{user}:{email}:{place}:{colour}:{pair}:{all}", ttl_only = "1h")]
async fn parts(
    _db: &mut Conn,
    user: &UserId,
    email: &Email,
    place: Place,
    colour: Colour,
    pair: Pair<u8>,
    all: All,
) -> DbResult<u8> {
    let _ = (user, email, place, colour, pair, all);
    Ok(0)
}

#[test]
fn derived_parts_write_their_fields() {
    let (email, country) = ("ada@example.com".to_owned(), "a b".to_owned());
    let place = Place {
        country,
        user: UserId(3),
        spot: None,
    };
    let key = parts::key(
        &UserId(7),
        &Email(email),
        place,
        Colour::Red,
        Pair(1, 2),
        All,
    );
    check::<parts>(
        key,
        By(|key: &mut KeyWriter<'_>| {
            key.integer(7);
            key.digest_of("ada@example.com");
            ("a b", 3).write(key);
            key.word("!");
            key.word("Red");
            (1, 2).write(key);
        }),
    );
    check::<words>(
        words::key(None),
        By(|key: &mut KeyWriter<'_>| {
            key.word("!");
            key.word("a@b");
            key.word("!");
            key.word("=");
        }),
    );
}

#[test]
fn derived_parts_tell_values_apart() {
    let mut keys = Keys::new();
    let prefix = Prefix::new("v").unwrap();
    for colour in [Colour::Red, Colour::Green] {
        keys.push(prefix, "colour", &colour).unwrap();
        keys.push(prefix, "lent", &Pair(colour, Lent("a:b")))
            .unwrap();
    }
    let (ada, grace) = (UserId(7), UserId(8));
    for ids in [LentIds(&ada, None), LentIds(&ada, Some(&grace))] {
        keys.push(prefix, "ids", &ids).unwrap();
    }
    let texts: HashSet<_> = keys.iter().map(|key| key.as_str()).collect();
    assert_eq!(texts.len(), 6);
    assert!(texts.contains("v/colour:Green"), "{texts:?}");
    const { assert!(<Pair<String> as KeyPart>::TEXT && !<Pair<u8> as KeyPart>::TEXT) };
}
