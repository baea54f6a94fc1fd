//! `cargo xtask ebpf`: from the crate `ebpf-probes` to the committed object. In goes a BPF tool chain, which
//! is looked for and can be installed; out come the objects and, beside them, what they were made with.
//!
//! The same sources and tool chain give the same bytes in any directory: paths of the checkout, of the
//! target directory and of cargo's registry are mapped to fixed ones. (LLVM copies source lines into
//! `.BTF.ext` where it can read them, so the sources of core must not be installed where Debian's compiler
//! remembers them: no `rust-web-src`.)
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    debian,
    process::{done, has, output},
};

/// Binaries of the crate, and the objects that are made of them.
const OBJECTS: [(&str, &str); 2] = [("standin-probes", "standin.bpf.o"), ("standin-steer", "steer.bpf.o")];

const TARGET: &str = "bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";
/// Its libLLVM must be the one that the compiler has, or a newer one.
const LLVM_MAJOR: &str = "22";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_PACKAGES: [&str; 5] =
    ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "llvm-22-dev", "llvm-22"];
/// Where Debian's compiler would find sources of core; see above.
const SOURCES: &str = "/usr/src";

/// Options of `cargo xtask ebpf`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Change nothing; fail if a rebuild differs from the committed object.
    #[arg(long)]
    check: bool,
    /// Install what is missing: Debian packages, and bpf-linker into the user's cache directory.
    #[arg(long)]
    install: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = crate::workspace()?;
    let prebuilt = workspace.join("ebpf-probes/prebuilt");
    let tools = ToolChain::find(options.install)?;
    let built = tools.build(workspace)?;
    let recorded = tools.describe()?;
    if options.check {
        return OBJECTS
            .iter()
            .try_for_each(|(_, object)| check(&tools, &prebuilt, object, &built.join(object), &recorded));
    }
    fs::create_dir_all(&prebuilt)?;
    for (_, object) in OBJECTS {
        let bytes = fs::copy(built.join(object), prebuilt.join(object))?;
        println!("wrote {} ({bytes} bytes)", prebuilt.join(object).display());
    }
    fs::write(prebuilt.join("toolchain.txt"), recorded)?;
    Ok(())
}

/// Compares a rebuild with the committed object: byte for byte if the tool chain is the recorded one, else
/// by instructions, since another compiler may lay out debug information in its own way.
fn check(tools: &ToolChain, prebuilt: &Path, object: &str, rebuilt: &Path, versions: &str) -> Result<()> {
    let committed = prebuilt.join(object);
    if fs::read(&committed)? == fs::read(rebuilt)? {
        println!("{} is what these sources give", committed.display());
        return Ok(());
    }
    let recorded = fs::read_to_string(prebuilt.join("toolchain.txt")).unwrap_or_default();
    ensure!(
        recorded != versions,
        "{} is not what these sources give: run cargo xtask ebpf and commit it",
        committed.display()
    );
    ensure!(
        tools.disassemble(&committed)? == tools.disassemble(rebuilt)?,
        "instructions differ from the committed object, but so does the tool chain: have\n{versions}recorded\n{recorded}"
    );
    println!(
        "warning: another tool chain than the recorded one; the instructions are the same, the bytes not"
    );
    Ok(())
}

/// The programs that make the object.
struct ToolChain {
    compiler: Compiler,
    linker: PathBuf,
}

/// Where core for BPF comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compiler {
    /// rustup's nightly with rust-src, which builds core.
    Nightly,
    /// Debian's rustc-web with its ready-made core.
    Debian,
}

impl ToolChain {
    fn find(install: bool) -> Result<Self> {
        if install && !has_packages() {
            debian::install(&DEBIAN_PACKAGES)?;
        }
        let compiler = Compiler::find().with_context(|| {
            format!(
                "no compiler with core for {TARGET}: run cargo xtask ebpf --install (Debian), or rustup toolchain install nightly --component rust-src"
            )
        })?;
        let linker = match find_linker() {
            Some(linker) => linker,
            None if install => install_linker()?,
            None => bail!("no bpf-linker {LINKER_VERSION}: run cargo xtask ebpf --install"),
        };
        ensure!(
            has(&strip_tool()),
            "no {}: apt-get install llvm-{LLVM_MAJOR}, or cargo xtask ebpf --install",
            strip_tool()
        );
        if compiler == Compiler::Debian && has_core_sources() {
            println!(
                "warning: {SOURCES}/rustc-* is there, so lines of it get into the object: remove rust-web-src"
            );
        }
        Ok(Self { compiler, linker })
    }

    /// Builds and strips the objects; gives the directory that they are in.
    fn build(&self, workspace: &Path) -> Result<PathBuf> {
        let target = workspace.join("target/bpf");
        // First of all, so that every registry has its directory when paths are mapped.
        done(self.compiler.cargo("fetch").current_dir(workspace).arg("--locked"))?;
        let mut cargo = self.compiler.cargo("build");
        cargo
            .current_dir(workspace)
            .args(["--locked", "--profile", "bpf", "--package", "ebpf-probes"])
            .args(["--bins", "--features", "programs", "--target", TARGET])
            .arg("--target-dir")
            .arg(&target)
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags(workspace, &target)?.join("\x1f"))
            .env_remove("RUSTFLAGS");
        done(&mut cargo)?;
        for (binary, object) in OBJECTS {
            // DWARF goes, BTF stays.
            let built = target.join(TARGET).join("bpf").join(binary);
            done(Command::new(strip_tool()).arg("-g").arg("-o").arg(target.join(object)).arg(built))?;
        }
        Ok(target)
    }

    fn flags(&self, workspace: &Path, target: &Path) -> Result<Vec<String>> {
        let linker = format!("linker={}", self.linker.display());
        let mut flags: Vec<String> =
            ["-C", &linker, "-C", "debuginfo=2", "-C", "target-cpu=v3", "-C", "link-arg=--btf"]
                .map(str::to_owned)
                .into();
        // Of several that fit, rustc takes the last.
        flags.push(remap(workspace, "/standin"));
        flags.push(remap(target, "/target"));
        for registry in registries()? {
            flags.push(remap(&registry, "/crates"));
        }
        Ok(flags)
    }

    /// What decides about the bytes of the object.
    fn describe(&self) -> Result<String> {
        let rustc = output(self.compiler.rustc().arg("-vV"))?;
        let field = |name: &str| {
            rustc.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("unknown").trim().to_owned()
        };
        let linker = output(Command::new(&self.linker).arg("--version"))?;
        Ok(format!(
            "rustc {} ({})\nLLVM of rustc {}\n{}\nLLVM of bpf-linker {}\n",
            field("release:"),
            field("commit-hash:"),
            field("LLVM version:"),
            linker.trim(),
            output(Command::new(format!("{LLVM_PREFIX}/bin/llvm-config")).arg("--version"))?.trim(),
        ))
    }

    /// The instructions, without names that hold a hash of the compiler.
    fn disassemble(&self, object: &Path) -> Result<String> {
        let mut objdump = Command::new(format!("llvm-objdump-{LLVM_MAJOR}"));
        let text = output(objdump.args(["-d", "--no-show-raw-insn"]).arg(object))?;
        let code = text.lines().skip_while(|line| !line.starts_with("Disassembly"));
        Ok(code.filter(|line| !line.ends_with(">:")).collect::<Vec<_>>().join("\n"))
    }
}

impl Compiler {
    fn find() -> Option<Self> {
        let nightly = output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]));
        let core = "lib/rustlib/src/rust/library/core/Cargo.toml";
        if nightly.is_ok_and(|sysroot| Path::new(sysroot.trim()).join(core).exists()) {
            return Some(Self::Nightly);
        }
        let sysroot = output(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"])).ok()?;
        let core = Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET);
        core.exists().then_some(Self::Debian)
    }

    fn cargo(self, verb: &str) -> Command {
        match self {
            Self::Nightly => {
                let mut cargo = Command::new("rustup");
                cargo.args(["run", "nightly", "cargo", verb]).env_remove("RUSTC");
                if verb == "build" {
                    cargo.arg("-Zbuild-std=core");
                }
                cargo
            }
            Self::Debian => {
                let mut cargo = Command::new(DEBIAN_CARGO);
                // Else cargo takes the rustc of PATH. The programs use unstable features of the language.
                cargo.arg(verb).env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        }
    }

    fn rustc(self) -> Command {
        match self {
            Self::Nightly => {
                let mut rustc = Command::new("rustup");
                rustc.args(["run", "nightly", "rustc"]);
                rustc
            }
            Self::Debian => Command::new(DEBIAN_RUSTC),
        }
    }
}

/// Whether a compiler, LLVM's libraries and its tools are there, wherever they are from.
fn has_packages() -> bool {
    Compiler::find().is_some()
        && Path::new(LLVM_PREFIX).join("bin/llvm-config").exists()
        && has(&strip_tool())
}

fn has_core_sources() -> bool {
    let mut entries = fs::read_dir(SOURCES).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_name().to_string_lossy().starts_with("rustc-"))
}

fn remap(path: &Path, to: &str) -> String {
    format!("--remap-path-prefix={}={to}", path.display())
}

fn home() -> Result<PathBuf> {
    env::var_os("HOME").map(PathBuf::from).context("HOME is not set")
}

/// Directories with sources of dependencies: one per registry.
fn registries() -> Result<Vec<PathBuf>> {
    let cargo = env::var_os("CARGO_HOME")
        .map_or_else(|| home().map(|home| home.join(".cargo")), |path| Ok(path.into()))?;
    let sources = cargo.join("registry/src");
    let Ok(entries) = fs::read_dir(&sources) else {
        return Ok(Vec::new());
    };
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Where bpf-linker is kept: outside of the checkout, since it takes minutes to build.
fn linker_root() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| home().map(|home| home.join(".cache")), |path| Ok(path.into()))?;
    Ok(cache.join("standin-bpf"))
}

fn find_linker() -> Option<PathBuf> {
    let cached = linker_root().ok()?.join("bin/bpf-linker");
    [cached, PathBuf::from("bpf-linker")].into_iter().find(|linker| {
        output(Command::new(linker).arg("--version")).is_ok_and(|version| version.contains(LINKER_VERSION))
    })
}

fn install_linker() -> Result<PathBuf> {
    let root = linker_root()?;
    let mut cargo = Command::new("cargo");
    cargo
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--no-default-features"])
        .args(["--features", &format!("llvm-{LLVM_MAJOR}"), "--root"])
        .arg(&root)
        .env("LLVM_PREFIX", LLVM_PREFIX);
    done(&mut cargo)?;
    Ok(root.join("bin/bpf-linker"))
}

fn strip_tool() -> String {
    format!("llvm-strip-{LLVM_MAJOR}")
}
