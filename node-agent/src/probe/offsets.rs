//! Which kernel fields the BPF programs read: in comes the kernel's BTF, out goes the table of offsets that
//! they are loaded with, and which programs this kernel has no fields for.
use ebpf_probes::{ABSENT, Offsets};

use super::kernel_btf::{BtfError, KernelBtf};

/// Who cannot do without a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Every program: finding the cgroup.
    Every,
    /// The scheduler's program.
    Sched,
    /// The program at the end of a task.
    Exit,
    /// The block programs.
    Block,
    /// The program that remembers who dirtied a file.
    Writers,
    /// The socket programs.
    Socket,
    /// Nobody: the programs work with less.
    Nobody,
}

/// One line per field: entry of [`Offsets`], who needs it, struct, and its paths in newer and older kernels.
macro_rules! fields {
    ($($entry:ident: $need:ident, $structure:literal, $($path:literal)|+;)*) => {
        const STRUCTS: &[&str] = &[$($structure),*];

        fn resolve(btf: &KernelBtf) -> Offsets {
            let find = |structure: &str, paths: &[&str]| {
                paths.iter().find_map(|path| btf.offset(structure, path)).unwrap_or(ABSENT)
            };
            Offsets { $($entry: find($structure, &[$($path),+]),)* ..Offsets::default() }
        }

        /// The first field that `need` needs and this kernel lacks.
        fn first_missing(offsets: &Offsets, need: Need) -> Option<&'static str> {
            $(
                let is_needed = Need::$need == need || Need::$need == Need::Every;
                if is_needed && offsets.$entry == ABSENT {
                    return Some(stringify!($entry));
                }
            )*
            None
        }
    };
}

fields! {
    task_pid: Sched, "task_struct", "pid";
    task_tgid: Exit, "task_struct", "tgid";
    task_state: Sched, "task_struct", "__state" | "state";
    task_sum_exec_runtime: Sched, "task_struct", "se.sum_exec_runtime";
    task_prev_sum_exec_runtime: Nobody, "task_struct", "se.prev_sum_exec_runtime";
    task_prio: Sched, "task_struct", "prio";
    task_run_delay: Nobody, "task_struct", "sched_info.run_delay";
    task_pcount: Nobody, "task_struct", "sched_info.pcount";
    task_last_arrival: Nobody, "task_struct", "sched_info.last_arrival";
    task_min_flt: Sched, "task_struct", "min_flt";
    task_maj_flt: Sched, "task_struct", "maj_flt";
    task_cgroups: Every, "task_struct", "cgroups";
    task_signal: Exit, "task_struct", "signal";
    task_group_leader: Exit, "task_struct", "group_leader";
    task_exit_code: Exit, "task_struct", "exit_code";
    task_read_bytes: Nobody, "task_struct", "ioac.read_bytes";
    task_write_bytes: Nobody, "task_struct", "ioac.write_bytes";
    signal_live: Exit, "signal_struct", "live.counter";
    signal_flags: Exit, "signal_struct", "flags";
    signal_group_exit_code: Exit, "signal_struct", "group_exit_code";
    signal_maxrss: Exit, "signal_struct", "maxrss";
    css_set_dfl_cgrp: Every, "css_set", "dfl_cgrp";
    cgroup_kn: Every, "cgroup", "kn";
    cgroup_level: Every, "cgroup", "level";
    cgroup_ancestors: Nobody, "cgroup", "ancestors"; // Linux 6.1
    cgroup_ancestor_ids: Nobody, "cgroup", "ancestor_ids"; // before
    cgroup_root: Block, "cgroup", "root";
    cgroup_root_hierarchy_id: Block, "cgroup_root", "hierarchy_id";
    kernfs_node_id: Every, "kernfs_node", "id";
    request_bio: Block, "request", "bio";
    request_data_len: Block, "request", "__data_len";
    request_cmd_flags: Block, "request", "cmd_flags";
    bio_blkg: Nobody, "bio", "bi_blkg";
    blkg_blkcg: Nobody, "blkcg_gq", "blkcg";
    blkcg_cgroup: Nobody, "blkcg", "css.cgroup";
    sock_cgroup: Socket, "sock", "sk_cgrp_data.cgroup";
    sock_family: Socket, "sock", "__sk_common.skc_family";
    sock_protocol: Socket, "sock", "sk_protocol";
    task_flags: Block, "task_struct", "flags";
    request_sector: Block, "request", "__sector";
    bio_io_vec: Nobody, "bio", "bi_io_vec";
    bio_vec_page: Nobody, "bio_vec", "bv_page";
    page_compound_head: Nobody, "page", "compound_head";
    page_mapping: Nobody, "page", "mapping";
    mapping_host: Writers, "address_space", "host";
    inode_mode: Nobody, "inode", "i_mode";
    sock_dport: Socket, "sock", "__sk_common.skc_dport";
    sock_daddr: Socket, "sock", "__sk_common.skc_daddr";
    sock_v6_daddr: Nobody, "sock", "__sk_common.skc_v6_daddr";
    tcp_srtt_us: Nobody, "tcp_sock", "srtt_us";
}

/// The offsets of the running kernel, and its BTF for further questions.
pub(crate) fn of_this_kernel() -> Result<(Offsets, KernelBtf), BtfError> {
    let btf = KernelBtf::of_this_kernel(STRUCTS)?;
    let mut offsets = resolve(&btf);
    // Half a path is no path.
    if [offsets.blkg_blkcg, offsets.blkcg_cgroup].contains(&ABSENT) {
        offsets.bio_blkg = ABSENT;
    }
    let path = [
        offsets.bio_io_vec,
        offsets.bio_vec_page,
        offsets.page_compound_head,
        offsets.page_mapping,
        offsets.inode_mode,
    ];
    if path.contains(&ABSENT) {
        offsets.mapping_host = ABSENT;
    }
    if offsets.task_last_arrival == ABSENT {
        offsets.task_run_delay = ABSENT;
    }
    if offsets.task_write_bytes == ABSENT {
        offsets.task_read_bytes = ABSENT;
    }
    offsets.exit_tells_group_dead = u32::from(btf.tracepoint_arguments("sched_process_exit") == Some(2));
    Ok((offsets, btf))
}

/// Why a program cannot work on this kernel, if a field that it needs is missing.
pub(super) fn lacks(offsets: &Offsets, need: Need) -> Option<String> {
    let missing = first_missing(offsets, need).or_else(|| {
        let has_ancestors = [offsets.cgroup_ancestors, offsets.cgroup_ancestor_ids] != [ABSENT; 2];
        (!has_ancestors).then_some("cgroup_ancestors")
    });
    missing.map(|field| format!("this kernel's BTF has no field {field}"))
}

/// The table as the bytes of the read-only global.
pub(crate) fn bytes_of(offsets: &Offsets) -> &[u8] {
    // SAFETY: `Offsets` is repr(C) and holds u32 only, so it has no padding, and the slice borrows it.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(offsets).cast(), size_of::<Offsets>()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_field_is_named() {
        let mut offsets = Offsets::default();
        assert_eq!(lacks(&offsets, Need::Sched), None);
        offsets.task_run_delay = ABSENT;
        assert_eq!(lacks(&offsets, Need::Sched), None, "waits can be missing");
        offsets.task_maj_flt = ABSENT;
        assert!(lacks(&offsets, Need::Sched).unwrap().contains("task_maj_flt"));
        assert_eq!(lacks(&offsets, Need::Exit), None);
    }

    #[test]
    fn resolves_all_on_this_kernel() {
        let (offsets, _) = match of_this_kernel() {
            Ok(found) => found,
            Err(error) => return crate::skip::skip(&error.to_string()),
        };
        for need in [Need::Every, Need::Sched, Need::Exit, Need::Block, Need::Socket] {
            assert_eq!(lacks(&offsets, need), None, "{need:?}");
        }
        assert_eq!(bytes_of(&offsets).len(), size_of::<Offsets>());
    }
}
