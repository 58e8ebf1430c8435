//! Whatever is torn, the newest checkpoint that is found is the newest whose files are all whole, byte for byte.

use std::collections::BTreeMap;
use std::sync::Arc;

use windlass_checkpoint::faults::{Fault, FaultyStore};
use windlass_checkpoint::{
    Checkpoint, Contents, Damage, Kind, Store, StoreError, folder, list, manifest_file, newest, prune,
};
use windlass_common::rng::{Purpose, Rng};

use crate::support::{Cut, Watched, assert_holds, bits, cut, floats, holding, small, write};

const CHECKPOINTS: u64 = 6;

fn cuts() -> Vec<Cut> {
    small().into_iter().chain([cut(2, "c", 0, 3)]).collect()
}

/// The files of each checkpoint when nothing goes wrong.
fn whole() -> BTreeMap<u64, BTreeMap<String, Vec<u8>>> {
    let of = |number| {
        let store = FaultyStore::new(0);
        write(&store, number, &cuts()).unwrap();
        (number, store.files())
    };
    (1..=CHECKPOINTS).map(of).collect()
}

/// What must be found: looks at the bytes alone.
fn oracle(store: &FaultyStore, whole: &BTreeMap<u64, BTreeMap<String, Vec<u8>>>) -> (Option<u64>, Vec<u64>) {
    let found = store.files();
    let is_whole = |number: &u64| whole[number].iter().all(|(name, bytes)| found.get(name) == Some(bytes));
    let sound = (1..=CHECKPOINTS).rev().find(is_whole);
    let newer = sound.map_or(0, |sound| sound + 1)..=CHECKPOINTS;
    (sound, newer.rev().filter(|&number| found.contains_key(&manifest_file(number))).collect())
}

fn found(store: &Arc<FaultyStore>) -> (Option<Checkpoint>, Vec<u64>) {
    let shared: Arc<dyn Store> = store.clone();
    let (found, skipped) = newest(&shared).unwrap();
    (found, skipped.into_iter().map(|skipped| skipped.number).collect())
}

fn assert_right(
    store: &Arc<FaultyStore>,
    whole: &BTreeMap<u64, BTreeMap<String, Vec<u8>>>,
    seed: u64,
) -> Option<u64> {
    let (checkpoint, skipped) = found(store);
    let number = checkpoint.as_ref().map(|checkpoint| checkpoint.manifest().number);
    assert_eq!((number, skipped), oracle(store, whole), "seed {seed}");
    if let Some(checkpoint) = checkpoint {
        assert_holds(&checkpoint, &cuts());
    }
    number
}

#[test]
fn the_newest_whole_checkpoint_is_found_whatever_is_torn() {
    let whole = whole();
    let mut seen = BTreeMap::new();
    for seed in 0..3000 {
        let store = Arc::new(FaultyStore::new(seed));
        for (fault, per_thousand) in
            [(Fault::Full, 30), (Fault::ReadOnly, 20), (Fault::Torn, 60), (Fault::LostSync, 150)]
        {
            store.set_rate(fault, per_thousand);
        }
        let mut rng = Rng::new(seed, Purpose::Disturbance);
        // The newest that was written without a fault since the last crash, or before it without a lost sync.
        let mut safe = None;
        for number in 1..=CHECKPOINTS {
            let lost = |store: &FaultyStore| store.befallen().get(&Fault::LostSync).copied().unwrap_or(0);
            let before = lost(&store);
            if write(&*store, number, &cuts()).is_ok() && lost(&store) == before {
                safe = Some(number);
            }
            if rng.below(4) == 0 {
                store.crash();
            }
            let number = assert_right(&store, &whole, seed);
            assert!(number >= safe, "seed {seed}: {safe:?} was durable, {number:?} is found");
        }
        store.crash();
        assert!(assert_right(&store, &whole, seed) >= safe, "seed {seed}");
        for (fault, times) in store.befallen() {
            *seen.entry(format!("{fault:?}")).or_insert(0) += times;
        }
        let (sound, skipped) = oracle(&store, &whole);
        *seen.entry(format!("sound {}", sound.is_some())).or_insert(0) += 1;
        *seen.entry(format!("skipped {}", skipped.len().min(2))).or_insert(0) += 1;
    }
    // Otherwise this has shown nothing.
    for case in ["Full", "ReadOnly", "Torn", "LostSync", "sound true", "skipped 0", "skipped 1", "skipped 2"]
    {
        assert!(seen.get(case).is_some_and(|&times| times >= 20), "{case}: {seen:?}");
    }
}

#[test]
fn one_seed_gives_one_outcome() {
    let play = |seed: u64| {
        let store = FaultyStore::new(seed);
        Fault::ALL.iter().for_each(|&fault| store.set_rate(fault, 150));
        let mut told = Vec::new();
        for number in 1..=CHECKPOINTS {
            told.push(write(&store, number, &cuts()).map_err(|error| error.to_string()));
            store.crash();
        }
        let read: Vec<Result<Vec<u8>, StoreError>> =
            store.files().keys().map(|file| store.read(file)).collect();
        (told, read, store.files(), store.befallen())
    };
    for seed in 0..50 {
        assert_eq!(play(seed), play(seed), "seed {seed}");
    }
    assert!((0..50).any(|seed| play(seed) != play(seed + 1)));
}

#[test]
fn a_bit_that_flips_on_its_way_gives_no_wrong_value() {
    let mut noticed = 0;
    for seed in 0..300 {
        let store = Arc::new(FaultyStore::new(seed));
        write(&*store, 1, &cuts()).unwrap();
        let shared: Arc<dyn Store> = store.clone();
        let checkpoint = Checkpoint::open(&shared, 1).unwrap();
        store.set_rate(Fault::FlippedBit, 500);
        for cut in cuts() {
            let mut out = vec![0.0; cut.len as usize];
            match checkpoint.read(&cut.variable, Kind::Values, cut.start, &mut out) {
                Ok(_) => {
                    assert_eq!(bits(&out), bits(&floats(1, &cut.variable, Kind::Values, cut.start, cut.len)))
                }
                Err(damage) => {
                    assert!(matches!(damage, Damage::Checksum { .. }), "{damage}");
                    noticed += 1;
                }
            }
        }
        if let (Some(checkpoint), _) = newest(&shared).unwrap() {
            store.heal();
            assert_holds(&checkpoint, &cuts());
        }
    }
    assert!(noticed > 100, "{noticed}");
}

#[test]
fn each_fault_does_what_it_says() {
    let store = FaultyStore::new(3);
    let failed = |result: Result<(), StoreError>| match result {
        Err(StoreError::Failed { kind, .. }) => kind,
        other => panic!("{other:?}"),
    };
    store.script(Fault::Full);
    assert_eq!(failed(store.put("a/b", &[b"x"])), std::io::ErrorKind::StorageFull);
    assert!(store.files().is_empty());
    store.put("a/b", &[b"old"]).unwrap();
    store.script(Fault::ReadOnly);
    assert_eq!(failed(store.delete("a/b")), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(store.read("a/b").unwrap(), b"old");
    store.script(Fault::Torn);
    failed(store.put("a/b", &[b"n", b"ew"]));
    assert!([&b""[..], b"n", b"ne"].contains(&&*store.read("a/b").unwrap()));
    // A script waits for an operation that its fault can befall.
    store.script(Fault::FlippedBit);
    store.put("a/b", &[b"whole"]).unwrap();
    let read = store.read("a/b").unwrap();
    let flipped: u32 = read.iter().zip(b"whole").map(|(a, b)| (a ^ b).count_ones()).sum();
    assert_eq!(flipped, 1);
    assert_eq!(store.read("a/b").unwrap(), b"whole");
    store.script(Fault::Unreadable);
    assert!(store.list().is_err());
}

#[test]
fn a_crash_keeps_what_was_synchronised_and_takes_the_rest_in_any_order() {
    let mut outcomes = BTreeMap::new();
    for seed in 0..400 {
        let store = FaultyStore::new(seed);
        store.put("a/first", &[b"old"]).unwrap();
        store.script(Fault::LostSync);
        store.put("a/first", &[b"new!"]).unwrap();
        store.script(Fault::LostSync);
        store.put("a/later", &[b"later"]).unwrap();
        store.put("a/safe", &[b"safe"]).unwrap();
        store.script(Fault::LostSync);
        store.delete("a/safe").unwrap();
        store.put("a/last", &[b"last"]).unwrap();
        assert_eq!(store.read("a/first").unwrap(), b"new!");
        store.crash();
        let files = store.files();
        assert_eq!(files["a/last"], b"last");
        let first = &files["a/first"];
        assert!(first == b"old" || b"new!".starts_with(first), "{first:?}");
        let kind = |file: Option<&Vec<u8>>, whole: &[u8]| match file {
            None => "lost",
            Some(bytes) if bytes == whole => "kept",
            Some(bytes) if whole.starts_with(bytes) => "cut",
            Some(_) => "older",
        };
        let outcome = (
            kind(files.get("a/first"), b"new!"),
            kind(files.get("a/later"), b"later"),
            kind(files.get("a/safe"), b"safe"),
        );
        *outcomes.entry(outcome).or_insert(0) += 1;
        // What was decided stays so.
        store.crash();
        assert_eq!(store.files(), files);
    }
    for outcome in [
        ("older", "kept", "kept"),
        ("kept", "lost", "lost"),
        ("cut", "kept", "lost"),
        ("kept", "cut", "kept"),
    ] {
        assert!(outcomes.contains_key(&outcome), "{outcome:?} of {outcomes:?}");
    }
    assert!(!outcomes.keys().any(|(.., safe)| *safe == "cut"), "{outcomes:?}");
}

#[test]
fn a_pruning_that_fails_anywhere_leaves_none_half_there() {
    for fails_at in 0..8 {
        let store = holding(1..=4, &cuts());
        let shared: Arc<dyn Store> = Watched::failing(store.clone(), Fault::ReadOnly, fails_at);
        assert!(prune(&shared, 2, None).is_err(), "{fails_at}");
        for listed in list(&*store).unwrap() {
            assert!(!matches!(listed.contents, Contents::Damaged(_)), "{listed:?}");
        }
        assert_eq!(found(&store).0.unwrap().manifest().number, 4);
        // The next one ends it.
        let shared: Arc<dyn Store> = store.clone();
        prune(&shared, 2, None).unwrap();
        let numbers: Vec<u64> = list(&*store).unwrap().into_iter().map(|listed| listed.number).collect();
        assert_eq!(numbers, [3, 4]);
    }
}

#[test]
fn a_pruning_that_a_crash_undoes_in_part_hides_no_checkpoint() {
    let whole = whole();
    for seed in 0..300 {
        let store = Arc::new(FaultyStore::new(seed));
        (1..=4).for_each(|number| write(&*store, number, &cuts()).unwrap());
        store.set_rate(Fault::LostSync, 700);
        let shared: Arc<dyn Store> = store.clone();
        assert_eq!(prune(&shared, 1, None).unwrap(), [1, 2, 3]);
        store.crash();
        assert_eq!(assert_right(&store, &whole, seed), Some(4));
        store.heal();
        prune(&shared, 1, None).unwrap();
        assert!(store.files().keys().all(|file| file.starts_with(&folder(4))), "seed {seed}");
    }
}
