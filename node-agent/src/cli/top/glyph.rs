//! Curves and gauges out of characters, for cells of a table.

use crate::cli::numbers::bar;

/// A curve of the last `width` values, where `most` is the full height; anything above nothing shows.
pub(super) fn spark(values: &[f64], most: f64, width: usize) -> String {
    const EIGHTHS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = &values[values.len().saturating_sub(width)..];
    let glyph = |value: &f64| match (value / most * 8.0).ceil() {
        height if height > 0.0 => EIGHTHS[(height as usize).clamp(1, 8) - 1],
        _ => ' ',
    };
    let curve: String = shown.iter().map(glyph).collect();
    format!("{curve:>width$}")
}

/// A bar of `value` in `whole`, as wide as `width`; `mark` is where it is expected to end. What is over the whole
/// ends in `+`.
pub(super) fn gauge(value: f64, whole: f64, mark: Option<f64>, width: usize) -> String {
    // Thousandths are finer than an eighth of a character.
    let part = |value: f64| (value / whole * 1000.0).clamp(0.0, 1000.0);
    let filled = if whole > 0.0 { bar(part(value) as u64, 1000, width as u64) } else { String::new() };
    let mut cells: Vec<char> = format!("{filled:<width$}").chars().take(width).collect();
    if let Some(mark) = mark.filter(|_| whole > 0.0) {
        let place = (part(mark) / 1000.0 * width as f64) as usize;
        if let Some(cell) = cells.get_mut(place.min(width.saturating_sub(1))) {
            *cell = if *cell == ' ' { '·' } else { '┃' };
        }
    }
    if value > whole
        && let Some(last) = cells.last_mut()
    {
        *last = '+';
    }
    cells.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_to_scale_and_end_at_the_right() {
        assert_eq!(spark(&[0.0, 0.5, 1.0, 2.0], 2.0, 4), " ▂▄█");
        assert_eq!(spark(&[1.0], 1.0, 3), "  █");
        assert_eq!(spark(&[1.0, 0.001], 1.0, 1), "▁", "next to nothing is not nothing");
        assert_eq!(spark(&[f64::NAN, 9.0], 0.0, 2), " █");
        assert_eq!(spark(&[], 1.0, 2), "  ");
    }

    #[test]
    fn gauges_have_their_width_and_tell_what_is_over() {
        assert_eq!(gauge(0.5, 1.0, None, 4), "██  ");
        assert_eq!(gauge(0.5, 1.0, Some(0.8), 4), "██ ·");
        assert_eq!(gauge(1.0, 1.0, Some(0.0), 4), "┃███");
        assert_eq!(gauge(2.0, 1.0, None, 4), "███+");
        assert_eq!(gauge(1.0, 0.0, Some(1.0), 4), "   +");
        assert_eq!(gauge(f64::NAN, 1.0, None, 2).chars().count(), 2);
    }
}
