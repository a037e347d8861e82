//! Values that a configuration writes as texts: durations, sizes, and the names of secrets.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};

/// Durations such as `50ms`, `2s` and `1h 30m`, for `#[serde(with = "larder_core::config::duration")]`.
pub mod duration {
    use std::borrow::Cow;
    use std::time::Duration;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    /// Writes one.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    /// Reads one.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|_| {
            D::Error::custom("expected a duration with its unit, such as 50ms, 2s or 1h 30m")
        })
    }
}

/// Sizes such as `65536`, `64KiB`, `1.5 GiB` and `10MB`, for `#[serde(with = "larder_core::config::bytes")]` on a field
/// of any integer type.
pub mod bytes {
    use std::fmt;

    use serde::de::{Deserializer, Error, Unexpected, Visitor};
    use serde::ser::{self, Serializer};

    const UNITS: [(&str, u64); 10] = [
        ("", 1),
        ("b", 1),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("tib", 1 << 40),
        ("kb", 1_000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("tb", 1_000_000_000_000),
    ];

    /// Writes one, as a number.
    pub fn serialize<S, N>(size: &N, serializer: S) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
        N: Copy + TryInto<u64>,
    {
        let bytes = (*size).try_into();
        serializer.serialize_u64(bytes.map_err(|_| ser::Error::custom("a size is at least 0"))?)
    }

    /// Reads one, a text or a number.
    pub fn deserialize<'de, D, N>(deserializer: D) -> Result<N, D::Error>
    where
        D: Deserializer<'de>,
        N: TryFrom<u64>,
    {
        let bytes = deserializer.deserialize_any(Size)?;
        N::try_from(bytes).map_err(|_| D::Error::custom("this size is too large here"))
    }

    struct Size;

    impl Visitor<'_> for Size {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size in bytes, such as 65536, 64MiB or 10MB")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
            parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
        }

        fn visit_u64<E: Error>(self, bytes: u64) -> Result<u64, E> {
            Ok(bytes)
        }

        fn visit_i64<E: Error>(self, bytes: i64) -> Result<u64, E> {
            u64::try_from(bytes).map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
        }
    }

    /// `1.5 GiB` in integers, so that no size is rounded by way of a float.
    fn parse(text: &str) -> Option<u64> {
        let digits = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim().to_ascii_lowercase();
        let (_, factor) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let part =
            u128::from(fraction.parse::<u64>().ok()?) * u128::from(factor) / u128::from(scale);
        let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
        whole.checked_add(u64::try_from(part).ok()?)
    }

    #[cfg(test)]
    mod tests {
        use super::parse;

        #[track_caller]
        fn check(text: &str, expected: impl Into<Option<u64>>) {
            assert_eq!(parse(text), expected.into(), "{text:?}");
        }

        #[test]
        fn sizes_are_read() {
            check("0", 0);
            check("65536", 65536);
            check("64MiB", 64 << 20);
            check("64 mib", 64 << 20);
            check("1.5GiB", 3 << 29);
            check("10MB", 10_000_000);
            check("18446744073709551615", u64::MAX);
            check("16777215.99TiB", (16_777_215 << 40) + 1_088_516_511_498);
            for wrong in [
                "",
                " ",
                "MiB",
                "64M",
                "-1",
                "1.",
                ".5",
                "1.2.3",
                "1e3",
                "1 2",
                "16777216TiB",
            ] {
                check(wrong, None);
            }
        }
    }
}

/// A secret that the configuration names and doesn't hold: `password_env = "REDIS_PASSWORD"` is read from that variable.
///
/// Use it for a field that serde knows by a name ending in `_env`. Neither the configuration nor `Debug` shows it, and
/// serialized it is the variable's name.
///
/// ```
/// use larder_core::config::Secret;
///
/// let password = Secret::new("hunter2"); // of a program that has it from elsewhere
/// assert_eq!(format!("{password:?}"), "Secret(given by the program)");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    variable: Option<String>,
    value: String,
}

impl Secret {
    /// A secret that the program has from elsewhere than the environment.
    pub fn new(value: impl Into<String>) -> Self {
        Self {
            variable: None,
            value: value.into(),
        }
    }

    /// The secret itself. It belongs onto the wire, and in no message.
    pub fn expose(&self) -> &str {
        &self.value
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.variable {
            Some(variable) => write!(f, "Secret(from {variable})"),
            None => f.write_str("Secret(given by the program)"),
        }
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.variable {
            Some(variable) => serializer.serialize_str(variable),
            None => serializer.serialize_none(),
        }
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let variable = String::deserialize(deserializer)?;
        match std::env::var(&variable) {
            Ok(value) => Ok(Self {
                variable: Some(variable),
                value,
            }),
            // A name that isn't a variable may be the secret itself, written where its variable's name belongs.
            Err(_) => Err(D::Error::custom(
                "expected the name of a variable of the environment that is set and holds the secret",
            )),
        }
    }
}
