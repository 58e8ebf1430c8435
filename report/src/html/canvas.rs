//! A figure: one drawing for wide pages and one for narrow ones, with its legend and caption.

use super::axis::Axis;
use super::escape::{escape, px};

/// The size that a drawing is made for. Units are CSS pixels at that size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Canvas {
    pub(crate) width: f64,
    /// Width of a character, roughly, at the size of the labels.
    pub(crate) character: f64,
    pub(crate) is_narrow: bool,
}

/// For pages from 720 px on, and for print. At its smallest it is shown at 0.9 of its size.
pub(crate) const WIDE: Canvas = Canvas { width: 680.0, character: 7.0, is_narrow: false };

/// For narrower pages: as wide as a page of 360 px less its margins.
pub(crate) const NARROW: Canvas = Canvas { width: 336.0, character: 6.4, is_narrow: true };

impl Canvas {
    /// One of two values.
    pub(crate) fn pick<T>(&self, wide: T, narrow: T) -> T {
        if self.is_narrow { narrow } else { wide }
    }
}

/// What a drawing is: its height and its elements.
#[derive(Debug)]
pub(crate) struct Drawing {
    pub(crate) height: f64,
    pub(crate) body: String,
}

/// A figure as it stands on the page.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) title: String,
    /// HTML.
    pub(crate) legend: String,
    /// Plain text: how to read it.
    pub(crate) caption: String,
    pub(crate) wide: Drawing,
    pub(crate) narrow: Drawing,
}

impl Figure {
    /// Draws a figure at both sizes.
    pub(crate) fn new(
        title: &str,
        legend: String,
        caption: String,
        draw: impl Fn(&Canvas) -> Drawing,
    ) -> Self {
        Self { title: title.to_owned(), legend, caption, wide: draw(&WIDE), narrow: draw(&NARROW) }
    }

    /// The figure as HTML.
    pub(crate) fn html(&self, number: usize) -> String {
        let title = escape(&self.title);
        let svg = |canvas: &Canvas, drawing: &Drawing| {
            format!(
                "<svg class=\"{}\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{title}\">\n{}</svg>\n",
                canvas.pick("wide", "narrow"),
                px(canvas.width),
                px(drawing.height),
                drawing.body
            )
        };
        let legend = match self.legend.is_empty() {
            true => String::new(),
            false => format!("<ul class=\"legend\">{}</ul>\n", self.legend),
        };
        format!(
            "<figure>\n<h3>Figure {number}. {title}</h3>\n{legend}{}{}<figcaption>{}</figcaption>\n</figure>\n",
            svg(&WIDE, &self.wide),
            svg(&NARROW, &self.narrow),
            escape(&self.caption)
        )
    }
}

/// Where the letters of a text stand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// A piece of text at a place.
pub(crate) fn text(x: f64, y: f64, anchor: Anchor, class: &str, words: &str) -> String {
    let anchor = match anchor {
        Anchor::Start => "",
        Anchor::Middle => " text-anchor=\"middle\"",
        Anchor::End => " text-anchor=\"end\"",
    };
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    format!("<text x=\"{}\" y=\"{}\"{anchor}{class}>{}</text>\n", px(x), px(y), escape(words))
}

/// A straight line.
pub(crate) fn line(class: &str, from: (f64, f64), to: (f64, f64)) -> String {
    let (x1, y1, x2, y2) = (px(from.0), px(from.1), px(to.0), px(to.1));
    format!("<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>\n")
}

/// A rectangle; nothing if it has no area.
pub(crate) fn rectangle(class: &str, x: f64, y: f64, width: f64, height: f64) -> String {
    if width <= 0.0 || height <= 0.0 {
        return String::new();
    }
    let (x, y, width, height) = (px(x), px(y), px(width), px(height));
    format!("<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"/>\n")
}

/// A rectangle as a piece of a path; many of them are much shorter than as many elements.
pub(crate) fn cell(x: f64, y: f64, width: f64, height: f64) -> String {
    if width <= 0.0 || height <= 0.0 {
        return String::new();
    }
    format!("M{} {}h{}v{}h-{}z", px(x), px(y), px(width), px(height), px(width))
}

/// A horizontal axis below a drawing, with grid lines up to `top`.
pub(crate) fn axis_below(
    axis: &Axis,
    ticks: usize,
    write: fn(f64) -> String,
    top: f64,
    bottom: f64,
    name: &str,
) -> String {
    let mut body = String::new();
    for tick in axis.ticks(ticks) {
        let x = axis.place(tick);
        body.push_str(&line("grid", (x, top), (x, bottom)));
        body.push_str(&text(x, bottom + 17.0, Anchor::Middle, "", &write(tick)));
    }
    let (from, to) = (axis.place(axis.low()), axis.place(axis.high()));
    body.push_str(&line("axis", (from, bottom), (to, bottom)));
    body.push_str(&text((from + to) / 2.0, bottom + 37.0, Anchor::Middle, "name", name));
    body
}

/// A vertical axis on the left of a drawing, with grid lines up to `right` and its name above it.
pub(crate) fn axis_left(
    axis: &Axis,
    ticks: usize,
    write: fn(f64) -> String,
    left: f64,
    right: f64,
    name: &str,
) -> String {
    let mut body = String::new();
    for tick in axis.ticks(ticks) {
        let y = axis.place(tick);
        body.push_str(&line("grid", (left, y), (right, y)));
        body.push_str(&text(left - 6.0, y + 4.0, Anchor::End, "", &write(tick)));
    }
    let (from, to) = (axis.place(axis.low()), axis.place(axis.high()));
    body.push_str(&line("axis", (left, from), (left, to)));
    body.push_str(&text(2.0, from.min(to) - 10.0, Anchor::Start, "name", name));
    body
}
