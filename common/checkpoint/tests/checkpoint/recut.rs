//! Values that were written in some slices are read back in any others.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use windlass_checkpoint::{
    Checkpoint, Kind, LeftPart, Request, SlicePart, Store, folder, write_manifest, write_shard,
};

use crate::support::{Cut, STATES, Watched, assert_holds, bits, floats, manifest, write};

/// Cuts a variable at these places and gives each piece a shard and a number of updates.
fn pieces(variable: &str, len: u64, places: &[u64], shards: &[u32]) -> Vec<Cut> {
    let mut ends: Vec<u64> = places.iter().map(|place| 1 + place % len).chain([len]).collect();
    ends.sort_unstable();
    ends.dedup();
    let mut start = 0;
    let mut cuts = Vec::new();
    for (i, end) in ends.into_iter().enumerate() {
        let shard = shards[i % shards.len()];
        let updates = u64::from(shard) + 1 + end % 3;
        cuts.push(Cut { shard, variable: variable.into(), start, len: end - start, updates });
        start = end;
    }
    cuts
}

/// Length, where it is cut for writing, where for reading, and whose the pieces are.
type Plan = (u64, Vec<u64>, Vec<u64>, Vec<u32>);

fn variables() -> impl Strategy<Value = Vec<Plan>> {
    let places = || prop::collection::vec(any::<u64>(), 0..9);
    let shards = prop::collection::vec(0..5_u32, 1..9);
    prop::collection::vec((1..400_u64, places(), places(), shards), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_cut_reads_what_any_other_wrote(variables in variables()) {
        let names: Vec<String> = (0..variables.len()).map(|i| format!("layer{i}/weight")).collect();
        let written: Vec<Cut> = names
            .iter()
            .zip(&variables)
            .flat_map(|(name, (len, write, _, shards))| pieces(name, *len, write, shards))
            .collect();
        let watched = Watched::new();
        let store: Arc<dyn Store> = watched.clone();
        write(&*store, 12, &written).unwrap();
        let checkpoint = Checkpoint::open(&store, 12).unwrap();
        prop_assert_eq!(checkpoint.verify(), Ok(()));
        prop_assert!(watched.take().values().all(|&reads| reads == 1));
        let lengths: Vec<(&str, u64)> = names.iter().zip(&variables).map(|(name, v)| (name.as_str(), v.0)).collect();
        prop_assert_eq!(checkpoint.manifest().fits(lengths), Ok(()));

        // Another cut, one slice at a time.
        let mut asked = Vec::new();
        for (name, (len, _, read, shards)) in names.iter().zip(&variables) {
            for cut in pieces(name, *len, read, shards) {
                let end = cut.start + cut.len;
                let of = |w: &&Cut| w.variable == *name && w.start < end && cut.start < w.start + w.len;
                let updates = written.iter().filter(of).map(|w| w.updates).min().unwrap();
                for kind in [Kind::Values, Kind::State(STATES[0]), Kind::State(STATES[1])] {
                    let right = floats(12, name, kind, cut.start, cut.len);
                    let mut out = vec![0.0; cut.len as usize];
                    prop_assert_eq!(checkpoint.read(name, kind, cut.start, &mut out), Ok(updates));
                    prop_assert_eq!(bits(&out), bits(&right));
                    asked.push((name, kind, cut.start, right, updates));
                }
            }
        }

        // The same in one go: each file is read once at most, and no other is.
        checkpoint.release();
        watched.take();
        let mut outs: Vec<Vec<f32>> = asked.iter().map(|a| vec![0.0; a.3.len()]).collect();
        let mut requests: Vec<Request<'_>> = asked
            .iter()
            .zip(&mut outs)
            .map(|(&(variable, kind, start, ..), out)| Request { variable, kind, start, out, updates: 0 })
            .collect();
        checkpoint.read_all(&mut requests).unwrap();
        let updates: Vec<u64> = requests.iter().map(|request| request.updates).collect();
        prop_assert_eq!(updates, asked.iter().map(|a| a.4).collect::<Vec<_>>());
        for (out, (_, _, _, right, _)) in outs.iter().zip(&asked) {
            prop_assert_eq!(bits(out), bits(right));
        }
        let once: BTreeMap<String, u32> =
            checkpoint.manifest().files.iter().map(|file| (file.name.clone(), 1)).collect();
        prop_assert_eq!(watched.take(), once);
    }
}

#[test]
fn slices_in_the_order_of_the_files_cost_one_reading_of_each() {
    let watched = Watched::new();
    let store: Arc<dyn Store> = watched.clone();
    let cuts: Vec<Cut> =
        (0..4).flat_map(|shard| pieces(&format!("v{shard}"), 100, &[30, 60], &[shard])).collect();
    write(&*store, 1, &cuts).unwrap();
    let checkpoint = Checkpoint::open(&store, 1).unwrap();
    watched.take();
    assert_holds(&checkpoint, &cuts);
    let reads = watched.take();
    assert_eq!(reads.len(), 4);
    assert!(reads.iter().all(|(file, &reads)| file.starts_with(&folder(1)) && reads == 1), "{reads:?}");
    // It was the last one; after that it is read anew.
    checkpoint.read("v3", Kind::Values, 0, &mut [0.0]).unwrap();
    assert!(watched.take().is_empty());
    checkpoint.release();
    checkpoint.read("v3", Kind::Values, 0, &mut [0.0]).unwrap();
    assert_eq!(watched.take().len(), 1);
}

/// A vector over all slices of a file is cut anew like the slices; what only one of two files has is 0 in the other's.
#[test]
fn what_was_left_out_is_cut_anew() {
    let store: Arc<dyn Store> = Watched::new();
    let slice =
        |variable, start, values| SlicePart { variable, start, values, states: Vec::new(), updates: 1 };
    let left = |name: &str, values| LeftPart { name: name.into(), values };
    let [a, b, c] = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]];
    let (both, other) = ([10.0, 20.0, 30.0, 70.0, 80.0, 90.0], [40.0, 50.0, 60.0]);
    let files = vec![
        write_shard(&*store, 3, 0, &[slice("v", 0, &a), slice("w", 0, &c)], &[left("5-0", &both)]).unwrap(),
        write_shard(&*store, 3, 1, &[slice("v", 3, &b)], &[left("5-0", &other), left("6-1", &other)])
            .unwrap(),
    ];
    write_manifest(&*store, &manifest(3, files)).unwrap();
    let checkpoint = Checkpoint::open(&store, 3).unwrap();
    assert_eq!(checkpoint.verify(), Ok(()));
    let cut = |variable, start, values| windlass_checkpoint::Cut { variable, start, values };
    let found = checkpoint.left(&[cut("w", 1, 2), cut("v", 1, 4)]).unwrap();
    let expected = [
        ("5-0".to_owned(), vec![80.0, 90.0, 20.0, 30.0, 40.0, 50.0]),
        ("6-1".to_owned(), vec![0.0, 0.0, 0.0, 0.0, 40.0, 50.0]),
    ];
    assert_eq!(found, BTreeMap::from(expected));
    assert!(checkpoint.left(&[]).unwrap().values().all(Vec::is_empty));
}
