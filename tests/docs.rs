//! The documentation is true: what it says of verbs, exit codes and keys is what the program has, and every command
//! in it works.
//!
//! Blocks of ```` ```sh ```` are run as they stand, those of ```` ```console ```` line by line after the `$`; all of a
//! page in one shell. A heading of a table in the output that a page shows must be in the real one. A block that
//! needs more than this host has says so above it, `<!-- not run: WHY -->`, and is counted. Other blocks carry
//! another word: `text`, `toml`, …
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Sandbox, has, is_root};

/// Widest line of prose or commands, characters.
const WIDEST: usize = 120;
/// Where pages have the files of a running agent: a test has them in its sandbox.
const RUNTIME: &str = "/run/standin";
/// How long the commands of one page may take.
const PAGE_PATIENCE: Duration = Duration::from_secs(240);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// README and every page beside it.
fn pages() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("node-agent/docs")).unwrap().flatten().map(|entry| entry.path());
    let mut pages: Vec<_> = docs.filter(|path| path.extension().is_some_and(|it| it == "md")).collect();
    pages.push(root().join("README.md"));
    pages.sort();
    pages
}

fn name(page: &Path) -> String {
    page.strip_prefix(root()).unwrap().display().to_string()
}

struct Block {
    line: usize,
    kind: String,
    lines: Vec<String>,
    not_run: Option<String>,
}

impl Block {
    fn is_commands(&self) -> bool {
        matches!(self.kind.as_str(), "sh" | "console")
    }

    /// What a shell is to run.
    fn commands(&self) -> String {
        if self.kind == "sh" {
            return self.lines.join("\n");
        }
        let mut commands = String::new();
        let mut goes_on = false;
        for line in &self.lines {
            if let Some(command) = line.strip_prefix("$ ").or(goes_on.then_some(line.as_str())) {
                commands += &format!("{command}\n");
                let odd = |quote| commands.matches(quote).count() % 2 == 1;
                goes_on = command.ends_with('\\') || odd('\'') || odd('"');
            }
        }
        commands
    }

    /// Headings of tables in the output that is shown: three words in capitals or more.
    fn headings(&self) -> Vec<Vec<String>> {
        let is_heading = |words: &[String]| {
            let capital = |word: &String| {
                word.chars().all(|c| !c.is_lowercase()) && word.chars().any(char::is_uppercase)
            };
            words.len() >= 3 && words.iter().all(capital)
        };
        let words = |line: &String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        self.lines
            .iter()
            .filter(|line| !line.starts_with('$'))
            .map(words)
            .filter(|it| is_heading(it))
            .collect()
    }
}

fn blocks(page: &Path) -> Vec<Block> {
    let text = fs::read_to_string(page).unwrap();
    let mut blocks: Vec<Block> = Vec::new();
    let (mut open, mut not_run) = (false, None);
    for (number, line) in text.lines().enumerate() {
        if let Some(kind) = line.strip_prefix("```") {
            open = !open;
            if open {
                let (kind, not_run) = (kind.to_owned(), not_run.take());
                blocks.push(Block { line: number + 1, kind, lines: Vec::new(), not_run });
            }
        } else if open {
            blocks.last_mut().unwrap().lines.push(line.to_owned());
        } else if let Some(why) =
            line.strip_prefix("<!-- not run: ").and_then(|rest| rest.strip_suffix(" -->"))
        {
            not_run = Some(why.to_owned());
        }
    }
    assert!(!open, "{}: a block is never closed", name(page));
    assert!(not_run.is_none(), "{}: `not run` with no block below", name(page));
    blocks
}

#[test]
fn every_block_says_what_it_is() {
    let mut left_out = Vec::new();
    for page in pages() {
        for block in blocks(&page) {
            let place = format!("{}:{}", name(&page), block.line);
            assert!(!block.kind.is_empty(), "{place}: a block without a word for what it is");
            let has_command = block.lines.iter().any(|line| line.starts_with("$ "));
            assert!(block.is_commands() || !has_command, "{place}: commands in a block of {}", block.kind);
            match &block.not_run {
                Some(why) if block.is_commands() => left_out.push(format!("{place}: {why}")),
                Some(_) => panic!("{place}: nothing to run there"),
                None => {}
            }
        }
    }
    println!("{} blocks are not run:\n{}", left_out.len(), left_out.join("\n"));
    assert!(left_out.iter().all(|left| left.split(": ").last().unwrap().len() > 10), "reasons have words");
}

/// Runs the commands of a page and gives what each block wrote. Where it is of an agent, there is one.
fn run(page: &Path, sandbox: &Sandbox, has_agent: bool) -> Vec<(Block, String)> {
    let work = sandbox.path("work");
    fs::create_dir(&work).unwrap();
    let blocks: Vec<_> =
        blocks(page).into_iter().filter(|block| block.is_commands() && block.not_run.is_none()).collect();
    let mut script = String::from("set -euo pipefail\nip link set lo up\n");
    if has_agent {
        script += "standin agent 2> agent.log &\nuntil standin queue > /dev/null 2>&1; do sleep 0.1; done\n";
    }
    for (number, block) in blocks.iter().enumerate() {
        let out = sandbox.path(&format!("out.{number}"));
        script += &format!("echo {number} > {}\n", sandbox.path("at").display());
        script += &format!("{{\n{}\n}} > {} 2>&1\n", block.commands(), out.display());
    }
    let script = script.replace(RUNTIME, &sandbox.dir.path().display().to_string());
    let file = sandbox.path("page.sh");
    fs::write(&file, &script).unwrap();
    let program = PathBuf::from(sandbox.standin([""; 0]).get_program());
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    // A network of its own: pages name ports as they like.
    let mut command = Command::new("unshare");
    command.args(["--net", "bash"]).arg(&file).current_dir(&work).process_group(0).stdin(Stdio::null());
    command.env("PATH", path).env("HOME", &work).env("TERM", "dumb");
    command.env("STANDIN_DB", sandbox.database()).env("STANDIN_SOCKET", sandbox.socket());
    command.env("STANDIN_CONFIG", sandbox.path("config.toml"));
    let mut child = command.spawn().unwrap();
    let patience = Instant::now() + PAGE_PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > patience {
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    // What a page left in the background goes with it.
    // SAFETY: plain system call; the group is that of the shell started above.
    unsafe { libc::kill(-child.id().cast_signed(), libc::SIGKILL) };
    _ = child.wait();
    let out = |number: usize| fs::read_to_string(sandbox.path(&format!("out.{number}"))).unwrap_or_default();
    if !status.is_some_and(|status| status.success()) {
        let at: usize = fs::read_to_string(sandbox.path("at")).unwrap().trim().parse().unwrap();
        let (place, said) = (blocks[at].line, out(at));
        panic!("{}:{place}: {status:?}\n{}\n{said}", name(page), blocks[at].commands());
    }
    blocks.into_iter().enumerate().map(|(number, block)| (block, out(number))).collect()
}

fn commands_work(page: &str) {
    commands_work_with(page, "", false);
}

/// Of a page about an agent: there is one, with the configuration that the page shows.
fn commands_work_with_an_agent(page: &str) {
    let of_page: Vec<_> =
        blocks(&root().join(page)).into_iter().filter(|block| block.kind == "toml").collect();
    let config: String = of_page.iter().map(|block| block.lines.join("\n") + "\n").collect();
    commands_work_with(page, &config, true);
}

fn commands_work_with(page: &str, config: &str, has_agent: bool) {
    require!(is_root() && has("bash") && has("ip") && has("sqlite3"), "needs root, bash, ip and sqlite3");
    require!(has("curl") && has("python3"), "needs curl and python3");
    let sandbox = Sandbox::new();
    sandbox.configure(&config.replace(RUNTIME, &sandbox.dir.path().display().to_string()));
    let page = root().join(page);
    let ran = run(&page, &sandbox, has_agent);
    assert!(!ran.is_empty(), "{}: nothing was run", name(&page));
    for (block, out) in ran {
        let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
        for heading in block.headings() {
            let place = format!("{}:{}", name(&page), block.line);
            assert!(lines.iter().any(|line| *line == heading), "{place}: no line {heading:?} in\n{out}");
        }
    }
}

/// Pages whose commands the tests below run.
const PAGES_RUN: [&str; 9] = [
    "README.md",
    "node-agent/docs/batch.md",
    "node-agent/docs/containers.md",
    "node-agent/docs/fingerprints.md",
    "node-agent/docs/metrics.md",
    "node-agent/docs/report.md",
    "node-agent/docs/services.md",
    "node-agent/docs/top.md",
    "node-agent/docs/tutorial.md",
];

#[test]
fn no_page_with_commands_is_forgotten() {
    for page in pages() {
        let runs = blocks(&page).iter().any(|block| block.is_commands() && block.not_run.is_none());
        assert_eq!(runs, PAGES_RUN.contains(&name(&page).as_str()), "{}", name(&page));
    }
}

#[test]
fn the_commands_of_the_readme_work() {
    commands_work(PAGES_RUN[0]);
}

#[test]
fn the_commands_for_batch_jobs_work() {
    commands_work(PAGES_RUN[1]);
}

#[test]
fn the_commands_for_containers_work() {
    commands_work(PAGES_RUN[2]);
}

#[test]
fn the_commands_about_fingerprints_work() {
    commands_work(PAGES_RUN[3]);
}

#[test]
fn the_commands_about_metrics_work() {
    commands_work_with_an_agent(PAGES_RUN[4]);
}

#[test]
fn the_commands_about_the_report_work() {
    commands_work(PAGES_RUN[5]);
}

#[test]
fn the_commands_for_services_work() {
    commands_work(PAGES_RUN[6]);
}

#[test]
fn the_commands_about_top_work() {
    commands_work_with_an_agent(PAGES_RUN[7]);
}

#[test]
fn the_commands_of_the_tutorial_work() {
    commands_work(PAGES_RUN[8]);
}

/// The table of exit codes as a page has it.
fn codes() -> String {
    let rows = standin::cli::CODES.iter().map(|(code, meaning)| format!("| {code} | {meaning} |\n"));
    format!("| code | meaning |\n|---|---|\n{}", rows.collect::<String>())
}

/// Verbs, and verbs of verbs, with their help.
fn helps(command: &mut clap::Command, name: &str) -> Vec<(String, String)> {
    let mut all = vec![(name.to_owned(), command.render_long_help().to_string())];
    for verb in command.get_subcommands_mut().filter(|verb| verb.get_name() != "help") {
        let name = format!("{name} {}", verb.get_name());
        all.extend(helps(verb, &name));
    }
    all
}

/// What `docs/cli.md` must be.
fn reference() -> String {
    let mut text = format!(
        "# Command line\n\nMade of the program's own help; `UPDATE_DOCS=1 cargo test -p node-agent --test docs` writes \
         it anew.\n\n## Exit codes\n\n{}",
        codes()
    );
    let mut command = standin::cli::command().term_width(100);
    command.build();
    for (name, help) in helps(&mut command, "standin") {
        let help: String = help.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        text += &format!("\n## {name}\n\n```text\n{}\n```\n", help.trim_end());
    }
    text
}

#[test]
fn the_reference_of_the_command_line_is_its_help() {
    let path = root().join("node-agent/docs/cli.md");
    let reference = reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &reference).unwrap();
    }
    let page = fs::read_to_string(&path).unwrap();
    let differs = page.lines().zip(reference.lines()).find(|(page, help)| page != help);
    assert!(page == reference, "docs/cli.md is not what help says (UPDATE_DOCS=1 writes it): {differs:?}");
}

#[test]
fn the_readme_has_the_exit_codes() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.contains(&codes()), "README.md lacks:\n{}", codes());
}

/// Keys that a section of the configuration accepts, by what it says of one that it does not.
fn keys(section: &str) -> Vec<String> {
    let sandbox = Sandbox::new();
    let path = sandbox.path("x.toml");
    fs::write(&path, format!("[{section}]\nno_such_key = 1\n")).unwrap();
    let error = standin::config::Config::load(Some(&path)).unwrap_err();
    let error = standin::causes::in_one_line(&error);
    let expected = error.split("expected").nth(1).unwrap_or_else(|| panic!("{error}"));
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_key_of_the_configuration_is_explained() {
    let page = fs::read_to_string(root().join("node-agent/docs/config.md")).unwrap();
    let sections: Vec<&str> = page.split("\n## ").collect();
    for section in keys_of_top() {
        let heading = sections.iter().find(|text| text.starts_with(&format!("`[{section}")));
        let text = heading.unwrap_or_else(|| panic!("config.md has no section for [{section}]"));
        let named =
            if ["license", "task"].contains(&section.as_str()) { format!("{section}.x") } else { section };
        let keys = keys(&named);
        assert!(!keys.is_empty(), "{named}");
        for key in keys {
            assert!(text.contains(&format!("`{key}`")), "config.md does not explain {named}.{key}");
        }
    }
}

fn keys_of_top() -> Vec<String> {
    let sandbox = Sandbox::new();
    let path = sandbox.path("x.toml");
    fs::write(&path, "no_such_section = 1\n").unwrap();
    let error = standin::causes::in_one_line(&standin::config::Config::load(Some(&path)).unwrap_err());
    error.split("expected").nth(1).unwrap().split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// In a terminal or an editor too. A row of a table has to be one line, and output is shown as it was.
#[test]
fn lines_are_not_too_wide() {
    let others = ["ARCHITECTURE.md", "schema/README.md"].map(|page| root().join(page));
    for page in pages().into_iter().chain(others) {
        let mut block = None;
        for (number, line) in fs::read_to_string(&page).unwrap().lines().enumerate() {
            if let Some(kind) = line.strip_prefix("```") {
                block = if block.is_some() { None } else { Some(kind.to_owned()) };
                continue;
            }
            let is_shown = match block.as_deref() {
                Some("console") => !line.starts_with("$ "),
                Some("text") => true,
                Some(_) => false,
                None => line.starts_with('|'),
            };
            let wide = line.chars().count();
            let place = format!("{}:{}", name(&page), number + 1);
            assert!(is_shown || wide <= WIDEST, "{place}: {wide} characters: {line}");
        }
    }
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            assert!(page.parent().unwrap().join(file).exists(), "{}: {link} leads nowhere", name(&page));
        }
    }
}
