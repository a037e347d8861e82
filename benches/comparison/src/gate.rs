//! Where the loaders of the cases wait while the gate is closed, after they have read.

use std::sync::LazyLock;

use tokio::sync::watch;

static CLOSED: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));
static LOADS: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));

/// Goes on when the gate is open.
pub async fn pass() {
    LOADS.send_modify(|loads| *loads += 1);
    let mut closed = CLOSED.subscribe();
    let _ = closed.wait_for(|closed| !closed).await;
}

pub fn close() {
    CLOSED.send_replace(true);
}

pub fn open() {
    CLOSED.send_replace(false);
}

/// How many loads came here so far.
pub fn loads() -> usize {
    *LOADS.borrow()
}

/// Waits for one more load than there were.
pub async fn another(before: usize) {
    let mut loads = LOADS.subscribe();
    let _ = loads.wait_for(|loads| *loads > before).await;
}
