//! The least that any program on the scheduler's switch costs: one that does nothing, from the same object.

use anyhow::{Context, Result};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf-probes/prebuilt/standin.bpf.o");

/// Attached until the result is dropped.
pub(crate) fn attach() -> Result<Ebpf> {
    let mut ebpf = EbpfLoader::new().load(OBJECT)?;
    let program: &mut BtfTracePoint = ebpf.program_mut("nothing").context("no such program")?.try_into()?;
    program.load("sched_switch", &Btf::from_sys_fs()?)?;
    program.attach()?;
    Ok(ebpf)
}
