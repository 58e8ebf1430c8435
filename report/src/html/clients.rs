//! Draws how the clients of federated modes fared: what became of their work, and what the model is worth to them.

use super::axis::{Axis, Scale};
use super::canvas::{Anchor, Canvas, Drawing, Figure, axis_below, axis_left, cell, line, text};
use super::escape::cut;
use super::key::{colour, entry, marker, marker_entry};
use crate::figures::{count_tick, short};
use crate::series::{Fate, Series};

type Count = fn(&Fate) -> u64;

/// What became of the updates of each client, if any mode is federated.
pub(crate) fn contributions(all: &[Series]) -> Option<Figure> {
    let strips: Vec<(&Series, Vec<Fate>)> =
        all.iter().filter(|one| one.is_federated()).map(|one| (one, one.fates())).collect();
    let first = colour(strips.first()?.0);
    let swatch =
        |class: &str| format!("<g class=\"{first}\"><path class=\"{class}\" d=\"M1 1h12v12h-12z\"/></g>");
    let legend = [("fill", "aggregated"), ("faint", "late"), ("gone", "dropped")]
        .map(|(class, words)| entry(&swatch(class), 14, words, ""))
        .concat();
    let caption = "One column for each client, in the same order in every strip and summed over all runs: updates \
                   that it was asked for, and what became of them. A column with little of the mode's full colour \
                   is a client whose data hardly got into the model.";
    let draw = |canvas: &Canvas| strips_drawing(canvas, &strips);
    Some(Figure::new("Whose data was lost", legend, caption.to_owned(), draw))
}

fn strips_drawing(canvas: &Canvas, strips: &[(&Series, Vec<Fate>)]) -> Drawing {
    let (left, right) = (canvas.pick(46.0, 38.0), canvas.width - 16.0);
    let (above, height, gap) = (22.0, canvas.pick(76.0, 64.0), 14.0);
    let fates = || strips.iter().flat_map(|(_, fates)| fates);
    let last = fates().map(|fate| fate.client).max().unwrap_or(0);
    let most =
        fates().map(|fate| fate.asked.max(fate.aggregated + fate.late + fate.dropped)).max().unwrap_or(0);
    let x = Axis::new(Scale::Linear, 0.0, last as f64 + 1.0, left, right);
    let column = x.place(1.0) - x.place(0.0);
    let bottom = strips.len() as f64 * (above + height + gap);
    let mut body = String::new();
    for (i, (one, fates)) in strips.iter().enumerate() {
        let top = i as f64 * (above + height + gap) + above;
        let y = Axis::new(Scale::Linear, 0.0, most.max(1) as f64, top + height, top);
        body.push_str(&text(left, top - 7.0, Anchor::Start, "", &cut(&one.label, 40)));
        for tick in y.ticks(2) {
            let at = y.place(tick);
            body.push_str(&line("grid", (left, at), (right, at)));
            body.push_str(&text(left - 6.0, at + 4.0, Anchor::End, "", &count_tick(tick)));
        }
        body.push_str(&format!("<g class=\"{}\">\n", colour(one)));
        let parts: [(&str, Count, Count); 3] = [
            ("fill", |_| 0, |fate| fate.aggregated),
            ("faint", |fate| fate.aggregated, |fate| fate.late),
            ("gone", |fate| fate.aggregated + fate.late, |fate| fate.dropped),
        ];
        // Columns touch where a gap would take more than a quarter of them.
        let wide = if column >= 4.0 { column - 1.0 } else { column };
        for (class, below, count) in parts {
            let cells: String = fates
                .iter()
                .map(|fate| {
                    let (from, to) = (below(fate) as f64, (below(fate) + count(fate)) as f64);
                    cell(x.place(fate.client as f64), y.place(to), wide, y.place(from) - y.place(to))
                })
                .collect();
            if !cells.is_empty() {
                body.push_str(&format!("<path class=\"{class}\" d=\"{cells}\"/>\n"));
            }
        }
        body.push_str("</g>\n");
        body.push_str(&line("axis", (left, top + height), (right, top + height)));
    }
    body.push_str(&client_axis(&x, last, canvas, bottom - gap));
    Drawing { height: bottom - gap + 46.0, body }
}

/// Numbers of clients under the middle of their columns.
pub(crate) fn client_axis(x: &Axis, last: u64, canvas: &Canvas, bottom: f64) -> String {
    let mut body = String::new();
    let ticks = Axis::new(Scale::Linear, 0.0, last.max(1) as f64, 0.0, 1.0).ticks(canvas.pick(10, 5));
    for tick in ticks.into_iter().filter(|tick| tick.fract() == 0.0 && *tick <= last as f64) {
        let at = x.place(tick + 0.5);
        body.push_str(&line("axis", (at, bottom), (at, bottom + 4.0)));
        body.push_str(&text(at, bottom + 17.0, Anchor::Middle, "", &short(tick)));
    }
    let middle = (x.place(x.low()) + x.place(x.high())) / 2.0;
    body.push_str(&text(middle, bottom + 37.0, Anchor::Middle, "name", "client"));
    body
}

/// The accuracy of each client, in order, if it was measured.
pub(crate) fn accuracies(all: &[Series]) -> Option<Figure> {
    let sorted = |one: &Series| {
        let mut values: Vec<f64> =
            one.fates().iter().filter_map(|fate| fate.accuracy).map(|share| share * 100.0).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let rows: Vec<(&Series, Vec<f64>)> =
        all.iter().map(|one| (one, sorted(one))).filter(|(_, values)| !values.is_empty()).collect();
    if rows.is_empty() {
        return None;
    }
    let legend = rows.iter().map(|(one, _)| marker_entry(one)).collect();
    let caption = "Each marker is one client: the accuracy of the final model on that client's own test examples, \
                   as the mean over seeds, with the clients of each mode sorted from worst to best. A row of \
                   markers that hangs down on the left serves some clients much worse than others.";
    let draw = |canvas: &Canvas| dots_drawing(canvas, &rows);
    Some(Figure::new("Accuracy for each client", legend, caption.to_owned(), draw))
}

fn dots_drawing(canvas: &Canvas, rows: &[(&Series, Vec<f64>)]) -> Drawing {
    let (left, right, top) = (canvas.pick(46.0, 38.0), canvas.width - 16.0, 32.0);
    let bottom = top + canvas.pick(280.0, 230.0);
    let values = || rows.iter().flat_map(|(_, values)| values.iter().copied());
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    let count = rows.iter().map(|(_, values)| values.len()).max().unwrap_or(1);
    let y = Axis::round(low, high, canvas.pick(7, 5), bottom - 4.0, top);
    let x = Axis::new(Scale::Linear, 0.0, count as f64 + 1.0, left, right);
    let mut body =
        axis_left(&y, canvas.pick(7, 5), short, left, right, "accuracy on the client's examples (%)");
    body.push_str(&axis_below(
        &x,
        canvas.pick(8, 4),
        short,
        top,
        bottom,
        "clients, from the worst served to the best",
    ));
    let radius = canvas.pick(3.0, 2.2);
    for (one, values) in rows {
        body.push_str(&format!("<g class=\"{} dots\">\n", colour(one)));
        for (rank, value) in values.iter().enumerate() {
            body.push_str(&marker(one, x.place(rank as f64 + 1.0), y.place(*value), radius));
        }
        body.push_str("\n</g>\n");
    }
    Drawing { height: bottom + 46.0, body }
}
