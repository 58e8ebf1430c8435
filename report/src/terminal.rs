//! Writes a report for a terminal.

use crate::data::Comparison;
use crate::table::folded;
use crate::tables::tables;
use crate::words::{facts, findings};

/// The findings, the tables and the facts, on lines of at most `width` characters.
///
/// Below about 60 columns even folded cells may stick out.
pub fn terminal(comparison: &Comparison, width: usize) -> String {
    let mut parts = vec![folded(&comparison.title, width).join("\n") + "\n"];
    parts.push(findings(comparison).iter().map(|finding| hanging("- ", finding, width)).collect());
    parts.extend(tables(comparison).iter().map(|table| table.text(width)));
    let facts = facts(comparison);
    let longest = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    parts.push(
        facts.iter().map(|(name, value)| hanging(&format!("{name:longest$}  "), value, width)).collect(),
    );
    parts.push(format!("Repeat it:  {}\n", comparison.command));
    parts.join("\n")
}

/// Text behind a label, with the lines after the first set in under its beginning.
fn hanging(label: &str, text: &str, width: usize) -> String {
    let indent = label.chars().count();
    let lines = folded(text, width.saturating_sub(indent));
    format!("{label}{}\n", lines.join(&format!("\n{}", " ".repeat(indent))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn lines_fit_and_every_mode_is_there() {
        for modes in 1..=12 {
            let mut comparison = sample::comparison(modes, 3);
            comparison.command = "windlass compare".into();
            for width in [80, 100, 160] {
                let text = terminal(&comparison, width);
                let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
                assert!(longest <= width, "{longest} > {width} with {modes} modes:\n{text}");
                assert!(comparison.modes.iter().all(|mode| text.contains(&mode.name)));
                assert!(!text.contains("NaN") && !text.contains("inf "), "{text}");
            }
        }
    }
}
