//! Which bytes can be stored under which keys, and what removes them.

use super::scene::{
    LONG, Scene, Shown, delete, expect_hit, expect_kind, fill, keys_of, look, own_texts, set,
    set_own_texts, win,
};
use crate::{
    BackendExt as _, ErrorKind, Fill, FillOutcome, GetOptions, Lookup, MAX_KEY, Set, WriteOptions,
};

/// A value is any bytes, whatever they would mean on the wire.
pub(super) async fn any_bytes_are_a_value(scene: &Scene) {
    let backend = scene.backend().await;
    let mut values: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    values.push((0..=u8::MAX).collect());
    for text in [
        "\r\n",
        "\r",
        "\n",
        "\0",
        " ",
        "\r\n\r\n",
        "END\r\n",
        "EN\r\n",
        "MN\r\n",
        "HD\r\nHD\r\n",
        "VA 2 c1\r\nhi\r\n",
        "SERVER_ERROR out of memory\r\n",
        "$-1\r\n",
        "*0\r\n",
        "value\r\n",
    ] {
        values.push(text.as_bytes().to_vec());
    }
    let keys = scene.keys(0..values.len());
    let sets = values.iter().cloned().map(Set::new).collect();
    let answers = backend
        .set_immutable_many(&keys, sets, &WriteOptions::default())
        .await;
    for (value, answer) in values.iter().zip(answers) {
        assert!(answer.is_ok(), "storing {:?}: {answer:?}", Shown(value));
    }
    let answers = backend.get_many(&keys, &GetOptions::look()).await;
    for (value, answer) in values.iter().zip(answers) {
        match answer {
            Ok(Lookup::Hit { value: found, .. }) => assert_eq!(Shown(&found), Shown(value)),
            other => panic!("{:?} should be a hit, and is {other:?}", Shown(value)),
        }
    }
}

/// A value near the limit comes back whole, alone and between others.
pub(super) async fn large_value_is_kept_whole(scene: &Scene) {
    let backend = scene.backend().await;
    let mut value = vec![0; scene.can().largest_value];
    scene.random().fill(&mut value);
    let keys = scene.keys(["before", "large", "behind"]);
    let large = keys.get(1).as_str();
    set_own_texts(&*backend, &keys).await;
    let lease = {
        delete(&*backend, large).await;
        win(&*backend, large).await
    };
    let outcome = backend.fill(large, Fill::new(lease, value.clone())).await;
    assert_eq!(outcome.ok(), Some(FillOutcome::Stored));
    scene.expect_value(&*backend, large, &value).await;
    let answers = backend.get_many(&keys, &GetOptions::look()).await;
    let expected = [keys.get(0).as_bytes(), &value, keys.get(2).as_bytes()];
    for (answer, expected) in answers.into_iter().zip(expected) {
        match answer {
            Ok(Lookup::Hit { value, .. }) => assert_eq!(Shown(&value), Shown(expected)),
            other => panic!("{:?} should be a hit, and is {other:?}", Shown(expected)),
        }
    }
}

/// An empty value means a placeholder on the wire, so it is refused, and the values beside it are stored.
///
/// A refused fill gives its lease back.
pub(super) async fn empty_value_is_refused(scene: &Scene) {
    let backend = scene.backend().await;
    let keys = scene.keys(["a", "b", "c"]);
    let sets = ["a", "", "c"].map(Set::new).into_iter().collect();
    let answers = backend
        .set_immutable_many(&keys, sets, &WriteOptions::default())
        .await;
    let [a, b, c] = <[_; 3]>::try_from(answers).expect("one answer per store");
    assert!(a.is_ok() && c.is_ok(), "{a:?} {c:?}");
    expect_kind(b, ErrorKind::Config);
    scene.expect_free(&*backend, keys.get(1).as_str()).await;

    let key = scene.key("leased");
    let lease = win(&*backend, &key).await;
    let refused = backend.fill(&key, Fill::new(lease, "")).await;
    expect_kind(refused, ErrorKind::Config);
    scene.expect_free(&*backend, &key).await;
}

/// Of 100 stores with an oversized one among them, 99 are stored and one is refused, and gives its lease back.
pub(super) async fn oversized_value_fails_alone(scene: &Scene) {
    let backend = scene.backend().await;
    let too_large = || vec![b'x'; scene.can().too_large_value];
    let keys = scene.keys((0..100).map(|number| format!("set:{number}")));
    let sets = own_texts(&keys)
        .enumerate()
        .map(|(position, own)| match position {
            41 => Set::new(too_large()),
            _ => Set::new(own),
        });
    let answers = backend
        .set_immutable_many(&keys, sets.collect(), &WriteOptions::default())
        .await;
    assert_eq!(answers.len(), 100, "one answer per store");
    for (position, answer) in answers.into_iter().enumerate() {
        match position {
            41 => expect_kind(answer, ErrorKind::TooLarge),
            _ => assert!(answer.is_ok(), "the store at {position}: {answer:?}"),
        }
    }

    let keys = scene.keys((0..100).map(|number| format!("fill:{number}")));
    let leases = backend.get_many(&keys, &GetOptions::lease(LONG)).await;
    let fills = own_texts(&keys)
        .zip(leases)
        .enumerate()
        .map(|(position, (own, answer))| match answer {
            Ok(Lookup::Miss { lease: Some(lease) }) => match position {
                41 => Fill::new(lease, too_large()),
                _ => Fill::new(lease, own),
            },
            other => panic!("the key at {position} should be won, and is {other:?}"),
        })
        .collect();
    let answers = backend
        .fill_many(&keys, fills, &WriteOptions::default())
        .await;
    assert_eq!(answers.len(), 100, "one answer per fill");
    for (position, answer) in answers.into_iter().enumerate() {
        match position {
            41 => expect_kind(answer, ErrorKind::TooLarge),
            _ => assert_eq!(answer.ok(), Some(FillOutcome::Stored), "at {position}"),
        }
    }
    for (position, key) in keys.iter().enumerate() {
        match position {
            41 => scene.expect_free(&*backend, key.as_str()).await,
            _ => {
                expect_hit(&*backend, key.as_str(), key.as_bytes()).await;
            }
        }
    }
}

/// A key may be [`MAX_KEY`] bytes long, and have any printable character.
pub(super) async fn longest_key_is_a_key(scene: &Scene) {
    let backend = scene.backend().await;
    let graphic: String = ('!'..='~').collect();
    let mut longest = scene.key(&graphic);
    while longest.len() < MAX_KEY {
        longest.push('k');
    }
    set(&*backend, &longest, Set::new("longest")).await;
    scene.expect_value(&*backend, &longest, b"longest").await;
    // All commands carry the key, so all must take it.
    delete(&*backend, &longest).await;
    let lease = win(&*backend, &longest).await;
    assert_eq!(
        fill(&*backend, &longest, lease, "filled").await,
        FillOutcome::Stored
    );
    delete(&*backend, &longest).await;
    scene.expect_free(&*backend, &longest).await;
}

/// Keys that differ in one character, in case or in length are different keys.
pub(super) async fn similar_keys_are_different(scene: &Scene) {
    let backend = scene.backend().await;
    let mut texts: Vec<_> = [
        "a", "A", "aa", "a:", "a:a", "a%3Aa", "b", "a.", "a/a", "a_a",
    ]
    .iter()
    .map(|name| scene.key(name))
    .collect();
    let long = scene.key("x".repeat(180));
    texts.extend(["1", "2", "12"].map(|end| format!("{long}{end}")));
    let keys = keys_of(&texts);
    set_own_texts(&*backend, &keys).await;
    for text in &texts {
        expect_hit(&*backend, text, text.as_bytes()).await;
    }
    delete(&*backend, &texts[0]).await;
    for text in &texts[1..] {
        expect_hit(&*backend, text, text.as_bytes()).await;
    }
}

/// An absent entry is success for a delete.
pub(super) async fn deleting_what_is_absent_succeeds(scene: &Scene) {
    let backend = scene.backend().await;
    let key = scene.key("never-stored");
    delete(&*backend, &key).await;
    scene.expect_free(&*backend, &key).await;
}

/// Repeated, a delete only removes.
pub(super) async fn repeated_delete_only_removes(scene: &Scene) {
    let backend = scene.backend().await;
    let key = scene.key("a");
    for round in 0..3 {
        set(&*backend, &key, Set::new("value")).await;
        for _ in 0..=round {
            delete(&*backend, &key).await;
            scene.expect_free(&*backend, &key).await;
        }
    }
    let lease = win(&*backend, &key).await;
    assert_eq!(
        fill(&*backend, &key, lease, "later").await,
        FillOutcome::Stored,
        "deletes of before don't concern a lease of after"
    );
}

/// Stores values whatever is there.
pub(super) async fn set_immutable_overwrites(scene: &Scene) {
    let backend = scene.backend().await;
    let key = scene.key("a");
    for value in [
        "absent before",
        "a value before",
        "short",
        "a value that is longer",
    ] {
        set(&*backend, &key, Set::new(value)).await;
        scene.expect_value(&*backend, &key, value.as_bytes()).await;
    }
    let leased = scene.key("leased");
    win(&*backend, &leased).await;
    set(&*backend, &leased, Set::new("over a placeholder")).await;
    scene
        .expect_value(&*backend, &leased, b"over a placeholder")
        .await;
}

/// What one handle stores another sees, and what it deletes is gone for the other.
pub(super) async fn handles_see_each_others_entries(scene: &Scene) {
    let (one, other) = (scene.backend().await, scene.backend().await);
    let keys = scene.keys(0..100);
    set_own_texts(&*one, &keys).await;
    for key in keys.iter() {
        expect_hit(&*other, key.as_str(), key.as_bytes()).await;
    }
    for answer in other.delete_many(&keys, &WriteOptions::default()).await {
        assert!(answer.is_ok(), "{answer:?}");
    }
    for key in keys.iter() {
        let found = look(&*one, key.as_str()).await;
        assert!(matches!(found, Lookup::Miss { .. }), "{key:?} is {found:?}");
    }
}

/// The store itself has the bytes as they were given, an empty placeholder for a lease, and nothing after a delete.
pub(super) async fn store_holds_exactly_what_was_stored(scene: &Scene) {
    let backend = scene.backend().await;
    let (stored, leased) = (scene.key("stored"), scene.key("leased"));
    set(&*backend, &stored, Set::new("as given\r\n")).await;
    let lease = win(&*backend, &leased).await;
    let peeked = async |key| scene.peek(key).await.map(|peeked| peeked.value);
    assert_eq!(peeked(&stored).await.as_deref(), Some(&b"as given\r\n"[..]));
    assert_eq!(peeked(&leased).await.as_deref(), Some(&b""[..]));
    fill(&*backend, &leased, lease, "filled").await;
    assert_eq!(peeked(&leased).await.as_deref(), Some(&b"filled"[..]));
    for key in [&stored, &leased] {
        delete(&*backend, key).await;
        assert_eq!(peeked(key).await, None);
    }
}
