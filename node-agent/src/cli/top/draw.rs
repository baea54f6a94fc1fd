//! Draws a state and a moment; knows nothing of a terminal. The same for the screen, for `--once` and for tests.

use super::columns::{Scale, fitting, urgency};
use super::detail::{self, Detail};
use super::glyph::{gauge, spark};
use super::panels;
use super::state::{Page, State, When};
use super::view::View;
use crate::cli::table::{aligned, printable};
use crate::cli::when;
use crate::live::Kind;
use crate::units::format_bytes;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};

/// Least height at which there is room for more than the tasks.
const HEIGHT_FOR_PANELS: u16 = 14;

/// Whether there are colours. Without, what matters is bold or reversed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Theme {
    pub(super) has_color: bool,
}

impl Theme {
    /// By <https://no-color.org> and the terminal's kind.
    pub(super) fn of_environment() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { has_color: !set("NO_COLOR") && !is_dumb }
    }

    fn of(self, color: Color) -> Style {
        if self.has_color { Style::new().fg(color) } else { Style::new() }
    }

    fn head(self) -> Style {
        self.of(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    fn urgent(self, urgency: u8) -> Style {
        match urgency {
            0 => Style::new(),
            1 => self.of(Color::Yellow),
            _ => self.of(Color::Red).add_modifier(Modifier::BOLD),
        }
    }
}

/// Draws, and tells how far the page could be scrolled.
pub(super) fn draw(
    frame: &mut Frame<'_>,
    state: &State,
    view: &View,
    detail: Option<&Detail>,
    theme: Theme,
) -> u16 {
    let area = frame.area();
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(u16::from(area.height > 3)),
    ])
    .areas(area);
    frame.render_widget(
        Paragraph::new(title(state, view)).style(Style::new().add_modifier(Modifier::REVERSED)),
        head,
    );
    frame.render_widget(Paragraph::new(keys(state)).style(theme.of(Color::DarkGray)), foot);
    match state.page {
        Page::Help => {
            frame.render_widget(Paragraph::new(HELP), body);
            0
        }
        Page::Detail { id, scroll } => {
            let row = view.rows.iter().find(|row| row.id == id);
            let known = detail.filter(|detail| detail.id == id);
            let lines = detail::lines(row, known, body.width.into());
            let most = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_sub(body.height);
            let lines: Vec<Line> = lines.into_iter().map(|line| styled(line, theme)).collect();
            frame.render_widget(Paragraph::new(lines).scroll((scroll.min(most), 0)), body);
            most
        }
        Page::Tasks => {
            tasks_page(frame, body, state, view, theme);
            0
        }
    }
}

/// Lines that stand at the left margin are headings.
fn styled(line: String, theme: Theme) -> Line<'static> {
    let is_head = !line.starts_with(' ') && !line.is_empty();
    Line::styled(line, if is_head { theme.head() } else { Style::new() })
}

fn title(state: &State, view: &View) -> String {
    let when = match state.when {
        When::Now if view.is_live => "live".into(),
        When::Now => "no agent".into(),
        When::Paused => "PAUSED".to_owned(),
        When::Past(at_ms) => format!("PAST, {}", when::ago(at_ms)),
    };
    let clock = when::clock(view.at_ms);
    let clock = match state.when {
        // The day tells there.
        When::Past(_) => clock.get(..19),
        _ => clock.get(11..19),
    };
    let waiting = view.queue.as_ref().map_or(0, |queue| queue.waiting.len() + queue.waiting_left_out);
    let shown = state.rows(view).len();
    let tasks = if shown == 1 { "task" } else { "tasks" };
    let mut text = format!(" standin top  {}  {when}  {shown} {tasks}", clock.unwrap_or("-"));
    if waiting > 0 {
        text += &format!(", {waiting} wait");
    }
    let hidden = view.rows.iter().filter(|row| row.kind != Kind::Run && !state.shows_others).count();
    if hidden > 0 {
        text += &format!(", {hidden} cgroups");
    }
    text += &format!("  by {}", state.sort.name());
    if !state.filter.is_empty() || state.is_typing {
        text += &format!("  /{}{}", printable(&state.filter), if state.is_typing { "_" } else { "" });
    }
    text
}

fn keys(state: &State) -> &'static str {
    match (state.is_typing, state.page) {
        (true, _) => " type a part of a name; Enter keeps it, Esc drops it",
        (_, Page::Tasks) => " q quit  ? help  s sort  / filter  Tab view  Enter detail  ←→ time  Space stop",
        (_, Page::Detail { .. }) => " Esc back  ↑ ↓ scroll  q quit  ? help  Space stop",
        (_, Page::Help) => " Esc back  q quit",
    }
}

fn tasks_page(frame: &mut Frame<'_>, area: Rect, state: &State, view: &View, theme: Theme) {
    let summary = summary(view, area, theme);
    let has_room = area.height >= HEIGHT_FOR_PANELS;
    let share = area.height / 4;
    let services = panels::services(view);
    let below = match (state.when, view.events.is_empty()) {
        (When::Past(_), false) => panels::events(view),
        _ => panels::queue(view),
    };
    let height = |panel: &Option<crate::cli::table::Table>| {
        let lines = panel.as_ref().map_or(0, |panel| panel.to_string().lines().count());
        u16::try_from(lines).unwrap_or(u16::MAX).min(share.max(3)) * u16::from(has_room)
    };
    let summary_height = u16::try_from(summary.len()).unwrap_or(0).min(area.height / 3);
    let [top, middle, first, second] = Layout::vertical([
        Constraint::Length(summary_height),
        Constraint::Min(1),
        Constraint::Length(height(&services)),
        Constraint::Length(height(&below)),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(summary), top);
    tasks(frame, middle, state, view, theme);
    for (panel, area) in [(services, first), (below, second)] {
        let text = panel.map(|panel| panel.to_string()).unwrap_or_default();
        let lines: Vec<Line> = text
            .lines()
            .enumerate()
            .map(|(place, line)| {
                Line::styled(format!(" {line}"), if place == 0 { theme.head() } else { Style::new() })
            })
            .collect();
        frame.render_widget(Paragraph::new(lines), area);
    }
}

/// The host, its memory, the agent; a word about what is missing.
fn summary(view: &View, area: Rect, theme: Theme) -> Vec<Line<'static>> {
    let width = if area.width >= 100 { 20 } else { 6 };
    let mut lines = Vec::new();
    if let Some(host) = &view.host {
        let rates = host.rates.unwrap_or_default();
        let busy = rates.user_cores + rates.system_cores;
        let cpus = host.now.cpus as f64;
        let figures = match host.rates {
            Some(_) => format!(" {busy:.2} of {cpus} cores, {:.2} kernel", rates.system_cores),
            None => format!(" {cpus} cores"),
        };
        let mut line = vec![
            Span::styled(" CPU ", theme.head()),
            Span::raw(gauge(busy, cpus, None, width)),
            Span::raw(figures),
        ];
        if rates.stolen_cores >= 0.05 {
            line.push(Span::styled(format!(", {:.2} stolen", rates.stolen_cores), theme.urgent(1)));
        }
        if let Some([one, five, fifteen]) = host.now.load {
            line.push(Span::raw(format!("; load {one:.2} {five:.2} {fifteen:.2}")));
        }
        if area.width >= 110 {
            line.push(Span::raw(format!("  {}", spark(&host.trail, cpus, 30))));
        }
        lines.push(Line::from(line));
        lines.push(memory_line(view, width, theme));
    }
    if let Some(agent) = &view.agent {
        lines.push(agent_line(agent, theme));
    }
    if view.rows_left_out > 0 {
        lines.push(Line::styled(
            format!(" {} more tasks are not shown: they used the least CPU", view.rows_left_out),
            theme.urgent(1),
        ));
    }
    if let Some(hint) = &view.hint {
        lines.push(Line::styled(format!(" {}", printable(hint)), theme.urgent(1)));
    }
    lines
}

fn memory_line(view: &View, width: usize, theme: Theme) -> Line<'static> {
    let Some(host) = &view.host else { return Line::default() };
    let total = host.now.memory_total_bytes as f64;
    let used = total - host.now.memory_available_bytes as f64;
    let promised = view.queue.as_ref().map(|queue| queue.promised.memory_bytes as f64);
    let mut line = vec![
        Span::styled(" MEM ", theme.head()),
        Span::raw(gauge(used, total, promised, width)),
        Span::raw(format!(" {} of {}", format_bytes(used), format_bytes(total).replace(".0 ", " "))),
    ];
    if let Some(promised) = promised {
        line.push(Span::raw(format!(", {} promised", format_bytes(promised))));
    }
    let pressure = host.now.pressure;
    let waits: Vec<_> = [("cpu", pressure.cpu), ("mem", pressure.memory), ("io", pressure.io)]
        .into_iter()
        .filter_map(|(name, stall)| Some((name, stall?.some_10s)))
        .collect();
    if waits.is_empty() {
        line.push(Span::raw("; no pressure is told (PSI)"));
    } else {
        line.push(Span::raw("; wait"));
        for (name, share) in waits {
            let urgency = match share {
                share if share > 0.4 => 2,
                share if share > 0.1 => 1,
                _ => 0,
            };
            line.push(Span::styled(format!(" {name} {:.0}%", share * 100.0), theme.urgent(urgency)));
        }
    }
    Line::from(line)
}

fn agent_line(agent: &super::view::Agent, theme: Theme) -> Line<'static> {
    let now = &agent.now;
    // The sum of nothing is −0.
    let probes = now.costs.iter().fold(0.0, |sum, cost| sum + cost.share);
    let lost: u64 = now.lost.iter().map(|(_, count)| count).sum();
    let (attached, all) = now.probes;
    let mut line = vec![
        Span::styled(" AGENT ", theme.head()),
        Span::raw(format!(
            "{:.1}% cpu, {}; probes {:.2}% {attached}/{all}; db {}, {} queued",
            agent.cpu_cores * 100.0,
            format_bytes(now.own.rss_bytes as f64),
            probes * 100.0,
            format_bytes((now.store.database_bytes + now.store.log_bytes) as f64),
            now.store.queued,
        )),
    ];
    for (what, count) in [("lost", lost), ("unwritten", now.store.failures)] {
        if count > 0 {
            line.push(Span::styled(format!(", {count} {what}"), theme.urgent(1)));
        }
    }
    Line::from(line)
}

fn tasks(frame: &mut Frame<'_>, area: Rect, state: &State, view: &View, theme: Theme) {
    let rows = state.rows(view);
    let (name_width, columns) = fitting(state.columns, area.width.saturating_sub(1));
    let most = rows.iter().flat_map(|row| row.trail.iter()).copied().fold(1.0, f64::max);
    let scale = Scale { at_ms: view.at_ms, cores_most: most };
    let head = std::iter::once(" TASK".to_owned())
        .chain(columns.iter().map(|column| aligned(column.head, column.width.into(), column.align)));
    let lines = rows.iter().map(|row| {
        let name = format!(" {}", printable(&row.task_type));
        let cells = columns
            .iter()
            .map(|column| aligned(&(column.text)(row, &scale), column.width.into(), column.align));
        Row::new(std::iter::once(name).chain(cells).map(Cell::from)).style(theme.urgent(urgency(row)))
    });
    let widths = std::iter::once(name_width + 1).chain(columns.iter().map(|column| column.width));
    let table = Table::new(lines, widths.map(Constraint::Length))
        .header(Row::new(head).style(theme.head()))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    if rows.is_empty() {
        let why = match state.when {
            _ if !state.filter.is_empty() => NONE_LIKE_THAT,
            _ if !view.rows.is_empty() => ONLY_CGROUPS,
            When::Past(_) => NONE_THEN,
            _ => NO_TASK,
        };
        let below = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
        frame.render_widget(Paragraph::new(why).wrap(Wrap { trim: false }), below);
    }
    let mut marked = TableState::default();
    if state.marked.is_some() {
        marked.select(Some(state.marked_row(&rows)));
    }
    frame.render_stateful_widget(table, area, &mut marked);
}

const NO_TASK: &str = " no task runs here; start one with: standin run -- COMMAND";
const ONLY_CGROUPS: &str =
    " no task of standin's runs; a shows the cgroups of others, standin run -- COMMAND starts a task";
const NONE_THEN: &str = " of this moment nothing is recorded; arrow keys go through time";
const NONE_LIKE_THAT: &str = " no task has that in its name or user; Esc drops the filter";

const HELP: &str = "
 ↑ ↓ j k PgUp PgDn  mark a task           Enter    its detail, Esc back
 s S                sort by another       Tab      other columns:
                    column                         overview, traffic, waits
 /                  only tasks with this  a        cgroups of others too
                    in name or user
 Space              the present stands still, and goes on
 ← →                10 s back and forth   [ ]      5 min back and forth
 l                  back to the present   q ^C     end; ^Z stop

 CORES    in use since the last look; LATELY is its curve over the looks
 STATE    what the task spends its time on: cpu wait, mem wait (its limit or
          the host stops it), throttled (its quota), i/o, running, sleeping
 OF LIMIT memory in use against its limit; · is what was expected. In
          brackets: no limit, but predicted at most
 SERVICE  half of its answers took less (from request to answer, TCP)
 wait     share of the last 10 s in which some task of the host waited
 MEM ·    where promises to tasks end
 The past is what runs recorded: means over stretches, no host, no services.";

#[cfg(test)]
mod tests;
