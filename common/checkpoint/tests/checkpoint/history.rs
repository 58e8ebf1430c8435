//! Which checkpoints there are and which may go.

use std::sync::Arc;

use windlass_checkpoint::faults::FaultyStore;
use windlass_checkpoint::{
    Contents, Damage, Pruner, Skipped, Store, Summary, list, manifest_file, newest, prune, shard_file,
};

use crate::support::{Watched, holding, small, write, write_shards};

fn of(numbers: &[u64]) -> Arc<FaultyStore> {
    holding(numbers.iter().copied(), &small())
}

fn numbers(store: &FaultyStore) -> Vec<u64> {
    list(store).unwrap().into_iter().map(|listed| listed.number).collect()
}

#[test]
fn the_list_tells_what_manifests_tell() {
    let store = of(&[1, 2, 3, 100_000_000]);
    write_shards(&*store, 7, &small()).unwrap();
    store.tamper(&manifest_file(2), |bytes| bytes[0] = b'W');
    store.delete(&shard_file(3, 1)).unwrap();
    store.put("checkpoint-9/manifest", &[b"not ours"]).unwrap();
    store.put("notes/manifest", &[b"not ours"]).unwrap();
    let listed = list(&*store).unwrap();
    let bytes = (0..2).map(|shard| store.files()[&shard_file(1, shard)].len() as u64).sum();
    let summary = Summary {
        files: 2,
        bytes,
        at_us: 1_700_000_000_000_001,
        lineage: 2,
        examples: 100,
        steps: 10,
        rounds: 1,
    };
    assert_eq!((listed[0].number, &listed[0].contents), (1, &Contents::Complete(summary)));
    assert!(
        matches!(&listed[1].contents, Contents::Damaged(Damage::Malformed { file, .. }) if *file == manifest_file(2))
    );
    assert_eq!(listed[2].contents, Contents::Damaged(Damage::Missing { file: shard_file(3, 1) }));
    assert_eq!((listed[3].number, &listed[3].contents), (7, &Contents::Unfinished { files: 2 }));
    assert_eq!(listed.iter().map(|listed| listed.number).collect::<Vec<_>>(), [1, 2, 3, 7, 100_000_000]);
    let shared: Arc<dyn Store> = store;
    assert_eq!(newest(&shared).unwrap().0.unwrap().manifest().number, 100_000_000);
}

#[test]
fn a_folder_without_a_manifest_is_not_told_of() {
    let store = of(&[1]);
    write_shards(&*store, 2, &small()).unwrap();
    let shared: Arc<dyn Store> = store;
    let (found, skipped) = newest(&shared).unwrap();
    assert_eq!((found.unwrap().manifest().number, skipped), (1, vec![]));
    let empty: Arc<dyn Store> = Arc::new(FaultyStore::new(0));
    assert!(matches!(newest(&empty), Ok((None, skipped)) if skipped.is_empty()));
}

#[test]
fn those_that_are_passed_over_are_named_the_newest_first() {
    let store = of(&[1, 2, 3, 4]);
    store.tamper(&shard_file(4, 0), |bytes| bytes.truncate(100));
    let length = store.files()[&shard_file(3, 0)].len() as u64;
    store.delete(&shard_file(3, 1)).unwrap();
    let shared: Arc<dyn Store> = store;
    let (found, skipped) = newest(&shared).unwrap();
    assert_eq!(found.unwrap().manifest().number, 2);
    let cut = Damage::Length { file: shard_file(4, 0), found: 100, right: length };
    let missing = Damage::Missing { file: shard_file(3, 1) };
    assert_eq!(skipped, [Skipped { number: 4, why: cut.clone() }, Skipped { number: 3, why: missing }]);
    assert_eq!(
        cut.to_string(),
        format!("checkpoint-00000004/shard-000.safetensors has 100 bytes, right are {length}")
    );
}

#[test]
fn only_sound_ones_count_as_kept() {
    let pruned = |keep, running| {
        let store = of(&[1, 2, 3, 5, 6]);
        write_shards(&*store, 4, &small()).unwrap();
        store.tamper(&shard_file(2, 0), |bytes| bytes[280] ^= 1);
        store.tamper(&shard_file(6, 0), |bytes| bytes[280] ^= 1);
        let shared: Arc<dyn Store> = store.clone();
        let gone = prune(&shared, keep, running).unwrap();
        let left = numbers(&store);
        assert!([&gone[..], &left].concat().len() == 6, "{gone:?} {left:?}");
        (gone, left)
    };
    // 6 and 2 are damaged, 4 is unfinished.
    assert_eq!(pruned(1, None), (vec![1, 2, 3, 4], vec![5, 6]));
    assert_eq!(pruned(2, None), (vec![1, 2, 4], vec![3, 5, 6]));
    assert_eq!(pruned(3, None), (vec![4], vec![1, 2, 3, 5, 6]));
    assert_eq!(pruned(9, None), (vec![4], vec![1, 2, 3, 5, 6]));
    assert_eq!(pruned(0, None), pruned(1, None));
    // What is being written is left alone, and what is newer.
    assert_eq!(pruned(1, Some(4)), (vec![1, 2], vec![3, 4, 5, 6]));
    assert_eq!(pruned(2, Some(7)), (vec![1, 2, 4], vec![3, 5, 6]));
}

#[test]
fn a_pruner_reads_no_checkpoint_twice_and_none_that_it_knows() {
    let watched = Watched::new();
    let store: Arc<dyn Store> = watched.clone();
    let mut pruner = Pruner::default();
    for number in 1..=2 {
        write(&*store, number, &small()).unwrap();
    }
    pruner.prune(&store, 2, None).unwrap();
    let shards = |reads: std::collections::BTreeMap<String, u32>| {
        reads.keys().filter(|file| !file.ends_with("manifest")).count()
    };
    assert_eq!(shards(watched.take()), 4);
    for number in 3..=6 {
        write(&*store, number, &small()).unwrap();
        pruner.written(number);
        assert_eq!(pruner.prune(&store, 2, None).unwrap(), [number - 2]);
        assert_eq!(shards(watched.take()), 0);
    }
    // A file that goes is noticed all the same.
    store.delete(&shard_file(6, 0)).unwrap();
    write(&*store, 7, &small()).unwrap();
    pruner.written(7);
    assert_eq!(pruner.prune(&store, 2, None).unwrap(), [0_u64; 0]);
    assert_eq!(numbers(&watched.store), [5, 6, 7]);
}
