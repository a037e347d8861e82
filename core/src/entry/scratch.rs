//! One thread's buffers and compression contexts, used again for each entry.
//!
//! Making them costs more than using them: a fresh zstd context takes longer than compressing a message.

use std::cell::Cell;

use super::compress::Contexts;

/// Buffers that grew beyond this are not kept.
const KEPT: usize = 1 << 20;

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

#[derive(Default)]
pub(super) struct Scratch {
    /// A value as its codec writes it.
    pub(super) plain: Vec<u8>,
    /// The same as a zstd frame.
    pub(super) packed: Vec<u8>,
    pub(super) zstd: Contexts,
}

/// Runs with this thread's scratch.
///
/// It is taken out for that time: a value whose serde code opens another entry gets a fresh one instead of a panic.
pub(super) fn with<R>(run: impl FnOnce(&mut Scratch) -> R) -> R {
    // While the thread ends its locals may be gone; then a fresh one serves as well.
    let mut scratch = SCRATCH
        .try_with(Cell::take)
        .ok()
        .flatten()
        .unwrap_or_default();
    let result = run(&mut scratch);
    for buffer in [&mut scratch.plain, &mut scratch.packed] {
        if buffer.capacity() > KEPT {
            *buffer = Vec::new();
        }
    }
    let _ = SCRATCH.try_with(|slot| slot.set(Some(scratch)));
    result
}
