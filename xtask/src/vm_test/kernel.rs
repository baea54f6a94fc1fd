//! Kernels for guests: Debian's packages of them, unpacked and never installed.
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    debian,
    guest::cache,
    process::{done, output},
};

/// A kernel, and the package that names the newest one of its line.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Its line, as it is called here and in the documents.
    pub(super) name: &'static str,
    line: &'static str,
}

/// The kernels that are tested.
pub(super) const KERNELS: [Kernel; 2] = [
    Kernel { name: "6.1", line: "linux-image-cloud-amd64" },
    Kernel { name: "6.12", line: "linux-image-6.12-cloud-amd64" },
];

/// What begins a compressed kernel, and who unpacks it.
const COMPRESSIONS: [(&[u8], &[&str]); 4] = [
    (b"\xfd7zXZ\0", &["xz", "-dc", "--single-stream"]),
    (b"\x28\xb5\x2f\xfd", &["zstd", "-dcq"]),
    (b"\x02\x21\x4c\x18", &["lz4", "-dcq"]),
    (b"\x1f\x8b", &["gzip", "-dcq"]),
];

/// Modules of the root disk that are not built in everywhere, in the order in which they are needed.
const MODULES: [&str; 6] =
    ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk"];

const INIT: &str = include_str!("guest-init.sh");

impl Kernel {
    /// The package of the newest kernel of this line, with its version.
    fn package(&self) -> Result<String> {
        let shown = output(Command::new("apt-cache").args(["show", "--no-all-versions", self.line]))
            .with_context(|| format!("there is no package {}", self.line))?;
        let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: "));
        let first = depends.and_then(|depends| depends.split([',', ' ']).next());
        Ok(first.with_context(|| format!("{} names no kernel", self.line))?.to_owned())
    }

    /// A directory with `vmlinux`, `initramfs` and `tree/` (the unpacked package). The lists of a new machine know no
    /// kernel, those of an old one kernels that are gone.
    pub(super) fn unpacked(&self) -> Result<PathBuf> {
        self.unpack().or_else(|error| {
            println!("again with new lists: {error:#}");
            debian::update()?;
            self.unpack()
        })
    }

    fn unpack(&self) -> Result<PathBuf> {
        let package = self.package()?;
        cache::entry(&format!("kernel-{}", self.name), &[&package, INIT, &MODULES.join(" ")], |draft| {
            fs::create_dir_all(draft)?;
            let download = ["-q", "-o", "APT::Sandbox::User=root", "download", &package];
            done(Command::new("apt-get").args(download).current_dir(draft))?;
            let file = find(draft, |name| name.ends_with(".deb")).context("apt-get downloaded nothing")?;
            done(Command::new("dpkg-deb").arg("--extract").args([&file, &draft.join("tree")]))?;
            fs::remove_file(file)?;
            let image = find(&draft.join("tree/boot"), |name| name.starts_with("vmlinuz"));
            unpack_image(&image.context("the package has no kernel")?, &draft.join("vmlinux"))?;
            make_initramfs(draft)
        })
    }
}

fn find(directory: &Path, is_wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    let mut wanted = entries.filter(|entry| is_wanted(&entry.file_name().to_string_lossy()));
    wanted.next().map(|entry| entry.path())
}

fn find_below(directory: &Path, is_wanted: &impl Fn(&str) -> bool) -> Option<PathBuf> {
    find(directory, is_wanted).or_else(|| {
        let entries = fs::read_dir(directory).ok()?.flatten();
        let mut below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        below.find_map(|entry| find_below(&entry.path(), is_wanted))
    })
}

/// Takes the kernel out of its boot image: emulated, its own unpacking takes long. The layout is in
/// Documentation/arch/x86/boot.rst (`setup_sects`, `payload_offset`, `payload_length`).
fn unpack_image(image: &Path, place: &Path) -> Result<()> {
    let bytes = fs::read(image)?;
    let word = |offset: usize| -> Result<usize> {
        let word = bytes.get(offset..offset + 4).context("the boot image is cut off")?;
        Ok(u32::from_le_bytes(word.try_into()?) as usize)
    };
    let setup_sectors = match bytes.get(0x1f1) {
        Some(0) | None => 4,
        Some(&sectors) => usize::from(sectors),
    };
    let begin = (setup_sectors + 1) * 512 + word(0x248)?;
    let payload = bytes.get(begin..begin + word(0x24c)?).context("the boot image is cut off")?;
    let compression = COMPRESSIONS.iter().find(|(magic, _)| payload.starts_with(magic));
    let (_, tool) =
        compression.with_context(|| format!("{} is packed in some other way", image.display()))?;
    let mut unpack = Command::new(tool[0])
        .args(&tool[1..])
        .stdin(Stdio::piped())
        .stdout(File::create(place)?)
        .stderr(Stdio::null())
        .spawn()?;
    // What follows the packed data makes the tools complain, and the writing end may see them gone.
    _ = unpack.stdin.take().context("a pipe")?.write_all(payload);
    unpack.wait()?;
    ensure!(fs::read(place)?.starts_with(b"\x7fELF"), "{} holds no kernel", image.display());
    Ok(())
}

/// Busybox, the modules, and [`INIT`].
fn make_initramfs(draft: &Path) -> Result<()> {
    let stage = draft.join("stage");
    for directory in ["bin", "dev", "proc", "sys", "root", "modules"] {
        fs::create_dir_all(stage.join(directory))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
    fs::copy(busybox.context("no busybox")?, stage.join("bin/busybox"))?;
    for (number, module) in MODULES.iter().enumerate() {
        let is_it = |name: &str| name == format!("{module}.ko") || name == format!("{module}.ko.xz");
        let Some(file) = find_below(&draft.join("tree/lib/modules"), &is_it) else { continue };
        let place = stage.join(format!("modules/{number}-{module}.ko"));
        if file.extension().is_some_and(|extension| extension == "xz") {
            done(Command::new("xz").arg("-dc").arg(file).stdout(File::create(place)?))?;
        } else {
            fs::copy(file, place)?;
        }
    }
    fs::write(stage.join("init"), INIT)?;
    done(Command::new("chmod").args(["755", "init", "bin/busybox"]).current_dir(&stage))?;
    let pack = "find . | busybox cpio -o -H newc 2>/dev/null > ../initramfs";
    done(Command::new("sh").args(["-c", pack]).current_dir(&stage))?;
    Ok(fs::remove_dir_all(stage)?)
}
