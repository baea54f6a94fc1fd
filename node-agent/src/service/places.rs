//! Where the control sockets and pins of services are: found by name, below directories that only their owners
//! can write to.

use crate::probe::{bpf_file_system, find_bpf_file_system};
use crate::trust;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where BPF objects of services are pinned, in the BPF file system.
const PINS: &str = "standin-services";

/// What names of those begin with that an agent has lent.
const LENT: &[u8] = b"lent-";

/// Longest name of a service in a path, bytes; socket paths are short (108).
const NAME_MAX: usize = 40;

/// The directory of control sockets, beside the agent's socket.
pub fn control_directory(agent_socket: &Path) -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return agent_socket.parent().unwrap_or(Path::new("/run/standin")).join("services");
    }
    trust::own_directory_to_be().join("services")
}

/// Where the agent pins what it lends to the launcher of a run, by the run's cgroup, in a BPF file system.
fn lent(root: &Path, cgroup: &Path) -> PathBuf {
    root.join(PINS).join(format!("lent-{}", cgroup.display().to_string().replace(['/', '.'], "%")))
}

/// Whether these pins are an agent's, which removes them with the run.
pub(super) fn is_lent(pins: &Path) -> bool {
    pins.file_name().is_some_and(|name| name.as_bytes().starts_with(LENT))
}

/// What was lent to a run, if anything was.
pub(crate) fn lent_pins(cgroup: &Path) -> Option<PathBuf> {
    Some(lent(&find_bpf_file_system()?, cgroup)).filter(|pins| pins.exists())
}

/// Where to pin what is lent to a run; `None` without a BPF file system.
pub(crate) fn lent_pins_to_be(cgroup: &Path) -> Option<PathBuf> {
    Some(lent(&bpf_file_system(None).ok()?, cgroup))
}

/// The places of one service.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its control socket.
    pub socket: PathBuf,
    /// Name of its directory of pins.
    pin_name: String,
}

impl Place {
    /// Of the service `name` of this user.
    pub fn new(directory: &Path, name: &str) -> Self {
        let file = file_name(name);
        Self { socket: directory.join(format!("{file}.sock")), pin_name: pin_name(directory, &file) }
    }

    /// Its pins, if there are any.
    pub fn pins(&self) -> Option<PathBuf> {
        Some(find_bpf_file_system()?.join(PINS).join(&self.pin_name)).filter(|pins| pins.exists())
    }

    /// Where to pin; `None` where no BPF file system can be had: then steering ends with the supervisor.
    pub fn pins_to_be(&self) -> Option<PathBuf> {
        let is_root = nix::unistd::geteuid().is_root();
        Some(bpf_file_system(None).ok().filter(|_| is_root)?.join(PINS).join(&self.pin_name))
    }

    /// Makes the directory of the socket. Those of root are refused to others by who they are, not by this.
    ///
    /// # Errors
    /// What the file system says, or that others could have put something there.
    pub fn prepare(&self) -> io::Result<()> {
        let directory = self.socket.parent().unwrap_or(Path::new("/"));
        if !nix::unistd::geteuid().is_root() {
            trust::own_directory()?;
            return trust::private_directory(directory);
        }
        fs::create_dir_all(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        Ok(trust::check_directory(directory)?)
    }
}

/// Services of the same name under different control directories do not meet. Names in a BPF file system may
/// hold no dot (`bpf_lookup`, kernel/bpf/inode.c).
fn pin_name(directory: &Path, file: &str) -> String {
    format!("{:016x}-{}", hash(directory.as_os_str().as_bytes()), file.replace('.', "%2E"))
}

/// FNV-1a, <http://www.isthe.com/chongo/tech/comp/fnv/>.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A name made safe for a path, so that two names never meet: what is no letter, digit, `-`, `_` or `.` becomes
/// `%XX`. Long ones are cut and end in a number made of the whole.
fn file_name(name: &str) -> String {
    let mut safe = String::new();
    for byte in name.bytes() {
        match byte {
            b'.' if safe.is_empty() => safe.push_str("%2E"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => safe.push(char::from(byte)),
            other => safe.push_str(&format!("%{other:02X}")),
        }
    }
    if safe.len() > NAME_MAX {
        safe.truncate(NAME_MAX - 17);
        safe.push_str(&format!("-{:016x}", hash(name.as_bytes())));
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_become_files_and_never_meet() {
        assert_eq!(file_name("http.server"), "http.server");
        assert_eq!(file_name("../../etc/x"), "%2E.%2F..%2Fetc%2Fx");
        let long = file_name(&"a".repeat(200));
        assert!(long.len() <= NAME_MAX);
        assert_ne!(long, file_name(&"a".repeat(201)));
    }

    proptest! {
        #[test]
        fn hostile_names(name in any::<String>(), other in any::<String>()) {
            let file = file_name(&name);
            prop_assert!(file.len() <= NAME_MAX);
            prop_assert!(!file.contains('/') && !file.starts_with('.') && !file.contains('\0'));
            prop_assert!(name == other || file != file_name(&other));
            let directory = Path::new("/run/standin/services");
            let place = Place::new(directory, &name);
            prop_assert_eq!(place.socket.parent(), Some(directory));
            prop_assert!(!place.pin_name.contains(['/', '.']));
        }
    }
}
