//! Options that name a file of past tasks and say how to read it, and the reading.

use super::exit::complain;
use crate::backtest::trace::{self, COLUMN_NAMES, Column, Mapping, Preset, Trace};
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Largest file that is read, bytes, unpacked.
const FILE_BYTES_MAX: u64 = 2 << 30;

#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    /// Where the columns come from
    #[arg(long, value_enum, default_value = "generic")]
    preset: PresetArg,
    /// What a column of the file holds (repeatable), such as elapsed=duration_s
    #[arg(long, value_name = "COLUMN=NAME", value_parser = parse_map)]
    map: Vec<(String, Column)>,
    /// Leave out rows with values that can't be, and count them
    #[arg(long)]
    skip_bad: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PresetArg {
    /// Our own names: task_type, start_ms, duration_s, memory_peak_bytes, …
    Generic,
    /// A Nextflow trace in milliseconds and bytes
    Sizey,
    /// `sacct --parsable2`
    Sacct,
}

fn parse_map(text: &str) -> Result<(String, Column), String> {
    let (column, name) = text.split_once('=').ok_or("allowed is COLUMN=NAME")?;
    let known =
        trace::column(name).ok_or_else(|| format!("{name:?} is no such NAME; there are {COLUMN_NAMES}"))?;
    Ok((column.to_owned(), known))
}

impl TraceArgs {
    /// Reads and unpacks a file; says how many rows were left out.
    pub(super) fn read(&self, path: &Path) -> anyhow::Result<Trace> {
        let mapping = Mapping {
            preset: match self.preset {
                PresetArg::Generic => Preset::Generic,
                PresetArg::Sizey => Preset::Sizey,
                PresetArg::Sacct => Preset::Sacct,
            },
            columns: self.map.iter().cloned().collect(),
            skip_bad: self.skip_bad,
        };
        let text = text(path)?;
        let trace = trace::read(&text, &mapping).with_context(|| path.display().to_string())?;
        if trace.skipped > 0 {
            complain(&format!("{} bad rows left out", trace.skipped));
        }
        if trace.failed > 0 {
            complain(&format!("{} tasks that did not end well left out", trace.failed));
        }
        Ok(trace)
    }
}

/// The text of a file; one that ends in `.xz` is unpacked by `xz`.
fn text(path: &Path) -> anyhow::Result<String> {
    let failed = || format!("failed to read {}", path.display());
    let mut bytes = Vec::new();
    if path.extension().is_some_and(|extension| extension == "xz") {
        File::open(path).with_context(failed)?;
        let mut xz = Command::new("xz")
            .args(["--decompress", "--stdout", "--"])
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to start xz, which unpacks .xz files: install it, or unpack the file")?;
        if let Some(out) = xz.stdout.take() {
            out.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(failed)?;
        }
        if bytes.len() as u64 <= FILE_BYTES_MAX && !xz.wait()?.success() {
            bail!("{}: xz could not unpack it", path.display());
        }
        _ = xz.kill();
        _ = xz.wait();
    } else {
        let file = File::open(path).with_context(failed)?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(failed)?;
    }
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!("{} is larger than 2 GiB: split it", path.display());
    }
    String::from_utf8(bytes).map_err(|error| {
        let line =
            error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        anyhow::anyhow!("{}: line {line}: not UTF-8", path.display())
    })
}

/// `--csv FILE`, for verbs that need one.
#[derive(Debug, Args)]
pub(super) struct CsvArg {
    /// Delimited text with a header: commas, tabs or bars; .xz too
    #[arg(long, value_name = "FILE")]
    pub(super) csv: PathBuf,
}
