//! Owns how text from outside is shown to people: what could steer a terminal, hide itself or turn the reading
//! direction is written as a visible escape, `\u{1b}`. Everything that commands print and that is logged goes through
//! here. Also owns how many columns a text takes. Pure.

use std::borrow::Cow;

use unicode_width::UnicodeWidthStr;

/// Stands for what was cut off.
const ELLIPSIS: &str = "…";

/// Whether a terminal acts on the character or shows nothing of it: controls (C0, DEL, C1), line and paragraph
/// separators, marks and overrides of the reading direction, what has no width, byte order marks and tags.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// The text on one line, each hidden character as an escape. A backslash stays as it is: JSON output tells an escape
/// from a text that spells one.
pub fn safe(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_hidden(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Serialized JSON with each hidden character as `\uXXXX`: the same value. The line feeds between its lines stay.
pub fn safe_json(json: &str) -> Cow<'_, str> {
    // Outside strings JSON has no other hidden character, and inside them no raw line feed.
    let is_hidden = |c: char| is_hidden(c) && c != '\n';
    if !json.contains(is_hidden) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_hidden(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// How many columns a terminal gives the text.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The text in at most so many columns; an ellipsis says where it was cut.
pub fn cut(text: &str, columns: usize) -> Cow<'_, str> {
    if width(text) <= columns {
        return Cow::Borrowed(text);
    }
    let room = columns.saturating_sub(width(ELLIPSIS));
    let ends = text.char_indices().map(|(start, c)| start + c.len_utf8());
    let end = ends.take_while(|end| width(&text[..*end]) <= room).last().unwrap_or(0);
    Cow::Owned(format!("{}{ELLIPSIS}", &text[..end]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_steers_or_hides_is_shown() {
        for (text, shown) in [
            ("Ada Lovelace", "Ada Lovelace"),
            ("Zoë 王芳 🦀", "Zoë 王芳 🦀"),
            ("\u{1b}]0;root\u{7}", "\\u{1b}]0;root\\u{7}"),
            ("a\nb\r\tc", "a\\u{a}b\\u{d}\\u{9}c"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\u{7f}"),
            ("\u{202e}moc\u{2066}", "\\u{202e}moc\\u{2066}"),
            ("a\u{200b}b\u{2028}c\u{feff}", "a\\u{200b}b\\u{2028}c\\u{feff}"),
            ("\u{e0041}", "\\u{e0041}"),
        ] {
            assert_eq!(safe(text), shown);
        }
    }

    #[test]
    fn a_text_is_cut_by_its_columns() {
        for (text, columns, shown) in [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("王芳王芳", 5, "王芳…"),
            ("王芳王芳", 4, "王…"),
            ("🦀🦀", 3, "🦀…"),
            ("abc", 0, "…"),
        ] {
            assert_eq!(cut(text, columns), shown);
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_nothing_hidden_is_left(text in any::<String>()) {
            prop_assert!(!safe(&text).contains(is_hidden));
            let json = serde_json::to_string_pretty(&[&text]).unwrap();
            let escaped = safe_json(&json);
            prop_assert!(!escaped.lines().any(|line| line.contains(is_hidden)));
            prop_assert_eq!(serde_json::from_str::<Vec<String>>(&escaped).unwrap(), vec![text]);
        }

        #[test]
        fn what_is_cut_fits(text in "[a王🦀é]{0,20}", columns in 1usize..20) {
            prop_assert!(width(&cut(&text, columns)) <= columns);
        }
    }
}
