//! Tests that hold every rule against what its paper says, on random labels and on MNIST.

use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::data::{Features, Groups};

/// A data set with MNIST's training labels, and groups by the number of the example.
static MNIST: LazyLock<Dataset> = LazyLock::new(|| {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/mnist");
    labelled(crate::data::load(Path::new(folder)).unwrap().train.labels().to_vec(), 10, 100)
});

fn labelled(labels: Vec<u32>, classes: usize, groups: u32) -> Dataset {
    let of_example = (0..labels.len() as u32).map(|example| example % groups).collect();
    let names = (0..groups).map(|group| format!("writer {group}")).collect();
    Dataset::new(Features::Bytes(vec![0; labels.len()]), labels, classes).with_groups(Groups {
        column: "writer".into(),
        of_example,
        names,
    })
}

fn dealt(text: &str, seed: u64, train: &Dataset, clients: u32) -> Result<Dealt, String> {
    deal(&text.parse().unwrap(), seed, train, clients).map_err(|error| error.to_string())
}

fn table(dealt: &Dealt, train: &Dataset) -> ClassTable {
    ClassTable::new(dealt, train.labels(), train.classes())
}

/// Every rule, with numbers that 100 clients can share MNIST by.
const RULES: [&str; 10] = [
    "iid",
    "shards:2",
    "shards:3",
    "dirichlet:0.3",
    "dirichlet:100",
    "dirichlet-class:0.5",
    "lognormal:1.5",
    "labels:2",
    "labels:10",
    "column:writer",
];

fn assert_complete(dealt: &Dealt, examples: usize) {
    let mut all = [dealt.clients.concat(), dealt.unused.clone()].concat();
    all.sort_unstable();
    assert_eq!(all, (0..examples as u32).collect::<Vec<_>>());
    assert!(dealt.clients.iter().all(|own| !own.is_empty()));
    assert!(dealt.unused.is_sorted());
}

proptest! {
    #[test]
    fn nothing_is_lost_or_doubled(
        seed: u64, labels in prop::collection::vec(0_u32..7, 1..400), clients in 1_u32..30, rule in 0..RULES.len(),
    ) {
        let train = labelled(labels, 7, clients);
        prop_assume!(train.len() >= clients as usize);
        let first = dealt(RULES[rule], seed, &train, clients);
        prop_assert_eq!(&first, &dealt(RULES[rule], seed, &train, clients));
        if let Ok(first) = first {
            prop_assert_eq!(first.clients.len(), clients as usize);
            assert_complete(&first, train.len());
            if rule > 0 {
                prop_assert!(first.clients.iter().all(|own| own.is_sorted()));
            }
        } else {
            // Where there are enough examples for everybody, only these can be impossible.
            prop_assert!(matches!(rule, 1 | 2 | 5 | 7 | 8), "{:?}", first);
        }
    }
}

#[test]
fn every_rule_deals_mnist_by_the_seed() {
    for rule in RULES {
        let [one, again, other] = [1, 1, 2].map(|seed| dealt(rule, seed, &MNIST, 100).unwrap());
        assert_complete(&one, 60_000);
        assert_eq!(one, again, "{rule}");
        assert_eq!(one == other, rule == "column:writer", "{rule}");
    }
}

/// Two machines, and two versions of this program, must deal alike. A number that changes here changes every run.
#[test]
fn every_rule_deals_as_it_always_did() {
    let found = RULES.map(|rule| {
        let dealt = dealt(rule, 1, &MNIST, 100).unwrap();
        let words =
            dealt.clients.iter().flat_map(|own| std::iter::once(own.len() as u32).chain(own.iter().copied()));
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        (rule, xxhash_rust::xxh3::xxh3_64(&bytes))
    });
    let expected = [
        ("iid", 14623908483005153675),
        ("shards:2", 1410031870496482878),
        ("shards:3", 3157217810362664689),
        ("dirichlet:0.3", 13965193811363160432),
        ("dirichlet:100", 2518738112781665759),
        ("dirichlet-class:0.5", 16060239236355405996),
        ("lognormal:1.5", 1799580258692740693),
        ("labels:2", 4321594692261955399),
        ("labels:10", 3798970248893969523),
        ("column:writer", 3686452648525169249),
    ];
    assert_eq!(found, expected);
}

#[test]
fn iid_deals_as_it_always_did() {
    let dealt = dealt("iid", 3, &MNIST, 7).unwrap();
    assert_eq!(dealt.clients, deal_iid(3, 60_000, 7));
}

#[test]
fn two_shards_of_mnist_have_six_hundred_examples_and_mostly_two_digits() {
    let dealt = dealt("shards:2", 1, &MNIST, 100).unwrap();
    let table = table(&dealt, &MNIST);
    assert_eq!(table.sizes(), [600; 100]);
    let spread = table.class_spread().unwrap();
    assert!(spread.max <= 4 && spread.median == 2.0, "{spread}");
}

/// The mean over clients of the sum of squared class shares, averaged over this many seeds.
fn concentration(rule: &str, clients: u32, seeds: u64) -> f64 {
    let of_client = |row: &[u32]| {
        let size = f64::from(row.iter().sum::<u32>());
        row.iter().map(|&count| (f64::from(count) / size).powi(2)).sum::<f64>()
    };
    let of_seed =
        |seed| table(&dealt(rule, seed, &MNIST, clients).unwrap(), &MNIST).rows().map(of_client).sum::<f64>();
    (0..seeds).map(of_seed).sum::<f64>() / (seeds as f64 * f64::from(clients))
}

/// Both Dirichlet rules were written a second time, in plain Python with its own generator (`random.gammavariate`); the
/// expected values are means over 6 to 200 of its draws, with standard errors of at most 0.006.
#[test]
fn dirichlet_rules_are_as_skewed_as_a_second_writing_of_them() {
    let expected = [
        ("dirichlet-class:0.1", 10, 100, 0.5342, 0.03),
        ("dirichlet-class:0.5", 10, 100, 0.2628, 0.01),
        ("dirichlet-class:0.5", 100, 10, 0.2963, 0.015),
        ("dirichlet:0.3", 100, 10, 0.8000, 0.02),
        ("dirichlet:1", 100, 10, 0.5781, 0.02),
        ("dirichlet:10", 100, 10, 0.2002, 0.012),
    ];
    for (rule, clients, seeds, expected, bound) in expected {
        let found = concentration(rule, clients, seeds);
        assert!(
            (found - expected).abs() < bound,
            "{rule} with {clients} clients: {found}, expected {expected}"
        );
    }
}

#[test]
fn a_small_dirichlet_alpha_leaves_few_digits_and_a_large_one_the_prior() {
    let few = table(&dealt("dirichlet:0.1", 1, &MNIST, 70).unwrap(), &MNIST);
    assert_eq!((few.sizes(), few.unused()), (vec![857; 70], 10));
    let many = table(&dealt("dirichlet:1000000", 1, &MNIST, 100).unwrap(), &MNIST);
    assert!(few.class_spread().unwrap().median < 5.0, "{few}");
    // Digit 1 has 6,742 of 60,000 examples: 67 of 600 are expected, with a deviation of 7.7 at most.
    // The last clients have what the others left, whatever they would draw.
    assert!(many.rows().take(80).all(|row| (67_i64 - i64::from(row[1])).abs() < 40), "{many}");
}

#[test]
fn a_dirichlet_class_has_at_least_ten_examples_for_everybody() {
    for rule in ["dirichlet-class:0.1", "dirichlet-class:0.5"] {
        let table = table(&dealt(rule, 1, &MNIST, 10).unwrap(), &MNIST);
        assert!(table.size_spread().unwrap().min >= 10, "{table}");
        assert!(table.class_spread().unwrap().min < 10, "{table}");
    }
    assert_eq!(
        dealt("dirichlet-class:0.0001", 1, &MNIST, 100).unwrap_err(),
        "partition dirichlet-class:0.0001: in 1000 draws the smallest of 100 clients never had more than 0 examples, and \
         10 are required; use fewer clients or a larger number"
    );
}

#[test]
fn lognormal_sizes_sum_to_all_examples() {
    let table = table(&dealt("lognormal:2", 1, &MNIST, 1000).unwrap(), &MNIST);
    let spread = table.size_spread().unwrap();
    assert_eq!(table.sizes().iter().sum::<u64>(), 60_000);
    assert!(spread.min >= 1 && spread.max > 2000 && spread.median < 20.0, "{spread}");
}

#[test]
fn labels_are_owned_by_as_many_clients_as_there_are_places() {
    let few = table(&dealt("labels:2", 1, &MNIST, 100).unwrap(), &MNIST);
    assert_eq!(few.class_spread(), Some(Spread { min: 2, median: 2.0, max: 2 }));
    let fewer = table(&dealt("labels:3", 1, &MNIST, 4).unwrap(), &MNIST);
    assert_eq!(fewer.class_spread(), Some(Spread { min: 3, median: 3.0, max: 3 }));
    let error = |rule, clients| dealt(rule, 1, &MNIST, clients).unwrap_err();
    assert_eq!(
        error("labels:3", 3),
        "partition labels:3: 3 clients own at most 9 labels, and the training examples have 10; use at least 4 clients or \
         labels:4"
    );
    assert_eq!(
        error("labels:11", 3),
        "partition labels:11: the training examples have 10 labels; at most labels:10 is possible"
    );
    // Label 1 has one example and two owners, who have nothing else.
    let rare = labelled(vec![0, 0, 0, 1], 2, 1);
    assert_eq!(
        dealt("labels:1", 1, &rare, 4).unwrap_err(),
        "partition labels:1 leaves client 3 of 4 without examples; use fewer clients"
    );
}

#[test]
fn what_is_impossible_is_said_before_anything_is_dealt() {
    let error = |rule, clients| dealt(rule, 1, &MNIST, clients).unwrap_err();
    assert!(error("iid", 60_001).starts_with("60001 clients cannot share 60000 training examples"));
    assert!(error("column:writer", 99).starts_with("column writer has 100 distinct values"));
    assert_eq!(error("own", 1), "partition own deals nothing: each worker's data is wholly its one client's");
    assert_eq!(Dealt::whole(3).clients, [[0, 1, 2]]);
}
