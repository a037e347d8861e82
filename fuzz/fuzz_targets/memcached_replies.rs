//! Any bytes as what a memcached server answers, whole and in pieces.
//!
//! Nothing may panic or fill the memory, and the pieces in which bytes arrive must not matter. The first byte is the
//! length of the pieces.
#![no_main]

use larder_backends::memcached::read_replies;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&length, bytes)) = data.split_first() else {
        return;
    };
    let pieces = bytes.chunks(usize::from(length).max(1));
    for binary in [false, true] {
        let cut = read_replies(binary, pieces.clone());
        assert_eq!(cut, read_replies(binary, [bytes]));
    }
});
