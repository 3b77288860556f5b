//! Owns how text from outside is cleaned and bounded before it is stored or sent, and how numbers, counts and shell words
//! are written for people. Never makes text safe to show: that is `terminal`.

/// The most header names of a rejected request that are kept, ...
pub const REJECTED_HEADERS: usize = 40;
/// ... and the longest of its texts (address, code, name of a header), in bytes.
pub const WORD_MAX: usize = 100;

/// Cuts `text` to at most `max` bytes at a character boundary and replaces control characters, so that it is safe in a
/// header, a log line and a table.
pub fn clean(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        let c = if c.is_control() { '\u{fffd}' } else { c };
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(c);
    }
    out
}

/// A number with its thousands set apart, for people.
pub fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 letter`, `1,200 letters`.
pub fn letters(count: u64) -> String {
    format!("{} letter{}", number(count), if count == 1 { "" } else { "s" })
}

/// A word as a shell takes it back, for commands to copy.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaned_text_is_bounded_and_whole() {
        assert_eq!(clean("a\0b\nc", 64), "a\u{fffd}b\u{fffd}c");
        assert_eq!(clean("éé", 3), "é");
    }

    #[test]
    fn numbers_have_their_thousands_set_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
    }
}
