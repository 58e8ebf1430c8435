//! Numbers the distinct words of a CSV column.

use std::collections::HashMap;

/// One column, its words numbered in the order of their first appearance.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// For each row a place in `distinct`.
    pub(super) of_row: Vec<u32>,
    pub(super) distinct: Vec<Word>,
    numbers: HashMap<Vec<u8>, u32>,
}

#[derive(Debug)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) first_line: u64,
}

/// Why a cell is not taken.
#[derive(Debug, PartialEq)]
pub(super) enum Refused {
    /// There is nothing in it.
    Empty,
    /// It would be one distinct word too many.
    TooMany { text: String },
}

impl Words {
    /// Adds the cell of the next row; `distinct_max` distinct words are possible.
    pub(super) fn add(&mut self, cell: &[u8], line: u64, distinct_max: usize) -> Result<(), Refused> {
        let cell = cell.trim_ascii();
        if let Some(&known) = self.numbers.get(cell) {
            self.of_row.push(known);
            return Ok(());
        }
        if cell.is_empty() {
            return Err(Refused::Empty);
        }
        let text = String::from_utf8_lossy(cell).into_owned();
        if self.distinct.len() >= distinct_max {
            return Err(Refused::TooMany { text });
        }
        let new = self.distinct.len() as u32;
        self.numbers.insert(cell.to_owned(), new);
        self.of_row.push(new);
        self.distinct.push(Word { text, first_line: line });
        Ok(())
    }

    /// The distinct words, sorted as whole numbers if all are such, else as words.
    pub(super) fn sorted(&self) -> Vec<&str> {
        let mut sorted: Vec<&str> = self.distinct.iter().map(|word| word.text.as_str()).collect();
        sorted.sort_unstable();
        if sorted.iter().all(|text| text.parse::<i64>().is_ok()) {
            sorted.sort_by_key(|text| text.parse::<i64>().unwrap_or(0));
        }
        sorted
    }

    /// For each distinct word its place among the sorted ones.
    pub(super) fn ranks(&self) -> HashMap<String, u32> {
        let sorted = self.sorted().into_iter().enumerate();
        sorted.map(|(rank, text)| (text.to_owned(), rank as u32)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(cells: &[&str]) -> Words {
        let mut words = Words::default();
        for (row, cell) in cells.iter().enumerate() {
            words.add(cell.as_bytes(), row as u64 + 2, 100).unwrap();
        }
        words
    }

    #[test]
    fn words_are_numbered_as_they_come_and_ranked_as_they_sort() {
        let words = words(&["dog", " cat ", "dog", "ape"]);
        assert_eq!(words.of_row, [0, 1, 0, 2]);
        assert_eq!(words.sorted(), ["ape", "cat", "dog"]);
        assert_eq!(words.ranks()["dog"], 2);
        assert_eq!(words.distinct[1].first_line, 3);
    }

    #[test]
    fn whole_numbers_are_sorted_as_numbers() {
        assert_eq!(words(&["10", "9", "-1"]).sorted(), ["-1", "9", "10"]);
        assert_eq!(words(&["10", "9", "x"]).sorted(), ["10", "9", "x"]);
    }

    #[test]
    fn an_empty_cell_and_one_word_too_many_are_refused() {
        let mut words = words(&["a", "b"]);
        assert_eq!(words.add(b"  ", 4, 2), Err(Refused::Empty));
        assert_eq!(words.add(b"c", 4, 2), Err(Refused::TooMany { text: "c".into() }));
        assert_eq!(words.add(b"a", 4, 2), Ok(()));
        assert_eq!(words.of_row, [0, 1, 0]);
    }
}
