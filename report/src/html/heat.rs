//! Draws which client holds how much of which class.

use super::axis::{Axis, Scale};
use super::canvas::{Anchor, Canvas, Drawing, Figure, cell, text};
use super::clients::client_axis;
use super::key::entry;
use crate::data::Comparison;
use crate::figures::grouped;

/// Shades that counts are rounded to, so that the map is a few paths and not a rectangle for each cell.
const SHADES: usize = 12;

/// The map of the partition, if it is known.
pub(crate) fn partition(comparison: &Comparison) -> Option<Figure> {
    let counts = &comparison.class_counts;
    let classes = counts.iter().map(Vec::len).max().unwrap_or(0);
    let most = counts.iter().flatten().copied().max().unwrap_or(0);
    if classes == 0 || most == 0 {
        return None;
    }
    let swatch = |share: f64| {
        let shade = ((share * SHADES as f64).ceil() as usize).min(SHADES);
        format!(
            "<path class=\"frame\" d=\"M1 1h12v12h-12z\"/><path class=\"{}\" d=\"M1 1h12v12h-12z\"/>",
            class(shade)
        )
    };
    let steps = [0.0, 0.25, 0.5, 0.75, 1.0].map(|share| (share, (share * most as f64).round() as u64));
    let mut legend: String =
        steps.iter().map(|(share, count)| entry(&swatch(*share), 14, &grouped(*count), "")).collect();
    legend.insert_str(0, "<li>examples:</li>");
    let caption = format!(
        "Each column is a client and each row a class: the darker, the more examples of that class the client holds \
         ({}). Even shades would mean that all clients hold alike; single dark cells in a column mean that a client \
         knows few classes.",
        comparison.partition
    );
    let draw = |canvas: &Canvas| drawing(canvas, counts, classes, most);
    Some(Figure::new("Examples by client and class", legend, caption, draw))
}

fn class(shade: usize) -> String {
    format!("h{shade}")
}

fn drawing(canvas: &Canvas, counts: &[Vec<u64>], classes: usize, most: u64) -> Drawing {
    let (left, right, top) = (canvas.pick(46.0, 38.0), canvas.width - 16.0, 32.0);
    let height = (200.0 / classes as f64).clamp(4.0, 20.0);
    let bottom = top + height * classes as f64;
    let last = counts.len() as u64 - 1;
    let x = Axis::new(Scale::Linear, 0.0, counts.len() as f64, left, right);
    let width = x.place(1.0) - x.place(0.0);
    let mut paths = vec![String::new(); SHADES + 1];
    for (client, row) in counts.iter().enumerate() {
        for (class, count) in row.iter().enumerate().filter(|(_, count)| **count > 0) {
            let shade = (*count as f64 / most as f64 * SHADES as f64).ceil() as usize;
            // Cells reach a little into the next ones, or the page would shine through the seams.
            let at = (x.place(client as f64), top + class as f64 * height);
            paths[shade.min(SHADES)].push_str(&cell(at.0, at.1, width + 0.1, height));
        }
    }
    let mut body = text(2.0, top - 10.0, Anchor::Start, "name", "class");
    let every = (16.0 / height).ceil() as usize;
    for class in (0..classes).step_by(every.max(1)) {
        let at = top + (class as f64 + 0.5) * height + 4.0;
        body.push_str(&text(left - 6.0, at, Anchor::End, "", &class.to_string()));
    }
    for (shade, data) in paths.iter().enumerate().filter(|(_, data)| !data.is_empty()) {
        body.push_str(&format!("<path class=\"{}\" d=\"{data}\"/>\n", class(shade)));
    }
    body.push_str(&format!(
        "<path class=\"frame\" d=\"{}\"/>\n",
        cell(left, top, right - left, bottom - top)
    ));
    body.push_str(&client_axis(&x, last, canvas, bottom));
    Drawing { height: bottom + 46.0, body }
}
