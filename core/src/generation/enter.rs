//! Entering the register: joining a generation, or minting one.

use std::collections::BTreeSet;

use crate::contract::{Error, ErrorKind, Pool, Prefix, Reach, Result};
use crate::switches::{Mechanism, Switches};
use crate::write::{Edit, Generation, Purge, Register, Registered};

use super::{EVERYTHING, Listed, Manifest, PURGED, REGISTRATION};

/// A process that wants to be part of a generation.
#[derive(Debug)]
pub(crate) struct Entrant {
    pub(crate) version: String,
    pub(crate) pool: Pool,
    pub(crate) holder: String,
    pub(crate) manifest: Manifest,
    /// A private store is allowed beside other processes, whose flushes don't reach it.
    pub(crate) bounded: bool,
    pub(crate) switches: Switches,
}

impl Entrant {
    pub(super) fn reach(&self) -> Reach {
        self.pool.reach
    }

    /// Whether nobody else can use the store.
    pub(super) fn is_private(&self) -> bool {
        self.pool.reach == Reach::Process
    }

    /// Joins the live generation of this version and pool, or mints one; answers its id, and whether it did.
    pub(super) async fn enter(&self, register: &dyn Register) -> Result<(String, bool)> {
        let mut entered = (String::new(), false);
        let mut decide = |registered: &Registered| {
            let (id, edits) = self.decide(registered)?;
            let is_minted = (edits.iter()).any(|edit| matches!(edit, Edit::Mint { .. }));
            entered = (id, is_minted);
            Ok(edits)
        };
        register.edit(&mut decide).await?;
        Ok(entered)
    }

    fn decide(&self, registered: &Registered) -> Result<(String, Vec<Edit>)> {
        let is_over = |generation: &Generation| {
            generation.left.is_zero() || is_dead(&generation.holder, &generation.pool)
        };
        let mut edits = end(registered, is_over, self.switches);
        let generations = registered.generations.iter();
        let live: Vec<&Generation> = generations.filter(|known| !is_over(known)).collect();
        self.check_private(&live)?;
        let mut manifest = self.manifest.clone();
        for same in live.iter().filter(|generation| self.is_same(generation)) {
            self.extend(&mut manifest, &Manifest::of_text(&same.manifest))?;
        }
        let joined = live.iter().find(|generation| {
            self.is_same(generation)
                && Manifest::of_text(&generation.manifest).has_all_of(&manifest)
        });
        if let Some(joined) = joined {
            return Ok((joined.id.clone(), edits));
        }
        let id = Prefix::random().to_string();
        edits.push(Edit::Mint {
            id: id.clone(),
            version: self.version.clone(),
            pool: self.pool.description.clone(),
            holder: self.holder.clone(),
            manifest: self.with_epochs(manifest, &live).to_text(),
            ttl: REGISTRATION,
        });
        Ok((id, edits))
    }

    /// Whether this generation is of the same code and pool.
    fn is_same(&self, generation: &Generation) -> bool {
        generation.version == self.version && generation.pool == self.pool.description
    }

    /// Whether another generation of this code and pool has all that is in this manifest, and more: one that was minted by
    /// a process that is linked with more. All of them join it, so that the one with less ends, beside which the rest
    /// isn't cached.
    pub(super) fn should_move(&self, own: &Generation, registered: &Registered) -> bool {
        let ours = Manifest::of_text(&own.manifest);
        registered.generations.iter().any(|other| {
            let theirs = Manifest::of_text(&other.manifest);
            other.id != own.id
                && !other.left.is_zero()
                && self.is_same(other)
                && theirs.has_all_of(&ours)
                && !ours.has_all_of(&theirs)
        })
    }

    /// A store that only one process reads is flushed by nobody else.
    fn check_private(&self, live: &[&Generation]) -> Result<()> {
        let mut others = live
            .iter()
            .filter(|other| other.pool != self.pool.description);
        let other = others.find(|other| self.is_private() || is_private(&other.pool));
        let Some(other) = other.filter(|_| !self.bounded) else {
            return Ok(());
        };
        Err(Error::new(
            ErrorKind::Config,
            format!(
                "{} uses this database with the store {}, and this process has {}: a store in a process isn't shared, so \
                 that neither would see the other's writes; configure a store that both reach, stop the other process \
                 (its registration ends in {} s at the latest), or say `bounded`",
                other.holder,
                other.pool,
                self.pool.description,
                other.left.as_secs() + 1
            ),
        ))
    }

    /// Adds to a manifest what a live generation of the same version lists beyond it.
    fn extend(&self, manifest: &mut Manifest, live: &Manifest) -> Result<()> {
        for (accessor, theirs) in live.accessors() {
            match manifest.get(accessor) {
                Some(ours) if theirs.rule != ours.rule || theirs.shape != ours.shape => {
                    return Err(Error::new(
                        ErrorKind::Config,
                        format!(
                            "version `{}` is running with another `{accessor}`: its key, its plan or the type of its \
                             value differ; give each build a version of its own",
                            self.version
                        ),
                    ));
                }
                Some(_) => {}
                None => manifest.list(accessor, theirs.clone()),
            }
        }
        Ok(())
    }

    /// The manifest, with the prefixes of lasting accessors: those that a live generation of the same pool uses for the
    /// same accessor, or new ones. So what was filled before a time without one is never read again.
    fn with_epochs(&self, mut manifest: Manifest, live: &[&Generation]) -> Manifest {
        let others: Vec<Manifest> = live
            .iter()
            .filter(|generation| generation.pool == self.pool.description)
            .map(|generation| Manifest::of_text(&generation.manifest))
            .collect();
        for (accessor, listed) in manifest.accessors_mut() {
            if listed.lasting.is_none() {
                continue;
            }
            let same = |other: &&Listed| other.shape == listed.shape && other.rule == listed.rule;
            let mut listings = others.iter().filter_map(|other| other.get(accessor));
            let epoch = listings.find(same).and_then(|other| other.lasting.clone());
            listed.lasting = Some(epoch.unwrap_or_else(|| Prefix::random().to_string()));
        }
        manifest
    }
}

/// Deletes generations, and gives up what is cached of data sets that one of them couldn't flush: those who stopped reading
/// them for its sake begin again, and its writes flushed nothing of them.
///
/// Those that a rotation has ended stay while somebody may still read by them, so that what was committed before is
/// flushed there too.
pub(super) fn end(
    registered: &Registered,
    is_over: impl Fn(&Generation) -> bool,
    switches: Switches,
) -> Vec<Edit> {
    let rotated = |purge: &Purge| purge.accessor == EVERYTHING && purge.age < PURGED;
    if !switches.is_off(Mechanism::Activation) && registered.purges.iter().any(rotated) {
        return Vec::new();
    }
    let (over, live): (Vec<&Generation>, Vec<&Generation>) = registered
        .generations
        .iter()
        .partition(|known| is_over(known));
    let live: Vec<Manifest> = live
        .iter()
        .map(|known| Manifest::of_text(&known.manifest))
        .collect();
    let mut edits = Vec::new();
    let mut unflushed = BTreeSet::new();
    for generation in over {
        let manifest = Manifest::of_text(&generation.manifest);
        unflushed.extend(live.iter().flat_map(|live| manifest.cant_flush(live)));
        edits.push(Edit::Delete {
            id: generation.id.clone(),
        });
    }
    if !switches.is_off(Mechanism::PurgeAtEnd) {
        edits.extend(unflushed.into_iter().map(purge));
    }
    edits
}

/// Gives up what is cached of this data set.
pub(super) fn purge(accessor: &str) -> Edit {
    Edit::Purge {
        accessor: accessor.to_owned(),
        epoch: Prefix::random().to_string(),
    }
}

/// What the pools of stores begin with that only their process reaches, whatever they call themselves.
const PRIVATE: &str = "process ";

/// A pool as it is registered: what it calls itself, and whether others reach it.
pub(crate) fn registered_pool(pool: &Pool) -> Pool {
    let mut registered = pool.clone();
    if pool.reach == Reach::Process {
        registered.description = format!("{PRIVATE}{}", pool.description);
    }
    registered
}

/// Whether a pool of this description is one process's own.
pub(super) fn is_private(pool: &str) -> bool {
    pool.starts_with(PRIVATE)
}

/// This process, so that others on its host can tell whether it lives: boot, namespace, process, start.
pub(crate) fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "unknown host",
        host => host,
    };
    let pid = std::process::id();
    match (place(), started(pid)) {
        (Some(place), Some(start)) => format!("{host}, process {pid} ({place}/{start})"),
        _ => format!("{host}, process {pid}"),
    }
}

/// Names the running system and the process namespace within it.
fn place() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    let namespace: String = namespace
        .to_str()?
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    Some(format!("{}/{namespace}", boot.trim()))
}

/// When a process of this host was started, in ticks since the system was.
fn started(pid: u32) -> Option<String> {
    stat(pid, 22)
}

/// Whether this process has ended, and nobody has asked how: it is listed until its parent does.
fn is_zombie(pid: u32) -> bool {
    stat(pid, 3).is_some_and(|state| state == "Z" || state == "X")
}

/// A field of a process's line in `/proc`, counted from 1, behind the second.
fn stat(pid: u32, field: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may have anything in it.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(field - 3).map(str::to_owned)
}

/// Whether there is no such process. One of another user is there, though it may not be looked at.
#[cfg(target_os = "linux")]
fn is_gone(pid: u32) -> bool {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

#[cfg(not(target_os = "linux"))]
fn is_gone(_: u32) -> bool {
    false
}

/// Whether the holder of a private store is known to have ended: killed, it couldn't end its registration.
fn is_dead(holder: &str, pool: &str) -> bool {
    let parts = || {
        let (_, process) = holder.rsplit_once(", process ")?;
        let (pid, identity) = process.split_once(" (")?;
        let (its_place, start) = identity.strip_suffix(')')?.rsplit_once('/')?;
        let pid: u32 = pid.parse().ok()?;
        let is_another = match started(pid) {
            Some(now) => now != start || is_zombie(pid),
            None => is_gone(pid),
        };
        Some(its_place == place()? && is_another)
    };
    is_private(pool) && parts().unwrap_or(false)
}
