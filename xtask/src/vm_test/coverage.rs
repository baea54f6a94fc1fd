//! The table kernel × probe in `node-agent/docs/kernels.md`: made of what `standin doctor --json` said in the guests.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const DOCUMENT: &str = "node-agent/docs/kernels.md";

/// The table is between these lines.
const BEGIN: &str = "<!-- begin: cargo xtask vm-test --update -->";
const END: &str = "<!-- end -->";

/// Compares the document with what the guests of `reports` said, or writes it anew.
pub(super) fn check(reports: &[(&str, PathBuf)], update: bool) -> Result<()> {
    let path = crate::workspace()?.join(DOCUMENT);
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let (before, rest) = text.split_once(BEGIN).context("the document has no place for the table")?;
    let (old, after) = rest.split_once(END).context("the document has no place for the table")?;
    if reports.len() < 2 {
        println!("{DOCUMENT} not compared: it is about all kernels");
        return Ok(());
    }
    let new = table(reports)?;
    if update {
        return Ok(fs::write(path, format!("{before}{BEGIN}\n\n{new}\n{END}{after}"))?);
    }
    ensure!(old.trim() == new.trim(), "{DOCUMENT} says something else than the guests; use --update:\n{new}");
    Ok(())
}

/// What was found about one probe on each kernel.
type Row<'a> = BTreeMap<&'a str, String>;

fn table(reports: &[(&str, PathBuf)]) -> Result<String> {
    let mut rows: Vec<((String, String), Row<'_>)> = Vec::new();
    let mut notes: Vec<String> = Vec::new();
    for (kernel, directory) in reports {
        for (about, name, state, detail) in findings(&directory.join("doctor.json"))? {
            let (what, how) = split(&about, &name, &detail);
            let cell = match state.as_str() {
                "ok" => how,
                "absent" => "–".into(),
                _ => {
                    notes.push(detail);
                    format!("**no** ({})", notes.len())
                }
            };
            let key = (name, what);
            match rows.iter_mut().find(|(known, _)| *known == key) {
                Some((_, row)) => _ = row.insert(kernel, cell),
                None => rows.push((key, Row::from([(*kernel, cell)]))),
            }
        }
    }
    let names: Vec<_> = reports.iter().map(|(kernel, _)| *kernel).collect();
    let mut text =
        format!("| probe | what | {} |\n|---|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for ((name, what), row) in rows {
        let cells = names.iter().map(|kernel| row.get(kernel).cloned().unwrap_or_else(|| "–".into()));
        text += &format!("| `{name}` | {what} | {} |\n", cells.collect::<Vec<_>>().join(" | "));
    }
    for (number, note) in notes.iter().enumerate() {
        text += &format!("\n({}) {note}\n", number + 1);
    }
    Ok(text)
}

/// `what (how)` as the probes say it; findings of others are told by their name.
fn split(about: &str, name: &str, detail: &str) -> (String, String) {
    match detail.rsplit_once(" (").filter(|_| about == "probes") {
        Some((what, how)) => (what.to_owned(), format!("`{}`", how.trim_end_matches(')'))),
        None if about == "probes" => (detail.split(':').next().unwrap_or_default().to_owned(), "yes".into()),
        None => (format!("{about}: {name}"), "yes".into()),
    }
}

/// Probes and ways of failover: about, name, state, detail.
fn findings(path: &Path) -> Result<Vec<(String, String, String, String)>> {
    let text = fs::read_to_string(path).with_context(|| format!("no report {}", path.display()))?;
    let report: Value = serde_json::from_str(&text)?;
    let all = report["findings"].as_array().context("a report has findings")?;
    let word = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let wanted = all.iter().filter(|finding| finding["about"] == "probes" || finding["about"] == "failover");
    Ok(wanted
        .map(|finding| {
            (word(finding, "about"), word(finding, "name"), word(finding, "state"), word(finding, "detail"))
        })
        .collect())
}
