//! Steering: which instance of a service gets its connections. In come instances with their slots and the
//! choice of the active one, out come events (it listens, it dies) and the listeners held for it.
//!
//! The other side is `ebpf-probes/src/steer`, loaded once per service onto the service's cgroup. Programs, links
//! and maps are pinned, so that steering goes on while nobody supervises the service, and can be taken up again.
//!
//! Turning the traffic is one store into mapped memory ([`Control`]); everything else takes microseconds.

mod lend;
mod listeners;
mod load;
mod strangers;

pub use ebpf_probes::steer::{
    EXITED, FATAL_SIGNAL, GroupKey, KILLED, LISTENS, NOBODY, PORTS_MAX, SLOTS_MAX, SteerEvent, Steered,
};
pub use lend::{LENT, lend};
pub use listeners::{Address, Listener, connections, find};
pub use load::{Wanted, unpin};
pub use strangers::strangers;

use crate::probe::Mapped;
use crate::probe::kernel_btf::BtfError;
use aya::maps::{HashMap, MapData, RingBuf, SockMap};
use ebpf_probes::steer::{Control, GROUPS_MAX, listener_key};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Why connections can't be steered.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    /// The kernel does not describe its types.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// A program or map was refused.
    #[error("{what}: {why}; steering needs Linux 5.14 or newer, and root")]
    Refused {
        /// Which one.
        what: &'static str,
        /// What the kernel says.
        why: String,
    },
    /// A directory or file of the BPF file system.
    #[error("{}: {source}", path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl SteerError {
    fn refused(what: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        let why = match error.downcast_ref() {
            Some(refused) => crate::probe::reason(refused),
            None => crate::causes::in_one_line(error),
        };
        Self::Refused { what, why }
    }
}

/// The switch: who gets new connections. Shared between threads; every access is one word.
#[derive(Clone, Debug)]
pub struct Switch(Arc<Mapped<Control>>);

impl Switch {
    fn store(&self, offset: usize, value: u64) {
        self.0.word(0, offset).store(value, Ordering::SeqCst);
    }

    /// New connections go to `slot` from now on.
    pub fn turn_to(&self, slot: u32) {
        self.store(offset_of!(Control, active), slot.into());
    }

    /// Where the kernel side turns them to when the active instance is dying.
    pub fn set_next(&self, slot: Option<u32>) {
        self.store(offset_of!(Control, next), slot.map_or(NOBODY, u64::from));
    }

    /// Where connections from the warming cgroup go.
    pub fn warm(&self, slot: Option<u32>) {
        self.store(offset_of!(Control, warming), slot.map_or(NOBODY, u64::from));
    }

    /// The instance that gets new connections.
    pub fn active(&self) -> u32 {
        self.0.word(0, offset_of!(Control, active)).load(Ordering::SeqCst) as u32
    }

    /// From when on an answer is late.
    pub fn set_latency_max(&self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.store(offset_of!(Control, latency_max_ns), nanoseconds);
    }

    fn set_ports(&self, ports: &[u16]) {
        for (index, port) in ports.iter().take(PORTS_MAX).enumerate() {
            self.store(offset_of!(Control, ports) + index * 8, u64::from(*port));
        }
    }
}

/// The steering of one service.
pub struct Steering {
    switch: Switch,
    steered: Mapped<Steered>,
    members: Mapped<u64>,
    instances: HashMap<MapData, u64, u32>,
    watched: HashMap<MapData, u32, u32>,
    groups: HashMap<MapData, [u8; size_of::<GroupKey>()], u32>,
    groups_used: Mapped<u64>,
    served: HashMap<MapData, u32, u32>,
    warming: HashMap<MapData, u32, u32>,
    listeners: SockMap<MapData>,
    events: RingBuf<MapData>,
    /// The program that picks, to be attached to groups.
    select: OwnedFd,
    /// What the kernel refused of the ways to see a death early: then the pidfd tells.
    pub without_early_death: Option<String>,
    /// Where it is pinned, if it is.
    pins: Option<PathBuf>,
    /// The lock on that directory: who has it supervises the service.
    _held: Option<File>,
    _links: Vec<aya::programs::links::FdLink>,
}

impl Steering {
    /// The switch.
    pub fn switch(&self) -> Switch {
        self.switch.clone()
    }

    /// Gives the cgroup of a new instance a slot. Nothing may run in it yet.
    ///
    /// # Errors
    /// [`SteerError`] if the kernel refuses.
    pub fn add(&mut self, slot: u32, cgroup: u64) -> Result<(), SteerError> {
        self.forget_listeners(slot);
        self.instances.insert(cgroup, slot, 0).map_err(|error| SteerError::refused("INSTANCES", &error))
    }

    /// Takes the slot of an instance that has ended back.
    pub fn remove(&mut self, slot: u32, cgroup: u64) {
        _ = self.instances.remove(&cgroup);
        self.forget_listeners(slot);
    }

    /// Sockets leave the map when they are closed; held ones would stay.
    fn forget_listeners(&mut self, slot: u32) {
        for group in 0..GROUPS_MAX {
            let members =
                self.members.word((slot * GROUPS_MAX + group) as usize, 0).swap(0, Ordering::SeqCst);
            for member in 0..u32::try_from(members).unwrap_or(0).min(ebpf_probes::steer::MEMBERS_MAX) {
                _ = self.listeners.clear_index(&listener_key(slot, group, member));
            }
        }
    }

    /// Watches the main process of an instance die.
    pub fn watch(&mut self, slot: u32, pid: i32) {
        _ = self.watched.insert(pid.cast_unsigned(), slot, 0);
    }

    /// Ends that.
    pub fn unwatch(&mut self, pid: i32) {
        _ = self.watched.remove(&pid.cast_unsigned());
    }

    /// Steers the address that `listener` listens on.
    ///
    /// # Errors
    /// [`SteerError`] if the kernel refuses: the socket has no SO_REUSEPORT, so it was bound by other means.
    pub fn steer(&self, listener: impl AsFd) -> Result<(), SteerError> {
        let program = self.select.as_raw_fd();
        // SAFETY: the option takes a descriptor, an int, which lives through the call.
        let result = unsafe {
            libc::setsockopt(
                listener.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_REUSEPORT_EBPF,
                (&raw const program).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        let refused = |error: Errno| SteerError::refused("SO_ATTACH_REUSEPORT_EBPF", &error);
        Errno::result(result).map(drop).map_err(refused)
    }

    /// The group of an address, for a socket that is not bound by an instance itself.
    ///
    /// # Errors
    /// [`SteerError`] if there are too many or the kernel refuses.
    pub fn group(&mut self, address: Address) -> Result<u32, SteerError> {
        if let Some((group, _)) = self.groups().into_iter().find(|(_, known)| *known == address) {
            return Ok(group);
        }
        let group =
            u32::try_from(self.groups_used.word(0, 0).fetch_add(1, Ordering::SeqCst)).unwrap_or(u32::MAX);
        if group >= GROUPS_MAX {
            let why = format!("more than {GROUPS_MAX} addresses");
            return Err(SteerError::Refused { what: "GROUPS", why });
        }
        let refused = |error: aya::maps::MapError| SteerError::refused("GROUPS", &error);
        self.groups.insert(address.key(), group, 0).map_err(refused)?;
        self.served.insert(u32::from(address.socket.port()), 1, 0).map_err(refused)?;
        Ok(group)
    }

    /// Registers a socket that no `listen()` of an instance registers: a datagram socket, or one of ours.
    ///
    /// # Errors
    /// [`SteerError`] if the kernel refuses or there are too many.
    pub fn register(&mut self, slot: u32, group: u32, socket: BorrowedFd) -> Result<(), SteerError> {
        let members = self.members.word((slot * GROUPS_MAX + group) as usize, 0);
        let member = u32::try_from(members.fetch_add(1, Ordering::SeqCst)).unwrap_or(u32::MAX);
        if member >= ebpf_probes::steer::MEMBERS_MAX {
            let why = "too many sockets on one address".into();
            return Err(SteerError::Refused { what: "LISTENERS", why });
        }
        self.listeners
            .set(listener_key(slot, group, member), &socket.as_raw_fd(), 0)
            .map_err(|error| SteerError::refused("LISTENERS", &error))
    }

    /// Main processes that are watched, with their slots.
    pub fn watched(&self) -> Vec<(u32, i32)> {
        self.watched.iter().flatten().map(|(pid, slot)| (slot, pid.cast_signed())).collect()
    }

    /// Routes a connection that is about to be made from `port` to the instance that is warmed.
    pub fn warm_from(&mut self, port: u16) {
        _ = self.warming.insert(u32::from(port), 1, 0);
    }

    /// The addresses that instances have bound, and their numbers.
    pub fn groups(&self) -> BTreeMap<u32, Address> {
        self.groups.iter().flatten().map(|(key, group)| (group, Address::from_key(&key))).collect()
    }

    /// What was counted so far.
    pub fn steered(&self) -> Steered {
        let word = |offset| self.steered.word(0, offset).load(Ordering::Relaxed);
        Steered {
            to_active: word(offset_of!(Steered, to_active)),
            to_other: word(offset_of!(Steered, to_other)),
            migrated: word(offset_of!(Steered, migrated)),
            warming: word(offset_of!(Steered, warming)),
            unsteered: word(offset_of!(Steered, unsteered)),
            established: word(offset_of!(Steered, established)),
            listeners_lost: word(offset_of!(Steered, listeners_lost)),
            events_lost: word(offset_of!(Steered, events_lost)),
            turned: word(offset_of!(Steered, turned)),
            answered: word(offset_of!(Steered, answered)),
            answered_late: word(offset_of!(Steered, answered_late)),
        }
    }

    /// Readable when there are events.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the map owns the descriptor and is borrowed for as long.
        unsafe { BorrowedFd::borrow_raw(self.events.as_raw_fd()) }
    }

    /// The events since the last call.
    pub fn drain(&mut self) -> Vec<SteerEvent> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            events.extend(event_of(&item));
        }
        events
    }

    /// Ends the steering: with the pins the links go, and with them the programs on the cgroup. Groups keep
    /// theirs as long as they have a socket.
    pub fn unpin(&mut self) {
        if let Some(pins) = self.pins.take() {
            load::unpin(&pins);
        }
    }
}

/// What a record of the ring says; `None` if it is too short to be one.
fn event_of(record: &[u8]) -> Option<SteerEvent> {
    // SAFETY: long enough, and any bytes are a valid `SteerEvent`.
    (record.len() >= size_of::<SteerEvent>())
        .then(|| unsafe { std::ptr::read_unaligned(record.as_ptr().cast()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hostile_steer_events(record in hostile::bytes(size_of::<SteerEvent>() + 16)) {
            prop_assert_eq!(event_of(&record).is_some(), record.len() >= size_of::<SteerEvent>());
        }

        /// Maps of a service are its user's as well, who may write anything there.
        #[test]
        fn hostile_groups(key in any::<[u8; size_of::<GroupKey>()]>()) {
            let address = Address::from_key(&key);
            prop_assert_eq!(Address::from_key(&address.key()), address);
        }
    }
}
