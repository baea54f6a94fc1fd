//! What the user has chosen to see, and what a key does to it. Pure: a key and the present moment in, the next state
//! and what is to be done out.

use super::view::{Row, View};
use crate::live::Kind;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// Steps through the past, milliseconds.
pub(super) const STEP_MS: i64 = 10_000;
pub(super) const LEAP_MS: i64 = 300_000;

/// Longest filter, characters.
const FILTER_MAX: usize = 64;

/// By what tasks are sorted; the most first, but names by the alphabet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Cpu,
    Memory,
    Io,
    Network,
    Service,
    Age,
    Name,
}

impl Sort {
    const ALL: [Self; 7] =
        [Self::Cpu, Self::Memory, Self::Io, Self::Network, Self::Service, Self::Age, Self::Name];

    /// In a word.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Io => "i/o",
            Self::Network => "network",
            Self::Service => "service time",
            Self::Age => "age",
            Self::Name => "name",
        }
    }

    fn next(self, by: usize) -> Self {
        let place = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[(place + by) % Self::ALL.len()]
    }

    /// What is compared; what is not measured comes last.
    fn weight(self, row: &Row) -> f64 {
        let sum = |a: Option<f64>, b: Option<f64>| a.unwrap_or(-1.0) + b.unwrap_or(0.0);
        let rates = &row.rates;
        match self {
            Self::Cpu => rates.cpu_cores.unwrap_or(-1.0),
            Self::Memory => row.memory_bytes.map_or(-1.0, |bytes| bytes as f64),
            Self::Io => sum(rates.read_bytes_per_s, rates.write_bytes_per_s),
            Self::Network => sum(rates.received_bytes_per_s, rates.sent_bytes_per_s),
            Self::Service => rates.service.map_or(-1.0, |service| service.median_s),
            Self::Age => -(row.since_ms as f64),
            Self::Name => 0.0,
        }
    }
}

/// Which columns the table of tasks has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Columns {
    /// A bit of everything.
    #[default]
    Overview,
    /// Storage and network.
    Traffic,
    /// What tasks wait for, and how fast they answer.
    Waits,
}

impl Columns {
    fn next(self) -> Self {
        match self {
            Self::Overview => Self::Traffic,
            Self::Traffic => Self::Waits,
            Self::Waits => Self::Overview,
        }
    }
}

/// What fills the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Page {
    #[default]
    Tasks,
    /// One task, scrolled down so many lines.
    Detail {
        id: u64,
        scroll: u16,
    },
    Help,
}

/// Which moment is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum When {
    /// The present, as it goes on.
    #[default]
    Now,
    /// The present, standing still.
    Paused,
    /// A moment of the past, milliseconds since 1970.
    Past(i64),
}

/// See the head of this file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct State {
    pub(super) sort: Sort,
    pub(super) columns: Columns,
    pub(super) page: Page,
    pub(super) when: When,
    /// Only tasks with this in their name or their user's.
    pub(super) filter: String,
    /// The filter is being typed.
    pub(super) is_typing: bool,
    /// Cgroups of others are shown too.
    pub(super) shows_others: bool,
    /// The task that is marked.
    pub(super) marked: Option<u64>,
}

/// What is to be done outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// End.
    Quit,
    /// Look at another moment, or at another task.
    Look,
    /// Stop as by ^Z.
    Stop,
}

impl State {
    /// The tasks of a moment that are to be shown, in order.
    pub(super) fn rows<'a>(&self, view: &'a View) -> Vec<&'a Row> {
        let wanted = self.filter.to_lowercase();
        let has = |text: &str| text.to_lowercase().contains(&wanted);
        let mut rows: Vec<&Row> = view
            .rows
            .iter()
            .filter(|row| self.shows_others || row.kind == Kind::Run)
            .filter(|row| wanted.is_empty() || has(&row.task_type) || has(&row.user))
            .collect();
        let key = |row: &Row| (row.task_type.clone(), row.id);
        rows.sort_by(|a, b| {
            self.sort.weight(b).total_cmp(&self.sort.weight(a)).then_with(|| key(a).cmp(&key(b)))
        });
        rows
    }

    /// The row that is marked: the first one if that is gone.
    pub(super) fn marked_row(&self, rows: &[&Row]) -> usize {
        rows.iter().position(|row| Some(row.id) == self.marked).unwrap_or(0)
    }

    /// The task whose detail is shown.
    pub(super) fn detail(&self) -> Option<u64> {
        match self.page {
            Page::Detail { id, .. } => Some(id),
            _ => None,
        }
    }

    /// What a key does.
    pub(super) fn press(&mut self, key: KeyEvent, view: &View) -> Option<Effect> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Some(Effect::Quit),
                KeyCode::Char('z') => Some(Effect::Stop),
                _ => None,
            };
        }
        if self.is_typing {
            self.type_filter(key.code);
            return None;
        }
        let effect = self.press_anywhere(key.code, view);
        if effect.is_some() {
            return effect;
        }
        match self.page {
            Page::Tasks => self.press_in_tasks(key.code, view),
            Page::Detail { .. } => self.press_in_detail(key.code),
            Page::Help => {
                if matches!(key.code, KeyCode::Esc | KeyCode::Enter) {
                    self.page = Page::Tasks;
                }
                None
            }
        }
    }

    fn type_filter(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => _ = self.filter.pop(),
            KeyCode::Char(c) if self.filter.chars().count() < FILTER_MAX => self.filter.push(c),
            _ => {}
        }
    }

    fn press_anywhere(&mut self, key: KeyCode, view: &View) -> Option<Effect> {
        match key {
            KeyCode::Char('q') => return Some(Effect::Quit),
            KeyCode::Char('?' | 'h') => {
                self.page = if self.page == Page::Help { Page::Tasks } else { Page::Help };
                return None;
            }
            KeyCode::Left => self.go(view, -STEP_MS),
            KeyCode::Right => self.go(view, STEP_MS),
            KeyCode::Char('[') => self.go(view, -LEAP_MS),
            KeyCode::Char(']') => self.go(view, LEAP_MS),
            KeyCode::Char('l') => self.change(When::Now),
            KeyCode::Char('p' | ' ') => match self.when {
                When::Now => self.when = When::Paused,
                When::Paused => self.when = When::Now,
                When::Past(_) => self.change(When::Now),
            },
            _ => return None,
        }
        Some(Effect::Look)
    }

    /// Another moment. Tasks of the present and the past are told apart by other numbers.
    fn change(&mut self, when: When) {
        let is_past = |when| matches!(when, When::Past(_));
        if is_past(self.when) != is_past(when) {
            self.marked = None;
            if matches!(self.page, Page::Detail { .. }) {
                self.page = Page::Tasks;
            }
        }
        self.when = when;
    }

    /// Goes through time. Nobody knows the future: there the present goes on.
    fn go(&mut self, view: &View, by_ms: i64) {
        let now_ms = crate::host::now_ms();
        let from = match self.when {
            When::Past(at_ms) => at_ms,
            When::Paused => view.at_ms,
            When::Now => now_ms,
        };
        let to = from + by_ms;
        self.change(if to >= now_ms { When::Now } else { When::Past(to) });
    }

    fn press_in_tasks(&mut self, key: KeyCode, view: &View) -> Option<Effect> {
        match key {
            KeyCode::Up | KeyCode::Char('k') => self.mark(view, -1),
            KeyCode::Down | KeyCode::Char('j') => self.mark(view, 1),
            KeyCode::PageUp => self.mark(view, -10),
            KeyCode::PageDown => self.mark(view, 10),
            KeyCode::Home => self.mark(view, i64::MIN / 2),
            KeyCode::End => self.mark(view, i64::MAX / 2),
            KeyCode::Char('s' | '>') => self.sort = self.sort.next(1),
            KeyCode::Char('S' | '<') => self.sort = self.sort.next(Sort::ALL.len() - 1),
            KeyCode::Tab | KeyCode::Char('c') => self.columns = self.columns.next(),
            KeyCode::Char('a') => self.shows_others = !self.shows_others,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Enter => {
                let rows = self.rows(view);
                let id = rows.get(self.marked_row(&rows))?.id;
                self.marked = Some(id);
                self.page = Page::Detail { id, scroll: 0 };
                return Some(Effect::Look);
            }
            _ => {}
        }
        None
    }

    fn mark(&mut self, view: &View, by: i64) {
        let rows = self.rows(view);
        let place = i64::try_from(self.marked_row(&rows)).unwrap_or(0).saturating_add(by);
        let last = rows.len().saturating_sub(1);
        let place = usize::try_from(place.max(0)).unwrap_or(0).min(last);
        self.marked = rows.get(place).map(|row| row.id);
    }

    fn press_in_detail(&mut self, key: KeyCode) -> Option<Effect> {
        let Page::Detail { id, scroll } = self.page else { return None };
        let scroll = match key {
            KeyCode::Up | KeyCode::Char('k') => scroll.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => scroll.saturating_add(1),
            KeyCode::PageUp => scroll.saturating_sub(10),
            KeyCode::PageDown => scroll.saturating_add(10),
            KeyCode::Home => 0,
            KeyCode::End => u16::MAX,
            KeyCode::Esc | KeyCode::Enter | KeyCode::Backspace => {
                self.page = Page::Tasks;
                return Some(Effect::Look);
            }
            _ => scroll,
        };
        self.page = Page::Detail { id, scroll };
        None
    }

    /// Takes back what was scrolled beyond the last line.
    pub(super) fn scrolled_at_most(&mut self, most: u16) {
        if let Page::Detail { scroll, .. } = &mut self.page {
            *scroll = (*scroll).min(most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::rates::Rates;

    fn view() -> View {
        let row = |id: u64, name: &str, user: &str, cores: f64, memory: u64| Row {
            id,
            task_type: name.into(),
            user: user.into(),
            rates: Rates { cpu_cores: Some(cores), ..Rates::default() },
            memory_bytes: Some(memory),
            ..Row::default()
        };
        let mut rows = vec![
            row(1, "xz", "root", 0.5, 900),
            row(2, "gcc", "ada", 1.5, 100),
            row(3, "train.py", "ada", 0.1, 500),
            row(4, "sshd.service", "root", 0.0, 1),
        ];
        rows[3].kind = Kind::Cgroup;
        View { at_ms: 1_000_000, is_live: true, rows, ..View::default() }
    }

    fn press(state: &mut State, keys: &str) -> Option<Effect> {
        keys.chars().fold(None, |_, c| {
            let code = match c {
                '⏎' => KeyCode::Enter,
                '⎋' => KeyCode::Esc,
                '↑' => KeyCode::Up,
                '↓' => KeyCode::Down,
                '←' => KeyCode::Left,
                '→' => KeyCode::Right,
                '⌫' => KeyCode::Backspace,
                c => KeyCode::Char(c),
            };
            state.press(KeyEvent::new(code, KeyModifiers::NONE), &view())
        })
    }

    fn shown(state: &State) -> Vec<u64> {
        state.rows(&view()).iter().map(|row| row.id).collect()
    }

    #[test]
    fn tasks_are_sorted_and_filtered() {
        let mut state = State::default();
        assert_eq!(shown(&state), [2, 1, 3]);
        press(&mut state, "s");
        assert_eq!((state.sort, shown(&state)), (Sort::Memory, vec![1, 3, 2]));
        press(&mut state, "SSa");
        assert_eq!((state.sort, shown(&state)), (Sort::Name, vec![2, 4, 3, 1]));
        press(&mut state, "/ADA⏎");
        assert_eq!(shown(&state), [2, 3]);
        press(&mut state, "/⌫⌫⌫q");
        assert!(state.is_typing && state.filter == "q", "a key is a letter there");
        press(&mut state, "⎋");
        assert_eq!((state.filter.as_str(), state.is_typing), ("", false));
    }

    #[test]
    fn the_mark_stays_with_its_task() {
        let mut state = State::default();
        press(&mut state, "↓");
        assert_eq!(state.marked, Some(1));
        press(&mut state, "s");
        assert_eq!(state.marked_row(&state.rows(&view())), 0);
        press(&mut state, "↑↑↓↓↓↓↓");
        assert_eq!(state.marked, Some(2));
        assert_eq!(press(&mut state, "⏎"), Some(Effect::Look));
        assert_eq!(state.detail(), Some(2));
        press(&mut state, "↓↓↑");
        assert_eq!(state.page, Page::Detail { id: 2, scroll: 1 });
        press(&mut state, "⎋");
        assert_eq!(state.page, Page::Tasks);
    }

    #[test]
    fn arrows_go_through_time_and_the_present_has_no_future() {
        let mut state = State::default();
        let now = crate::host::now_ms();
        assert_eq!(press(&mut state, "←"), Some(Effect::Look));
        let When::Past(at_ms) = state.when else { panic!("{state:?}") };
        assert!((now - STEP_MS - at_ms).abs() < 5_000);
        press(&mut state, "[");
        assert_eq!(state.when, When::Past(at_ms - LEAP_MS));
        press(&mut state, "]→→→");
        assert_eq!(state.when, When::Now);
        press(&mut state, " ");
        assert_eq!(state.when, When::Paused);
        press(&mut state, "←");
        assert_eq!(state.when, When::Past(1_000_000 - STEP_MS));
        press(&mut state, "l");
        assert_eq!(state.when, When::Now);
    }

    #[test]
    fn it_ends_and_stops_by_the_usual_keys() {
        let mut state = State::default();
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        assert_eq!(state.press(control('c'), &view()), Some(Effect::Quit));
        assert_eq!(state.press(control('z'), &view()), Some(Effect::Stop));
        assert_eq!(press(&mut state, "q"), Some(Effect::Quit));
        press(&mut state, "?");
        assert_eq!(state.page, Page::Help);
        press(&mut state, "?");
        assert_eq!(state.page, Page::Tasks);
    }
}
