//! A table that is laid out for a terminal here and as HTML elsewhere.

/// On which side a column's cells are flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// One column.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) heading: &'static str,
    pub(crate) align: Align,
    /// Where the table is too wide, the columns with the highest number go first; 0 always stays.
    pub(crate) rank: u8,
}

impl Column {
    pub(crate) fn left(heading: &'static str, rank: u8) -> Self {
        Self { heading, align: Align::Left, rank }
    }

    pub(crate) fn right(heading: &'static str, rank: u8) -> Self {
        Self { heading, align: Align::Right, rank }
    }
}

/// One row, which may belong to a series.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) series: Option<usize>,
    pub(crate) cells: Vec<String>,
}

/// A titled table with notes below it.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) title: &'static str,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Row>,
    pub(crate) notes: Vec<String>,
}

const GAP: usize = 2;

impl Table {
    /// The table within `width` columns of text: less important columns are left out, and a note says which;
    /// then the widest columns of words are folded.
    pub(crate) fn text(&self, width: usize) -> String {
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let mut left_out = Vec::new();
        while self.natural(&shown) > width {
            let Some(place) = self.least(&shown) else { break };
            left_out.push(self.columns[shown.remove(place)].heading);
        }
        let widths = self.fitted(&shown, width);
        let headings: Vec<&str> = shown.iter().map(|at| self.columns[*at].heading).collect();
        let mut text = format!("{}\n\n", self.title);
        text.push_str(&self.lines(&shown, &widths, &headings));
        let rules: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
        text.push_str(&format!("{}\n", rules.join(&" ".repeat(GAP))));
        for row in &self.rows {
            let cells: Vec<&str> = shown.iter().map(|at| row.cells[*at].as_str()).collect();
            text.push_str(&self.lines(&shown, &widths, &cells));
        }
        let mut notes = self.notes.clone();
        if !left_out.is_empty() {
            notes.push(format!("Not shown at this width: {}.", left_out.join(", ")));
        }
        for (i, note) in notes.iter().enumerate() {
            text.push_str(if i == 0 { "\n" } else { "" });
            text.push_str(&format!("{}\n", folded(note, width).join("\n")));
        }
        text
    }

    /// The column to leave out first; of equals the last one.
    fn least(&self, shown: &[usize]) -> Option<usize> {
        let places = (0..shown.len()).filter(|place| self.columns[shown[*place]].rank > 0);
        places.max_by_key(|place| self.columns[shown[*place]].rank)
    }

    fn natural_width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| row.cells[column].chars().count());
        cells.fold(self.columns[column].heading.chars().count(), usize::max)
    }

    fn natural(&self, shown: &[usize]) -> usize {
        shown.iter().map(|at| self.natural_width(*at) + GAP).sum::<usize>().saturating_sub(GAP)
    }

    /// Takes from the widest column until all fit, but leaves eight characters to each.
    fn fitted(&self, shown: &[usize], width: usize) -> Vec<usize> {
        let mut widths: Vec<usize> = shown.iter().map(|at| self.natural_width(*at)).collect();
        let gaps = GAP * widths.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > width {
            let Some(widest) = widths.iter_mut().filter(|width| **width > 8).max() else { break };
            *widest -= 1;
        }
        widths
    }

    /// One row, on as many lines as its longest folded cell needs.
    fn lines(&self, shown: &[usize], widths: &[usize], cells: &[&str]) -> String {
        let folds: Vec<Vec<String>> =
            cells.iter().zip(widths).map(|(cell, width)| folded(cell, *width)).collect();
        let height = folds.iter().map(Vec::len).max().unwrap_or(0);
        let mut text = String::new();
        for line in 0..height {
            let mut parts = Vec::new();
            for ((at, width), fold) in shown.iter().zip(widths).zip(&folds) {
                let part = fold.get(line).map_or("", String::as_str);
                let blank = " ".repeat(width.saturating_sub(part.chars().count()));
                parts.push(match self.columns[*at].align {
                    Align::Left => format!("{part}{blank}"),
                    Align::Right => format!("{blank}{part}"),
                });
            }
            text.push_str(parts.join(&" ".repeat(GAP)).trim_end());
            text.push('\n');
        }
        text
    }
}

/// Text on lines of at most `width` characters, broken between words where that is possible.
pub(crate) fn folded(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        if used > 0 && used + 1 + rest.len() > width {
            lines.push(String::new());
            used = 0;
        }
        while rest.len() > width {
            let tail = rest.split_off(width);
            lines.last_mut().expect("there is always a line").extend(rest);
            lines.push(String::new());
            rest = tail;
        }
        let line = lines.last_mut().expect("there is always a line");
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        used += rest.len();
        line.extend(rest);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let columns = vec![Column::left("mode", 0), Column::right("time", 0), Column::right("payload", 2)];
        let row = |mode: &str, time: &str| Row {
            series: None,
            cells: vec![mode.into(), time.into(), "1.25 GB".into()],
        };
        Table {
            title: "At the end",
            columns,
            rows: vec![row("sync", "9.0 s"), row("a rather long mode", "12.0 s")],
            notes: vec!["Means over 3 runs.".into()],
        }
    }

    #[test]
    fn a_table_is_aligned() {
        let right = "At the end

mode                  time  payload
──────────────────  ──────  ───────
sync                 9.0 s  1.25 GB
a rather long mode  12.0 s  1.25 GB

Means over 3 runs.
";
        assert_eq!(table().text(80), right);
    }

    #[test]
    fn a_table_that_is_too_wide_loses_columns_and_then_folds() {
        let right = "At the end

mode         time
─────────  ──────
sync        9.0 s
a rather   12.0 s
long mode

Means over 3
runs.
Not shown at this
width: payload.
";
        assert_eq!(table().text(17), right);
    }

    #[test]
    fn words_that_are_too_long_are_cut() {
        assert_eq!(folded("ab abcdefg h", 3), ["ab", "abc", "def", "g h"].map(String::from));
        assert_eq!(folded("", 3), [""]);
    }
}
