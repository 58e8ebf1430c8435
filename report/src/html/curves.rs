//! Draws test accuracy against what was spent to reach it.

use super::axis::{Axis, Scale};
use super::canvas::{Anchor, Canvas, Drawing, Figure, axis_below, axis_left, line, text};
use super::escape::px;
use super::key::{colour, dash, entry, line_entry, marker};
use crate::data::{Comparison, Outcome, Point};
use crate::figures::{Unit, byte_tick, count_tick, level, short, single};
use crate::series::{Series, missing};
use crate::statistics::mean_curve;
use crate::table::folded;

/// What accuracy is drawn against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spent {
    Time,
    WireBytes,
    GradientEvaluations,
}

impl Spent {
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Time => (
                "Accuracy against time",
                "time since the first step (s)",
                "Further left is faster on this machine.",
            ),
            Self::WireBytes => (
                "Accuracy against bytes on the wire",
                "bytes on the wire, up and down (log scale)",
                "Further left needs less traffic; each grid line is a multiple of the one before.",
            ),
            Self::GradientEvaluations => (
                "Accuracy against gradient evaluations",
                "gradient evaluations (examples)",
                "Further left learns more from each example computed, however long it waited; this does not depend \
                 on the machine's speed.",
            ),
        }
    }

    fn of(self, point: &Point) -> f64 {
        match self {
            Self::Time => point.seconds,
            Self::WireBytes => point.wire_bytes_up as f64 + point.wire_bytes_down as f64,
            Self::GradientEvaluations => point.gradient_evaluations as f64,
        }
    }

    fn scale(self) -> Scale {
        if self == Self::WireBytes { Scale::Log } else { Scale::Linear }
    }

    fn tick(self) -> fn(f64) -> String {
        match self {
            Self::Time => short,
            Self::WireBytes => byte_tick,
            Self::GradientEvaluations => count_tick,
        }
    }
}

/// A run's points `(spent, accuracy in percent)` in order.
type Curve = Vec<(f64, f64)>;

struct Lines<'a> {
    one: &'a Series<'a>,
    /// Every run, and whether it completed.
    runs: Vec<(Curve, bool)>,
    mean: Curve,
}

/// The figure, if there is anything to draw.
pub(crate) fn accuracy(comparison: &Comparison, all: &[Series], spent: Spent) -> Option<Figure> {
    let lines: Vec<Lines> = all.iter().map(|one| lines(one, spent)).collect();
    if lines.iter().all(|lines| lines.runs.iter().all(|(curve, _)| curve.is_empty())) {
        return None;
    }
    let (title, name, reading) = spent.words();
    let mut legend: String = all.iter().map(line_entry).collect();
    if let Some(target) = comparison.target {
        let swatch = "<path class=\"target\" d=\"M1 7H39\"/>";
        legend.push_str(&entry(swatch, 40, &format!("T: target {}", level(target)), "small-only"));
    }
    for (letter, baseline) in letters().zip(&comparison.baselines) {
        let words = format!("{letter}: {}, {}", baseline.name, percent(baseline.accuracy));
        legend.push_str(&entry("<path class=\"baseline\" d=\"M1 7H39\"/>", 40, &words, "small-only"));
    }
    let low = lowest(comparison, &lines);
    let mut caption = String::from(
        "Thick lines are means over the seeds that completed, as far as all of them go; thin lines are single \
         runs. ",
    );
    if lines.iter().any(|lines| lines.runs.iter().any(|(_, completed)| !completed)) {
        caption.push_str("A cross ends a run that did not complete. ");
    }
    caption.push_str(reading);
    caption.push_str(if low > 1.0 {
        " The vertical axis does not begin at zero, and early evaluations lie below it."
    } else {
        ""
    });
    let is_empty = |lines: &&Lines| lines.runs.iter().all(|(curve, _)| curve.is_empty());
    caption.push_str(&missing("nothing was evaluated", lines.iter().filter(is_empty).map(|lines| lines.one)));
    let draw = |canvas: &Canvas| drawing(canvas, comparison, &lines, spent, name, low);
    Some(Figure::new(title, legend, caption, draw))
}

fn lines<'a>(one: &'a Series<'a>, spent: Spent) -> Lines<'a> {
    let curve = |points: &[Point]| {
        let places = points.iter().map(|point| (spent.of(point), point.accuracy * 100.0));
        let mut places: Curve = places.filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        places.retain(|(x, _)| spent.scale() == Scale::Linear || *x > 0.0);
        places.sort_by(|a, b| a.0.total_cmp(&b.0));
        // Of several evaluations for the same price the last one stands.
        places.dedup_by(|later, kept| {
            let is_same = later.0 == kept.0;
            if is_same {
                kept.1 = later.1;
            }
            is_same
        });
        places
    };
    let runs: Vec<(Curve, bool)> =
        one.runs().iter().map(|run| (curve(&run.curve), run.outcome == Outcome::Completed)).collect();
    let whole = runs.iter().filter(|(curve, completed)| *completed && !curve.is_empty());
    let mean = mean_curve(&whole.map(|(curve, _)| curve.clone()).collect::<Vec<_>>());
    Lines { one, runs, mean }
}

/// The lower end of the vertical axis: what happens near the top is what modes differ in, so that the first
/// fifth of the evaluations may lie below it. Every mode's best and every near baseline lie above.
fn lowest(comparison: &Comparison, lines: &[Lines]) -> f64 {
    let mut values: Vec<f64> = lines
        .iter()
        .flat_map(|lines| &lines.runs)
        .flat_map(|(curve, _)| curve.iter().map(|at| at.1))
        .collect();
    values.sort_by(f64::total_cmp);
    let top = values.last().copied().unwrap_or(100.0);
    let bests = lines
        .iter()
        .flat_map(|lines| &lines.runs)
        .map(|(curve, _)| curve.iter().map(|at| at.1).fold(f64::NEG_INFINITY, f64::max));
    let target = comparison.target.map(|target| target * 100.0);
    let needed = bests.chain(target).chain([values.get(values.len() / 5).copied().unwrap_or(0.0)]);
    let low = needed.filter(|value| value.is_finite()).fold(top - 2.0, f64::min);
    let near = low - (top - low) * 0.3;
    let baselines = comparison.baselines.iter().map(|baseline| baseline.accuracy * 100.0);
    baselines.filter(|value| *value >= near).fold(low, f64::min).max(0.0)
}

fn drawing(
    canvas: &Canvas,
    comparison: &Comparison,
    lines: &[Lines],
    spent: Spent,
    name: &str,
    low: f64,
) -> Drawing {
    let has_labels = comparison.target.is_some() || !comparison.baselines.is_empty();
    let (left, top) = (canvas.pick(46.0, 38.0), 32.0);
    let right = canvas.width - if has_labels { canvas.pick(150.0, 24.0) } else { canvas.pick(26.0, 24.0) };
    let bottom = top + canvas.pick(310.0, 240.0);
    let all: Vec<(f64, f64)> =
        lines.iter().flat_map(|lines| &lines.runs).flat_map(|(curve, _)| curve.iter().copied()).collect();
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
    };
    let (x_low, x_high) = ends(&mut all.iter().map(|at| at.0));
    let x_low = match spent.scale() {
        Scale::Linear => x_low.min(0.0),
        // What lies below the vertical axis must not take the room; a log scale has no natural beginning.
        Scale::Log => ends(&mut all.iter().filter(|at| at.1 >= low).map(|at| at.0 * 0.8)).0.max(x_low),
    };
    let extra = comparison.baselines.iter().map(|baseline| baseline.accuracy).chain(comparison.target);
    let (_, y_high) = ends(&mut all.iter().map(|at| at.1).chain(extra.map(|share| share * 100.0)));
    let x = Axis::new(spent.scale(), x_low, x_high, left, right);
    let y = Axis::round(low, y_high, canvas.pick(8, 6), bottom, top);
    let mut body = axis_left(&y, canvas.pick(8, 6), short, left, right, "test accuracy (%)");
    body.push_str(&axis_below(&x, canvas.pick(7, 4), spent.tick(), top, bottom, name));
    let labels = references(canvas, comparison, &y, (left, right), &mut body);
    // A drawing within the drawing cuts off what lies outside the axes.
    let (width, height) = (right - left, bottom - top);
    body.push_str(&format!(
        "<svg x=\"{0}\" y=\"{1}\" width=\"{2}\" height=\"{3}\" viewBox=\"{0} {1} {2} {3}\">\n",
        px(left),
        px(top),
        px(width),
        px(height)
    ));
    if spent == Spent::GradientEvaluations {
        body.push_str(&baseline_curves(comparison, &x, &y));
    }
    for one in lines {
        body.push_str(&format!("<g class=\"{}\">\n", colour(one.one)));
        for (curve, completed) in &one.runs {
            body.push_str(&path("run", "", curve, &x, &y));
            if let (false, Some(last)) = (completed, curve.last()) {
                let (at_x, at_y) =
                    (x.place(last.0).min(right - 5.0), y.place(last.1).clamp(top + 5.0, bottom - 5.0));
                body.push_str(&format!(
                    "<path class=\"cross\" d=\"M{} {}l9 9m0 -9l-9 9\"/>\n",
                    px(at_x - 4.5),
                    px(at_y - 4.5)
                ));
            }
        }
        body.push_str("</g>\n");
    }
    for (i, one) in lines.iter().enumerate() {
        body.push_str(&format!("<g class=\"{}\">\n", colour(one.one)));
        body.push_str(&path("mean", &dash(one.one), &one.mean, &x, &y));
        body.push_str(&markers(one, i, &x, &y, (left, width)));
        body.push_str("</g>\n");
    }
    body.push_str("</svg>\n");
    body.push_str(&labels);
    Drawing { height: bottom + 46.0, body }
}

fn path(class: &str, attributes: &str, curve: &[(f64, f64)], x: &Axis, y: &Axis) -> String {
    if curve.len() < 2 {
        // A single evaluation is a dot.
        let dot = |at: &(f64, f64)| {
            format!(
                "<circle class=\"fill\" cx=\"{}\" cy=\"{}\" r=\"2.5\"/>\n",
                px(x.place(at.0)),
                px(y.place(at.1))
            )
        };
        return curve.iter().map(dot).collect();
    }
    let mut data = String::new();
    let mut last = (f64::NEG_INFINITY, f64::NEG_INFINITY);
    for (i, at) in curve.iter().enumerate() {
        let place = (x.place(at.0), y.place(at.1));
        // What is less than a pixel away cannot be seen, and would only make the page large.
        if i + 1 < curve.len() && (place.0 - last.0).abs() < 1.0 && (place.1 - last.1).abs() < 1.0 {
            continue;
        }
        data.push_str(&format!("{}{} {}", if data.is_empty() { "M" } else { "L" }, px(place.0), px(place.1)));
        last = place;
    }
    format!("<path class=\"{class}\"{attributes} d=\"{data}\"/>\n")
}

/// Three markers along the mean, at other places for each row, so that they do not hide one another.
fn markers(one: &Lines, row: usize, x: &Axis, y: &Axis, (left, width): (f64, f64)) -> String {
    let mut text = String::new();
    let mut last = None;
    for third in 0..3 {
        let wanted = left + width * (0.10 + 0.3 * third as f64 + 0.022 * (row % 12) as f64);
        let distance = |at: &&(f64, f64)| (x.place(at.0) - wanted).abs();
        let nearest = one.mean.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
        let Some(nearest) = nearest else { break };
        if last != Some(*nearest) {
            text.push_str(&marker(one.one, x.place(nearest.0), y.place(nearest.1), 4.0));
            last = Some(*nearest);
        }
    }
    text + "\n"
}

fn baseline_curves(comparison: &Comparison, x: &Axis, y: &Axis) -> String {
    let mut text = String::new();
    for baseline in &comparison.baselines {
        let places = baseline.curve.iter().map(|(spent, share)| (*spent as f64, share * 100.0));
        let curve: Curve = places.filter(|at| at.1.is_finite()).collect();
        if curve.len() > 1 {
            text.push_str(&path("baseline", "", &curve, x, y));
        }
    }
    text
}

/// Draws the target and the baselines into `body` and gives their labels, which stand right of the axes.
fn references(
    canvas: &Canvas,
    comparison: &Comparison,
    y: &Axis,
    (left, right): (f64, f64),
    body: &mut String,
) -> String {
    let mut labels: Vec<(f64, f64, &str, Vec<String>)> = Vec::new();
    let mut add = |share: f64, letter: String, name: String, class: &'static str| {
        let value = share * 100.0;
        if !value.is_finite() {
            return;
        }
        let is_below = value < y.low();
        let at = y.place(value.clamp(y.low(), y.high()));
        if !is_below {
            body.push_str(&line(class, (left, at), (right, at)));
        }
        let arrow = if is_below { "▾ " } else { "" };
        let words = match canvas.is_narrow {
            true => vec![format!("{}{letter}", arrow.trim_end())],
            false => folded(&format!("{arrow}{name}"), 19),
        };
        labels.push((at, at, class, words));
    };
    if let Some(target) = comparison.target {
        add(target, "T".to_owned(), format!("target {}", level(target)), "target");
    }
    for (letter, baseline) in letters().zip(&comparison.baselines) {
        let name = format!("{} {}", baseline.name, percent(baseline.accuracy));
        add(baseline.accuracy, letter.to_string(), name, "baseline");
    }
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    spread(&mut labels, y);
    let mut text_of_all = String::new();
    for (value_at, middle, class, words) in labels {
        let begin = middle - (words.len() as f64 - 1.0) * LINE / 2.0;
        text_of_all.push_str(&line("leader", (right, value_at), (right + canvas.pick(9.0, 5.0), middle)));
        for (i, words) in words.iter().enumerate() {
            let class = if class == "target" { "" } else { "soft" };
            let at = (right + canvas.pick(12.0, 7.0), begin + i as f64 * LINE + 4.0);
            text_of_all.push_str(&text(at.0, at.1, Anchor::Start, class, words));
        }
    }
    text_of_all
}

const LINE: f64 = 15.0;

/// Moves labels, which are in order from the top, so far that none covers another.
fn spread(labels: &mut [(f64, f64, &str, Vec<String>)], y: &Axis) {
    let height = |label: &(f64, f64, &str, Vec<String>)| label.3.len() as f64 * LINE;
    let mut free = f64::NEG_INFINITY;
    for label in labels.iter_mut() {
        label.1 = label.1.max(free + height(label) / 2.0);
        free = label.1 + height(label) / 2.0 + 2.0;
    }
    let mut free = y.place(y.low()) + 8.0;
    for label in labels.iter_mut().rev() {
        label.1 = label.1.min(free - height(label) / 2.0);
        free = label.1 - height(label) / 2.0 - 2.0;
    }
}

fn letters() -> impl Iterator<Item = char> {
    'a'..='z'
}

fn percent(share: f64) -> String {
    single(Unit::Share, share)
}
