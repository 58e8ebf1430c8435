//! Writes a report as one HTML page that needs nothing else.

mod axis;
mod bars;
mod canvas;
mod clients;
mod curves;
mod escape;
mod heat;
mod key;

use crate::data::Comparison;
use crate::series::{Series, series};
use crate::table::{Align, Table};
use crate::tables::tables;
use crate::words::{facts, findings};
use canvas::Figure;
use curves::Spent;
use escape::escape;

/// The rank from which columns are left out in print, where a table cannot scroll.
const LEFT_OUT_ON_PAPER: u8 = 4;

const STYLE: &str = include_str!("style.css");

/// The colours of the twelve names and the twelve shades of the map: rules too regular to write by hand.
fn regular_rules() -> String {
    let colours = (0..12).map(|i| format!(".c{i} {{ --c: var(--c{i}); }}\n"));
    let shades = (0..=12).map(|i| format!(".h{i} {{ fill: var(--heat); fill-opacity: {:.2}; }}\n", shade(i)));
    colours.chain(shades).collect()
}

/// Few examples must still be seen, so that the first shade is not a twelfth.
fn shade(step: u32) -> f64 {
    if step == 0 { 0.0 } else { 0.1 + 0.9 * f64::from(step) / 12.0 }
}

/// One page with the findings, all tables and all figures. It opens without a network and prints on paper.
pub fn html(comparison: &Comparison) -> String {
    let all = series(comparison);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>{0}</title>\n<style>\n{STYLE}{1}</style>\n\
         </head>\n<body>\n<h1>{0}</h1>\n",
        escape(&comparison.title),
        regular_rules()
    );
    let findings: String =
        findings(comparison).iter().map(|finding| format!("<li>{}</li>\n", escape(finding))).collect();
    page.push_str(&format!("<ul class=\"findings\">\n{findings}</ul>\n<h2>Setting</h2>\n<dl>\n"));
    for (name, value) in facts(comparison) {
        page.push_str(&format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(&value)));
    }
    page.push_str(&format!("</dl>\n<pre>{}</pre>\n<h2>Tables</h2>\n", escape(&comparison.command)));
    for (i, table) in tables(comparison).iter().enumerate() {
        page.push_str(&table_html(table, i + 1, &all));
    }
    let figures = figures(comparison, &all);
    if !figures.is_empty() {
        page.push_str("<h2>Figures</h2>\n<div class=\"figures\">\n");
        for (i, figure) in figures.iter().enumerate() {
            page.push_str(&figure.html(i + 1));
        }
        page.push_str("</div>\n");
    }
    page.push_str(
        "<footer>Bytes are decimal (1 MB is a million bytes). Bytes on the wire are UDP payload with all protocol \
         overhead; payload is gradients, updates and values alone. Gradient evaluations are examples whose \
         gradients were computed, also those that were lost.</footer>\n</body>\n</html>\n",
    );
    page
}

fn figures(comparison: &Comparison, all: &[Series]) -> Vec<Figure> {
    let curve = |spent| curves::accuracy(comparison, all, spent);
    let figures = [
        curve(Spent::Time),
        curve(Spent::WireBytes),
        curve(Spent::GradientEvaluations),
        bars::idle(all),
        bars::staleness(all),
        clients::accuracies(all),
        clients::contributions(all),
        heat::partition(comparison),
    ];
    figures.into_iter().flatten().collect()
}

fn table_html(table: &Table, number: usize, all: &[Series]) -> String {
    let is_left_out = |column: usize| table.columns[column].rank >= LEFT_OUT_ON_PAPER;
    let classes = |column: usize, is_head: bool| {
        let is_wordy = !is_head && column > 0 && is_wordy(table, column);
        let all = [
            ("right", table.columns[column].align == Align::Right),
            ("words", table.columns[column].align == Align::Left && is_wordy),
            ("screen-only", is_left_out(column)),
        ];
        let names: Vec<&str> =
            all.into_iter().filter(|(_, applies)| *applies).map(|(name, _)| name).collect();
        if names.is_empty() { String::new() } else { format!(" class=\"{}\"", names.join(" ")) }
    };
    let heads =
        table.columns.iter().enumerate().map(|(i, column)| {
            format!("<th scope=\"col\"{}>{}</th>", classes(i, true), escape(column.heading))
        });
    let mut html = format!(
        "<section class=\"table\">\n<h3>Table {number}. {}</h3>\n<div class=\"scroll\" tabindex=\"0\">\n\
         <table>\n<thead><tr>{}</tr></thead>\n<tbody>\n",
        escape(table.title),
        heads.collect::<String>()
    );
    for row in &table.rows {
        let badge = row.series.and_then(|at| all.get(at)).map_or(String::new(), key::badge);
        html.push_str("<tr>");
        for (i, cell) in row.cells.iter().enumerate() {
            html.push_str(&match i {
                0 => format!("<th scope=\"row\">{badge}{}</th>", escape(cell)),
                _ => format!("<td{}>{}</td>", classes(i, false), escape(cell)),
            });
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table>\n</div>\n");
    for note in &table.notes {
        html.push_str(&format!("<p class=\"note\">{}</p>\n", escape(note)));
    }
    let left_out: Vec<&str> =
        (0..table.columns.len()).filter(|i| is_left_out(*i)).map(|i| table.columns[i].heading).collect();
    if !left_out.is_empty() {
        let words = escape(&left_out.join(", "));
        html.push_str(&format!("<p class=\"note print-only\">Not shown on paper: {words}.</p>\n"));
    }
    html + "</section>\n"
}

/// Whether a column holds sentences, which may be folded.
fn is_wordy(table: &Table, column: usize) -> bool {
    table.rows.iter().any(|row| row.cells[column].chars().count() > 24)
}

#[cfg(test)]
mod tests;
