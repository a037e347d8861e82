//! How much the tiers may keep, and how long.

use std::time::Duration;

use larder_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// Below this, the tiers would keep next to nothing.
const LEAST_BUDGET: u64 = 64 << 10;

/// How much the tiers may keep, and how long.
///
/// ```
/// use std::time::Duration;
/// use larder_tiers::{Tiers, TiersConfig};
///
/// let tiers = Tiers::new(TiersConfig {
///     budget: 256 << 20,
///     max_age: Duration::from_secs(10),
///     ..TiersConfig::default()
/// })?;
/// # Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TiersConfig {
    /// Bytes that both tiers together take at most: keys, values and what it takes to find them. 64 MiB by default.
    #[serde(with = "larder_core::config::bytes")]
    pub budget: u64,
    /// Bytes that one request may keep, 4 MiB by default.
    #[serde(with = "larder_core::config::bytes")]
    pub per_request: u64,
    /// How long a request is served a value that it keeps, 30 s by default: a long poll doesn't live on what it read when
    /// it began.
    #[serde(with = "larder_core::config::duration")]
    pub max_age: Duration,
}

impl Default for TiersConfig {
    fn default() -> Self {
        Self {
            budget: 64 << 20,
            per_request: 4 << 20,
            max_age: Duration::from_secs(30),
        }
    }
}

impl TiersConfig {
    /// Fails for what can never work.
    pub(crate) fn check(&self) -> Result<()> {
        let problem = if self.budget < LEAST_BUDGET {
            format!(
                "a budget of {} bytes for the tiers keeps next to nothing; give tiers_budget at least {LEAST_BUDGET}, \
                 or 64MiB",
                self.budget
            )
        } else if self.per_request == 0 {
            "tiers_per_request is 0, so that no request could keep anything; give it bytes, such as 4MiB".to_owned()
        } else if self.max_age.is_zero() {
            "tiers_max_age is 0, so that no request could keep anything; give it a duration, such as 30s".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Config, problem))
    }
}
