//! Developer tasks of the workspace: `cargo xtask VERB`. A verb is a variant here and a module beside it.
mod ebpf;

use clap::Parser;

/// Developer tasks of the standin workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Rebuild the BPF object that users build with (ebpf-probes/prebuilt/standin.bpf.o).
    Ebpf(ebpf::Options),
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Ebpf(options) => ebpf::run(&options),
    }
}
