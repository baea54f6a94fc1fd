//! `standin report`: a page of HTML about a task or the whole host, in one file.

use super::completions;
use super::exit::{NOT_KNOWN, complain, print_bytes};
use super::progress::Progress;
use super::settings::Settings;
use crate::host;
use crate::report::{self, MARK, Scope};
use crate::store::Reader;
use anyhow::{Context, bail};
use clap::Args;
use clap_complete::ArgValueCandidates;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin report --html host.html              all tasks of this host
  standin report align.py --html align.html    one task: runs, predictions, histograms, what was saved
  standin report --html - | gzip > host.html.gz")]
pub(super) struct ReportArgs {
    /// Only this task [default: the whole host]
    #[arg(add = ArgValueCandidates::new(completions::tasks))]
    task: Option<String>,
    /// Where to write the page; - is standard output. An older report there is replaced
    #[arg(long, value_name = "FILE")]
    html: PathBuf,
    /// Replace FILE even if it is no report
    #[arg(long)]
    force: bool,
}

pub(super) fn run(settings: &Settings, arguments: &ReportArgs) -> anyhow::Result<u8> {
    let to_stdout = arguments.html.as_os_str() == "-";
    if !to_stdout && !arguments.force {
        keep_others(&arguments.html)?;
    }
    let reader = Reader::open(&settings.database_to_read())?;
    let scope = Scope {
        task: arguments.task.as_deref(),
        risk: settings.config.run.risk,
        host_bytes: host::capacity().memory_bytes as f64,
    };
    let mut progress = Progress::new("gathering");
    let Some(gathered) = report::gather(&reader, scope, |done, of| progress.tell(done, of, "parts"))? else {
        complain(&match &arguments.task {
            Some(name) => format!("no run of {name:?} is known; `standin ls` lists what is"),
            None => "no run is known yet; `standin run -- COMMAND` makes one".into(),
        });
        return Ok(NOT_KNOWN);
    };
    let page = report::page(&gathered);
    drop(progress);
    if to_stdout {
        print_bytes(page.as_bytes())?;
    } else {
        write(&arguments.html, page.as_bytes())
            .with_context(|| format!("failed to write {}", arguments.html.display()))?;
    }
    Ok(0)
}

/// Refuses to replace a file that is no report: a slip of the keyboard must not cost somebody's work.
fn keep_others(path: &Path) -> anyhow::Result<()> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    if metadata.is_dir() {
        bail!("{} is a directory; name a file in it", path.display());
    }
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok(());
    }
    let mut head = vec![0; MARK.len()];
    let is_ours =
        File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head == MARK.as_bytes();
    if !is_ours {
        bail!("{} is there and no report of standin; --force replaces it", path.display());
    }
    Ok(())
}

/// Into a file beside it first, so that whoever has the page open never sees half of one. What is no plain file is
/// written in place.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if fs::metadata(&real).is_ok_and(|metadata| !metadata.is_file()) {
        return File::options().write(true).open(&real)?.write_all(bytes);
    }
    let mut name = real.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = real.with_file_name(name);
    let written = File::options().write(true).create_new(true).open(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, &real)
    });
    if written.is_err() {
        _ = fs::remove_file(&beside);
    }
    written
}
