//! From the embedded object to attached and pinned programs, and back from the pins after the supervisor died.

use super::{SteerError, Steering, Switch};
use crate::probe::{Mapped, lock_directory, offsets};
use crate::trust;
use aya::maps::{HashMap, Map, MapData, RingBuf, SockMap};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, Program, SkReuseport,
    SkReuseportAttachType, SockOps,
};
use aya::{Btf, Ebpf, EbpfLoader, Endianness};
use ebpf_probes::Offsets;
use ebpf_probes::steer::{Control, GROUPS_MAX, NOBODY, SLOTS_MAX, Steered};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Built by `cargo xtask ebpf`, which also says from what.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf-probes/prebuilt/steer.bpf.o");

/// What is wanted of the steering of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Its ports; all that it listens on if empty.
    pub ports: Vec<u16>,
    /// Whether latency is watched, and from when on an answer is late.
    pub latency_max: Option<Duration>,
}

/// The maps that user space uses; the others live as long as the programs.
pub(super) const MAPS: [&str; 11] = [
    "CONTROL",
    "STEERED",
    "MEMBERS",
    "INSTANCES",
    "WATCHED",
    "GROUPS",
    "GROUPS_USED",
    "SERVED",
    "WARMING",
    "LISTENERS",
    "STEER_EVENTS",
];

/// Programs that see a death early, and their tracepoints.
const DEATHS: [(&str, &str); 3] =
    [("killed", "signal_generate"), ("fatal_signal", "signal_deliver"), ("exited", "sched_process_exit")];

/// `TryInto` for programs, `load`, `attach` and taking the link out all fail in the same way.
macro_rules! refused {
    ($name:expr, $result:expr) => {
        $result.map_err(|error| SteerError::refused($name, &error))?
    };
}

impl Steering {
    /// Loads the programs onto the cgroup of a service and onto that of its warming, and pins them in the
    /// directory `pins`.
    ///
    /// # Errors
    /// [`SteerError`]; then nothing is left.
    pub fn load(
        service: &File,
        warming: &File,
        wanted: &Wanted,
        pins: Option<&Path>,
    ) -> Result<Self, SteerError> {
        let (offsets, kernel) = offsets::of_this_kernel()?;
        let btf = Btf::parse(&kernel.tracepoints_only(), Endianness::default())
            .map_err(|error| SteerError::refused("the kernel's BTF", &error))?;
        let mut ebpf = object(&offsets)?;
        if let Some(pins) = pins {
            unpin(pins);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(pins)
                .and_then(|()| Ok(trust::check_directory(pins)?))
                .map_err(|source| SteerError::Pin { path: pins.into(), source })?;
        }
        let held = pins.map(hold).transpose()?;
        let mut links = vec![
            bind(&mut ebpf, "bind4", service)?,
            bind(&mut ebpf, "bind6", service)?,
            operations(&mut ebpf, "service_ops", service)?,
            operations(&mut ebpf, "warm_ops", warming)?,
        ];
        if wanted.latency_max.is_some() {
            links.push(packets(&mut ebpf, "asked", CgroupSkbAttachType::Ingress, service)?);
            links.push(packets(&mut ebpf, "answered", CgroupSkbAttachType::Egress, service)?);
        }
        let mut without_early_death = None;
        for (name, tracepoint) in DEATHS {
            match death(&mut ebpf, name, tracepoint, &btf) {
                Ok(link) => links.push(link),
                Err(error) => without_early_death = Some(error.to_string()),
            }
        }
        let select = select(&mut ebpf, pins)?;
        let links = match pins {
            Some(pins) => pin(pins, &ebpf, links)?,
            None => links,
        };
        let take = |name| ebpf.take_map(name).ok_or_else(|| missing(name));
        let mut steering = assemble(take, select, links)?;
        steering.without_early_death = without_early_death;
        steering.pins = pins.map(Path::to_owned);
        steering._held = held;
        let switch = &steering.switch;
        switch.store(offset_of!(Control, active), NOBODY);
        switch.set_next(None);
        switch.warm(None);
        switch.set_ports(&wanted.ports);
        switch.set_latency_max(wanted.latency_max.unwrap_or(Duration::MAX));
        Ok(steering)
    }

    /// Takes up what another supervisor has pinned in `pins`.
    ///
    /// # Errors
    /// [`SteerError`] if something is missing there, or its supervisor lives.
    pub fn adopt(pins: &Path) -> Result<Self, SteerError> {
        let held = hold(pins)?;
        let kind = SkReuseportAttachType::SelectOrMigrate;
        let select = descriptor(&refused!("select", SkReuseport::from_pin(pins.join("select"), kind)))?;
        let links: Vec<FdLink> = fs::read_dir(pins)
            .map_err(|source| SteerError::Pin { path: pins.into(), source })?
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("link-"))
            .filter_map(|entry| PinnedLink::from_pin(entry.path()).ok())
            .map(FdLink::from)
            .collect();
        let open = |name: &'static str| {
            let data =
                MapData::from_pin(pins.join(name)).map_err(|error| SteerError::refused(name, &error))?;
            Map::from_map_data(data).map_err(|error| SteerError::refused(name, &error))
        };
        let mut steering = assemble(open, select, links)?;
        steering.pins = Some(pins.to_owned());
        steering._held = Some(held);
        Ok(steering)
    }
}

fn object(offsets: &Offsets) -> Result<Ebpf, SteerError> {
    EbpfLoader::new()
        .override_global("OFFSETS", offsets::bytes_of(offsets), true)
        .load(OBJECT)
        .map_err(|error| SteerError::refused("the steering object", &error))
}

fn missing(name: &'static str) -> SteerError {
    SteerError::Refused { what: name, why: "not in the object".into() }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, SteerError> {
    ebpf.program_mut(name).ok_or_else(|| missing(name))
}

/// By link, which can be one of several on a cgroup whatever the mode.
fn bind(ebpf: &mut Ebpf, name: &'static str, cgroup: &File) -> Result<FdLink, SteerError> {
    let program: &mut CgroupSockAddr = refused!(name, program(ebpf, name)?.try_into());
    refused!(name, program.load());
    let link = refused!(name, program.attach(cgroup, CgroupAttachMode::Single));
    Ok(refused!(name, refused!(name, program.take_link(link)).try_into()))
}

fn operations(ebpf: &mut Ebpf, name: &'static str, cgroup: &File) -> Result<FdLink, SteerError> {
    let program: &mut SockOps = refused!(name, program(ebpf, name)?.try_into());
    refused!(name, program.load());
    let link = refused!(name, program.attach(cgroup, CgroupAttachMode::Single));
    Ok(refused!(name, refused!(name, program.take_link(link)).try_into()))
}

fn packets(
    ebpf: &mut Ebpf,
    name: &'static str,
    way: CgroupSkbAttachType,
    cgroup: &File,
) -> Result<FdLink, SteerError> {
    let program: &mut CgroupSkb = refused!(name, program(ebpf, name)?.try_into());
    refused!(name, program.load());
    let link = refused!(name, program.attach(cgroup, way, CgroupAttachMode::Single));
    Ok(refused!(name, refused!(name, program.take_link(link)).try_into()))
}

fn death(ebpf: &mut Ebpf, name: &'static str, tracepoint: &str, btf: &Btf) -> Result<FdLink, SteerError> {
    let program: &mut BtfTracePoint = refused!(name, program(ebpf, name)?.try_into());
    refused!(name, program.load(tracepoint, btf));
    let link = refused!(name, program.attach());
    Ok(refused!(name, program.take_link(link)).into())
}

fn select(ebpf: &mut Ebpf, pins: Option<&Path>) -> Result<OwnedFd, SteerError> {
    let program: &mut SkReuseport = refused!("select", program(ebpf, "select")?.try_into());
    refused!("select", program.load());
    if let Some(pins) = pins {
        refused!("select", program.pin(pins.join("select")));
    }
    descriptor(program)
}

pub(super) fn descriptor(program: &SkReuseport) -> Result<OwnedFd, SteerError> {
    let descriptor = refused!("select", program.fd()).as_fd().try_clone_to_owned();
    Ok(refused!("select", descriptor))
}

fn pin(pins: &Path, ebpf: &Ebpf, links: Vec<FdLink>) -> Result<Vec<FdLink>, SteerError> {
    for name in MAPS {
        refused!(name, ebpf.map(name).ok_or_else(|| missing(name))?.pin(pins.join(name)));
    }
    let pinned = links
        .into_iter()
        .enumerate()
        .map(|(number, link)| Ok(refused!("link", link.pin(pins.join(format!("link-{number}")))).into()));
    pinned.collect()
}

/// Locks a directory of pins, if nobody else can have put anything there.
fn hold(pins: &Path) -> Result<File, SteerError> {
    let trusted = trust::check_directory(pins).map_err(io::Error::from);
    trusted
        .and_then(|()| lock_directory(pins))
        .map_err(|source| SteerError::Pin { path: pins.into(), source })
}

/// Removes the pins of a service.
pub fn unpin(pins: &Path) {
    _ = fs::remove_dir_all(pins);
}

pub(super) fn assemble(
    mut map: impl FnMut(&'static str) -> Result<Map, SteerError>,
    select: OwnedFd,
    links: Vec<FdLink>,
) -> Result<Steering, SteerError> {
    let groups = (SLOTS_MAX * GROUPS_MAX) as usize;
    let control: Mapped<Control> = refused!("CONTROL", Mapped::new(&map("CONTROL")?, "CONTROL", 1));
    let steered: Mapped<Steered> = refused!("STEERED", Mapped::new(&map("STEERED")?, "STEERED", 1));
    let members: Mapped<u64> = refused!("MEMBERS", Mapped::new(&map("MEMBERS")?, "MEMBERS", groups));
    Ok(Steering {
        switch: Switch(Arc::new(control)),
        steered,
        members,
        instances: refused!("INSTANCES", HashMap::try_from(map("INSTANCES")?)),
        watched: refused!("WATCHED", HashMap::try_from(map("WATCHED")?)),
        groups: refused!("GROUPS", HashMap::try_from(map("GROUPS")?)),
        groups_used: refused!("GROUPS_USED", Mapped::new(&map("GROUPS_USED")?, "GROUPS_USED", 1)),
        served: refused!("SERVED", HashMap::try_from(map("SERVED")?)),
        warming: refused!("WARMING", HashMap::try_from(map("WARMING")?)),
        listeners: refused!("LISTENERS", SockMap::try_from(map("LISTENERS")?)),
        events: refused!("STEER_EVENTS", RingBuf::try_from(map("STEER_EVENTS")?)),
        select,
        without_early_death: None,
        pins: None,
        _held: None,
        _links: links,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchies;

    /// A cgroup for a test, removed at its end.
    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn make(name: &str) -> Option<Self> {
            let root = Hierarchies::detect().ok()?.unified;
            let path = root.join(format!("standin-test-{name}-{}", std::process::id()));
            fs::create_dir(&path).ok()?;
            Some(Self(path))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            _ = fs::remove_dir(&self.0);
        }
    }

    #[test]
    fn this_kernel_takes_every_program() {
        let (Some(service), Some(warming)) = (Scratch::make("steer"), Scratch::make("warm")) else {
            return crate::skip::skip("no cgroup can be made here");
        };
        let wanted = Wanted { ports: vec![8080], latency_max: Some(Duration::from_secs(1)) };
        let open = |scratch: &Scratch| File::open(&scratch.0).unwrap();
        let mut steering = Steering::load(&open(&service), &open(&warming), &wanted, None).unwrap();
        assert_eq!(steering.without_early_death, None);
        steering.add(3, 42).unwrap();
        steering.switch().turn_to(3);
        assert_eq!(steering.switch().active(), 3);
        assert_eq!(steering.steered(), Steered::default());
        assert_eq!(steering.drain(), []);
    }
}
