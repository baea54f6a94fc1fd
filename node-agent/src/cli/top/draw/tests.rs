//! Screens as text, at the sizes that people have.

use super::*;
use crate::cli::top::view;
use crate::live::rates::{HostRates, Rates, Service, State as Doing};
use crate::live::{AgentNow, Band, HostNow, MemoryLimit, Predicted, Pressure, QueueNow, Stall, StoreNow};
use crate::service::control::{Instance, Status};
use crate::size::admission::{Promise, Total};
use crate::wire::QueueEntry;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

const COLORLESS: Theme = Theme { has_color: false };

fn screen(state: &State, view: &View, (width, height): (u16, u16)) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| _ = draw(frame, state, view, None, COLORLESS)).unwrap();
    let content = terminal.backend().buffer().content();
    let lines = content.chunks(usize::from(width.max(1)));
    lines
        .map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned())
        .collect()
}

fn task(id: u64, name: &str, cores: f64, memory_mib: u64) -> view::Row {
    view::Row {
        id,
        task_type: name.into(),
        user: "ada".into(),
        run_id: Some(12),
        since_ms: 1_000_000,
        state: Doing::Running,
        rates: Rates {
            cpu_cores: Some(cores),
            read_bytes_per_s: Some(2_097_152.0),
            write_bytes_per_s: Some(0.0),
            received_bytes_per_s: Some(0.0),
            sent_bytes_per_s: Some(0.0),
            ..Rates::default()
        },
        memory_bytes: Some(memory_mib << 20),
        trail: vec![0.0, cores / 2.0, cores],
        ..view::Row::default()
    }
}

fn mixed() -> View {
    let mut rows = vec![task(1, "train.py", 1.5, 700), task(2, "xz", 0.25, 13), task(3, "web", 0.01, 5)];
    rows[0].memory_limit = Some(MemoryLimit { bytes: 1 << 30, is_hard: false });
    rows[0].predicted =
        Predicted { memory_bytes: Some(Band { expected: 800e6, upper: 1e9 }), ..Predicted::default() };
    rows[2].rates.service = Some(Service { answers_per_s: 12.0, median_s: 0.000_262, p99_s: 0.004 });
    let instance = |number, role: &str| Instance {
        number,
        role: role.into(),
        pid: 40 + number as i32,
        ..Instance::default()
    };
    let waiting = QueueEntry {
        task_type: Some("batch".into()),
        user: "bob".into(),
        pid: 9,
        run_id: None,
        priority: 5,
        promise: Promise { memory_bytes: 3 << 30, cpu_cores: 1.0, ..Promise::default() },
        memory_bytes: 3 << 30,
        since_ms: 0,
        expected_ms: Some(40_000),
    };
    View {
        at_ms: 1_060_000,
        is_live: true,
        host: Some(view::Host {
            now: HostNow {
                cpus: 2,
                memory_total_bytes: 8 << 30,
                memory_available_bytes: 6 << 30,
                load: Some([1.0, 0.5, 0.25]),
                pressure: Pressure {
                    cpu: Some(Stall { some_10s: 0.5, ..Stall::default() }),
                    ..Pressure::default()
                },
                ..HostNow::default()
            },
            rates: Some(HostRates { user_cores: 1.25, system_cores: 0.25, stolen_cores: 0.0 }),
            trail: vec![1.0],
        }),
        rows,
        services: vec![Status {
            name: "web".into(),
            mode: "steered".into(),
            shadows: 1,
            connections: 77,
            instances: vec![instance(1, "primary"), instance(2, "shadow")],
            ..Status::default()
        }],
        queue: Some(QueueNow {
            total: Total { memory_bytes: 7 << 30, cpu_cores: 4.0, ..Total::default() },
            promised: Promise { memory_bytes: 4 << 30, cpu_cores: 2.0, ..Promise::default() },
            waiting: vec![waiting],
            ..QueueNow::default()
        }),
        agent: Some(view::Agent {
            now: AgentNow {
                probes: (16, 16),
                store: StoreNow { database_bytes: 1 << 20, failures: 2, ..StoreNow::default() },
                ..AgentNow::default()
            },
            cpu_cores: 0.004,
        }),
        ..View::default()
    }
}

#[test]
fn a_terminal_of_80_by_24_shows_everything() {
    let lines = screen(&State::default(), &mixed(), (80, 24));
    let masked: Vec<_> = lines.iter().map(|line| line.replace("00:17:40", "HH:MM:SS")).collect();
    // The clock is the local one.
    assert!(
        masked[0].starts_with(" standin top  ") && masked[0].ends_with("live  3 tasks, 1 wait  by cpu"),
        "{}",
        masked[0]
    );
    assert!(masked[21].starts_with(" WAITS  USER  PRIORITY   MEMORY  CORES  CAME"), "{}", masked[21]);
    let ago = masked[22].split_whitespace().collect::<Vec<_>>();
    assert_eq!((ago[0], ago[1], ago.last().copied()), ("batch", "bob", Some("s")), "{}", masked[22]);
    assert_eq!(
        masked[1..21],
        [
            " CPU ████▌  1.50 of 2 cores, 0.25 kernel; load 1.00 0.50 0.25",
            " MEM █▌ ·   2.0 GiB of 8 GiB, 4.0 GiB promised; wait cpu 50%",
            " AGENT 0.4% cpu, 0 B; probes 0.00% 16/16; db 1.0 MiB, 0 queued, 2 unwritten",
            " TASK              STATE     CORES     MEMORY OF LIMIT         I/O /S     NET /S",
            " train.py          running    1.50  700.0 MiB ████████┃       2.0 MiB          ·",
            " xz                running    0.25   13.0 MiB                 2.0 MiB          ·",
            " web               running    0.01    5.0 MiB                 2.0 MiB          ·",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            " SERVICE  PRIMARY   SHADOWS       QUEUE  FAILOVERS  PRIVATE  SHARED  CONNS",
            " web      1 pid 41  1 of 1 ready      0  0              0 B     0 B     77"
        ]
    );
}

#[test]
fn a_wide_terminal_shows_more_of_each_task() {
    let lines = screen(&State::default(), &mixed(), (160, 40));
    let web = lines.iter().find(|line| line.starts_with(" web")).unwrap();
    assert!(web.contains("ada") && web.contains("262 µs") && web.ends_with(" 60 s"), "{web}");
    assert!(lines.iter().any(|line| line.contains("1.0 GiB") && line.contains("▄█")), "{lines:#?}");
}

#[test]
fn no_size_is_too_small() {
    for (width, height) in [(0, 0), (1, 1), (2, 5), (10, 3), (20, 10), (40, 6), (300, 2), (500, 200)] {
        for page in [Page::Tasks, Page::Help, Page::Detail { id: 1, scroll: 9 }] {
            screen(&State { page, ..State::default() }, &mixed(), (width, height));
        }
    }
    let small = screen(&State::default(), &mixed(), (30, 6));
    assert!(small.iter().any(|line| line.contains("train.py")), "{small:?}");
}

#[test]
fn what_needs_a_look_stands_out_without_colour() {
    let mut view = mixed();
    view.rows[1].state = Doing::Throttled;
    let state = State { marked: Some(2), ..State::default() };
    let style = |theme: Theme| {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| _ = draw(frame, &state, &view, None, theme)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line = (0..24).find(|y| buffer[(1, *y)].symbol() == "x").unwrap();
        buffer[(1, line)].style()
    };
    assert!(style(COLORLESS).add_modifier.contains(Modifier::BOLD | Modifier::REVERSED));
    assert_eq!(style(COLORLESS).fg, Some(Color::Reset));
    assert_eq!(style(Theme { has_color: true }).fg, Some(Color::Red));
}

#[test]
fn nothing_to_show_says_what_to_do() {
    let empty = screen(&State::default(), &View { is_live: true, ..View::default() }, (80, 24)).join("\n");
    assert!(empty.contains("standin run -- COMMAND"), "{empty}");
    let hint = View { hint: Some("no agent at /x: why".into()), ..View::default() };
    assert!(screen(&State::default(), &hint, (80, 24)).join("\n").contains("no agent at /x"));
}

#[test]
fn names_of_tasks_cannot_draw() {
    let mut view = mixed();
    view.rows[0].task_type = "a\u{1b}[31m\u{202e}b".into();
    let lines = screen(&State::default(), &view, (80, 24)).join("\n");
    assert!(lines.contains("a?[31m?b"), "{lines}");
}
