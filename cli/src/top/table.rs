//! Sets text into lines: columns that give way where it is narrow, and sentences that are broken between words.

/// What a line means, which decides its colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    #[default]
    Plain,
    /// Somebody should look at it.
    Warning,
    /// It is lost.
    Bad,
}

/// A line of a screen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) tone: Tone,
}

impl Line {
    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }
}

/// A column of a table.
pub(super) struct Column {
    pub(super) title: &'static str,
    /// Columns with the largest number go first where it is narrow.
    pub(super) rank: u8,
    pub(super) is_left: bool,
    pub(super) cells: Vec<String>,
}

impl Column {
    /// Of numbers, which end below each other.
    pub(super) fn right(title: &'static str, rank: u8, cells: impl Iterator<Item = String>) -> Self {
        Self { title, rank, is_left: false, cells: cells.collect() }
    }

    /// Of words, which begin below each other.
    pub(super) fn left(title: &'static str, rank: u8, cells: impl Iterator<Item = String>) -> Self {
        Self { title, rank, is_left: true, cells: cells.collect() }
    }

    fn width(&self) -> usize {
        let cells = self.cells.iter().map(|cell| cell.chars().count());
        cells.max().unwrap_or(0).max(self.title.len())
    }
}

/// The heading, and a line for each tone; no wider than `width` unless a single column is.
pub(super) fn table(mut columns: Vec<Column>, tones: &[Tone], width: usize) -> Vec<Line> {
    columns.retain(|c| c.cells.iter().any(|cell| !cell.is_empty()));
    let total = |columns: &[Column]| columns.iter().map(|c| c.width() + 2).sum::<usize>().saturating_sub(2);
    while columns.len() > 1 && total(&columns) > width {
        let least = (0..columns.len()).max_by_key(|&c| columns[c].rank).expect("there are columns");
        columns.remove(least);
    }
    let line = |cell: &dyn Fn(&Column) -> String| {
        let cells = columns.iter().map(|c| match c.is_left {
            true => format!("{:<1$}", cell(c), c.width()),
            false => format!("{:>1$}", cell(c), c.width()),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![Line::plain(line(&|c| c.title.to_owned()))];
    lines.extend(tones.iter().enumerate().map(|(row, &tone)| {
        let cell = |c: &Column| c.cells.get(row).cloned().unwrap_or_default();
        Line { text: line(&cell), tone }
    }));
    lines
}

/// The text cut to this width, with a sign that it was.
pub(super) fn fit(text: &str, width: usize) -> String {
    match text.chars().count() > width {
        true => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

/// The words of a sentence in lines of this width; a word that is longer has a line to itself. Further lines are indented.
pub(super) fn wrap(sentence: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in sentence.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("  {word}")),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_give_way_by_their_rank() {
        let columns = || {
            let cells = |cells: [&'static str; 2]| cells.into_iter().map(str::to_owned);
            vec![
                Column::right("id", 0, cells(["1", "20"])),
                Column::left("what it does", 2, cells(["sleeps", "eats"])),
                Column::right("clock", 1, cells(["7", "1,000"])),
                Column::right("empty", 0, cells(["", ""])),
            ]
        };
        let text = |width| {
            let lines = table(columns(), &[Tone::Plain, Tone::Bad], width);
            assert_eq!(lines[2].tone, Tone::Bad);
            lines.into_iter().map(|l| l.text).collect::<Vec<_>>()
        };
        assert_eq!(
            text(80),
            ["id  what it does  clock", " 1  sleeps            7", "20  eats          1,000"]
        );
        assert_eq!(text(22), ["id  clock", " 1      7", "20  1,000"]);
        assert_eq!(text(1), ["id", " 1", "20"]);
    }

    #[test]
    fn sentences_are_broken_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "  three"]);
        assert_eq!(wrap("one two three", 80), ["one two three"]);
        assert_eq!(wrap("incomprehensible word", 5), ["incomprehensible", "  word"]);
        assert_eq!([fit("short", 5), fit("longer", 5)], ["short", "long…"]);
    }
}
