//! Numbers and base64 as a C program reads them.

/// A C program's idea of a 32-bit number: read as 64 bits, cut to 32.
pub(super) fn signed(token: &[u8]) -> Option<i32> {
    let (negative, magnitude) = number(token)?;
    let limit = i64::MAX as u64 + u64::from(negative);
    let wide = (magnitude <= limit).then_some(magnitude)?;
    Some(if negative {
        (wide as i64).wrapping_neg() as i32
    } else {
        wide as i32
    })
}

/// An unsigned one of 32 bits, cut likewise.
pub(super) fn unsigned_32(token: &[u8]) -> Option<u32> {
    unsigned(token).map(|wide| wide as u32)
}

/// An unsigned one, where a minus sign is refused only if what it makes would be taken for negative.
pub(super) fn unsigned(token: &[u8]) -> Option<u64> {
    let (negative, magnitude) = number(token)?;
    let wide = if negative {
        magnitude.wrapping_neg()
    } else {
        magnitude
    };
    let looks_negative = (wide as i64) < 0;
    (!looks_negative || !token.contains(&b'-')).then_some(wide)
}

/// Sign and digits at the start of the token, which may end there or at white space.
fn number(token: &[u8]) -> Option<(bool, u64)> {
    let is_space = |byte: &u8| matches!(byte, b' ' | 0x09..=0x0d);
    let start = token.iter().position(|byte| !is_space(byte))?;
    let (negative, digits) = match &token[start..] {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let len = digits
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(digits.len());
    if len == 0 || digits.get(len).is_some_and(|byte| !is_space(byte)) {
        return None;
    }
    let mut magnitude = 0u64;
    for digit in &digits[..len] {
        magnitude = magnitude
            .checked_mul(10)?
            .checked_add(u64::from(digit - b'0'))?;
    }
    Some((negative, magnitude))
}

/// As lenient as the server: what isn't base64 is skipped, and all after the padding.
pub(super) fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let sextets: Vec<(u8, bool)> = text
        .iter()
        .filter_map(|&byte| {
            let sextet = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                b'=' => 0,
                _ => return None,
            };
            Some((sextet, byte == b'='))
        })
        .collect();
    if sextets.is_empty() || !sextets.len().is_multiple_of(4) {
        return None;
    }
    let mut decoded = Vec::with_capacity(sextets.len() / 4 * 3);
    for block in sextets.chunks_exact(4) {
        let bits = block
            .iter()
            .fold(0u32, |bits, (sextet, _)| bits << 6 | u32::from(*sextet));
        let padding = block.iter().filter(|(_, is_padding)| *is_padding).count();
        if padding > 2 {
            return None;
        }
        decoded.extend_from_slice(&bits.to_be_bytes()[1..4 - padding]);
        if padding > 0 {
            break;
        }
    }
    (!decoded.is_empty()).then_some(decoded)
}

/// As it is echoed.
pub(super) fn encode_base64(bytes: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for block in bytes.chunks(3) {
        let mut padded = [0; 4];
        padded[1..=block.len()].copy_from_slice(block);
        let bits = u32::from_be_bytes(padded);
        for position in 0..4 {
            let sextet = (bits >> (18 - 6 * position)) & 63;
            text.push(if position > block.len() {
                b'='
            } else {
                ALPHABET[sextet as usize]
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_strtol_does() {
        for (token, expected) in [
            ("5", Some(5)),
            ("+5", Some(5)),
            ("-5", Some(-5)),
            ("\t5\r", Some(5)),
            ("5\tx", Some(5)),
            ("4294967297", Some(1)),
            ("9223372036854775807", Some(-1)),
            ("-9223372036854775808", Some(0)),
            ("9223372036854775808", None),
            ("99999999999999999999", None),
            ("5x", None),
            ("+-5", None),
            ("-", None),
            ("", None),
        ] {
            assert_eq!(signed(token.as_bytes()), expected, "{token:?}");
        }
    }

    #[test]
    fn a_minus_sign_is_refused_only_where_it_makes_a_negative() {
        assert_eq!(unsigned(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(unsigned(b"-1"), None);
        assert_eq!(unsigned(b"-0"), Some(0));
        assert_eq!(unsigned(b"-18446744073709551615"), Some(1));
    }

    #[test]
    fn base64_comes_back() {
        for (bytes, text) in [
            (&b"foo bar"[..], "Zm9vIGJhcg=="),
            (b"foo ba", "Zm9vIGJh"),
            (b"foo b", "Zm9vIGI="),
        ] {
            assert_eq!(encode_base64(bytes), text.as_bytes());
            assert_eq!(decode_base64(text.as_bytes()).unwrap(), bytes);
        }
        assert_eq!(decode_base64(b"!Zm-9v").unwrap(), b"foo");
        assert_eq!(decode_base64(b"Zm9"), None);
        assert_eq!(decode_base64(b"===="), None);
    }
}
