//! Reads the canonical form of a manifest (docs/manifest.md): a narrow part of TOML, line by line.
//!
//! What is not of that form is an error, and so is a field that this build does not know: a manifest that says more than what is
//! held would not be held.

use alloc::string::String;
use alloc::vec::Vec;

/// What stands in a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// `[name]`.
    Table(&'a str),
    /// `[[name]]`: one more of a list.
    Item(&'a str),
    /// `key = value`.
    Entry(String, Value),
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A number.
    Number(u64),
    /// `true` or `false`.
    Truth(bool),
    /// A list of texts.
    List(Vec<String>),
}

/// A line that is none, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub usize);

/// All lines but the empty ones, with their numbers.
pub fn lines(text: &str) -> impl Iterator<Item = Result<(usize, Line<'_>), Malformed>> {
    let numbered = (1..).zip(text.lines()).filter(|(_, line)| !line.is_empty());
    numbered.map(|(number, line)| Ok((number, self::line(line).ok_or(Malformed(number))?)))
}

fn line(line: &str) -> Option<Line<'_>> {
    if let Some(name) = line.strip_prefix("[[") {
        return name.strip_suffix("]]").map(Line::Item);
    }
    if let Some(name) = line.strip_prefix('[') {
        return name.strip_suffix(']').map(Line::Table);
    }
    let mut rest = line;
    let key = if rest.starts_with('"') {
        text(&mut rest)?
    } else {
        let end = rest.find(' ')?;
        let (key, after) = rest.split_at(end);
        rest = after;
        let bare = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        String::from(key).chars().all(bare).then(|| key.into())?
    };
    rest = rest.strip_prefix(" = ")?;
    let value = value(&mut rest)?;
    rest.is_empty().then_some(Line::Entry(key, value))
}

fn value(rest: &mut &str) -> Option<Value> {
    match rest.chars().next()? {
        '"' => text(rest).map(Value::Text),
        '[' => list(rest).map(Value::List),
        _ => {
            let word = core::mem::take(rest);
            match word {
                "true" => Some(Value::Truth(true)),
                "false" => Some(Value::Truth(false)),
                _ => word.parse().ok().map(Value::Number),
            }
        }
    }
}

fn list(rest: &mut &str) -> Option<Vec<String>> {
    *rest = rest.strip_prefix('[')?;
    let mut all = Vec::new();
    loop {
        if let Some(after) = rest.strip_prefix(']') {
            *rest = after;
            return Some(all);
        }
        if !all.is_empty() {
            *rest = rest.strip_prefix(", ")?;
        }
        all.push(text(rest)?);
    }
}

/// A text in double quotes, which the canonical form writes with three escapes: `\"`, `\\`, `\uXXXX`.
fn text(rest: &mut &str) -> Option<String> {
    let mut chars = rest.strip_prefix('"')?.chars();
    let mut found = String::new();
    loop {
        match chars.next()? {
            '"' => break,
            '\\' => match chars.next()? {
                c @ ('"' | '\\') => found.push(c),
                'u' => {
                    let digits = chars.as_str().get(..4)?;
                    found.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
                    chars = chars.as_str().get(4..)?.chars();
                }
                _ => return None,
            },
            c => found.push(c),
        }
    }
    *rest = chars.as_str();
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Option<Line<'_>> {
        line(text)
    }

    #[test]
    fn lines_of_each_kind_are_read() {
        assert_eq!(one("[program]"), Some(Line::Table("program")));
        assert_eq!(one("[[file]]"), Some(Line::Item("file")));
        let entry = |key: &str, value| Some(Line::Entry(key.into(), value));
        assert_eq!(one("version = 1"), entry("version", Value::Number(1)));
        assert_eq!(one("exec = true"), entry("exec", Value::Truth(true)));
        let text = Value::Text("a\"b\\c\n\u{9}".into());
        assert_eq!(one(r#"x = "a\"b\\c\u000A\u0009""#), entry("x", text));
        assert_eq!(one(r#""A.B" = "]""#), entry("A.B", Value::Text("]".into())));
        let list = Value::List(["a", ", ", "]"].map(String::from).into());
        assert_eq!(one(r#"args = ["a", ", ", "]"]"#), entry("args", list));
        assert_eq!(one("args = []"), entry("args", Value::List(Vec::new())));
    }

    #[test]
    fn what_is_not_canonical_is_refused() {
        for bad in [
            "",
            "x",
            "x=1",
            "x = ",
            "x = 'a'",
            "x = \"a",
            "x = \"a\" ",
            "x = \"\\n\"",
            "x = \"\\u00\"",
            "x = \"\\uD800\"",
            "x = [\"a\",\"b\"]",
            "x = [\"a\", ]",
            "x = [1]",
            "x = -1",
            "x = 1.5",
            "a.b = 1",
            "[a",
            "[[a]",
            " x = 1",
            "# no comments",
        ] {
            assert_eq!(one(bad), None, "{bad}");
        }
        let text = "version = 1\n\n[program]\nx\n";
        assert_eq!(lines(text).last(), Some(Err(Malformed(4))));
    }
}
