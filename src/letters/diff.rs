//! Owns what differs between two bodies, line by line, as people read them. Pure, and bounded in time and memory: what
//! is too large to compare shows as replaced.

use serde_json::value::RawValue;
use similar::{Algorithm, DiffOp, DiffTag, capture_diff_slices, group_diff_ops};

use crate::terminal::{cut, safe};

/// The longest line shown, in columns.
const LINE_MAX: usize = 400;
/// Unchanged lines around a change.
const CONTEXT: usize = 3;
/// Deeper lines are indented no further.
const INDENTS: usize = 32;
/// Pairs of lines that are compared at most.
const PAIRS_MAX: usize = 4_000_000;

/// A line of a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// In both.
    Same(String),
    /// Only before.
    Removed(String),
    /// Only after.
    Added(String),
    /// So many unchanged lines are left out.
    Skipped(usize),
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Same(line) => write!(f, "  {line}"),
            Self::Removed(line) => write!(f, "- {line}"),
            Self::Added(line) => write!(f, "+ {line}"),
            Self::Skipped(1) => write!(f, "  … one line as before"),
            Self::Skipped(lines) => write!(f, "  … {lines} lines as before"),
        }
    }
}

/// A body for people, also in an editor: JSON over several lines, each value as it was written and in its place; other
/// text as it is; `None` for what is no text.
pub fn pretty(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    Some(match serde_json::from_str::<&RawValue>(text) {
        Ok(json) => spread(json.get()),
        Err(_) => text.to_owned(),
    })
}

/// Breaks valid JSON into lines without decoding it: numbers keep their digits and strings their escapes.
fn spread(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    let mut opened = false; // The last thing written was an opening bracket.
    let newline = |out: &mut String, depth: usize| {
        out.push('\n');
        out.push_str(&"  ".repeat(depth.min(INDENTS)));
    };
    for c in json.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            out.push(c);
            continue;
        }
        if c.is_ascii_whitespace() {
            continue;
        }
        let closes = matches!(c, '}' | ']');
        if closes {
            depth = depth.saturating_sub(1);
        }
        if opened != closes {
            // Not between the brackets of what is empty.
            newline(&mut out, depth);
        }
        opened = matches!(c, '{' | '[');
        out.push(c);
        match c {
            '{' | '[' => depth += 1,
            '"' => in_string = true,
            ':' => out.push(' '),
            ',' => newline(&mut out, depth),
            _ => {}
        }
    }
    out
}

/// A body's lines, with what would steer a terminal as escapes.
pub fn readable(body: &[u8]) -> Vec<String> {
    match pretty(body) {
        Some(text) => text.lines().map(|line| safe(line).into_owned()).collect(),
        None => vec![format!("({} bytes that are no text)", body.len())],
    }
}

/// What differs, with a little around it; empty where nothing does.
pub fn diff(before: &[u8], after: &[u8]) -> Vec<Line> {
    let (old, new) = (readable(before), readable(after));
    let short = |line: &String| cut(line, LINE_MAX).into_owned();
    let (mut lines, mut told) = (Vec::new(), 0);
    for group in group_diff_ops(changes(&old, &new), CONTEXT) {
        for op in &group {
            let (removed, added) = (&old[op.old_range()], &new[op.new_range()]);
            if op.old_range().start > told {
                lines.push(Line::Skipped(op.old_range().start - told));
            }
            told = op.old_range().end;
            if op.tag() == DiffTag::Equal {
                lines.extend(removed.iter().map(short).map(Line::Same));
            } else {
                lines.extend(removed.iter().map(short).map(Line::Removed));
                lines.extend(added.iter().map(short).map(Line::Added));
            }
        }
    }
    if !lines.is_empty() && told < old.len() {
        lines.push(Line::Skipped(old.len() - told));
    }
    lines
}

/// How `old` becomes `new`. Where too many lines differ to be compared, they are replaced as a whole.
fn changes(old: &[String], new: &[String]) -> Vec<DiffOp> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let rest = old.len().min(new.len()) - head;
    let tail = old.iter().rev().zip(new.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let (old_len, new_len) = (old.len() - head - tail, new.len() - head - tail);
    if old_len.saturating_mul(new_len) <= PAIRS_MAX {
        return capture_diff_slices(Algorithm::Myers, old, new);
    }
    vec![
        DiffOp::Equal { old_index: 0, new_index: 0, len: head },
        DiffOp::Replace { old_index: head, old_len, new_index: head, new_len },
        DiffOp::Equal { old_index: head + old_len, new_index: head + new_len, len: tail },
    ]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(before: &str, after: &str) -> String {
        let lines: Vec<String> =
            diff(before.as_bytes(), after.as_bytes()).iter().map(Line::to_string).collect();
        lines.join("\n")
    }

    #[test]
    fn one_field_shows_as_one_change() {
        let before = r#"{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7}"#;
        let after = r#"{"a":1,"b":2,"c":3,"d":4,"e":"five","f":6,"g":7}"#;
        let expected = "  … 2 lines as before\n    \"b\": 2,\n    \"c\": 3,\n    \"d\": 4,\n-   \"e\": 5,\n+   \"e\": \"five\",\n    \"f\": 6,\n    \"g\": 7\n  }";
        assert_eq!(shown(before, after), expected);
    }

    #[test]
    fn the_same_document_written_otherwise_does_not_differ() {
        assert_eq!(shown(r#"{"a":1}"#, "{ \"a\" :\n1 }"), "");
        assert_eq!(shown("x", "y"), "- x\n+ y");
        assert_eq!(shown("", "y"), "+ y");
        assert_eq!(shown("\u{1b}[2J", "y"), "- \\u{1b}[2J\n+ y");
        assert_eq!(shown("a\u{7f}", "a\u{9b}"), "- a\\u{7f}\n+ a\\u{9b}");
        let long = format!("{}…", "x".repeat(LINE_MAX - 1));
        assert_eq!(shown(&"x".repeat(LINE_MAX + 1), "y"), format!("- {long}\n+ y"));
    }

    #[test]
    fn json_is_spread_without_touching_a_value() {
        let json = r#"{"z":1.50,"a":[],"n":{} , "s":"a\"{[,:\\","l":[1e400,{"x":null}]}"#;
        let expected = "{\n  \"z\": 1.50,\n  \"a\": [],\n  \"n\": {},\n  \"s\": \"a\\\"{[,:\\\\\",\n  \"l\": [\n    1e400,\n    {\n      \"x\": null\n    }\n  ]\n}";
        assert_eq!(pretty(json.as_bytes()).unwrap(), expected);
        assert_eq!(pretty(expected.as_bytes()).unwrap(), expected);
        assert_eq!(pretty(b"no JSON").unwrap(), "no JSON");
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(pretty(deep.as_bytes()).unwrap().len() < 20_000_000);
    }

    #[test]
    fn what_is_no_text_shows_as_its_size() {
        assert_eq!(readable(b"\xff\x00"), ["(2 bytes that are no text)"]);
    }

    #[test]
    fn large_bodies_are_compared_in_bounded_time() {
        let body = |seed: usize| (0..5000).map(|n| format!("{}\n", n * seed)).collect::<String>();
        assert_eq!(diff(body(3).as_bytes(), body(7).as_bytes()).len(), 2 * 5000 - 1);
    }

    proptest! {
        #[test]
        fn a_difference_leads_from_one_to_the_other(old in prop::collection::vec("[ab]", 0..20), new in prop::collection::vec("[ab]", 0..20)) {
            let (mut before, mut after) = (old.iter(), new.iter());
            let lines = diff(old.join("\n").as_bytes(), new.join("\n").as_bytes());
            let differ = !lines.is_empty();
            for line in lines {
                match line {
                    Line::Same(text) => prop_assert!(before.next() == Some(&text) && after.next() == Some(&text)),
                    Line::Removed(text) => prop_assert_eq!(before.next(), Some(&text)),
                    Line::Added(text) => prop_assert_eq!(after.next(), Some(&text)),
                    Line::Skipped(lines) => for _ in 0..lines { prop_assert_eq!(before.next(), after.next()) },
                }
            }
            prop_assert_eq!(differ, old != new);
            prop_assert!(!differ || (before.next().is_none() && after.next().is_none()));
        }
    }
}
