//! Owns JSON text that databases refuse: what can be repaired, and what is beyond their bounds. Promises that sound text
//! comes back untouched, that repaired text differs only in the escapes at fault, and that checking takes one pass without
//! recursion. Never decodes and never reorders.

use std::borrow::Cow;

/// The replacement character, as an escape.
const REPLACEMENT: &str = "\\ufffd";

/// Replaces `\u0000` and lone surrogates in valid JSON text by U+FFFD: PostgreSQL takes neither, in text or in jsonb,
/// and a user's own text must not keep news about the user out of the table. Borrowed where there was nothing to do.
pub(super) fn repair(json: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut kept = 0; // Everything before is in `out`.
    let mut at = 0;
    // In valid JSON a backslash stands only inside a string, at the start of an escape.
    while let Some(found) = json.get(at..).and_then(|rest| rest.find('\\')) {
        at += found;
        let length = match escape(json, at) {
            Escape::Plain(length) => length,
            Escape::Refused => {
                out.push_str(&json[kept..at]);
                out.push_str(REPLACEMENT);
                kept = at + REPLACEMENT.len();
                REPLACEMENT.len()
            }
        };
        at += length;
    }
    if kept == 0 {
        return Cow::Borrowed(json);
    }
    out.push_str(&json[kept..]);
    Cow::Owned(out)
}

enum Escape {
    /// Fine as it is, this many bytes.
    Plain(usize),
    /// One `\uXXXX` that no database takes.
    Refused,
}

fn escape(json: &str, at: usize) -> Escape {
    match unit(json, at) {
        None => Escape::Plain(2), // \n, \", \\ and the like
        Some(0) => Escape::Refused,
        Some(0xd800..=0xdbff) if matches!(unit(json, at + 6), Some(0xdc00..=0xdfff)) => Escape::Plain(12),
        Some(0xd800..=0xdfff) => Escape::Refused,
        Some(_) => Escape::Plain(6),
    }
}

/// The UTF-16 unit of the `\uXXXX` at this place, where there is one.
fn unit(json: &str, at: usize) -> Option<u16> {
    let hex = json.get(at..at + 6)?.strip_prefix("\\u")?;
    u16::from_str_radix(hex, 16).ok()
}

/// The deepest nesting that is mirrored; readers of the table recurse.
pub(super) const DEPTH_MAX: usize = 100;

/// The most digits of a number, and the furthest exponent either way. PostgreSQL's numeric ends at 131,072 digits before
/// the point and 16,383 after it. A number also has to fit a double: readers of the table take it for one, and one row
/// that they cannot read would take the whole page along.
pub(super) const NUMBER_MAX: usize = 1000;

/// What is wrong with a document, if anything. `json` is valid JSON.
pub(super) fn check(json: &str) -> Result<(), String> {
    let bytes = json.as_bytes();
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at += string(&bytes[at..]),
            b'[' | b'{' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(format!("nested deeper than {DEPTH_MAX} levels"));
                }
                at += 1;
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let number = number(&bytes[at..]);
                if digits(number) > NUMBER_MAX || exponent(number) > NUMBER_MAX || !double(number) {
                    return Err("holds a number that is too large or too long".into());
                }
                at += number.len();
            }
            _ => at += 1,
        }
    }
    Ok(())
}

/// The length of the string that starts here, with its quotes.
fn string(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    at
}

/// The number that starts here.
fn number(bytes: &[u8]) -> &[u8] {
    let part = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
    let length = bytes.iter().position(|byte| !part(byte)).unwrap_or(bytes.len());
    &bytes[..length]
}

/// Digits before the exponent.
fn digits(number: &[u8]) -> usize {
    number.iter().take_while(|byte| !b"eE".contains(byte)).filter(|byte| byte.is_ascii_digit()).count()
}

/// The size of the exponent, whatever its sign.
fn exponent(number: &[u8]) -> usize {
    let written = number.iter().skip_while(|byte| !b"eE".contains(byte)).filter(|byte| byte.is_ascii_digit());
    written.fold(0, |sum: usize, byte| sum.saturating_mul(10).saturating_add(usize::from(byte - b'0')))
}

/// Whether a double holds it; only long ones and those with an exponent need a look.
fn double(number: &[u8]) -> bool {
    if number.len() <= 300 && !number.iter().any(|byte| b"eE".contains(byte)) {
        return true;
    }
    std::str::from_utf8(number).ok().and_then(|text| text.parse().ok()).is_some_and(f64::is_finite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_text_is_left_alone() {
        for whole in [
            r#"{"a":"b"}"#,
            r#""é \u00e9 \ud83d\ude00 \\u0000 \"\\ud800\" \n""#,
            r#""\\\\u0000""#,
            r#""\\""#,
            "\"😀\"",
            "",
        ] {
            assert!(matches!(repair(whole), Cow::Borrowed(text) if text == whole), "{whole}");
        }
    }

    #[test]
    fn nul_and_lone_surrogates_are_replaced_and_nothing_else() {
        for (broken, mended) in [
            (r#""\u0000""#, r#""\ufffd""#),
            (r#""a\u0000b\u0000""#, r#""a\ufffdb\ufffd""#),
            (r#""\ud800""#, r#""\ufffd""#),
            (r#""\uDFFF x""#, r#""\ufffd x""#),
            (r#""\ud800\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\ud83d\ude00\ude00""#, r#""\ud83d\ude00\ufffd""#),
            (r#""\ud800\n""#, r#""\ufffd\n""#),
            (r#""\ud800\u0041""#, r#""\ufffd\u0041""#),
            (r#""\\\u0000é""#, r#""\\\ufffdé""#),
            (r#"{"k\u0000":1.0,"z":[ 1e5 ]}"#, r#"{"k\ufffd":1.0,"z":[ 1e5 ]}"#),
        ] {
            assert_eq!(repair(broken), mended);
            assert!(serde_json::from_str::<serde_json::Value>(&repair(broken)).is_ok());
        }
    }

    #[test]
    fn what_databases_hold_passes() {
        let digits = format!("0.{}", "9".repeat(NUMBER_MAX - 1));
        for json in [
            "{}",
            r#"{"a":[1,-2.50,1e308,1E-1000,1e+0001],"b":"[[[ 1e9999 \" ]]]","c":{"d":null,"e":true}}"#,
            digits.as_str(),
            &format!("{}{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX)),
            &format!("[{}]", vec!["[{}]"; 1000].join(",")),
        ] {
            assert_eq!(check(json), Ok(()), "{json}");
        }
    }

    #[test]
    fn what_they_do_not_hold_is_named() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(check(&deep).unwrap_err().contains("nested"));
        assert!(check(&format!("{}1{}", "{\"a\":".repeat(101), "}".repeat(101))).is_err());
        for number in [
            "1e1001",
            "1E-1001",
            "-0.1e99999999999999999999999999",
            &"1".repeat(1001),
            "0e5000",
            "1e309",
            "-2E308",
            &"9".repeat(400),
        ] {
            assert!(check(&format!("{{\"a\":[{number}]}}")).unwrap_err().contains("number"), "{number}");
        }
    }
}
