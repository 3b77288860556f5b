//! Owns the repair of JSON text that databases refuse. Promises that what is whole comes back untouched and that what
//! is not differs only in the escapes at fault. Never decodes and never reorders.

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
}
