//! The waste of each recipe as it added up, as an SVG.

use super::Outcome;
use std::fmt::Write;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 480.0;
/// Room for the axes and, on the right, the names.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 210.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 45.0;
const COLORS: [&str; 8] =
    ["#888888", "#1f77b4", "#17becf", "#9467bd", "#8c564b", "#ff7f0e", "#d62728", "#2ca02c"];
/// Lines of the grid.
const TICKS: u32 = 5;

/// Draws a line per recipe: hours since the first start to the right, GB·h up.
pub fn cumulative_waste(outcomes: &[Outcome]) -> String {
    let points = || outcomes.iter().flat_map(|outcome| &outcome.course);
    let most_ms = points().map(|(at_ms, _)| *at_ms).max().unwrap_or(1).max(1) as f64;
    let most_gbh = points().map(|(_, gbh)| *gbh).fold(f64::MIN_POSITIVE, f64::max);
    let x = |at_ms: i64| LEFT + at_ms as f64 / most_ms * (WIDTH - LEFT - RIGHT);
    let y = |gbh: f64| HEIGHT - BOTTOM - gbh / most_gbh * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    grid(&mut svg, most_ms, most_gbh);
    for (place, outcome) in outcomes.iter().enumerate() {
        let color = COLORS[place % COLORS.len()];
        let line: Vec<_> =
            outcome.course.iter().map(|(at_ms, gbh)| format!("{:.1},{:.1}", x(*at_ms), y(*gbh))).collect();
        let width = if place + 1 == outcomes.len() { 2.5 } else { 1.3 };
        _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\" points=\"{}\"/>",
            line.join(" ")
        );
        let text_y = TOP + 16.0 * (place as f64 + 1.0);
        let name = outcome.name.replace('&', "&amp;").replace('<', "&lt;");
        let text_x = WIDTH - RIGHT + 12.0;
        _ = writeln!(
            svg,
            "<text x=\"{text_x}\" y=\"{text_y}\" fill=\"{color}\">{name}: {:.1} GB·h</text>",
            outcome.waste_gbh
        );
    }
    svg += "</svg>\n";
    svg
}

fn grid(svg: &mut String, most_ms: f64, most_gbh: f64) {
    for tick in 0..=TICKS {
        let share = f64::from(tick) / f64::from(TICKS);
        let (x, y) =
            (LEFT + share * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM));
        let (right, base) = (WIDTH - RIGHT, HEIGHT - BOTTOM + 18.0);
        _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#dddddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.0}</text>\
             <text x=\"{x:.1}\" y=\"{base}\" text-anchor=\"middle\">{:.1} h</text>",
            LEFT - 8.0,
            y + 4.0,
            share * most_gbh,
            share * most_ms / 3.6e6
        );
    }
    _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"18\">memory reserved in vain, GB·h</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_line_per_recipe_and_no_number_that_is_none() {
        let outcome = |name: &str| Outcome {
            name: name.into(),
            course: vec![(0, 0.0), (3_600_000, 2.0)],
            ..Outcome::default()
        };
        let svg = cumulative_waste(&[outcome("a<b"), outcome("c")]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("a&lt;b") && !svg.contains("NaN"));
        assert!(!cumulative_waste(&[]).contains("NaN"));
    }
}
