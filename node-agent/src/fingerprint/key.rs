//! What kind of task a command line is, and the features of one run of it that are known before it starts.
//!
//! A task type is the program's name; for interpreters and programs with subcommands the script or the
//! subcommand, so that `python3 train.py` is `train.py` and `cargo build` is `cargo build`.

use crate::host;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Longest task type, bytes. Longer names are cut.
pub const TASK_TYPE_BYTES_MAX: usize = 128;

/// Most features of one run that a launcher may give, those of its inputs included.
pub const FEATURES_MAX: usize = 64;

/// Most arguments looked at for input files.
const INPUT_ARGUMENTS_MAX: usize = 4096;

/// Programs whose first argument that is not an option names a script.
const INTERPRETERS: &[&str] =
    &["python", "perl", "ruby", "node", "nodejs", "bash", "sh", "dash", "zsh", "Rscript", "php", "lua"];

/// Programs whose first argument that is not an option names a subcommand.
const MULTI_TOOLS: &[&str] = &[
    "apt",
    "apt-get",
    "cargo",
    "docker",
    "git",
    "go",
    "kubectl",
    "npm",
    "openssl",
    "pip",
    "pip3",
    "podman",
    "rustup",
    "samtools",
    "bcftools",
    "systemctl",
    "terraform",
    "yarn",
];

/// Programs that only start another one: their own options are skipped and the rest is the command.
const WRAPPERS: &[&str] =
    &["env", "nice", "nohup", "setsid", "stdbuf", "time", "timeout", "taskset", "ionice", "chrt"];

/// Who runs what: the key that fingerprints are kept under.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskKey {
    /// Kind of task.
    pub task_type: String,
    /// Numeric user id.
    pub uid: u32,
}

/// A property of one run, known before it starts, that its needs may depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    /// `input_files`, `input_bytes`, `input_bytes_max`, `hour_of_week`, `host`, or the user's own `K`.
    pub name: String,
    /// Its value.
    pub value: FeatureValue,
}

/// Numbers can be regressed on, words only compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureValue {
    /// A finite number.
    Number(f64),
    /// Anything else.
    Category(String),
}

impl FeatureValue {
    /// `text` as a number if it is a finite one, else as a category.
    pub fn parse(text: &str) -> Self {
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Self::Number(number),
            _ => Self::Category(text.to_owned()),
        }
    }
}

/// The task type of a command line. Never empty, never longer than [`TASK_TYPE_BYTES_MAX`].
pub fn task_type(argv: &[OsString]) -> String {
    let argv = skip_wrappers(argv);
    let Some((program, arguments)) = argv.split_first() else {
        return "unknown".into();
    };
    let program = base_name(program);
    let name = if is_interpreter(&program) {
        script(&program, arguments).unwrap_or(program)
    } else if MULTI_TOOLS.contains(&program.as_str()) {
        match first_word(arguments) {
            Some(word) => format!("{program} {}", word.to_string_lossy()),
            None => program,
        }
    } else {
        program
    };
    clean(&name)
}

/// A name without control characters, cut at a character border. Empty names become `unknown`.
pub fn clean(name: &str) -> String {
    let mut name: String = name.trim().chars().map(|c| if c.is_control() { '_' } else { c }).collect();
    while name.len() > TASK_TYPE_BYTES_MAX {
        name.pop();
    }
    // What was inside is an end now; and a name that is cleaned again must stay the same.
    name.truncate(name.trim_end().len());
    if name.is_empty() { "unknown".into() } else { name }
}

/// `env A=1 nice -n 5 make` → `make`. An option's own value is only skipped where the wrapper is known to
/// take one first (`timeout 5`, `taskset 3`); in doubt the wrapper itself is the task.
fn skip_wrappers(argv: &[OsString]) -> &[OsString] {
    let mut rest = argv;
    while let Some((program, arguments)) = rest.split_first() {
        let program = base_name(program);
        if !WRAPPERS.contains(&program.as_str()) {
            return rest;
        }
        let takes_value = |option: &str| match program.as_str() {
            "nice" => option == "-n",
            "ionice" => matches!(option, "-c" | "-n"),
            "timeout" => matches!(option, "-k" | "-s"),
            "env" => matches!(option, "-u" | "-C" | "-S"),
            "stdbuf" => matches!(option, "-i" | "-o" | "-e"),
            "time" => matches!(option, "-f" | "-o"),
            _ => false,
        };
        let mut skipped = 0;
        while let Some(argument) = arguments.get(skipped).and_then(|a| a.to_str()) {
            if argument.starts_with('-') {
                skipped += if takes_value(argument) { 2 } else { 1 };
            } else if program == "env" && argument.contains('=') {
                skipped += 1;
            } else {
                break;
            }
        }
        if matches!(program.as_str(), "timeout" | "taskset" | "chrt") {
            skipped += 1;
        }
        if skipped >= arguments.len() {
            return rest;
        }
        rest = &arguments[skipped..];
    }
    argv
}

fn base_name(program: &OsStr) -> String {
    Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned()
}

/// `python3.11` is python: a version behind the name does not count.
fn is_interpreter(program: &str) -> bool {
    let bare = program.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    INTERPRETERS.contains(&bare)
}

/// The script that an interpreter runs: its file name, the module of `-m`, or nothing for `-c` and stdin.
fn script(program: &str, arguments: &[OsString]) -> Option<String> {
    let python = program.starts_with("python");
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        if python && text == "-m" {
            return arguments.next().map(|module| format!("{program} -m {}", module.to_string_lossy()));
        }
        if text == "-c" || text == "-e" || text == "-" {
            return None;
        }
        if python && matches!(&*text, "-W" | "-X") {
            arguments.next();
        } else if !text.starts_with('-') {
            return Some(base_name(argument));
        }
    }
    None
}

/// The first argument that is neither an option nor a toolchain (`cargo +nightly build`).
fn first_word(arguments: &[OsString]) -> Option<&OsString> {
    arguments.iter().find(|argument| {
        let text = argument.to_string_lossy();
        !text.starts_with('-') && !text.starts_with('+')
    })
}

/// Number, total and largest size of the regular files named in `argv` (after the program) and `inputs`.
/// Relative paths count from `directory`. An argument `--option=PATH` counts as `PATH`.
pub fn input_features(argv: &[OsString], inputs: &[OsString], directory: &Path) -> Vec<Feature> {
    let mut paths: Vec<_> = argv
        .iter()
        .skip(1)
        .take(INPUT_ARGUMENTS_MAX)
        .map(|argument| match argument.to_str().and_then(|text| text.strip_prefix("--")?.split_once('=')) {
            Some((_, value)) => directory.join(value),
            None => directory.join(argument),
        })
        .chain(inputs.iter().map(|input| directory.join(input)))
        .collect();
    paths.sort_unstable();
    paths.dedup();
    let sizes: Vec<u64> = paths
        .iter()
        .filter_map(|path| path.metadata().ok())
        .filter(std::fs::Metadata::is_file)
        .map(|metadata| metadata.len())
        .collect();
    let number =
        |name: &str, value: u64| Feature { name: name.into(), value: FeatureValue::Number(value as f64) };
    vec![
        number("input_files", sizes.len() as u64),
        number("input_bytes", sizes.iter().sum()),
        number("input_bytes_max", sizes.iter().copied().max().unwrap_or(0)),
    ]
}

/// When it starts, milliseconds since the epoch.
pub fn hour_of_week(at_ms: i64) -> Feature {
    let hour = FeatureValue::Number(f64::from(host::hour_of_week_at(at_ms)));
    Feature { name: "hour_of_week".into(), value: hour }
}

/// The features of a run that starts now: those given, bounded in number and length, and what the host adds.
pub fn of_run(given: Vec<Feature>) -> Vec<Feature> {
    let bounded = given.into_iter().take(FEATURES_MAX).map(|feature| Feature {
        name: clean(&feature.name),
        value: match feature.value {
            FeatureValue::Category(word) => FeatureValue::Category(clean(&word)),
            number => number,
        },
    });
    let moment = hour_of_week(host::now_ms());
    let host = Feature { name: "host".into(), value: FeatureValue::Category(clean(&host::name())) };
    bounded.chain([moment, host]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;
    use proptest::prelude::*;

    fn of(command: &str) -> String {
        task_type(&command.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn programs_scripts_and_subcommands() {
        for (command, expected) in [
            ("/usr/bin/xz -T2 big.tar", "xz"),
            ("python3 train.py --epochs 3", "train.py"),
            ("python3.11 -u /srv/jobs/train.py", "train.py"),
            ("python3 -m http.server 8000", "python3 -m http.server"),
            ("python3 -c print(1)", "python3"),
            ("bash ./run.sh", "run.sh"),
            ("sh -c true", "sh"),
            ("cargo build --release", "cargo build"),
            ("cargo +nightly -q test", "cargo test"),
            ("git", "git"),
            ("env A=1 nice -n 5 make -j2", "make"),
            ("timeout -k 5 60 xz f", "xz"),
            ("env", "env"),
            ("", "unknown"),
        ] {
            assert_eq!(of(command), expected, "{command}");
        }
    }

    #[test]
    fn names_are_bounded_and_printable() {
        let name = task_type(&["x\n\u{1b}[31m".repeat(100).into()]);
        assert!(name.len() <= TASK_TYPE_BYTES_MAX && !name.chars().any(char::is_control));
    }

    #[test]
    fn inputs_are_counted_once() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a"), [0; 10]).unwrap();
        std::fs::write(directory.path().join("b"), [0; 30]).unwrap();
        let argv = ["sort", "a", "--files=b", "missing", "."].map(OsString::from);
        let features = input_features(&argv, &["a".into()], directory.path());
        let values: Vec<_> = features.into_iter().map(|f| f.value).collect();
        assert_eq!(values, [2.0, 40.0, 30.0].map(FeatureValue::Number));
    }

    const WORDS: &[&str] = &[
        "env",
        "nice",
        "timeout",
        "taskset",
        "time",
        "python3",
        "python3.11",
        "bash",
        "sh",
        "cargo",
        "git",
        "-n",
        "-k",
        "5",
        "--",
        "-",
        "-m",
        "-c",
        "-e",
        "-W",
        "+nightly",
        "A=1",
        "/",
        "..",
        "a/",
        "train.py",
        "http.server",
        "",
        " ",
        "\u{1b}[31m",
        "\n",
    ];

    fn is_a_name(name: &str) -> bool {
        !name.is_empty() && name.len() <= TASK_TYPE_BYTES_MAX && !name.chars().any(char::is_control)
    }

    proptest! {
        #[test]
        fn hostile_command_lines(argv in hostile::command_line(WORDS)) {
            let name = task_type(&argv);
            prop_assert!(is_a_name(&name), "{name:?}");
            prop_assert_eq!(clean(&name), name, "a name is its own");
        }

        #[test]
        fn hostile_names(name in any::<String>(), long in "\\PC{0,200}") {
            for name in [name, long] {
                let cleaned = clean(&name);
                prop_assert!(is_a_name(&cleaned), "{cleaned:?}");
                prop_assert_eq!(clean(&cleaned), cleaned);
            }
        }

        #[test]
        fn hostile_features(given in proptest::collection::vec(("\\PC{0,6}", "[\\PC\u{1b}]{0,6}"), 0..70)) {
            let given = given.into_iter().map(|(name, value)| Feature { name, value: FeatureValue::parse(&value) });
            let features = of_run(given.collect());
            prop_assert!(features.len() <= FEATURES_MAX + 2);
            for Feature { name, value } in features {
                let is_sound = match value {
                    FeatureValue::Number(number) => number.is_finite(),
                    FeatureValue::Category(word) => is_a_name(&word),
                };
                prop_assert!(is_a_name(&name) && is_sound);
            }
        }
    }
}
