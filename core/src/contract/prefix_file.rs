//! Where a deployment's prefix comes from when no database keeps it, and the file through which the processes of one
//! host share a random one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind as Io, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::{Error, ErrorKind, Pool, Prefix, PrefixSettings, Reach, Result};

impl PrefixSettings {
    /// The prefix of a deployment with this pool; the pool's hash is still to be added.
    ///
    /// A configured prefix comes first. Without one, a pool private to its process takes a random prefix, which nobody
    /// else could make use of; a pool of this host takes that of the prefix file, which the first process writes.
    ///
    /// Fails for a pool that other processes share when nothing says which prefix they share; for a prefix file with a
    /// pool that other hosts reach, since they would read and flush under prefixes of their own; and for a file that
    /// can't be written or doesn't hold a prefix.
    ///
    /// ```
    /// use larder_core::{Pool, Prefix, PrefixSettings, Reach};
    ///
    /// let pool = Pool::new("memcached://10.0.0.5:11211", Reach::Network);
    /// assert_eq!(
    ///     PrefixSettings::default().resolve(&pool).unwrap_err().to_string(),
    ///     "no prefix for memcached://10.0.0.5:11211; set LARDER_PREFIX, or the key `prefix`, to the same value on all \
    ///      hosts of this deployment and to another in the next deployment",
    /// );
    ///
    /// let mut settings = PrefixSettings::default();
    /// settings.prefix = Some(Prefix::new("git-3f2a91c")?);
    /// assert_eq!(settings.resolve(&pool)?.as_str(), "git-3f2a91c");
    /// # Ok::<(), larder_core::Error>(())
    /// ```
    pub fn resolve(&self, pool: &Pool) -> Result<Prefix> {
        if let Some(prefix) = self.prefix {
            return Ok(prefix);
        }
        let shared = &pool.description;
        let refuse = |message| Err(Error::new(ErrorKind::Config, message));
        match (pool.reach, &self.file) {
            (Reach::Process, _) => Ok(Prefix::random()),
            (Reach::Host, Some(path)) => from_file(path),
            (Reach::Host, None) => refuse(format!(
                "no prefix for {shared}; set LARDER_PREFIX, or the key `prefix`, to the same value in all processes of \
                 this deployment and to another in the next deployment, or the key `prefix_file` to the path of a file \
                 that they share and the next deployment doesn't",
            )),
            (Reach::Network, Some(path)) => refuse(format!(
                "prefix file {} names this host only, but {shared} is shared; set LARDER_PREFIX to the same value on \
                 all hosts of this deployment",
                path.display(),
            )),
            (Reach::Network, None) => refuse(format!(
                "no prefix for {shared}; set LARDER_PREFIX, or the key `prefix`, to the same value on all hosts of this \
                 deployment and to another in the next deployment",
            )),
        }
    }
}

/// What the file says; whoever comes first writes it.
fn from_file(path: &Path) -> Result<Prefix> {
    if let Some(prefix) = read(path)? {
        return Ok(prefix);
    }
    let prefix = Prefix::random();
    if publish(path, prefix).map_err(|error| cannot("be created", path, error))? {
        return Ok(prefix);
    }
    read(path)?.ok_or_else(|| {
        let gone = io::Error::from(Io::NotFound);
        cannot("be read, another process seems to remove it", path, gone)
    })
}

/// The prefix in the file, if there is the file.
fn read(path: &Path) -> Result<Option<Prefix>> {
    let mut line = Vec::new();
    let file = match File::open(path) {
        Err(error) if error.kind() == Io::NotFound => return Ok(None),
        opened => opened,
    };
    // A byte more than any prefix and its line's end: a large file is as wrong as a long line.
    file.and_then(|file| file.take(32).read_to_end(&mut line))
        .map_err(|error| cannot("be read", path, error))?;
    std::str::from_utf8(&line)
        .ok()
        .map(|line| line.strip_suffix('\n').unwrap_or(line))
        .and_then(|line| Prefix::new(line.strip_suffix('\r').unwrap_or(line)).ok())
        .map(Some)
        .ok_or_else(|| {
            let message = format!(
                "prefix file {} doesn't hold a prefix, which is one line of 1 to 20 characters of A-Z a-z 0-9 . _ -; \
                 delete it while no process of this deployment runs, and the next to start writes a new one",
                path.display(),
            );
            Error::new(ErrorKind::Config, message)
        })
}

/// Makes the file, whole and on disk, unless there is one already: then `false`.
///
/// It is written aside and linked to its name, so that nobody ever sees half of it, whoever crashes when. A rename would
/// overwrite the file of a process that was faster, and two prefixes would be in use.
fn publish(path: &Path, prefix: Prefix) -> io::Result<bool> {
    let aside = Aside(beside(path)?);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&aside.0)?;
    file.write_all(format!("{prefix}\n").as_bytes())?;
    file.sync_all()?;
    match fs::hard_link(&aside.0, path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == Io::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// A name in the same directory that no other process uses.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(Io::InvalidFilename)?;
    let mut aside = std::ffi::OsString::from(".");
    aside.push(name);
    aside.push(format!(".{}", Prefix::random()));
    Ok(path.with_file_name(aside))
}

/// The file written aside, which goes whatever happens.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        // One that stays behind is a few bytes that nobody reads.
        let _ = fs::remove_file(&self.0);
    }
}

fn cannot(what: &str, path: &Path, error: io::Error) -> Error {
    let path = path.display();
    Error::with_source(
        ErrorKind::Config,
        format!(
            "prefix file {path} can't {what}: {error}; its directory must exist, be writable and take hard links, or \
             set LARDER_PREFIX instead"
        ),
        error,
    )
}
