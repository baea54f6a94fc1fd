//! `cargo xtask vm-test`: the package on other kernels, where all controllers are on cgroup v2.
//!
//! For each kernel there is a guest: Debian's smallest with systemd and that kernel, booted once, frozen when it was up,
//! and kept (`guest::cache`). A run thaws it, hands it a disk with the package and the tests, reads what they say from a
//! serial line, and ends it. QEMU emulates the processor (`-accel tcg`) everywhere: slow, but the same on every host,
//! also where there is a `/dev/kvm` that does not work. Kernel panics, oopses and soft lock-ups fail the run.
//!
//! On the newest kernel the power is cut as well, again and again (`power_cut`).
//!
//! What the probes say on each kernel becomes the table in `node-agent/docs/kernels.md`; a table that says something
//! else than the guests fails the run, too.
mod coverage;
mod image;
mod kernel;
mod machine;
mod power_cut;
mod write_log;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use crate::{
    debian,
    guest::{self, Payload},
};
use kernel::{KERNELS, Kernel};
use machine::Machine;

/// Programs that make and run guests, and Debian's packages with them.
const PROGRAMS: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("lz4", "lz4"),
    ("mke2fs", "e2fsprogs"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// What runs in the guest.
const JOB: &str = include_str!("job.sh");

/// Options of `cargo xtask vm-test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Profile that package and tests are built with.
    #[arg(long, default_value = "dev")]
    profile: String,
    /// Only this kernel: 6.1 or 6.12.
    #[arg(long)]
    kernel: Option<String>,
    /// Seed of the power cuts: one that a run has printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Only the power cuts.
    #[arg(long)]
    power_cuts: bool,
    /// Write the table of probes anew instead of comparing it.
    #[arg(long)]
    update: bool,
    /// More of Debian's packages in the guest: `--with podman` has its containers tested as well.
    #[arg(long, value_delimiter = ',')]
    with: Vec<String>,
    /// Run this in the guest after the package is installed, instead of the tests.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Gives success if all tests passed on all kernels.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let missing = debian::provide(&PROGRAMS);
    ensure!(missing.is_empty(), "guests need {}", missing.join(", "));
    let payload = Payload::build(&options.profile)?;
    let root = guest::root::tree(&options.with)?;
    let wanted = |kernel: &&Kernel| options.kernel.as_deref().is_none_or(|wanted| wanted == kernel.name);
    let kernels: Vec<_> = KERNELS.iter().filter(wanted).collect();
    ensure!(!kernels.is_empty(), "no such kernel");
    // One after the other, as well as the tests: each guest keeps a core of the host busy all the time.
    let guests = kernels.iter().map(|kernel| image::guest(kernel, &root)).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    let job = job_of(options)?;
    let mut outcomes = Vec::new();
    for (kernel, guest) in kernels.iter().zip(&guests).filter(|_| !options.power_cuts) {
        outcomes.push((kernel.name, "tests", test(kernel, guest, &payload, &job)));
    }
    // One kernel will do: it is the database and the agent that are tested.
    if let (Some(kernel), Some(guest), true) = (kernels.last(), guests.last(), options.command.is_empty()) {
        outcomes.push((kernel.name, "power cuts", power_cut::test(kernel, guest, &payload, options.seed)));
    }
    let mut passed = true;
    for (kernel, what, outcome) in &outcomes {
        match outcome {
            Ok(true) => println!("Linux {kernel}: {what} passed"),
            Ok(false) => println!("Linux {kernel}: {what} FAILED"),
            Err(error) => println!("Linux {kernel}: {what} FAILED: {error:#}"),
        }
        passed &= matches!(outcome, Ok(true));
    }
    println!("vm-test took {:.1} s without building", begun.elapsed().as_secs_f64());
    if passed && !options.power_cuts && (options.command.is_empty() || options.update) {
        let names: Vec<_> = kernels.iter().map(|kernel| (kernel.name, report_directory(kernel))).collect();
        coverage::check(&names, options.update)?;
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The script that the guest runs.
fn job_of(options: &Options) -> Result<String> {
    if options.command.is_empty() {
        return Ok(JOB.to_owned());
    }
    let (install, _) = JOB.split_once("# tests").context("the job installs, then tests")?;
    let quoted = options.command.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''")));
    Ok(format!("{install}\n{}\n", quoted.collect::<Vec<_>>().join(" ")))
}

/// Where a guest's reports are laid.
fn report_directory(kernel: &Kernel) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.or_else(|| Some(crate::workspace().ok()?.join("target")));
    target.unwrap_or_else(env::temp_dir).join("vm-test").join(kernel.name)
}

/// Runs the job in a thawed guest; whether it passed.
fn test(kernel: &'static Kernel, guest: &Path, payload: &Payload, job: &str) -> Result<bool> {
    let scratch = machine::scratch(kernel.name)?;
    let disk = scratch.join("payload");
    payload.lay(&disk)?;
    fs::write(disk.join("run.sh"), job)?;
    let reports = report_directory(kernel);
    let outcome = Machine::thaw(kernel, guest, &scratch).and_then(|machine| machine.run(&reports));
    _ = fs::remove_dir_all(&scratch);
    Ok(outcome? == 0)
}
