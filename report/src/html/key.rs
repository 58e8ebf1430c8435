//! Tells modes apart: colour by name, dash pattern by row, marker by both.

use super::escape::{escape, px};
use crate::series::Series;

/// The style sheet has as many colours.
const COLOURS: usize = 12;

const DASHES: [&str; 12] = [
    "",
    "8 3",
    "2 2.5",
    "10 3 2 3",
    "5 2.5",
    "14 4",
    "10 2 2 2 2 2",
    "4 2 1.5 2",
    "16 3 4 3",
    "1.5 4",
    "7 5",
    "12 2 5 2",
];

/// The class that sets the colour of everything within.
pub(crate) fn colour(one: &Series) -> String {
    format!("c{}", one.colour % COLOURS)
}

/// The attribute for the dash pattern of a line.
pub(crate) fn dash(one: &Series) -> String {
    match DASHES[one.index % DASHES.len()] {
        "" => String::new(),
        pattern => format!(" stroke-dasharray=\"{pattern}\""),
    }
}

/// The marker of a row, `radius` wide to each side.
pub(crate) fn marker(one: &Series, x: f64, y: f64, radius: f64) -> String {
    // A rate of a mode's own, and the names from the seventh on, have hollow markers.
    let is_hollow = one.mode.rate_was_chosen != ((one.colour / 6) % 2 == 1);
    let class = if is_hollow { "hollow" } else { "fill" };
    let (left, right, top, bottom) = (px(x - radius), px(x + radius), px(y - radius), px(y + radius));
    let (x, y, radius) = (px(x), px(y), px(radius));
    let path = match one.colour % 6 {
        0 => return format!("<circle class=\"{class}\" cx=\"{x}\" cy=\"{y}\" r=\"{radius}\"/>"),
        1 => format!("M{left} {top}H{right}V{bottom}H{left}z"),
        2 => format!("M{x} {top}L{right} {bottom}H{left}z"),
        3 => format!("M{x} {top}L{right} {y}L{x} {bottom}L{left} {y}z"),
        4 => format!("M{left} {top}H{right}L{x} {bottom}z"),
        _ => format!("M{left} {top}L{right} {y}L{left} {bottom}z"),
    };
    format!("<path class=\"{class}\" d=\"{path}\"/>")
}

/// The legend entry of a row: its line and marker.
pub(crate) fn line_entry(one: &Series) -> String {
    entry(
        &format!(
            "<g class=\"{}\"><path class=\"mean\"{} d=\"M1 7H39\"/>{}</g>",
            colour(one),
            dash(one),
            marker(one, 20.0, 7.0, 4.0)
        ),
        40,
        &one.label,
        "",
    )
}

/// The legend entry of a row: its marker alone.
pub(crate) fn marker_entry(one: &Series) -> String {
    let marker = marker(one, 7.0, 7.0, 4.0);
    entry(&format!("<g class=\"{}\">{marker}</g>", colour(one)), 14, &one.label, "")
}

/// A legend entry with any swatch, `width` by 14.
pub(crate) fn entry(swatch: &str, width: u32, words: &str, class: &str) -> String {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    format!(
        "<li{class}><svg class=\"swatch\" width=\"{width}\" height=\"14\" viewBox=\"0 0 {width} 14\" \
         aria-hidden=\"true\">{swatch}</svg>{}</li>",
        escape(words)
    )
}

/// The marker of a row for a table, in the colour of the row.
pub(crate) fn badge(one: &Series) -> String {
    format!(
        "<svg class=\"swatch\" width=\"12\" height=\"12\" viewBox=\"0 0 12 12\" aria-hidden=\"true\"><g \
         class=\"{}\">{}</g></svg>",
        colour(one),
        marker(one, 6.0, 6.0, 4.0)
    )
}
