//! Stack traces as browsers write them: a message, and then a line for each frame.
//!
//! Chrome's are `    at name (url:line:column)`, those of Firefox and Safari `name@url:line:column`. Nothing is believed:
//! a page's visitor can send whatever looks like one.

/// A stack trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack<'a> {
    /// What went wrong, as Chrome says it ahead of the frames; the others leave it out.
    pub message: String,
    /// Innermost first, never empty.
    pub frames: Vec<Frame<'a>>,
}

/// A line of a stack trace, from the first that is a frame on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The line, without the blanks around it.
    pub raw: &'a str,
    /// Where it is, if the line says so.
    pub site: Option<Site<'a>>,
}

/// A place in a script, and the function around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site<'a> {
    /// The function as the browser calls it, such as `show`, `async show` or `Object.show`; empty if it has no name.
    pub function: &'a str,
    /// The script.
    pub url: &'a str,
    /// The line, from 1 on.
    pub line: u32,
    /// The column, from 1 on.
    pub column: u32,
}

impl<'a> Stack<'a> {
    /// The trace in this text; `None` if no line of it is a frame.
    pub fn parse(text: &'a str) -> Option<Self> {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let first = lines.iter().position(|line| is_frame(line))?;
        let (message, frames) = lines.split_at(first);
        let frames = frames.iter().filter(|line| !line.is_empty());
        Some(Self {
            message: message.join("\n"),
            frames: frames
                .map(|raw| Frame {
                    raw,
                    site: Site::parse(raw),
                })
                .collect(),
        })
    }
}

impl<'a> Site<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (function, place) = match line.strip_prefix("at ") {
            Some(rest) => match rest.strip_suffix(')') {
                Some(rest) => rest.split_once(" (")?,
                None => ("", rest.strip_prefix("async ").unwrap_or(rest)),
            },
            None => line.split_once('@')?,
        };
        let (place, column) = place.rsplit_once(':')?;
        let (url, line) = place.rsplit_once(':')?;
        Some(Self {
            function,
            url,
            line: line.parse().ok()?,
            column: column.parse().ok()?,
        })
    }
}

/// Whether this may be the first frame: a message may well contain an `@`, but doesn't end like a place.
fn is_frame(line: &str) -> bool {
    line.starts_with("at ") || line.ends_with("@[native code]") || Site::parse(line).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: Option<(&str, &str, u32, u32)>) {
        let site = Site::parse(line).map(|site| (site.function, site.url, site.line, site.column));
        assert_eq!(site, expected, "{line}");
    }

    #[test]
    fn frames_of_all_browsers_name_their_place() {
        let url = "http://127.0.0.1:8080/app.js";
        let at = |function| Some((function, url, 3, 14));
        // Chrome.
        check("at show (http://127.0.0.1:8080/app.js:3:14)", at("show"));
        check(
            "at async show (http://127.0.0.1:8080/app.js:3:14)",
            at("async show"),
        );
        check(
            "at Object.show [as go] (http://127.0.0.1:8080/app.js:3:14)",
            at("Object.show [as go]"),
        );
        check("at http://127.0.0.1:8080/app.js:3:14", at(""));
        check("at async http://127.0.0.1:8080/app.js:3:14", at(""));
        // Firefox and Safari.
        check("show@http://127.0.0.1:8080/app.js:3:14", at("show"));
        check(
            "async*show@http://127.0.0.1:8080/app.js:3:14",
            at("async*show"),
        );
        check("show/<@http://127.0.0.1:8080/app.js:3:14", at("show/<"));
        check("@http://127.0.0.1:8080/app.js:3:14", at(""));
    }

    #[test]
    fn what_has_no_place_has_none() {
        for line in [
            "",
            "at Array.map (<anonymous>)",
            "forEach@[native code]",
            "write to ada@example.com",
            "at show (http://127.0.0.1/app.js:3)",
            "at show (http://127.0.0.1/app.js:3:x)",
            "at show (http://127.0.0.1/app.js:99999999999:1)",
            "at show (http://127.0.0.1/app.js:3:-1)",
            "at (",
            "@:",
        ] {
            check(line, None);
        }
    }

    #[test]
    fn the_message_is_what_comes_before_the_frames() {
        let chrome = "TypeError: ask ada@example.com\nor try 8:15\n    at show (http://h/a.js:1:2)\n    at <anonymous>\n";
        let stack = Stack::parse(chrome).unwrap();
        assert_eq!(stack.message, "TypeError: ask ada@example.com\nor try 8:15");
        let raw: Vec<&str> = stack.frames.iter().map(|frame| frame.raw).collect();
        assert_eq!(raw, ["at show (http://h/a.js:1:2)", "at <anonymous>"]);

        let firefox = Stack::parse("show@http://h/a.js:1:2\n@http://h/a.js:3:4\n").unwrap();
        assert_eq!((firefox.message.as_str(), firefox.frames.len()), ("", 2));
        assert_eq!(Stack::parse("TypeError: ask ada@example.com"), None);
        assert_eq!(Stack::parse(""), None);
    }
}
