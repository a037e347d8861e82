//! From what people type to HTML: the small part of Markdown that a chat needs.
//!
//! Everything that isn't markup is escaped, and links lead to `http` and `https` only, so that the result is safe to
//! show. It is made once, when a message is sent: an entry holds it ready.

use std::fmt::Write as _;

/// Renders a message: paragraphs, line breaks, fenced code, `` `code` ``, `**bold**`, `@**Name**`, and bare links.
///
/// ```
/// let html = larder_chat::render::render("hi @**Ada**, see `a < b`\nhttps://example.com/?a=1&b=2");
/// assert_eq!(
///     html,
///     "<p>hi <span class=\"mention\">@Ada</span>, see <code>a &lt; b</code><br>\n\
///      <a href=\"https://example.com/?a=1&amp;b=2\" rel=\"noreferrer\">https://example.com/?a=1&amp;b=2</a></p>"
/// );
/// ```
pub fn render(markdown: &str) -> String {
    let mut html = String::with_capacity(markdown.len() * 3 / 2);
    let mut paragraph = Vec::new();
    let mut lines = markdown.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            end_paragraph(&mut paragraph, &mut html);
            // A fence that is never closed reaches to the end.
            let code: Vec<&str> = lines
                .by_ref()
                .take_while(|line| line.trim_end() != "```")
                .collect();
            separate(&mut html);
            html.push_str("<pre><code");
            if !language.trim().is_empty() {
                html.push_str(" class=\"language-");
                escape(language.trim(), &mut html);
                html.push('"');
            }
            html.push('>');
            escape(&code.join("\n"), &mut html);
            html.push_str("</code></pre>");
        } else if line.trim().is_empty() {
            end_paragraph(&mut paragraph, &mut html);
        } else {
            paragraph.push(line);
        }
    }
    end_paragraph(&mut paragraph, &mut html);
    html
}

fn end_paragraph(lines: &mut Vec<&str>, html: &mut String) {
    if lines.is_empty() {
        return;
    }
    separate(html);
    html.push_str("<p>");
    for (position, line) in lines.drain(..).enumerate() {
        if position > 0 {
            html.push_str("<br>\n");
        }
        inline(line, html);
    }
    html.push_str("</p>");
}

fn separate(html: &mut String) {
    if !html.is_empty() {
        html.push('\n');
    }
}

/// Renders one line: what opens but doesn't close is text.
fn inline(line: &str, html: &mut String) {
    let mut rest = line;
    let mut plain = 0;
    while plain < rest.len() {
        let here = &rest[plain..];
        let (markup, length) = if let Some((code, length)) = enclosed(here, "`", "`") {
            (Markup::Code(code), length)
        } else if let Some((name, length)) = enclosed(here, "@**", "**") {
            (Markup::Mention(name), length)
        } else if let Some((bold, length)) = enclosed(here, "**", "**") {
            (Markup::Bold(bold), length)
        } else if here.starts_with("https://") || here.starts_with("http://") {
            let end = here.find([' ', '\t', '<', '>', '"']).unwrap_or(here.len());
            let url = here[..end].trim_end_matches(['.', ',', ';', ':', '!', '?', ')']);
            (Markup::Link(url), url.len())
        } else {
            plain += here.chars().next().map_or(1, char::len_utf8);
            continue;
        };
        escape(&rest[..plain], html);
        markup.write(html);
        rest = &rest[plain + length..];
        plain = 0;
    }
    escape(rest, html);
}

enum Markup<'a> {
    Code(&'a str),
    Mention(&'a str),
    Bold(&'a str),
    Link(&'a str),
}

impl Markup<'_> {
    fn write(&self, html: &mut String) {
        let escaped = |text: &str| {
            let mut escaped = String::with_capacity(text.len());
            escape(text, &mut escaped);
            escaped
        };
        let written = match self {
            Self::Code(code) => write!(html, "<code>{}</code>", escaped(code)),
            Self::Mention(name) => {
                write!(html, "<span class=\"mention\">@{}</span>", escaped(name))
            }
            Self::Bold(text) => write!(html, "<strong>{}</strong>", escaped(text)),
            Self::Link(url) => {
                let url = escaped(url);
                write!(html, "<a href=\"{url}\" rel=\"noreferrer\">{url}</a>")
            }
        };
        written.expect("writing to a string never fails");
    }
}

/// The text between these two marks at the start of `text`, and how far it reaches with them.
fn enclosed<'a>(text: &'a str, open: &str, close: &str) -> Option<(&'a str, usize)> {
    let inner = text.strip_prefix(open)?;
    let end = inner.find(close).filter(|&end| end > 0)?;
    Some((&inner[..end], open.len() + end + close.len()))
}

fn escape(text: &str, html: &mut String) {
    for character in text.chars() {
        match character {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            other => html.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::render;

    #[track_caller]
    fn check(markdown: &str, html: &str) {
        assert_eq!(render(markdown), html);
    }

    #[test]
    fn paragraphs_breaks_and_code() {
        check("", "");
        check("a\nb\n\n\nc", "<p>a<br>\nb</p>\n<p>c</p>");
        check(
            "see\n```rust\nlet a = 1 < 2;\n\nb\n```\ndone",
            "<p>see</p>\n<pre><code class=\"language-rust\">let a = 1 &lt; 2;\n\nb</code></pre>\n<p>done</p>",
        );
        check("```\nopen", "<pre><code>open</code></pre>");
    }

    #[test]
    fn marks_that_do_not_close_are_text() {
        check("a ` b ** c", "<p>a ` b ** c</p>");
        check("a @** d", "<p>a @** d</p>");
        check("** **", "<p><strong> </strong></p>");
        check("****", "<p>****</p>");
    }

    #[test]
    fn nothing_gets_through_unescaped() {
        check("<script>&\"'", "<p>&lt;script&gt;&amp;&quot;&#39;</p>");
        check("`<b>`", "<p><code>&lt;b&gt;</code></p>");
        check(
            "```\"><i>\nx\n```",
            "<pre><code class=\"language-&quot;&gt;&lt;i&gt;\">x</code></pre>",
        );
        check("javascript:alert(1)", "<p>javascript:alert(1)</p>");
        check(
            "(https://example.com/'a\"b).",
            "<p>(<a href=\"https://example.com/&#39;a\" rel=\"noreferrer\">https://example.com/&#39;a</a>&quot;b).</p>",
        );
    }
}
