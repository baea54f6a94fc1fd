//! Reads of kernel structs: a pointer that the verifier knows the type of and an offset that user space
//! found in the kernel's BTF give a plain load. The verifier checks it against the real struct and the
//! kernel makes it fault-safe, so a null pointer on the way reads as 0.
use core::ptr::read_volatile;

use aya_ebpf::helpers::bpf_probe_read_kernel;
use ebpf_probes::{ABSENT, Offsets};

/// Filled by user space before loading (`probe::offsets`).
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Offsets = Offsets {
    task_pid: 0,
    task_tgid: 0,
    task_state: 0,
    task_prio: 0,
    task_sum_exec_runtime: 0,
    task_prev_sum_exec_runtime: 0,
    task_run_delay: 0,
    task_pcount: 0,
    task_last_arrival: 0,
    task_min_flt: 0,
    task_maj_flt: 0,
    task_cgroups: 0,
    task_signal: 0,
    task_group_leader: 0,
    task_exit_code: 0,
    task_read_bytes: 0,
    task_write_bytes: 0,
    signal_live: 0,
    signal_flags: 0,
    signal_group_exit_code: 0,
    signal_maxrss: 0,
    css_set_dfl_cgrp: 0,
    cgroup_kn: 0,
    cgroup_level: 0,
    cgroup_ancestors: 0,
    cgroup_ancestor_ids: 0,
    cgroup_root: 0,
    cgroup_root_hierarchy_id: 0,
    kernfs_node_id: 0,
    request_bio: 0,
    request_data_len: 0,
    request_cmd_flags: 0,
    bio_blkg: 0,
    blkg_blkcg: 0,
    blkcg_cgroup: 0,
    sock_cgroup: 0,
    sock_family: 0,
    sock_protocol: 0,
    task_flags: 0,
    request_sector: 0,
    bio_io_vec: 0,
    bio_vec_page: 0,
    page_compound_head: 0,
    page_mapping: 0,
    mapping_host: 0,
    inode_mode: 0,
    sock_dport: 0,
    sock_daddr: 0,
    sock_v6_daddr: 0,
    tcp_srtt_us: 0,
    exit_tells_group_dead: 0,
    cpus: 0,
    run_level: 0,
};

/// One entry of [`OFFSETS`].
macro_rules! offset {
    ($field:ident) => {
        $crate::kernel::value(&$crate::kernel::OFFSETS.$field)
    };
}
pub(crate) use offset;

/// Volatile, because the compiler must not take the zeros of [`OFFSETS`] for the values.
#[inline(always)]
pub(crate) fn value(entry: &u32) -> u32 {
    // SAFETY: a reference can be read.
    unsafe { read_volatile(entry) }
}

/// A pointer to a kernel struct; the verifier tracks which.
pub(crate) type Pointer = *const u8;

/// Loads a field of a kernel struct.
///
/// # Safety
/// `pointer` must be one that the verifier has a BTF type for, and `offset` from [`OFFSETS`], so that the
/// kernel checks the load; a wrong pair makes the program fail to load, not misread.
#[inline(always)]
pub(crate) unsafe fn load<T: Copy>(pointer: Pointer, offset: u32) -> T {
    // SAFETY: see above.
    unsafe { read_volatile(pointer.add(offset as usize).cast::<T>()) }
}

/// The cgroup of a task in the v2 hierarchy.
///
/// # Safety
/// `task` must be a `task_struct` known to the verifier, as for [`load`].
#[inline(always)]
pub(crate) unsafe fn cgroup_of_task(task: Pointer) -> Pointer {
    // SAFETY: the caller's promise; `cgroups` is a css_set.
    unsafe { load(load::<Pointer>(task, offset!(task_cgroups)), offset!(css_set_dfl_cgrp)) }
}

/// The id of a cgroup, which is the inode number of its directory.
///
/// # Safety
/// `cgroup` must be a `struct cgroup` known to the verifier, as for [`load`].
#[inline(always)]
pub(crate) unsafe fn cgroup_id(cgroup: Pointer) -> u64 {
    // SAFETY: the caller's promise; `kn` is a kernfs_node.
    unsafe { load(load::<Pointer>(cgroup, offset!(cgroup_kn)), offset!(kernfs_node_id)) }
}

/// True if the cgroup is one of the v2 hierarchy. Ids of v1 hierarchies can equal ids of v2, and v1
/// cgroups reach the same hooks.
///
/// # Safety
/// `cgroup` must be a `struct cgroup` known to the verifier, as for [`load`].
#[inline(always)]
pub(crate) unsafe fn is_v2(cgroup: Pointer) -> bool {
    // SAFETY: the caller's promise; `root` is a cgroup_root.
    let hierarchy: i32 =
        unsafe { load(load::<Pointer>(cgroup, offset!(cgroup_root)), offset!(cgroup_root_hierarchy_id)) };
    hierarchy == 0
}

/// The id of the ancestor of `cgroup` at `run_level`, or `None` if it is not below that level. Arrays of
/// unknown length are not for plain loads, and walking up parent by parent would cost more to verify at
/// each load than this costs at run time, on a path that tracked cgroups do not take.
///
/// # Safety
/// `cgroup` must be a `struct cgroup` known to the verifier, as for [`load`].
#[inline(always)]
pub(crate) unsafe fn ancestor_id_at_run_level(cgroup: Pointer) -> Option<u64> {
    let run_level = offset!(run_level);
    // SAFETY: the caller's promise.
    let level: u32 = unsafe { load(cgroup, offset!(cgroup_level)) };
    if level <= run_level {
        return None;
    }
    // SAFETY: the helper checks every address; the entry of a level below the cgroup's own exists.
    unsafe {
        if offset!(cgroup_ancestors) != ABSENT {
            let entry = offset!(cgroup_ancestors) + run_level * size_of::<u64>() as u32;
            let ancestor = read::<Pointer>(cgroup, entry)?;
            read(read::<Pointer>(ancestor, offset!(cgroup_kn))?, offset!(kernfs_node_id))
        } else {
            read(cgroup, offset!(cgroup_ancestor_ids) + run_level * size_of::<u64>() as u32)
        }
    }
}

/// Reads a field by helper, where [`load`] is not possible.
///
/// # Safety
/// The helper checks the address; what is there must be a `T`.
#[inline(always)]
pub(crate) unsafe fn read<T>(pointer: Pointer, offset: u32) -> Option<T> {
    // SAFETY: see above; wrapping, as the pointer means nothing to the compiler.
    unsafe { bpf_probe_read_kernel(pointer.wrapping_add(offset as usize).cast()) }.ok()
}
