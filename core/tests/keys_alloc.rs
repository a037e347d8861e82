//! What keys allocate: nothing per key of a batch, and nothing at all for one of usual length.

use allocation_counter::measure;
use larder_core::{KeyPart, KeyWriter, Keys, Prefix};

struct Email(&'static str);

impl KeyPart for Email {
    fn write(&self, key: &mut KeyWriter<'_>) {
        key.digest(self.0.as_bytes());
    }
}

/// How many allocations it takes to push as many and to read them again.
fn allocations<K: KeyPart>(count: u64, arguments: impl Fn(u64) -> K) -> u64 {
    let prefix = Prefix::new("git-3f2a91c").unwrap();
    let work = || {
        let mut keys = Keys::with_capacity(usize::try_from(count).unwrap());
        for number in 0..count {
            keys.push(prefix, "user_profile", &arguments(number))
                .unwrap();
        }
        assert!(keys.iter().all(|key| key.as_bytes().starts_with(b"git-")));
    };
    measure(work).count_total
}

#[test]
fn one_key_of_usual_length_allocates_nothing() {
    assert_eq!(allocations(1, |number| number), 0);
    assert_eq!(allocations(1, |_| (7_u32, "general", Some(true))), 0);
    assert_eq!(allocations(1, |_| (7_u32, Email("bob@example.com"))), 0);
}

#[test]
fn batch_allocates_its_buffers_and_nothing_per_key() {
    // One buffer of texts, and one of where they end.
    assert_eq!(allocations(1_000, |number| number), 2);
    // The third is for what digests hide.
    assert_eq!(allocations(1_000, |_| Email("bob@example.com")), 3);
    assert_eq!(allocations(10_000, |_| Email("bob@example.com")), 3);
}

#[test]
fn selection_allocates_its_buffers_and_nothing_per_key() {
    let prefix = Prefix::new("git-3f2a91c").unwrap();
    let mut keys = Keys::with_capacity(1_000);
    for number in 0..1_000_u64 {
        keys.push(prefix, "message", &number).unwrap();
    }
    let all = measure(|| assert_eq!(keys.select((0..1_000).rev()).len(), 1_000));
    assert_eq!(all.count_total, 2);
    let one = measure(|| assert_eq!(keys.select([999]).len(), 1));
    assert_eq!(one.count_total, 0);
}
