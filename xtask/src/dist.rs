//! `cargo xtask dist`: a Debian package of the program, its units, manual and completions, in `target/dist/`.
//!
//! The tree of the package is laid out here and packed by `dpkg-deb`, which every Debian has; what there is to say
//! beyond paths is in `node-agent/packaging/`. The same sources and compiler give the same bytes: times are those of the
//! last commit.
use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    debian,
    process::{self, done, output},
};

/// Programs that pack, and Debian's packages with them.
const PROGRAMS: [(&str, &str); 4] =
    [("dpkg-deb", "dpkg"), ("dpkg-shlibdeps", "dpkg-dev"), ("gzip", "gzip"), ("strip", "binutils")];

/// Files of `node-agent/packaging/`, and where they are installed.
const FILES: [(&str, &str); 7] = [
    ("config.toml", "etc/standin/config.toml"),
    ("systemd/standin.service", "usr/lib/systemd/system/standin.service"),
    ("systemd/standin-jobs.service", "usr/lib/systemd/system/standin-jobs.service"),
    ("systemd/standin.slice", "usr/lib/systemd/system/standin.slice"),
    ("systemd/standin.socket", "usr/lib/systemd/system/standin.socket"),
    ("systemd/standin.sysusers", "usr/lib/sysusers.d/standin.conf"),
    ("systemd/standin.tmpfiles", "usr/lib/tmpfiles.d/standin.conf"),
];

/// Files that an administrator may change, and an upgrade leaves alone.
const CONFIGURATION: &str = "/etc/standin/config.toml\n";

/// Where shells look for the completions that packages bring.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/standin"),
    ("zsh", "usr/share/zsh/vendor-completions/_standin"),
    ("fish", "usr/share/fish/vendor_completions.d/standin.fish"),
];

const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Options of `cargo xtask dist`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Profile that the program is built with; with another one than release the package is for tests.
    #[arg(long, default_value = "release")]
    profile: String,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let package = package(&options.profile)?;
    println!("{}", package.display());
    Ok(())
}

/// Builds the package and gives its path.
pub(crate) fn package(profile: &str) -> Result<PathBuf> {
    let missing = debian::provide(&PROGRAMS);
    ensure!(missing.is_empty(), "to pack there must be {}", missing.join(", "));
    let workspace = crate::workspace()?;
    let target = target_directory(workspace);
    let sources = workspace.join("node-agent/packaging");
    let stage = target.join("dist/stage");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    let version = version(&sources)?;
    let program = build(workspace, &target, profile)?;
    let pages = stage.with_file_name("manual");
    make_pages(workspace, &pages)?;

    install(&program, &stage.join("usr/bin/standin"), 0o755)?;
    let installed = stage.join("usr/bin/standin");
    done(Command::new("strip").args(["--strip-unneeded", "--remove-section=.comment"]).arg(&installed))?;
    for (source, place) in FILES {
        install(&sources.join(source), &stage.join(place), 0o644)?;
    }
    for (shell, place) in COMPLETIONS {
        let script = output(Command::new(&program).args(["completions", shell]))?;
        write(&stage.join(place), &script, 0o644)?;
    }
    install_pages(&pages, &stage.join("usr/share/man/man1"))?;
    install_documents(workspace, &stage.join("usr/share/doc/standin"))?;
    write_control(&sources, &stage, &version)?;

    let architecture = architecture()?;
    let package = target.join(format!("dist/standin_{version}_{architecture}.deb"));
    let mut pack = Command::new("dpkg-deb");
    // What is for a test is packed quickly.
    if profile != "release" {
        pack.args(["-Zgzip", "-z1"]);
    }
    pack.args(["--root-owner-group", "--build"]).args([&stage, &package]);
    pack.env("SOURCE_DATE_EPOCH", date_of_commit(workspace));
    process::output(&mut pack)?;
    Ok(package)
}

fn target_directory(workspace: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from)
}

/// The version of the package, which its changelog and the workspace must agree about.
fn version(sources: &Path) -> Result<String> {
    let changelog = fs::read_to_string(sources.join("debian/changelog"))?;
    let version = changelog.split(['(', ')']).nth(1).context("the changelog names no version")?;
    let own = env!("CARGO_PKG_VERSION");
    ensure!(version == own, "packaging/debian/changelog is of version {version}, the workspace of {own}");
    Ok(version.to_owned())
}

fn build(workspace: &Path, target: &Path, profile: &str) -> Result<PathBuf> {
    done(process::cargo(workspace).args([
        "build",
        "--package",
        "node-agent",
        "--bin",
        "standin",
        "--profile",
        profile,
    ]))?;
    let directory = if profile == "dev" { "debug" } else { profile };
    Ok(target.join(directory).join("standin"))
}

fn make_pages(workspace: &Path, pages: &Path) -> Result<()> {
    if pages.exists() {
        fs::remove_dir_all(pages)?;
    }
    let mut example = process::cargo(workspace);
    done(example.args(["run", "--quiet", "--package", "node-agent", "--example", "manual", "--"]).arg(pages))
}

fn install_pages(pages: &Path, place: &Path) -> Result<()> {
    for page in fs::read_dir(pages)? {
        let page = page?.path();
        if page.extension().is_some_and(|extension| extension == "1")
            && let Some(name) = page.file_name()
        {
            install(&page, &place.join(name), 0o644)?;
            gzip(&place.join(name))?;
        }
    }
    Ok(())
}

fn install_documents(workspace: &Path, place: &Path) -> Result<()> {
    let packaging = workspace.join("node-agent/packaging/debian");
    install(&packaging.join("copyright"), &place.join("copyright"), 0o644)?;
    install(&packaging.join("changelog"), &place.join("changelog"), 0o644)?;
    gzip(&place.join("changelog"))?;
    install(&workspace.join("README.md"), &place.join("README.md"), 0o644)?;
    install(&workspace.join("schema/README.md"), &place.join("schema/README.md"), 0o644)?;
    // Where README.md links to them.
    let mut documents = Vec::new();
    collect_files(&workspace.join("node-agent/docs"), &mut documents)?;
    for document in documents {
        install(&document, &place.join(document.strip_prefix(workspace)?), 0o644)?;
    }
    Ok(())
}

fn write_control(sources: &Path, stage: &Path, version: &str) -> Result<()> {
    let control = stage.join("DEBIAN");
    let sums = checksums(stage)?;
    let size = fs::read_dir(stage)?.count().max(1) + sums.kibibytes;
    let template = fs::read_to_string(sources.join("debian/control.in"))?;
    let text = template
        .replace("@VERSION@", version)
        .replace("@ARCHITECTURE@", &architecture()?)
        .replace("@INSTALLED_SIZE@", &size.to_string())
        .replace("@SHLIBDEPS@", &libraries(&stage.join("usr/bin/standin"))?);
    write(&control.join("control"), &text, 0o644)?;
    write(&control.join("md5sums"), &sums.text, 0o644)?;
    write(&control.join("conffiles"), CONFIGURATION, 0o644)?;
    SCRIPTS
        .iter()
        .try_for_each(|script| install(&sources.join("debian").join(script), &control.join(script), 0o755))
}

/// What `dpkg --verify` compares with.
struct Checksums {
    text: String,
    kibibytes: usize,
}

fn checksums(stage: &Path) -> Result<Checksums> {
    let mut files = Vec::new();
    collect_files(stage, &mut files)?;
    files.sort();
    let paths = files.iter().filter_map(|file| file.strip_prefix(stage).ok());
    let text = output(Command::new("md5sum").args(paths).current_dir(stage))?;
    let sizes = files.iter().filter_map(|file| file.metadata().ok());
    Ok(Checksums { text, kibibytes: sizes.map(|size| size.len().div_ceil(1024) as usize).sum() })
}

fn collect_files(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect_files(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// The packages of the libraries that the program is linked with, as Debian's own tool finds them.
fn libraries(program: &Path) -> Result<String> {
    let scratch = program.with_file_name("shlibdeps");
    write(
        &scratch.join("debian/control"),
        "Source: standin\nMaintainer: x <x@x>\n\nPackage: standin\nArchitecture: any\nDescription: x\n",
        0o644,
    )?;
    let mut tool = Command::new("dpkg-shlibdeps");
    let found = output(tool.arg("-O").arg("-e").arg(program).current_dir(&scratch));
    fs::remove_dir_all(&scratch)?;
    let found = found?;
    let depends = found.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    Ok(depends.context("dpkg-shlibdeps names no library")?.to_owned())
}

fn architecture() -> Result<String> {
    Ok(output(Command::new("dpkg").arg("--print-architecture"))?.trim().to_owned())
}

/// Seconds since 1970; without a repository the epoch itself.
fn date_of_commit(workspace: &Path) -> String {
    let mut git = Command::new("git");
    let date = output(git.args(["log", "-1", "--format=%ct"]).current_dir(workspace));
    date.map_or_else(|_| "0".to_owned(), |date| date.trim().to_owned())
}

fn gzip(file: &Path) -> Result<()> {
    done(Command::new("gzip").args(["-9", "--no-name"]).arg(file))
}

fn install(source: &Path, place: &Path, mode: u32) -> Result<()> {
    make_parent(place)?;
    fs::copy(source, place).with_context(|| format!("failed to copy {}", source.display()))?;
    Ok(fs::set_permissions(place, fs::Permissions::from_mode(mode))?)
}

fn write(place: &Path, text: &str, mode: u32) -> Result<()> {
    make_parent(place)?;
    fs::write(place, text).with_context(|| format!("failed to write {}", place.display()))?;
    Ok(fs::set_permissions(place, fs::Permissions::from_mode(mode))?)
}

/// Directories of a package are 0755, whatever the caller's mask.
fn make_parent(place: &Path) -> Result<()> {
    let parent = place.parent().context("a file lies in a directory")?;
    if !parent.exists() {
        make_parent(parent)?;
        fs::create_dir(parent).with_context(|| format!("failed to create {}", parent.display()))?;
        fs::set_permissions(parent, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
