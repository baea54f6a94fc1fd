//! A cgroup that a container runtime made and handed to us. Its limits are written where the runtime put the
//! container, in each hierarchy; none of its directories is ever removed by us.
//!
//! What the probes can count is a v2 cgroup at the level of our own runs. Where the container has none (hosts on
//! which the runtime knows v1 only), it gets one of ours, made for counting.

use super::run_cgroup::inode;
use super::{CgroupError, Hierarchies, RunCgroup};
use procfs::process::Process;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Where a container is, and what of that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Handed {
    /// Path below the root of each v1 hierarchy.
    pub(super) v1: BTreeMap<&'static str, PathBuf>,
    /// The v2 cgroup was made by us.
    pub(super) v2_is_ours: bool,
}

/// A process's paths: below the v2 root, and below the root of each v1 hierarchy.
struct Places {
    v2: PathBuf,
    v1: BTreeMap<&'static str, PathBuf>,
}

fn places(hierarchies: &Hierarchies, pid: i32) -> Option<Places> {
    let cgroups = Process::new(pid).and_then(|process| process.cgroups()).ok()?;
    let relative = |path: &str| PathBuf::from(path.trim_start_matches('/'));
    let mut places = Places { v2: PathBuf::new(), v1: BTreeMap::new() };
    for cgroup in &cgroups {
        if cgroup.controllers.is_empty() {
            places.v2 = relative(&cgroup.pathname);
        }
        for name in hierarchies.v1.keys() {
            if cgroup.controllers.iter().any(|controller| controller == name) {
                places.v1.insert(*name, relative(&cgroup.pathname));
            }
        }
    }
    Some(places)
}

impl RunCgroup {
    /// The cgroup of the container `container_id`, whose first process is `pid`. `name` is what a cgroup below
    /// `parent` is called if one has to be made for counting.
    ///
    /// # Errors
    /// [`CgroupError`] if the process is gone, or that cgroup can't be made or entered.
    pub fn handed(
        hierarchies: &Hierarchies,
        (pid, container_id): (i32, &str),
        parent: &Path,
        name: &str,
    ) -> Result<Self, CgroupError> {
        let gone = || CgroupError::file("look up the cgroup of", format!("/proc/{pid}"), not_found());
        let places = places(hierarchies, pid).ok_or_else(gone)?;
        if let Some(own) = own_part(&places.v2, container_id) {
            let own = at_run_level(&places.v2, own, parent.components().count() + 1);
            let id = inode(&hierarchies.unified.join(&own))?;
            let handed = Some(Handed { v1: places.v1, v2_is_ours: false });
            return Ok(Self { path: own, id, hierarchies: hierarchies.clone(), handed });
        }
        hierarchies.make_parent(parent)?;
        let path = parent.join(name);
        let directory = hierarchies.unified.join(&path);
        fs::create_dir(&directory).map_err(|source| CgroupError::file("create", &directory, source))?;
        let id = inode(&directory)?;
        let handed = Some(Handed { v1: places.v1, v2_is_ours: true });
        let cgroup = Self { path, id, hierarchies: hierarchies.clone(), handed };
        cgroup.enter(pid).inspect_err(|_| _ = cgroup.remove())?;
        Ok(cgroup)
    }

    /// The same cgroup as it is found again by a later agent: where its main process is elsewhere on v1, a
    /// runtime had put it there.
    #[must_use]
    pub fn where_process_is(mut self, pid: i32, parent: &Path) -> Self {
        if let Some(places) = places(&self.hierarchies, pid)
            && (places.v1.values().any(|path| *path != self.path) || !self.path.starts_with(parent))
        {
            let v2_is_ours = self.path.starts_with(parent);
            self.handed = Some(Handed { v1: places.v1, v2_is_ours });
        }
        self
    }

    /// How many levels below the root it is.
    pub fn level(&self) -> usize {
        self.path.components().count()
    }
}

/// The part of a v2 path down to the directory that is named after the container: all of it is the container's.
/// `None` where no directory is.
///
/// It is called `ID`, `PREFIX-ID` or `PREFIX-ID.scope` (libpod, crio, docker, cri-containerd, runc). A name that only
/// has the ID in it is another's: whoever calls a container `a` would be handed `machine.slice`.
fn own_part(path: &Path, container_id: &str) -> Option<PathBuf> {
    let is_own = |name: &str| {
        let name = name.strip_suffix(".scope").unwrap_or(name);
        name.strip_suffix(container_id).is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('-'))
    };
    let own: Vec<_> = path.iter().collect();
    let depth = own.iter().rposition(|name| name.to_str().is_some_and(is_own))?;
    Some(own[..=depth].iter().collect())
}

/// Where the container's processes are at the level of runs if its own part is above that: what they put below is charged
/// to a cgroup at that level only. (`libpod-ID.scope/container`, which crun makes for them.)
fn at_run_level(path: &Path, own: PathBuf, run_level: usize) -> PathBuf {
    let is_above = own.components().count() < run_level && path.components().count() >= run_level;
    if is_above { path.iter().take(run_level).collect() } else { own }
}

fn not_found() -> std::io::Error {
    std::io::ErrorKind::NotFound.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_containers_own_cgroup_is_named_after_it() {
        let part = |path: &str| own_part(Path::new(path), "abc123").map(|path| path.display().to_string());
        assert_eq!(part("libpod_parent/libpod-abc123"), Some("libpod_parent/libpod-abc123".into()));
        let scope = "machine.slice/libpod-abc123.scope";
        assert_eq!(part(&format!("{scope}/container")), Some(scope.into()));
        assert_eq!(part(""), None);
        assert_eq!(part("user.slice/session-1.scope"), None);
        let named =
            |id: &str, path: &str| own_part(Path::new(path), id).map(|path| path.display().to_string());
        assert_eq!(named("a", "machine.slice/a"), Some("machine.slice/a".into()), "not all of machine.slice");
        assert_eq!(named("web", "system.slice/crio-web.scope"), Some("system.slice/crio-web.scope".into()));
        assert_eq!(named("web", "webservers.slice/other"), None);
    }

    #[test]
    fn a_container_is_counted_at_the_level_of_runs_where_it_is_there() {
        let at = |path: &str, level| {
            let own = own_part(Path::new(path), "abc123").unwrap();
            at_run_level(Path::new(path), own, level).display().to_string()
        };
        let scope = "machine.slice/libpod-abc123.scope";
        let inner = format!("{scope}/container");
        assert_eq!(at(&inner, 2), scope);
        assert_eq!(at(&inner, 3), inner);
        assert_eq!(at(&format!("{inner}/init.scope"), 3), inner);
        assert_eq!(at(scope, 3), scope, "it has none there");
    }

    #[test]
    fn this_process_is_somewhere_in_every_hierarchy() {
        let hierarchies = Hierarchies::detect().unwrap();
        let places = places(&hierarchies, std::process::id().cast_signed()).unwrap();
        assert_eq!(places.v1.len(), hierarchies.v1.len());
        assert!(super::places(&hierarchies, -1).is_none());
    }

    proptest! {
        #[test]
        fn hostile_paths(path in "[/.a-z%\\PC]{0,40}", id in "[a-z0-9.]{1,4}") {
            let path = Path::new(path.trim_start_matches('/'));
            if let Some(own) = own_part(path, &id) {
                prop_assert!(path.starts_with(&own));
                let name = own.iter().next_back().unwrap().to_string_lossy().into_owned();
                prop_assert!(name.trim_end_matches(".scope").ends_with(&id), "{name} for {id}");
            }
        }
    }
}
