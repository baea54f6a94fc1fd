//! Developer tasks of the workspace: `cargo xtask VERB`. A verb is a variant here and a module beside it.
mod bench;
mod debian;
mod dist;
mod ebpf;
mod fuzz;
mod guest;
mod process;
mod soak;
mod systemd_test;
mod test;
mod vm_test;

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;

/// Developer tasks of the standin workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Install what tests need (Debian, as root), run all tests, and say which could not check anything.
    Test(test::Options),
    /// Make a Debian package of the program, its units, manual and completions (target/dist).
    Dist(dist::Options),
    /// Measure on this host what standin costs.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Install the package where a real systemd runs in namespaces of this host, and test it there.
    SystemdTest(systemd_test::Options),
    /// Install the package in emulated machines with other kernels and cgroup v2, and test it there.
    VmTest(vm_test::Options),
    /// What runs in those namespaces until systemd takes over.
    #[command(hide = true)]
    NamespaceInit(systemd_test::namespace::Options),
    /// Let jobs, failovers, containers and cgroups come and go, and see whether anything grows.
    Soak(soak::Options),
    /// Feed every parser with very many inputs that mean harm.
    Fuzz(fuzz::Options),
    /// Rebuild the BPF object that users build with (ebpf-probes/prebuilt/standin.bpf.o).
    Ebpf(ebpf::Options),
}

fn main() -> Result<ExitCode> {
    match Task::parse() {
        Task::Test(options) => test::run(&options),
        Task::Dist(options) => dist::run(&options).map(|()| ExitCode::SUCCESS),
        Task::SystemdTest(options) => systemd_test::run(&options),
        Task::VmTest(options) => vm_test::run(&options),
        Task::NamespaceInit(options) => systemd_test::namespace::init(&options).map(|()| ExitCode::FAILURE),
        Task::Bench(bench) => bench::run(&bench),
        Task::Soak(options) => soak::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Ebpf(options) => ebpf::run(&options).map(|()| ExitCode::SUCCESS),
    }
}

fn workspace() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")
}
