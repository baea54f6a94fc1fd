//! Tracking cgroups that others make: slots are handed to the kernel side in advance, which gives them out the
//! moment a cgroup is there.

use ebpf_probes::{CgroupEvent, NO_SLOT};

use super::{ProbeError, Probes, Slot};

/// A cgroup that others made or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupChange {
    /// It was made.
    Made {
        /// Its v2 id.
        cgroup: u64,
        /// Its path below the v2 root.
        path: String,
        /// Where it has been counted from the first moment, if there was a slot.
        slot: Option<Slot>,
        /// When, on `CLOCK_BOOTTIME`.
        at_ns: u64,
    },
    /// It was removed.
    Removed {
        /// Its v2 id.
        cgroup: u64,
        /// When, on `CLOCK_BOOTTIME`.
        at_ns: u64,
    },
}

impl Probes {
    /// Has the kernel side tell of cgroups that others make from now on, but for those that the process `agent` makes.
    ///
    /// # Errors
    /// [`ProbeError::Map`].
    pub fn watch_host(&mut self, agent: u32) -> Result<(), ProbeError> {
        // Of an agent before this one.
        while let Ok(slot) = self.free_for_host.pop(0) {
            self.free.push_back(slot);
        }
        self.host.set(0, u64::from(agent), 0).map_err(|error| ProbeError::map("HOST", &error))
    }

    /// Lets the kernel side give out so many slots to cgroups that others make, as far as there are any.
    ///
    /// # Errors
    /// [`ProbeError::Map`].
    pub fn lend_to_host(&mut self, slots: usize) -> Result<(), ProbeError> {
        for _ in 0..slots {
            let Some(slot) = self.free.pop_front() else { break };
            self.lend(slot)?;
        }
        Ok(())
    }

    fn lend(&mut self, slot: u32) -> Result<(), ProbeError> {
        self.tables.set(slot as usize, &super::Reading::default(), None)?;
        // Until it is given out.
        self.tables.release(slot as usize);
        self.free_for_host.push(slot, 0).map_err(|error| ProbeError::map("FREE", &error))
    }

    /// Ends counting for a cgroup of the host; its slot is for the next one.
    pub fn untrack_host(&mut self, slot: Slot) {
        self.untrack(slot);
        if let Some(slot) = self.free.pop_back()
            && self.lend(slot).is_err()
        {
            self.free.push_back(slot);
        }
    }

    /// Hands out what became of cgroups of the host since the last call.
    pub fn drain_cgroups(&mut self, mut each: impl FnMut(CgroupChange)) {
        while let Some(record) = self.cgroups.next() {
            let Some(event) = event_of(&record) else { continue };
            let CgroupEvent { cgroup, at_ns, slot, made, .. } = event;
            if made == 0 {
                each(CgroupChange::Removed { cgroup, at_ns });
                continue;
            }
            let place = self.tracked.get_mut(slot as usize).filter(|_| slot != NO_SLOT);
            let is_mapped = place.is_some() && self.tables.take_up(slot as usize).is_ok();
            if let Some(place) = self.tracked.get_mut(slot as usize).filter(|_| is_mapped) {
                *place = Some(cgroup);
            }
            let slot = is_mapped.then_some(Slot(slot));
            each(CgroupChange::Made { cgroup, path: path_of(&event), slot, at_ns });
        }
    }
}

/// What a record of the ring says; `None` if it is too short to be one.
fn event_of(record: &[u8]) -> Option<CgroupEvent> {
    if record.len() < size_of::<CgroupEvent>() {
        return None;
    }
    // SAFETY: long enough, repr(C), and any bytes are valid.
    Some(unsafe { record.as_ptr().cast::<CgroupEvent>().read_unaligned() })
}

fn path_of(event: &CgroupEvent) -> String {
    let end = event.path.iter().position(|&byte| byte == 0).unwrap_or(event.path.len());
    String::from_utf8_lossy(&event.path[..end]).trim_start_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hostile_cgroup_events(record in hostile::bytes(size_of::<CgroupEvent>() + 16)) {
            let event = event_of(&record);
            prop_assert_eq!(event.is_some(), record.len() >= size_of::<CgroupEvent>());
            if let Some(event) = event {
                let path = path_of(&event);
                prop_assert!(!path.contains('\0') && !path.starts_with('/'));
            }
        }
    }
}
