//! Steering for those who may not load programs: the agent loads and pins it, and hands the descriptors over. Maps can
//! be used by whoever has a descriptor (Linux 5.19, commit c8644cd0efe7), and the picking program attached.

use super::load::{MAPS, assemble, descriptor};
use super::{SteerError, Steering};
use aya::maps::{Map, MapData};
use aya::programs::{SkReuseport, SkReuseportAttachType};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// How many descriptors go over: the maps, and the program.
pub const LENT: usize = MAPS.len() + 1;

/// The descriptors of what is pinned in `pins`, in a fixed order.
///
/// # Errors
/// [`SteerError`] if something is missing there.
pub fn lend(pins: &Path) -> Result<Vec<OwnedFd>, SteerError> {
    let mut descriptors = Vec::with_capacity(LENT);
    for name in MAPS {
        let map = MapData::from_pin(pins.join(name)).map_err(|error| SteerError::refused(name, &error))?;
        let copy = map.fd().as_fd().try_clone_to_owned();
        descriptors.push(copy.map_err(|error| SteerError::refused(name, &error))?);
    }
    let kind = SkReuseportAttachType::SelectOrMigrate;
    let select = SkReuseport::from_pin(pins.join("select"), kind);
    descriptors.push(descriptor(&select.map_err(|error| SteerError::refused("select", &error))?)?);
    Ok(descriptors)
}

impl Steering {
    /// From what [`lend`] gave.
    ///
    /// # Errors
    /// [`SteerError`] if it is something else.
    pub fn lent(mut descriptors: Vec<OwnedFd>) -> Result<Self, SteerError> {
        let none = || SteerError::Refused { what: "descriptors", why: format!("{LENT} were expected") };
        let select = descriptors.pop().filter(|_| descriptors.len() == MAPS.len()).ok_or_else(none)?;
        let mut maps: Vec<(&str, OwnedFd)> = MAPS.into_iter().zip(descriptors).collect();
        let open = |name: &'static str| {
            let place = maps.iter().position(|(known, _)| *known == name).ok_or_else(none)?;
            let (_, map) = maps.swap_remove(place);
            let data = MapData::from_fd(map).map_err(|error| SteerError::refused(name, &error))?;
            Map::from_map_data(data).map_err(|error| SteerError::refused(name, &error))
        };
        assemble(open, select, Vec::new())
    }
}
