//! `standin top`: what happens on this host now, or what happened at a moment of the past.
//!
//! The parts know little of each other: `view` is what there is to show of a moment (pure), `state` what the user
//! has chosen and what keys do to it (pure), `draw`, `columns`, `panels`, `detail` and `glyph` turn both into a
//! screen (pure), `source` gets moments from the agent, the services and the database, `terminal` is the terminal.

mod columns;
mod detail;
mod draw;
mod glyph;
mod panels;
mod source;
mod state;
mod terminal;
mod view;

use super::exit::print;
use super::output::{JSON_VERSION, print_json};
use super::settings::Settings;
use super::when;
use crate::printable::columns;
use crate::units;
use anyhow::bail;
use clap::Args;
use detail::Detail;
use draw::{Theme, draw};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Cell;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::crossterm::terminal::size;
use serde::Serialize;
use source::{Source, Wanted, watch};
use state::{Effect, State, When};
use std::io::{IsTerminal, stdout};
use std::time::Duration;
use terminal::Screen;
use view::View;

/// How long a signal or an update may go unnoticed.
const NOTICE: Duration = Duration::from_millis(100);

/// Shortest pause between two looks: the agent hands the same one out for 200 ms.
const INTERVAL_MIN: Duration = Duration::from_millis(250);

/// Width of `--once` where there is no terminal, columns.
const ONCE_WIDTH: u16 = 132;

/// Lines of `--once` beside those of tasks: nothing is left out for want of room.
const ONCE_EXTRA: u16 = 80;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin top                          tasks, services, queue; ? shows the keys
  standin top --at '10 minutes ago'    what was then; arrow keys go through time
  standin top --at 14:30 --once        the same as text
  standin top --once | head -20        one screen as text, rates over --interval
  standin top --json | jq '.tasks[] | select(.cpu_cores > 1) | .task_type'")]
pub(super) struct TopArgs {
    /// Pause between two looks
    #[arg(long, short = 'd', value_name = "TIME", default_value = "1s", value_parser = parse_interval)]
    interval: Duration,
    /// A moment of the past: 10m, '10 minutes ago', 14:30, '2026-02-03 14:30:00'
    #[arg(long, value_name = "TIME", value_parser = when::parse_moment)]
    at: Option<i64>,
    /// Only tasks with this in their name or their user's
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Cgroups of others too: systemd units, containers
    #[arg(long)]
    all: bool,
    /// Print one screen as text
    #[arg(long)]
    once: bool,
    /// Print one moment as JSON
    #[arg(long)]
    json: bool,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = units::parse_duration(text)?;
    match interval {
        interval if interval < INTERVAL_MIN => {
            Err(format!("{text:?} is too short: allowed is 250ms or more"))
        }
        interval if interval > Duration::from_secs(3600) => {
            Err(format!("{text:?} is too long: allowed is 1h or less"))
        }
        interval => Ok(interval),
    }
}

#[derive(Serialize)]
struct Shown {
    version: u32,
    #[serde(flatten)]
    view: View,
}

pub(super) fn run(settings: &Settings, arguments: &TopArgs) -> anyhow::Result<u8> {
    let state = State {
        when: arguments.at.map_or(When::Now, When::Past),
        filter: arguments.filter.clone(),
        shows_others: arguments.all,
        ..State::default()
    };
    let mut source = Source::new(settings);
    if arguments.json || arguments.once {
        let view = one_moment(&mut source, state.when, arguments.interval);
        if arguments.json {
            print_json(&Shown { version: JSON_VERSION, view })?;
        } else {
            print(text(&state, &view)?)?;
        }
        return Ok(0);
    }
    if !stdout().is_terminal() {
        bail!(
            "top needs a terminal to write to; `standin top --once` prints one screen as text, --json as JSON"
        );
    }
    show(source, state, arguments.interval)?;
    Ok(0)
}

/// A moment; of the present with what happened over an interval.
fn one_moment(source: &mut Source, when: When, interval: Duration) -> View {
    let view = source.look(when);
    if when != When::Now || !view.is_live {
        return view;
    }
    std::thread::sleep(interval);
    source.look(when)
}

/// A screen as text, high enough for all.
fn text(state: &State, view: &View) -> anyhow::Result<String> {
    let width =
        if stdout().is_terminal() { size().map_or(ONCE_WIDTH, |(width, _)| width) } else { ONCE_WIDTH };
    let height = u16::try_from(view.rows.len()).unwrap_or(u16::MAX).saturating_add(ONCE_EXTRA);
    let mut terminal = Terminal::new(TestBackend::new(width, height))?;
    terminal.draw(|frame| _ = draw(frame, state, view, None, Theme { has_color: false }))?;
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(usize::from(width)).map(|cells| line(cells).trim_end().to_owned());
    // Without the line of keys.
    let mut lines: Vec<String> = lines.take(usize::from(height) - 1).collect();
    lines.dedup_by(|a, b| a.is_empty() && b.is_empty());
    Ok(lines.join("\n").trim_end().to_owned() + "\n")
}

/// A line of a screen. The cells that a wide character covers beside its own are not part of it.
fn line(cells: &[Cell]) -> String {
    let mut text = String::new();
    let mut rest = cells;
    while let Some(cell) = rest.first() {
        text += cell.symbol();
        rest = &rest[columns(cell.symbol()).clamp(1, rest.len())..];
    }
    text
}

/// Shows moments until the user has seen enough.
fn show(source: Source, mut state: State, interval: Duration) -> anyhow::Result<()> {
    let theme = Theme::of_environment();
    let mut screen = Screen::open()?;
    let (want, updates) = watch(source, interval);
    let (mut view, mut detail): (View, Option<Detail>) = Default::default();
    let mut told = Wanted::default();
    let mut is_stale = true;
    loop {
        let wanted = wanted(&state, &view);
        if wanted != told {
            told = wanted;
            if want.send(wanted).is_err() {
                bail!("the thread that looks has failed");
            }
        }
        if std::mem::take(&mut is_stale) {
            let mut most = 0;
            screen.draw(|frame| most = draw(frame, &state, &view, detail.as_ref(), theme))?;
            state.scrolled_at_most(most);
        }
        if event::poll(NOTICE)? {
            is_stale = true;
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
            {
                match state.press(key, &view) {
                    Some(Effect::Quit) => return Ok(()),
                    Some(Effect::Stop) => screen.stop()?,
                    Some(Effect::Look) | None => {}
                }
            }
        }
        match screen.signal() {
            Some(nix::sys::signal::Signal::SIGTSTP) => {
                screen.stop()?;
                is_stale = true;
            }
            Some(signal) => return Ok(screen.end_by(signal)?),
            None => {}
        }
        for update in updates.try_iter() {
            is_stale = true;
            // What was asked for before the last key is of another moment.
            if let Some(seen) = update.view.filter(|_| update.wanted.when == state.when) {
                view = seen;
            }
            if update.wanted.detail.map(|(id, _)| id) == state.detail() {
                detail = update.detail;
            }
        }
    }
}

fn wanted(state: &State, view: &View) -> Wanted {
    let run = |id| view.rows.iter().find(|row| row.id == id).and_then(|row| row.run_id);
    Wanted { when: state.when, detail: state.detail().map(|id| (id, run(id))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use view::Row;

    #[test]
    fn a_screen_as_text_has_its_columns_below_each_other_in_any_script() {
        let row =
            |task_type: &str| Row { task_type: task_type.into(), memory_bytes: Some(7), ..Row::default() };
        let view = View { is_live: true, rows: vec![row("xz"), row("日本語")], ..View::default() };
        let text = text(&State::default(), &view).unwrap();
        let ends: Vec<_> =
            text.lines().filter_map(|line| Some(columns(&line[..line.find("7 B")?]))).collect();
        assert!(ends.len() == 2 && ends[0] == ends[1], "{text}");
    }
}
