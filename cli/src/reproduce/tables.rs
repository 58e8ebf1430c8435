//! Lists the cells of the tables of McMahan et al. 2017 ("Communication-Efficient Learning of Deep Networks from
//! Decentralized Data") that concern MNIST, with the rounds that the paper gives.

use crate::flags::Rows;

/// One experiment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) model: &'static str,
    /// Test accuracy to reach.
    pub(super) target: f64,
    /// C, the share of clients in a round; 0 is one client.
    pub(super) fraction: f64,
    /// E, a client's passes in a round.
    pub(super) passes: u32,
    /// B, a client's batch; none is all of its data.
    pub(super) batch: Option<u32>,
    pub(super) partition: &'static str,
    /// Rounds in the paper; none where it did not reach the target in its time.
    pub(super) paper: Option<u64>,
}

impl Row {
    /// What it is, for people.
    pub(super) fn name(&self) -> String {
        let batch = self.batch.map_or("inf".to_owned(), |b| b.to_string());
        let Self { model, fraction, passes, partition, .. } = self;
        format!("{model} E={passes} B={batch} C={fraction} {partition}")
    }

    pub(super) fn folder(&self) -> String {
        self.name().replace([' ', '=', ':'], "-")
    }

    fn value(&self, name: &str) -> Option<String> {
        Some(match name {
            "C" => self.fraction.to_string(),
            "E" => self.passes.to_string(),
            "B" => self.batch.map_or("inf".to_owned(), |b| b.to_string()),
            "partition" => self.partition.to_owned(),
            _ => return None,
        })
    }
}

/// The cells of a table that fit all of the conditions `NAME=VALUE`.
pub(super) fn rows(table: u32, rows: Rows, conditions: &[String]) -> Result<Vec<Row>, String> {
    let all = match (table, rows) {
        (1, Rows::TwoNn) => by_fraction("2nn", 0.97, 1, &TWO_NN_BY_FRACTION),
        (1, Rows::Cnn) => by_fraction("cnn", 0.99, 5, &CNN_BY_FRACTION),
        (2, _) => by_work("cnn", 0.99, &CNN_BY_WORK),
        (4, _) => by_work("2nn", 0.97, &TWO_NN_BY_WORK),
        _ => return Err(format!("--table is {table}; tables 1, 2 and 4 concern MNIST")),
    };
    let mut found = all;
    for condition in conditions {
        let wrong =
            || format!("--cell {condition:?} is no condition; write C=0.1, E=1, B=10 or partition=iid");
        let (name, value) = condition.split_once('=').ok_or_else(wrong)?;
        // Written 0.10 or 1.0 it is the same number.
        let same = |found: &str| match (found.parse::<f64>(), value.parse::<f64>()) {
            (Ok(a), Ok(b)) => a == b,
            _ => found == value,
        };
        if found.first().is_some_and(|row| row.value(name).is_none()) {
            return Err(wrong());
        }
        found.retain(|row| row.value(name).is_some_and(|found| same(&found)));
    }
    match found.is_empty() {
        true => Err(format!("table {table} has no cell with {}", conditions.join(", "))),
        false => Ok(found),
    }
}

/// Table 1: C, then rounds for IID data with B = inf and B = 10, and for shards:2 with the same.
type ByFraction = (f64, [Option<u64>; 4]);

const TWO_NN_BY_FRACTION: [ByFraction; 5] = [
    (0.0, [Some(1455), Some(316), Some(4278), Some(3275)]),
    (0.1, [Some(1474), Some(87), Some(1796), Some(664)]),
    (0.2, [Some(1658), Some(77), Some(1528), Some(619)]),
    (0.5, [None, Some(75), None, Some(443)]),
    (1.0, [None, Some(70), None, Some(380)]),
];

const CNN_BY_FRACTION: [ByFraction; 5] = [
    (0.0, [Some(387), Some(50), Some(1181), Some(956)]),
    (0.1, [Some(339), Some(18), Some(1100), Some(206)]),
    (0.2, [Some(337), Some(18), Some(978), Some(200)]),
    (0.5, [Some(164), Some(18), Some(1067), Some(261)]),
    (1.0, [Some(246), Some(16), None, Some(97)]),
];

/// Tables 2 and 4: E, B, then rounds for IID data and for shards:2; C is 0.1.
type ByWork = (u32, Option<u32>, [u64; 2]);

const CNN_BY_WORK: [ByWork; 9] = [
    (1, None, [626, 483]),
    (5, None, [179, 1000]),
    (1, Some(50), [65, 600]),
    (20, None, [234, 672]),
    (1, Some(10), [34, 350]),
    (5, Some(50), [29, 334]),
    (20, Some(50), [32, 426]),
    (5, Some(10), [20, 229]),
    (20, Some(10), [18, 173]),
];

const TWO_NN_BY_WORK: [ByWork; 9] = [
    (1, None, [1468, 1817]),
    (10, None, [156, 1100]),
    (1, Some(50), [144, 1183]),
    (20, None, [92, 957]),
    (1, Some(10), [92, 831]),
    (10, Some(50), [45, 881]),
    (20, Some(50), [39, 835]),
    (10, Some(10), [34, 497]),
    (20, Some(10), [32, 738]),
];

fn by_fraction(model: &'static str, target: f64, passes: u32, cells: &[ByFraction]) -> Vec<Row> {
    let columns = [(None, "iid"), (Some(10), "iid"), (None, "shards:2"), (Some(10), "shards:2")];
    let row = |(fraction, rounds): &ByFraction| {
        let fraction = *fraction;
        let cell = move |((batch, partition), &paper): ((Option<u32>, &'static str), &Option<u64>)| Row {
            model,
            target,
            fraction,
            passes,
            batch,
            partition,
            paper,
        };
        columns.into_iter().zip(rounds).map(cell).collect::<Vec<_>>()
    };
    cells.iter().flat_map(row).collect()
}

fn by_work(model: &'static str, target: f64, cells: &[ByWork]) -> Vec<Row> {
    let row = |&(passes, batch, rounds): &ByWork| {
        let cell = move |(partition, rounds): (&'static str, u64)| Row {
            model,
            target,
            fraction: 0.1,
            passes,
            batch,
            partition,
            paper: Some(rounds),
        };
        ["iid", "shards:2"].into_iter().zip(rounds).map(cell)
    };
    cells.iter().flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(table: u32, conditions: &[&str]) -> Result<Vec<Row>, String> {
        let conditions: Vec<String> = conditions.iter().map(|c| (*c).to_owned()).collect();
        rows(table, Rows::TwoNn, &conditions)
    }

    #[test]
    fn cells_are_found_by_what_they_are() {
        let one = found(1, &["C=0.1", "B=10", "partition=iid"]).unwrap();
        assert_eq!((one.len(), one[0].paper, one[0].passes), (1, Some(87), 1));
        assert_eq!(found(1, &["C=1", "B=10", "partition=iid"]).unwrap()[0].paper, Some(70));
        assert_eq!(found(1, &["C=0.1", "B=10", "partition=shards:2"]).unwrap()[0].paper, Some(664));
        assert_eq!(found(4, &["E=1", "B=10"]).unwrap()[0].paper, Some(92));
        assert_eq!(found(2, &["E=5", "B=10"]).unwrap()[0].name(), "cnn E=5 B=10 C=0.1 iid");
        assert_eq!(found(1, &[]).unwrap().len(), 20);
        assert_eq!(found(2, &[]).unwrap().len(), 18);
    }

    #[test]
    fn what_is_not_there_is_said() {
        assert!(found(3, &[]).unwrap_err().contains("tables 1, 2 and 4"));
        assert!(found(1, &["C=0.3"]).unwrap_err().contains("no cell with C=0.3"));
        assert!(found(1, &["rate=0.1"]).unwrap_err().contains("is no condition"));
    }
}
