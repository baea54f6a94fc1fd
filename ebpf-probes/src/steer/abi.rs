//! What the steering programs and user space share: one set of maps per service.
//!
//! A *slot* is a running instance of the service, a *group* an address that it listens on (the kernel's
//! `SO_REUSEPORT` group), a *member* one of the listeners that an instance has in a group.

/// Instances of one service that can be there at once, ending ones included.
pub const SLOTS_MAX: u32 = 8;
/// Addresses that a service can listen on; listeners on more are not steered, and counted.
pub const GROUPS_MAX: u32 = 16;
/// Listeners of one instance on one address; more are not steered, and counted.
pub const MEMBERS_MAX: u32 = 64;
/// Entries of the map `LISTENERS`.
pub const LISTENERS_MAX: u32 = SLOTS_MAX * GROUPS_MAX * MEMBERS_MAX;
/// Ports that a service can be restricted to.
pub const PORTS_MAX: usize = 16;
/// No instance.
pub const NOBODY: u64 = u64::MAX;

/// Entry of `LISTENERS`.
pub const fn listener_key(slot: u32, group: u32, member: u32) -> u32 {
    (slot * GROUPS_MAX + group) * MEMBERS_MAX + member
}

/// What user space tells the programs. Mapped, so that turning the traffic is one store.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Slot that gets new connections.
    pub active: u64,
    /// Slot that gets them once the active one is dying, or [`NOBODY`].
    pub next: u64,
    /// Slot that connections from the warming cgroup go to, or [`NOBODY`].
    pub warming: u64,
    /// An answer that takes longer is late, nanoseconds.
    pub latency_max_ns: u64,
    /// Ports that are the service's; all of its listeners' if the first one is 0.
    pub ports: [u64; PORTS_MAX],
}

/// What the programs counted for a service. Mapped; only grows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steered {
    /// New connections and datagrams given to the active instance.
    pub to_active: u64,
    /// Those given to another one because the active one did not listen.
    pub to_other: u64,
    /// Queued and half-open connections that were moved between listeners.
    pub migrated: u64,
    /// Connections of the warming cgroup given to the instance that is warmed.
    pub warming: u64,
    /// Those that nobody could be found for: the kernel chose.
    pub unsteered: u64,
    /// Connections that were established, whoever got them.
    pub established: u64,
    /// Listeners that were not registered: too many addresses, too many on one, or the kernel refused.
    pub listeners_lost: u64,
    /// Events that the ring buffer had no room for.
    pub events_lost: u64,
    /// Times the kernel side turned the traffic away from a dying instance.
    pub turned: u64,
    /// Requests that were answered, where latency is watched.
    pub answered: u64,
    /// Of those, the ones that took longer than allowed.
    pub answered_late: u64,
}

/// An address that the service listens on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupKey {
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub protocol: u32,
    /// `AF_INET` or `AF_INET6`.
    pub family: u32,
    /// In host order.
    pub port: u32,
    /// In network order; an IPv4 address is the first word.
    pub address: [u32; 4],
}

/// What a listening socket is to the service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// Instance that it belongs to.
    pub slot: u32,
    /// Address that it listens on.
    pub group: u32,
}

/// What happened to an instance, from the ring buffer `STEER_EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SteerEvent {
    /// Monotonic clock.
    pub at_ns: u64,
    /// One of [`LISTENS`], [`KILLED`], [`FATAL_SIGNAL`], [`EXITED`].
    pub kind: u32,
    /// Instance.
    pub slot: u32,
    /// Its process.
    pub pid: u32,
    /// [`LISTENS`]: the group. [`KILLED`], [`FATAL_SIGNAL`]: the signal. [`EXITED`]: the wait status.
    pub detail: u32,
    /// 1 if the kernel side turned the traffic to the next instance.
    pub turned: u32,
    /// Always 0.
    pub reserved: u32,
}

/// A listener of the instance was registered.
pub const LISTENS: u32 = 1;
/// SIGKILL is on its way to the main process.
pub const KILLED: u32 = 2;
/// A signal that the main process does not handle is about to end it.
pub const FATAL_SIGNAL: u32 = 3;
/// The main process has ended.
pub const EXITED: u32 = 4;

const _: () = assert!(size_of::<Control>() == 8 * (4 + PORTS_MAX));
const _: () = assert!(size_of::<Steered>() == 88);
const _: () = assert!(size_of::<GroupKey>() == 28);
const _: () = assert!(size_of::<SteerEvent>() == 32);
