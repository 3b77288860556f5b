//! Owns the key of a group: what letters of one cause share. It is the reason and the detail, with every value that
//! differs from letter to letter folded to a placeholder. Pure.

use std::borrow::Cow;

use crate::{store::letters::GROUP_MAX, text::clean};

/// A word with a digit in it that is at least this long, in bytes, is an id and not a name with a number.
const ID_LENGTH: usize = 12;

/// Names that carry a number: encodings, algorithms, types. `UTF-8` is no value.
const NUMBERED: [&str; 13] =
    ["utf", "ucs", "iso", "latin", "base", "sha", "md", "int", "uint", "float", "http", "ipv", "tlsv"];

/// The group of a death: `reason: detail`, with numbers, ids and quoted values folded to placeholders.
pub fn group(reason: &str, detail: &str) -> String {
    let folded = fold(detail);
    let key = if folded.is_empty() { reason.to_owned() } else { format!("{reason}: {folded}") };
    clean(&key, GROUP_MAX)
}

fn fold(detail: &str) -> String {
    let mut out = String::new();
    let mut rest = detail.trim();
    while let Some(first) = rest.chars().next() {
        if let Some((quote, text, after)) = quoted(rest, out.chars().next_back()) {
            out.push(quote);
            out.push_str(if is_identifier(text) || is_numbered_name(text) { text } else { "*" });
            out.push(quote);
            rest = after;
            continue;
        }
        let length = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
        if length == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (word, after) = rest.split_at(length);
        // An error's code says which cause it is: "SQLSTATE 23514: …", "40P01 after 7 tries: …".
        let is_code = out.ends_with("SQLSTATE ") || (out.is_empty() && after.starts_with(" after "));
        out.push_str(&if is_code { Cow::Borrowed(word) } else { fold_word(word) });
        rest = after;
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

/// The quoted text at the start, with what follows it. An apostrophe within a word is none.
fn quoted(rest: &str, before: Option<char>) -> Option<(char, &str, &str)> {
    let quote = rest.chars().next().filter(|c| ['"', '\'', '`'].contains(c))?;
    if quote == '\'' && before.is_some_and(char::is_alphanumeric) {
        return None;
    }
    let (text, after) = rest[1..].split_once(quote)?;
    Some((quote, text, after))
}

/// Whether the text can be the name of a column, a table or a constraint, which is part of the cause. headcount itself
/// writes no value into a detail.
fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.len() <= 63 && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// `UTF-8`, `ISO-8859-1`, `base64`.
fn is_numbered_name(word: &str) -> bool {
    let letters = word.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(word.len());
    let (name, number) = word.split_at(letters);
    word.len() < ID_LENGTH
        && NUMBERED.contains(&name.to_ascii_lowercase().as_str())
        && number.bytes().any(|b| b.is_ascii_digit())
        && number.bytes().all(|b| b.is_ascii_digit() || b == b'-')
}

fn fold_word(word: &str) -> Cow<'_, str> {
    if is_numbered_name(word) {
        return word.into();
    }
    let digits = word.bytes().any(|b| b.is_ascii_digit());
    let prefix = word
        .split_once('_')
        .filter(|(prefix, _)| !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_alphabetic()));
    let mixed = |text: &str| {
        text.len() >= 16
            && text.bytes().any(|b| b.is_ascii_uppercase())
            && text.bytes().any(|b| b.is_ascii_lowercase())
    };
    match prefix {
        Some((prefix, tail)) if (digits && word.len() >= ID_LENGTH) || mixed(tail) => {
            format!("{prefix}_#").into()
        }
        None if digits && word.len() >= ID_LENGTH => "#".into(),
        _ if digits => {
            let mut out = String::with_capacity(word.len());
            for c in word.chars() {
                match c.is_ascii_digit() {
                    true if out.ends_with('#') => {}
                    true => out.push('#'),
                    false => out.push(c),
                }
            }
            out.into()
        }
        _ => word.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_differs_from_letter_to_letter_is_folded() {
        for (detail, folded) in [
            ("data.id: missing", "data.id: missing"),
            ("data.email_addresses[12].id: is a number", "data.email_addresses[#].id: is a number"),
            ("not JSON at line 3, column 71", "not JSON at line #, column #"),
            ("user_2NNEqL2nrIRdJ194ndJqAHwEfxC is odd", "user_# is odd"),
            ("user_AbcdefGhijklmnopq is odd", "user_# is odd"),
            ("0190c2a4-7b1e-7c3d-9a51-2f6e8d4b7a10: gone", "#: gone"),
            ("SQLSTATE 23514: violates \"house_rule\"", "SQLSTATE 23514: violates \"house_rule\""),
            ("SQLSTATE 22001: too long for type 64", "SQLSTATE 22001: too long for type #"),
            ("40P01 after 7 tries: deadlock", "40P01 after # tries: deadlock"),
            ("it was delivered 21 times", "it was delivered # times"),
            ("value 'Ada Lovelace' doesn't fit", "value '*' doesn't fit"),
            ("utf8 is not UTF-16, nor ISO-8859-1", "utf8 is not UTF-16, nor ISO-8859-1"),
            ("no \"UTF8\" at byte 7 of sha256", "no \"UTF8\" at byte # of sha256"),
            ("base64 of int7-x and utf_8", "base64 of int#-x and utf_#"),
            ("an \"open quote", "an \"open quote"),
            ("", ""),
        ] {
            assert_eq!(fold(detail), folded, "{detail}");
        }
        assert_eq!(group("crash_loop", ""), "crash_loop");
        assert_eq!(group("invalid_payload", "data.id: missing"), "invalid_payload: data.id: missing");
    }

    proptest! {
        #[test]
        fn a_group_is_bounded_whole_and_stable(reason in ".{0,80}", detail in ".{0,300}") {
            let key = group(&reason, &detail);
            prop_assert!(key.len() <= GROUP_MAX);
            prop_assert!(!key.chars().any(char::is_control));
            prop_assert_eq!(&key, &group(&reason, &detail));
        }

        #[test]
        fn numbers_make_no_group_of_their_own(a: u32, b: u32) {
            let detail = |n: u32| format!("data.phone_numbers[{n}].id: column {n}");
            prop_assert_eq!(group("x", &detail(a)), group("x", &detail(b)));
        }
    }
}
