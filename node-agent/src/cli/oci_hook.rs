//! `standin oci-hook`: what a container runtime calls when it has made a container (stage `createRuntime` or the
//! older `prestart`), with the container's state on stdin (OCI runtime specification, "State").
//!
//! It never stands in the way: whatever goes wrong is said on stderr, and the container starts.

use super::exit::complain;
use super::reach;
use super::settings::Settings;
use crate::fingerprint::key;
use crate::size::Manual;
use crate::wire::{Asked, Container, Leftover, Reply, Request, Start};
use anyhow::{Context, bail};
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Longest state that is read, bytes.
const STATE_BYTES_MAX: u64 = 1 << 20;

/// Longest configuration of a bundle that is read, bytes.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// Annotations in which engines put the name of the image.
const IMAGE_ANNOTATIONS: [&str; 4] = [
    "io.kubernetes.cri.image-name",
    "io.kubernetes.cri-o.ImageName",
    "org.opencontainers.image.ref.name",
    "io.podman.annotations.image",
];

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin oci-hook --install /usr/share/containers/oci/hooks.d   podman and CRI-O call it
  a bundle's config.json, for runc and crun:
    \"hooks\": { \"createRuntime\": [ { \"path\": \"/usr/local/bin/standin\", \"args\": [\"standin\", \"oci-hook\"] } ] }")]
pub(super) struct OciHookArgs {
    /// Write the hook's JSON file into this directory, and end
    #[arg(long, value_name = "DIRECTORY")]
    install: Option<PathBuf>,
    /// Name of the task [default: image and command]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

impl OciHookArgs {
    /// Whether a container runtime calls.
    pub(super) fn is_called(&self) -> bool {
        self.install.is_none()
    }
}

/// The state of a container, as the runtime tells it.
#[derive(Debug, Deserialize)]
struct State {
    id: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    pid: i32,
    bundle: PathBuf,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

pub(super) fn run(settings: &Settings, arguments: &OciHookArgs) -> anyhow::Result<u8> {
    if let Some(directory) = &arguments.install {
        install(settings, directory)?;
        return Ok(0);
    }
    if let Err(error) = announce(settings, arguments) {
        complain(&format!("the container is not sized: {}", crate::causes::in_one_line(error.as_ref())));
    }
    Ok(0)
}

fn announce(settings: &Settings, arguments: &OciHookArgs) -> anyhow::Result<()> {
    let mut text = String::new();
    io::stdin()
        .take(STATE_BYTES_MAX)
        .read_to_string(&mut text)
        .context("failed to read the state from stdin")?;
    let state: State = serde_json::from_str(&text)
        .context("stdin holds no state of a container: a container runtime is to call this")?;
    if state.status == "stopped" {
        // The agent has seen the end itself.
        return Ok(());
    }
    if state.pid <= 0 {
        bail!("it has no process in stage {:?}: use createRuntime", state.status);
    }
    let config = bundle_config(&state.bundle)?;
    let container = container(&state, &config, arguments.name.as_deref());
    match reach::ask(&settings.socket, &Request::Container(Box::new(container))) {
        Ok(Reply::Started(started)) => {
            started.notes.iter().for_each(|note| complain(note));
            Ok(())
        }
        Ok(Reply::Refused(why)) => bail!("{why}"),
        Ok(_) => bail!("the agent answered something else"),
        Err(unreachable) => bail!("{}", unreachable.message),
    }
}

fn bundle_config(bundle: &Path) -> anyhow::Result<Value> {
    let path = bundle.join("config.json");
    let mut text = String::new();
    fs::File::open(&path)
        .and_then(|file| file.take(CONFIG_BYTES_MAX).read_to_string(&mut text))
        .with_context(|| format!("failed to read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}

/// What is asked for a container: its kind by image and command, and what its user had set.
fn container(state: &State, config: &Value, name: Option<&str>) -> Container {
    let arguments = config["process"]["args"].as_array().into_iter().flatten();
    let command: Vec<String> = arguments.filter_map(|word| word.as_str().map(ToOwned::to_owned)).collect();
    let words: Vec<OsString> = command.iter().map(Into::into).collect();
    let task_type = match (name, image(state)) {
        (Some(name), _) => name.to_owned(),
        (None, Some(image)) => format!("{} {}", short(&image), key::task_type(&words)),
        (None, None) => key::task_type(&words),
    };
    let resources = &config["linux"]["resources"];
    let unified = |file: &str| resources["unified"][file].is_string();
    let set = |value: &Value| value.as_i64().is_some_and(|number| number > 0);
    let start = Start {
        pid: Some(state.pid),
        task_type: key::clean(&task_type),
        command,
        directory: config["process"]["cwd"].as_str().unwrap_or("/").to_owned(),
        features: Vec::new(),
        policy: None,
        manual: manual(resources),
        leftover: Leftover::Leave,
        admission: Asked::default(),
    };
    Container {
        id: state.id.clone(),
        start,
        has_cpu_weight: set(&resources["cpu"]["shares"]) || unified("cpu.weight"),
        has_io_weight: set(&resources["blockIO"]["weight"]) || unified("io.weight"),
        has_memory_target: set(&resources["memory"]["reservation"])
            || unified("memory.high")
            || unified("memory.low"),
    }
}

/// Limits that the container's user gave to the runtime.
fn manual(resources: &Value) -> Manual {
    let positive =
        |value: &Value| value.as_i64().and_then(|number| u64::try_from(number).ok()).filter(|n| *n > 0);
    let in_file = |file: &str| resources["unified"][file].as_str().and_then(|text| text.parse().ok());
    let cpu = &resources["cpu"];
    let quota = positive(&cpu["quota"])
        .map(|quota| quota as f64 / positive(&cpu["period"]).unwrap_or(100_000) as f64);
    Manual {
        memory_bytes: positive(&resources["memory"]["limit"]).or_else(|| in_file("memory.max")),
        cpu_cores: quota,
        tasks: positive(&resources["pids"]["limit"]).or_else(|| in_file("pids.max")),
        ..Manual::default()
    }
}

/// The name of the container's image: from the annotations, or from the store of podman (containers/storage),
/// which keeps it beside the bundle.
fn image(state: &State) -> Option<String> {
    let annotated = IMAGE_ANNOTATIONS.iter().find_map(|name| state.annotations.get(*name));
    if let Some(image) = annotated.filter(|image| !image.is_empty()) {
        return Some(image.clone());
    }
    let store = state.bundle.parent()?.parent()?;
    ["containers.json", "volatile-containers.json"].iter().find_map(|file| {
        let containers: Value = serde_json::from_str(&fs::read_to_string(store.join(file)).ok()?).ok()?;
        let own = containers.as_array()?.iter().find(|container| container["id"] == state.id.as_str())?;
        let metadata: Value = serde_json::from_str(own["metadata"].as_str()?).ok()?;
        metadata["image-name"].as_str().filter(|name| !name.is_empty()).map(ToOwned::to_owned)
    })
}

/// Without what says only where it came from: `docker.io/library/python:3.12` is `python:3.12`.
fn short(image: &str) -> &str {
    let image = image.split_once('@').map_or(image, |(name, _)| name);
    ["docker.io/library/", "localhost/", "docker.io/"]
        .iter()
        .find_map(|from| image.strip_prefix(from))
        .unwrap_or(image)
}

/// Writes the file that makes podman and CRI-O call this program (oci-hooks(5)).
fn install(settings: &Settings, directory: &Path) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("failed to find this program")?;
    let mut arguments = vec!["standin".to_owned(), "oci-hook".to_owned()];
    if settings.socket.as_os_str() != crate::config::DEFAULT_SOCKET {
        arguments.extend(["--socket".into(), settings.socket.display().to_string()]);
    }
    let hook = json!({
        "version": "1.0.0",
        "hook": { "path": program, "args": arguments },
        "when": { "always": true },
        "stages": ["createRuntime"],
    });
    fs::create_dir_all(directory).with_context(|| format!("failed to create {}", directory.display()))?;
    let path = directory.join("standin.json");
    fs::write(&path, format!("{hook:#}\n")).with_context(|| format!("failed to write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;
    use proptest::prelude::*;

    fn state(annotations: &[(&str, &str)]) -> State {
        State {
            id: "abc".into(),
            status: "created".into(),
            pid: 7,
            bundle: "/nowhere/abc/userdata".into(),
            annotations: annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    #[test]
    fn a_container_is_known_by_image_and_command() {
        let config = json!({ "process": { "args": ["python3", "train.py"], "cwd": "/srv" } });
        let annotated = state(&[("io.kubernetes.cri.image-name", "docker.io/library/python:3.12@sha256:ab")]);
        assert_eq!(container(&annotated, &config, None).start.task_type, "python:3.12 train.py");
        assert_eq!(container(&state(&[]), &config, None).start.task_type, "train.py");
        assert_eq!(container(&annotated, &config, Some("mine")).start.task_type, "mine");
    }

    #[test]
    fn what_the_user_gave_to_the_runtime_is_by_hand() {
        let resources = json!({
            "memory": { "limit": 67_108_864, "reservation": 1000 }, "pids": { "limit": 50 },
            "cpu": { "quota": 150_000, "period": 100_000, "shares": 512 }
        });
        let config = json!({ "process": { "args": ["sh"] }, "linux": { "resources": resources } });
        let given = container(&state(&[]), &config, None);
        let manual = given.start.manual;
        assert_eq!(
            (manual.memory_bytes, manual.cpu_cores, manual.tasks),
            (Some(64 << 20), Some(1.5), Some(50))
        );
        assert!(given.has_cpu_weight && given.has_memory_target && !given.has_io_weight);
        let config =
            json!({ "process": { "args": ["sh"] }, "linux": { "resources": { "memory": { "limit": -1 } } } });
        let free = container(&state(&[]), &config, None);
        assert_eq!(free.start.manual, Manual::default());
        assert!(!free.has_cpu_weight && !free.has_memory_target);
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            Just(Value::Null),
        ];
        let keys = [
            "process",
            "args",
            "cwd",
            "linux",
            "resources",
            "unified",
            "memory.max",
            "pids.max",
            "cpu",
            "quota",
            "period",
            "shares",
            "memory",
            "limit",
            "reservation",
            "pids",
            "blockIO",
            "weight",
        ];
        leaf.prop_recursive(6, 40, 6, move |inner| {
            let object = proptest::collection::btree_map(prop::sample::select(keys.to_vec()), inner.clone(), 0..6);
            prop_oneof![
                4 => object.prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
                1 => proptest::collection::vec(inner, 0..4).prop_map(Value::from),
            ]
        })
    }

    proptest! {
        /// Whatever a bundle says becomes a request or is refused.
        #[test]
        fn hostile_bundles(config in json(), id in any::<String>(), image in any::<String>()) {
            let state = State { id, ..state(&[("io.kubernetes.cri.image-name", &image)]) };
            let container = container(&state, &config, None);
            prop_assert!(!container.start.task_type.is_empty());
            let manual = container.start.manual;
            prop_assert!(manual.cpu_cores.is_none_or(|cores| cores.is_finite() && cores > 0.0));
            _ = Request::Container(Box::new(container)).check();
        }

        #[test]
        fn hostile_states(text in any::<String>(), bytes in hostile::bent(vec![
            br#"{"id":"a","pid":7,"bundle":"/b","annotations":{"k":"v"}}"#.to_vec(),
        ])) {
            _ = serde_json::from_str::<State>(&text);
            _ = serde_json::from_slice::<State>(&bytes);
        }
    }
}
