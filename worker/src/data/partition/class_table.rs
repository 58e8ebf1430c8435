//! Shows how many examples of each class every client has.

use std::fmt;

use super::Dealt;

/// Up to this many clients are shown one by one.
const CLIENTS_SHOWN_MAX: usize = 20;
/// Of more clients so many are shown after the summary.
const FIRST_SHOWN: usize = 10;
/// Up to this many classes have a column each.
const CLASSES_SHOWN_MAX: usize = 20;

/// How many examples of each class every client has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassTable {
    /// Client by client, one count for each class.
    counts: Vec<u32>,
    classes: usize,
    unused: usize,
}

/// The smallest, the middle and the largest of some numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The smallest.
    pub min: u64,
    /// The one in the middle, or the mean of the two there.
    pub median: f64,
    /// The largest.
    pub max: u64,
}

impl ClassTable {
    /// Counts what was dealt of examples with these labels, which are 0 to `classes` - 1.
    ///
    /// # Panics
    /// If an example has no label, a label is not below `classes`, or there are no classes.
    pub fn new(dealt: &Dealt, labels: &[u32], classes: usize) -> Self {
        assert!(classes > 0, "examples have classes");
        let mut counts = vec![0; dealt.clients.len() * classes];
        for (row, examples) in counts.chunks_exact_mut(classes).zip(&dealt.clients) {
            for &example in examples {
                row[labels[example as usize] as usize] += 1;
            }
        }
        Self { counts, classes, unused: dealt.unused.len() }
    }

    /// Number of clients.
    pub fn clients(&self) -> usize {
        self.counts.len() / self.classes
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Number of examples that belong to nobody.
    pub fn unused(&self) -> usize {
        self.unused
    }

    /// The clients in their order, each with its examples of each class.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.counts.chunks_exact(self.classes)
    }

    /// Examples of each client.
    pub fn sizes(&self) -> Vec<u64> {
        self.rows().map(size).collect()
    }

    /// The spread of the clients' sizes; `None` without clients.
    pub fn size_spread(&self) -> Option<Spread> {
        Spread::of(self.sizes())
    }

    /// The spread of the number of classes that a client has any examples of; `None` without clients.
    pub fn class_spread(&self) -> Option<Spread> {
        Spread::of(self.rows().map(|row| held(row) as u64).collect())
    }
}

fn size(row: &[u32]) -> u64 {
    row.iter().map(|&count| u64::from(count)).sum()
}

fn held(row: &[u32]) -> usize {
    row.iter().filter(|&&count| count > 0).count()
}

impl Spread {
    fn of(mut numbers: Vec<u64>) -> Option<Self> {
        numbers.sort_unstable();
        let (&min, &max) = (numbers.first()?, numbers.last()?);
        let middle = numbers.len() / 2;
        let below = if numbers.len().is_multiple_of(2) { middle - 1 } else { middle };
        Some(Self { min, median: (numbers[below] as f64 + numbers[middle] as f64) / 2.0, max })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}, median {}", self.min, self.max, self.median)
    }
}

impl fmt::Display for ClassTable {
    /// Writes a summary and then the clients, one a line: all if they are few, else the first ones. A dot is no example
    /// of a class; of many classes there are no columns.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let examples: u64 = self.sizes().iter().sum();
        write!(f, "{} clients, {examples} examples", self.clients())?;
        if self.unused > 0 {
            write!(f, " and {} that nobody has", self.unused)?;
        }
        let (Some(sizes), Some(classes)) = (self.size_spread(), self.class_spread()) else { return Ok(()) };
        writeln!(f, "\nexamples per client: {sizes}")?;
        writeln!(f, "classes per client: {classes} of {}", self.classes)?;

        let columns = if self.classes <= CLASSES_SHOWN_MAX { self.classes } else { 0 };
        let largest = self.counts.iter().max().map_or(1, |count| count.to_string().len());
        let width = largest.max((self.classes - 1).to_string().len()) + 1;
        write!(f, "client  examples  classes ")?;
        for class in 0..columns {
            write!(f, "{class:>width$}")?;
        }
        let shown = if self.clients() <= CLIENTS_SHOWN_MAX { self.clients() } else { FIRST_SHOWN };
        for (client, row) in self.rows().enumerate().take(shown) {
            write!(f, "\n{client:>6}  {:>8}  {:>7} ", size(row), held(row))?;
            for &count in &row[..columns] {
                match count {
                    0 => write!(f, "{:>width$}", ".")?,
                    count => write!(f, "{count:>width$}")?,
                }
            }
        }
        match self.clients() - shown {
            0 => Ok(()),
            others => write!(f, "\nand {others} more clients"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: [u32; 8] = [0, 1, 2, 0, 0, 2, 1, 0];

    #[test]
    fn few_clients_are_shown_one_by_one() {
        let dealt = Dealt { clients: vec![vec![0, 3, 4], vec![1, 2, 5], vec![6]], unused: vec![7] };
        let table = ClassTable::new(&dealt, &LABELS, 3);
        assert_eq!(table.rows().collect::<Vec<_>>(), [[3, 0, 0], [0, 1, 2], [0, 1, 0]]);
        assert_eq!((table.clients(), table.classes(), table.unused()), (3, 3, 1));
        let expected = "\
3 clients, 7 examples and 1 that nobody has
examples per client: 1 to 3, median 3
classes per client: 1 to 2, median 1 of 3
client  examples  classes  0 1 2
     0         3        1  3 . .
     1         3        2  . 1 2
     2         1        1  . 1 .";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn of_many_clients_the_first_are_shown() {
        let clients: Vec<Vec<u32>> =
            (0..25).map(|client| vec![client % 8; 1 + client as usize / 24]).collect();
        let table = ClassTable::new(&Dealt { clients, unused: vec![] }, &LABELS, 3).to_string();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[..2], ["25 clients, 26 examples", "examples per client: 1 to 2, median 1"]);
        assert_eq!((lines.len(), lines[14]), (3 + 1 + 10 + 1, "and 15 more clients"));
    }

    #[test]
    fn many_classes_have_no_columns() {
        let dealt = Dealt { clients: vec![vec![0, 1], vec![2]], unused: vec![] };
        let table = ClassTable::new(&dealt, &LABELS, 62);
        assert_eq!(table.to_string().lines().last(), Some("     1         1        1 "));
        assert_eq!(table.size_spread(), Some(Spread { min: 1, median: 1.5, max: 2 }));
    }

    #[test]
    fn nothing_is_shown_as_nothing() {
        let table = ClassTable::new(&Dealt { clients: vec![], unused: vec![] }, &LABELS, 3);
        assert_eq!((table.to_string().as_str(), table.size_spread()), ("0 clients, 0 examples", None));
    }
}
