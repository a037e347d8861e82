//! Taking a store's URL apart into keys.
//!
//! Not the `url` crate: several hosts after each other aren't legal there. No error shows the text itself, which may be
//! a URL with a password in it.

use std::collections::BTreeMap;

use super::layer::Value;

/// What a URL says.
pub(super) struct Parts {
    pub(super) scheme: String,
    pub(super) values: BTreeMap<String, Value>,
}

/// Takes `scheme://host,host/path?key=value&key=value` apart; an error is the reason alone.
pub(super) fn parse(url: &str) -> Result<Parts, String> {
    let (scheme, rest) = url
        .split_once("://")
        .filter(|(scheme, _)| is_scheme(scheme))
        .ok_or(
            "this isn't the URL of a store, write it like memory:// or memcached://h1:11211,h2:11211?timeout=50ms",
        )?;
    // Looked for everywhere, since a password may hold the very characters at which a URL is split.
    if rest.contains('@') && !rest.starts_with('/') {
        return Err(
            "credentials don't belong into a URL, put the password into a variable of the environment and name that \
             with the key `password_env` (an @ that isn't meant so is written %40)"
                .to_owned(),
        );
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (hosts, path) = match place.find('/') {
        Some(slash) => place.split_at(slash),
        None => (place, ""),
    };

    let mut values = BTreeMap::new();
    if !hosts.is_empty() {
        let hosts = hosts
            .split(',')
            .map(unescape)
            .collect::<Result<Vec<_>, _>>()?;
        if hosts.iter().any(String::is_empty) {
            return Err("there is an empty name among the hosts, take a comma away".to_owned());
        }
        values.insert("servers".to_owned(), Value::List(hosts));
    }
    match (unescape(path)?, hosts) {
        (path, _) if path.is_empty() || path == "/" => {}
        (path, "") => {
            values.insert("path".to_owned(), Value::Place(path));
        }
        (path, _) => {
            let path = Value::Text(path.trim_start_matches('/').to_owned());
            values.insert("path".to_owned(), path);
        }
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (unescape(key)?, unescape(value)?);
        if key == "url" || key == "backend" {
            return Err(format!("key `{key}` can't be inside a URL"));
        }
        let is_place = key == "servers" && hosts.is_empty() && values.contains_key("path");
        let twice = format!("key `{key}` is given twice");
        if values.insert(key, Value::Text(value)).is_some() || is_place {
            return Err(twice);
        }
    }
    Ok(Parts {
        scheme: scheme.to_owned(),
        values,
    })
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-._".contains(&byte)
        })
}

/// Turns `%2F` into `/`; a `+` stays a `+`.
fn unescape(text: &str) -> Result<String, String> {
    let bad = || {
        "a % in a URL is followed by two hexadecimal digits, and what they make is UTF-8".to_owned()
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let code = digit().zip(digit()).ok_or_else(bad)?;
                u8::try_from(code.0 * 16 + code.1).expect("two digits make a byte")
            }
            _ => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, expected: &str) {
        let shown = match parse(url) {
            Ok(parts) => {
                let values = parts
                    .values
                    .iter()
                    .map(|(key, value)| format!(" {key}={value}"));
                format!("{}{}", parts.scheme, values.collect::<String>())
            }
            Err(reason) => reason,
        };
        assert!(shown.starts_with(expected), "{url}: {shown}");
    }

    #[test]
    fn url_becomes_keys() {
        check("memory://", "memory");
        check("memory://?capacity=128MiB", "memory capacity=128MiB");
        check("memcached://h1", "memcached servers=h1");
        check(
            "memcached://h1:11211,[::1]:11211/?timeout=50ms&connections=2",
            "memcached connections=2 servers=h1:11211,[::1]:11211 timeout=50ms",
        );
        check(
            "memcached:///run/memcached.sock",
            "memcached path=/run/memcached.sock",
        );
        check("memcached:///run/a%20b@1", "memcached path=/run/a b@1");
        check("redis://h1:6379/3", "redis path=3 servers=h1:6379");
        check("x-y.z://?flag", "x-y.z flag=");
        check("memory://?a=b=c+d%26", "memory a=b=c+d&");
    }

    #[test]
    fn malformed_url_is_refused() {
        for url in [
            "",
            "memory",
            "localhost:11211",
            "://h1",
            "Memory://",
            "1x://",
            "a b://",
        ] {
            check(url, "this isn't the URL of a store");
        }
        check("memcached://h1,,h2", "there is an empty name");
        check("memory://?a=1&a=2", "key `a` is given twice");
        check("memcached://h1?servers=h2", "key `servers` is given twice");
        check("memcached:///s?servers=h2", "key `servers` is given twice");
        check("sqlite:///a?path=/b", "key `path` is given twice");
        check("memory://?url=memory://", "key `url` can't be inside");
        for escape in ["%", "%2", "%zz", "%ff", "%+1"] {
            check(&format!("memory://?a={escape}"), "a % in a URL");
        }
    }

    #[test]
    fn credentials_are_refused_and_not_shown() {
        for url in [
            "redis://user:hunter2@h1",
            "redis://:hunter2/x@h1",
            "redis://:hunter2?x@h1",
            "redis://h1?password_env=hunter2@h1",
        ] {
            check(url, "credentials don't belong into a URL");
            assert!(!parse(url).err().unwrap().contains("hunter2"));
        }
    }
}
