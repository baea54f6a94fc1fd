//! Real containers without images: crun, with bundles made of this machine's static busybox.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "this is no library")]

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A root file system with a shell, in the directory `root`.
pub(crate) fn root_file_system(root: &Path) {
    for directory in ["bin", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    let path = std::env::var_os("PATH").unwrap();
    let busybox =
        std::env::split_paths(&path).map(|dir| dir.join("busybox")).find(|file| file.exists()).unwrap();
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for name in ["sh", "dd", "sleep", "cat", "true"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
}

/// A command that sees v1 only where this host has both: runtimes refuse a mixture, or don't find their way in it. (crun
/// makes directories there all the same.)
pub(crate) fn runtime(program: &str) -> Command {
    let hide = "mount -t tmpfs none /sys/fs/cgroup/unified";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg(format!("[ -e /sys/fs/cgroup/cgroup.controllers ] || {hide}; exec \"$@\""));
    command.args(["sh", program]).stdin(Stdio::null());
    command
}

/// A directory that crun makes containers of.
pub(crate) struct Bundle(PathBuf);

impl Bundle {
    /// `script` as what a container does that is in `cgroup`, with the file system `root`.
    pub(crate) fn new(place: PathBuf, root: &Path, cgroup: &str, script: &str) -> Self {
        fs::create_dir_all(&place).unwrap();
        // crun writes no second one.
        _ = fs::remove_file(place.join("config.json"));
        assert!(Command::new("crun").arg("spec").current_dir(&place).status().unwrap().success());
        let bundle = Self(place);
        bundle.configure(|config| {
            config["root"] = json!({ "path": root, "readonly": true });
            config["process"]["terminal"] = json!(false);
            config["process"]["args"] = json!(["sh", "-c", script]);
            config["process"].as_object_mut().unwrap().remove("rlimits");
            config["linux"]["cgroupsPath"] = json!(cgroup);
        });
        bundle
    }

    /// Changes the bundle's configuration (OCI runtime specification, config.md).
    pub(crate) fn configure(&self, change: impl FnOnce(&mut Value)) {
        let file = self.0.join("config.json");
        let mut config = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        change(&mut config);
        fs::write(file, config.to_string()).unwrap();
    }

    /// Has crun call this when it has made a container.
    pub(crate) fn hook(&self, hook: &Value) {
        self.configure(|config| config["hooks"] = json!({ "createRuntime": [hook] }));
    }

    /// Makes a container and runs it to its end.
    pub(crate) fn run(&self, id: &str) -> Command {
        let mut crun = runtime("crun");
        crun.arg("--root").arg(self.0.join("state"));
        crun.args(["--cgroup-manager", "cgroupfs", "run", "--bundle"]).arg(&self.0).arg(id);
        crun
    }
}
