//! Switches for tests: each turns one mechanism off, so that the test of what it prevents can be seen to fail.
//!
//! Without the feature `switches` nothing can be turned off, and the questions cost nothing.

/// What keeps readers from what is old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mechanism {
    /// Flushes follow the commit; without it they precede it.
    FlushAfterCommit,
    /// Both images of an update are asked for their keys; without it only the one after.
    BothImages,
    /// What a commit makes stale is inserted into the outbox.
    Outbox,
    /// The register is asked after the commit if what is known of it is old.
    RegisterAfterCommit,
    /// A generation that isn't the first waits before its first fill and its first commit.
    Activation,
    /// A data set is cached only while every live generation can flush it.
    ManifestRule,
    /// What a generation couldn't flush is given up when it ends.
    PurgeAtEnd,
    /// Every live generation is flushed; without it only the own.
    EveryGeneration,
    /// A generation is used for reading only within its registration.
    Registration,
    /// What wasn't confirmed isn't read from the store by this process.
    PendingBypass,
    /// A server that was away isn't read until the outbox was asked.
    AskAfterOutage,
    /// Keys that need a query are asked for after the commit; without it, before.
    QueryAfterCommit,
    /// What is derived is deleted once its base is confirmed.
    BaseFirst,
    /// A value is filled only under a key that its own plan would flush.
    OwnKeys,
    /// A row of the outbox that couldn't be delivered waits longer every time.
    RowBackoff,
    /// A load is joined by key only until its fill is handed over.
    JoinCutoff,
}

/// Which mechanisms are on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Switches {
    #[cfg(feature = "switches")]
    off: u32,
}

impl Switches {
    #[cfg(feature = "switches")]
    pub(crate) fn turn_off(&mut self, mechanism: Mechanism) {
        self.off |= 1 << mechanism as u32;
    }

    #[cfg_attr(
        not(feature = "switches"),
        expect(unused_variables, clippy::unused_self, reason = "nothing can be off")
    )]
    pub(crate) fn is_off(self, mechanism: Mechanism) -> bool {
        #[cfg(feature = "switches")]
        return self.off >> mechanism as u32 & 1 == 1;
        #[cfg(not(feature = "switches"))]
        false
    }
}
