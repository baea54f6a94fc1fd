//! The frame of the page: head, switch between light and dark, contents, sections.

use super::gather::Report;
use super::markup::escape;
use super::{host, palette, task};
use crate::units::{format_clock, format_count};

/// What a file begins with that this program wrote.
pub const MARK: &str = "<!doctype html>\n<!-- standin report -->\n";

const STYLE: &str = include_str!("style.css");

/// Nothing may be loaded or run, whatever a text on the page says.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Without a script: the style sheet looks which one is checked.
const SWITCH: &str = "<fieldset class=\"theme\"><legend>Colours</legend>\
<label><input type=\"radio\" name=\"theme\" id=\"theme-system\" checked> as the system</label>\
<label><input type=\"radio\" name=\"theme\" id=\"theme-light\"> light</label>\
<label><input type=\"radio\" name=\"theme\" id=\"theme-dark\"> dark</label></fieldset>";

/// A part of the page.
pub(super) struct Section {
    /// Unique on the page.
    pub(super) id: String,
    /// As text.
    pub(super) title: String,
    /// As HTML.
    pub(super) body: String,
}

/// The whole page.
pub fn page(report: &Report) -> String {
    let title = match &report.scope {
        Some(task) => format!("{task} on {}", report.host),
        None => format!("Tasks of {}", report.host),
    };
    let sections = match (&report.scope, report.parts.first()) {
        (Some(_), Some(part)) => task::sections(report, part),
        _ => host::sections(report),
    };
    let links: String = sections
        .iter()
        .map(|section| {
            format!("<li><a href=\"#{}\">{}</a></li>", escape(&section.id), escape(&section.title))
        })
        .collect();
    let bodies: String = sections.iter().map(in_section).collect();
    let (title, style) = (escape(&title), palette::properties() + STYLE);
    let made = format!(
        "Made {} by standin {} from {}.",
        &format_clock(report.at_ms)[..19],
        env!("CARGO_PKG_VERSION"),
        counted(report.tasks.iter().map(|task| task.runs).sum::<u64>() as usize, "run")
    );
    format!(
        "{MARK}<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{style}</style></head>\n<body>\n\
         <a class=\"skip\" href=\"#content\">Skip to the content</a>\n\
         <header><div><h1>{title}</h1><p class=\"quiet\">{}</p></div>{SWITCH}</header>\n\
         <nav aria-label=\"Contents\"><ul>{links}</ul></nav>\n<main id=\"content\">\n{bodies}</main>\n\
         </body></html>\n",
        escape(&made)
    )
}

fn in_section(section: &Section) -> String {
    let (id, title) = (escape(&section.id), escape(&section.title));
    format!(
        "<section id=\"{id}\" aria-labelledby=\"{id}-h\"><h2 id=\"{id}-h\">{title}</h2>\n{}</section>\n",
        section.body
    )
}

/// A plot with its name, what its marks are, and the table behind it.
pub(super) fn figure(name: &str, note: &str, key: &[(&str, &str)], svg: &str, table: &str) -> String {
    let sample = |class: &str| match class.split_once(' ') {
        _ if class == "band" => "<rect class=\"band\" width=\"32\" height=\"16\"/>".to_owned(),
        Some(("dot", colour)) => format!("<circle class=\"dot {colour}\" cx=\"16\" cy=\"8\" r=\"5\"/>"),
        Some(("cross", colour)) => format!("<path class=\"cross {colour}\" d=\"M11 3l10 10m0 -10l-10 10\"/>"),
        Some(("fill", colour)) => format!("<rect class=\"fill {colour}\" width=\"32\" height=\"16\"/>"),
        _ => format!("<path class=\"{class}\" d=\"M0 8H32\"/>"),
    };
    let keys: String = key
        .iter()
        .map(|(class, meaning)| {
            let drawn = sample(class);
            format!(
                "<li><svg viewBox=\"0 0 32 16\" aria-hidden=\"true\">{drawn}</svg>{}</li>",
                escape(meaning)
            )
        })
        .collect();
    let keys = if keys.is_empty() { keys } else { format!("<ul class=\"key\">{keys}</ul>") };
    format!(
        "<figure><figcaption>{}<small>{}</small></figcaption>\n{keys}{svg}{table}</figure>\n",
        escape(name),
        escape(note)
    )
}

/// Names and values.
pub(super) fn facts(facts: &[(&str, String)]) -> String {
    let rows: String = facts
        .iter()
        .map(|(name, value)| format!("<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value)))
        .collect();
    format!("<dl>{rows}</dl>\n")
}

/// `1 run`, `1,234 runs`.
pub(super) fn counted(count: usize, what: &str) -> String {
    format!("{} {what}{}", format_count(count as u64), if count == 1 { "" } else { "s" })
}

/// A paragraph of text.
pub(super) fn paragraph(class: &str, text: &str) -> String {
    format!("<p class=\"{class}\">{}</p>\n", escape(text))
}
