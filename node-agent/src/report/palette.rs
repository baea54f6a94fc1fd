//! Colours of the page, for light and dark, and what they stand for. A test holds them against WCAG 2.2: text 4.5:1
//! (1.4.3), marks that carry meaning 3:1 (1.4.11). No colour is the only carrier: marks differ in shape and dash too.

/// A colour by its place on the page, in light and in dark.
pub(super) struct Colour {
    pub(super) name: &'static str,
    pub(super) light: &'static str,
    pub(super) dark: &'static str,
    #[cfg_attr(not(test), allow(dead_code, reason = "what contrast is checked by"))]
    pub(super) role: Role,
}

/// What a colour must be told from its background for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Behind everything.
    Ground,
    /// Text.
    Text,
    /// Marks that carry meaning.
    Mark,
    /// Grids, borders, fills between marks.
    Ornament,
}

const fn colour(name: &'static str, light: &'static str, dark: &'static str, role: Role) -> Colour {
    Colour { name, light, dark, role }
}

pub(super) const PALETTE: [Colour; 14] = [
    colour("ground", "#ffffff", "#0f1318", Role::Ground),
    colour("panel", "#f6f7f9", "#171c23", Role::Ground),
    colour("ink", "#1b1f24", "#e6edf3", Role::Text),
    colour("quiet", "#505a66", "#a3afbb", Role::Text),
    colour("link", "#0a58b8", "#79b8ff", Role::Text),
    colour("good", "#176f32", "#5fd38a", Role::Text),
    colour("bad", "#b3261e", "#ff938a", Role::Text),
    colour("blue", "#0b62c4", "#6cb0ff", Role::Mark),
    colour("orange", "#a85400", "#f0a04b", Role::Mark),
    colour("green", "#17783a", "#56c977", Role::Mark),
    colour("purple", "#7a3dbd", "#c39bff", Role::Mark),
    colour("red", "#c4262e", "#ff7f76", Role::Mark),
    colour("band", "#d3e4f8", "#1d3555", Role::Ornament),
    colour("grid", "#d8dde3", "#2b323b", Role::Ornament),
];

/// The palette as custom properties that follow the colour scheme; browsers that don't know `light-dark()` get the
/// light one.
pub(super) fn properties() -> String {
    let each = |of: &dyn Fn(&Colour) -> String| PALETTE.iter().map(of).collect::<String>();
    let plain = each(&|c| format!("--{}:{};", c.name, c.light));
    let both = each(&|c| format!("--{}:light-dark({},{});", c.name, c.light, c.dark));
    format!(":root{{{plain}}}\n@supports (color: light-dark(#000,#fff)){{:root{{{both}}}}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance (WCAG 2.2).
    fn luminance(hex: &str) -> f64 {
        let channel = |at: usize| {
            let value = f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    fn contrast(a: &str, b: &str) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn contrast_is_that_of_the_standard() {
        assert!((contrast("#000000", "#ffffff") - 21.0).abs() < 1e-9);
        assert!((contrast("#777777", "#ffffff") - 4.48).abs() < 0.01);
    }

    #[test]
    fn everything_that_means_something_can_be_seen() {
        let grounds = || PALETTE.iter().filter(|colour| colour.role == Role::Ground);
        // Marks are drawn over bands too.
        let behind = || grounds().chain(PALETTE.iter().filter(|colour| colour.name == "band"));
        for colour in &PALETTE {
            let (least, grounds): (f64, Vec<_>) = match colour.role {
                Role::Text => (4.5, grounds().collect()),
                Role::Mark => (3.0, behind().collect()),
                Role::Ground | Role::Ornament => continue,
            };
            for ground in grounds {
                let pairs = [("light", colour.light, ground.light), ("dark", colour.dark, ground.dark)];
                for (theme, mark, ground_colour) in pairs {
                    let found = contrast(mark, ground_colour);
                    let (name, on) = (colour.name, ground.name);
                    assert!(found >= least, "{theme}: {name} on {on} is {found:.2}:1, wanted {least}:1");
                }
            }
        }
    }
}
