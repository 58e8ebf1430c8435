//! Draws what workers waited and how stale pushes were, as horizontal bars.

use super::axis::Axis;
use super::canvas::{Anchor, Canvas, Drawing, Figure, axis_below, line, rectangle, text};
use super::escape::cut;
use super::key::colour;
use crate::figures::{Unit, short, single};
use crate::series::{Series, missing};
use crate::statistics::mean;

const NOTHING: &str = "no run of theirs completed and measured it";

/// The bars of one row of the comparison.
struct Group<'a> {
    one: &'a Series<'a>,
    bars: Vec<Bar>,
}

#[derive(Default)]
struct Bar {
    value: f64,
    /// The least and the greatest of the seeds.
    ends: Option<(f64, f64)>,
    /// A lighter bar behind this one.
    behind: Option<f64>,
    /// What it is, where there is room to the left.
    name: String,
    /// Its value in words, right of it.
    words: String,
}

impl Bar {
    /// The mean of the finite values, if there are any.
    fn over(values: &[f64]) -> Option<Self> {
        let value = mean(values)?.value;
        let finite = || values.iter().copied().filter(|value| value.is_finite());
        let ends = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
        Some(Self { value, ends: (values.len() > 1).then_some(ends), ..Self::default() })
    }
}

/// Idle share by worker, if any run has measured it.
pub(crate) fn idle(all: &[Series]) -> Option<Figure> {
    let group = |one| Group { one, bars: workers(one) };
    let groups: Vec<Group> = all.iter().map(group).filter(|group| !group.bars.is_empty()).collect();
    if groups.is_empty() {
        return None;
    }
    let caption = "One bar for each worker, worker 0 at the top: the share of its time in which it waited for the \
                   servers or for other workers, as the mean over seeds; the line across its end goes from the \
                   least to the greatest. Shorter is better; a short bar among long ones is a worker \
                   that the others wait for.";
    let caption = format!("{caption}{}", missing(NOTHING, all.iter().filter(|one| workers(one).is_empty())));
    let draw = |canvas: &Canvas| drawing(canvas, &groups, "share of time spent waiting (%)", 100.0);
    Some(Figure::new("Idle share of each worker", String::new(), caption, draw))
}

fn workers(one: &Series) -> Vec<Bar> {
    let runs = one.completed();
    let count = runs.iter().map(|run| run.idle_share.len()).max().unwrap_or(0);
    let of = |worker: usize| {
        let shares: Vec<f64> =
            runs.iter().filter_map(|run| run.idle_share.get(worker)).map(|share| share * 100.0).collect();
        Bar { name: worker.to_string(), ..Bar::over(&shares).unwrap_or_default() }
    };
    (0..count).map(of).collect()
}

/// Staleness of the applied pushes, if any run completed.
pub(crate) fn staleness(all: &[Series]) -> Option<Figure> {
    let group = |one| Group { one, bars: stale(one).into_iter().collect() };
    let groups: Vec<Group> = all.iter().map(group).filter(|group| !group.bars.is_empty()).collect();
    if groups.is_empty() {
        return None;
    }
    let longest = |bar: &Bar| bar.behind.unwrap_or(0.0).max(bar.ends.map_or(bar.value, |ends| ends.1));
    let high = groups.iter().flat_map(|group| &group.bars).map(longest).fold(1.0, f64::max);
    let caption = "How many versions older than the newest the values were that a pushed gradient had been computed \
                   on. The dark bar is the mean and the light bar the 95th percentile, each as the mean over \
                   seeds; the numbers say both. Zero means that every gradient was fresh.";
    let caption = format!("{caption}{}", missing(NOTHING, all.iter().filter(|one| stale(one).is_none())));
    let draw = |canvas: &Canvas| drawing(canvas, &groups, "staleness (versions)", high);
    Some(Figure::new("Staleness of applied pushes", String::new(), caption, draw))
}

fn stale(one: &Series) -> Option<Bar> {
    let runs = one.completed();
    let means: Vec<f64> = runs.iter().map(|run| run.staleness_mean).collect();
    let high: Vec<f64> = runs.iter().map(|run| run.staleness_p95).collect();
    let behind = mean(&high).map(|mean| mean.value);
    let bar = Bar::over(&means)?;
    let words = format!(
        "{}, {}",
        single(Unit::Plain, bar.value),
        behind.map_or("–".into(), |behind| single(Unit::Plain, behind))
    );
    Some(Bar { behind, words, ..bar })
}

fn drawing(canvas: &Canvas, groups: &[Group], name: &str, high: f64) -> Drawing {
    let most = groups.iter().map(|group| group.bars.len()).max().unwrap_or(1);
    let has_words = groups.iter().any(|group| group.bars.iter().any(|bar| !bar.words.is_empty()));
    let thickness = if most == 1 { 16.0 } else { (72.0 / most as f64).clamp(2.0, 13.0) };
    // Numbers of workers need bars that are as thick as the numbers are high.
    let has_names = most > 1 && thickness >= 12.0;
    let label = groups.iter().map(|group| group.one.label.chars().count()).max().unwrap_or(0).min(26);
    let labels_width = canvas.pick(label as f64 * canvas.character + 14.0, 0.0);
    let left = labels_width + if has_names { 18.0 } else { 6.0 };
    let right = canvas.width - if has_words { 82.0 } else { 24.0 };
    let axis = Axis::round(0.0, high, canvas.pick(6, 4), left, right);
    let above = canvas.pick(0.0, 18.0);
    let gap = 10.0;
    let top = 6.0;
    let height = groups.iter().map(|group| above + group.bars.len() as f64 * thickness + gap).sum::<f64>();
    let bottom = top + height;
    let mut body = axis_below(&axis, canvas.pick(6, 4), short, top, bottom, name);
    let mut y = top;
    for group in groups {
        let tall = group.bars.len() as f64 * thickness;
        let words = cut(&group.one.label, canvas.pick(26, 40));
        body.push_str(&match canvas.is_narrow {
            true => text(2.0, y + 13.0, Anchor::Start, "halo", &words),
            false => text(labels_width - 8.0, y + tall / 2.0 + 9.0, Anchor::End, "", &words),
        });
        y += above + gap / 2.0;
        body.push_str(&format!("<g class=\"{}\">\n", colour(group.one)));
        for (i, bar) in group.bars.iter().enumerate() {
            body.push_str(&draw_bar(bar, &axis, y + i as f64 * thickness, thickness, has_names));
        }
        body.push_str("</g>\n");
        y += tall + gap / 2.0;
    }
    Drawing { height: bottom + 46.0, body }
}

fn draw_bar(bar: &Bar, axis: &Axis, top: f64, thickness: f64, has_name: bool) -> String {
    let from = axis.place(0.0);
    let (middle, inner) = (top + thickness / 2.0, (thickness - 1.5).max(1.0));
    let mut body = String::new();
    if let Some(behind) = bar.behind {
        body.push_str(&rectangle("faint", from, top, axis.place(behind) - from, inner));
    }
    let inset = if bar.behind.is_some() { 4.0 } else { 0.0 };
    body.push_str(&rectangle("fill", from, top + inset, axis.place(bar.value) - from, inner - 2.0 * inset));
    let middle_of_bar = top + inner / 2.0;
    if let Some((low, high)) = bar.ends.filter(|(low, high)| high > low) {
        body.push_str(&line("whisker", (axis.place(low), middle_of_bar), (axis.place(high), middle_of_bar)));
    }
    if has_name {
        body.push_str(&text(from - 4.0, middle + 3.5, Anchor::End, "tiny", &bar.name));
    }
    if !bar.words.is_empty() {
        let end = bar.behind.unwrap_or(0.0).max(bar.ends.map_or(bar.value, |ends| ends.1));
        body.push_str(&text(axis.place(end) + 6.0, middle + 4.0, Anchor::Start, "", &bar.words));
    }
    body
}
