//! Writes checkpoints whose every float says what it is of.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use windlass_checkpoint::faults::{Fault, FaultyStore};
use windlass_checkpoint::{
    Checkpoint, Kind, Manifest, ShardFile, SlicePart, Store, StoreError, write_manifest, write_shard,
};
use xxhash_rust::xxh3::xxh3_64;

/// What Adam remembers.
pub(crate) const STATES: [&str; 2] = ["first-moment", "second-moment"];

/// A slice and the shard that owns it.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    pub(crate) shard: u32,
    pub(crate) variable: String,
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) updates: u64,
}

pub(crate) fn cut(shard: u32, variable: &str, start: u64, len: u64) -> Cut {
    Cut { shard, variable: variable.to_owned(), start, len, updates: 7 }
}

/// Two shards, two variables, one of them on both.
pub(crate) fn small() -> Vec<Cut> {
    vec![cut(0, "w", 0, 5), cut(1, "w", 5, 3), cut(1, "b/scale", 0, 2)]
}

/// Float `index` of a variable in the checkpoint of this number: any bits at all, also such as are no number.
pub(crate) fn float(number: u64, variable: &str, kind: Kind<'_>, index: u64) -> f32 {
    f32::from_bits(xxh3_64(format!("{number} {variable} {kind:?} {index}").as_bytes()) as u32)
}

pub(crate) fn floats(number: u64, variable: &str, kind: Kind<'_>, start: u64, len: u64) -> Vec<f32> {
    (start..start + len).map(|index| float(number, variable, kind, index)).collect()
}

pub(crate) fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|float| float.to_bits()).collect()
}

pub(crate) fn manifest(number: u64, files: Vec<ShardFile>) -> Manifest {
    Manifest {
        number,
        run: "a-run".into(),
        lineage: 2,
        at_us: 1_700_000_000_000_000 + number,
        plan: "format = 1\nname = \"a \\ run\"\n".into(),
        examples: 100 * number,
        steps: 10 * number,
        rounds: number,
        files,
        state: serde_json::json!({"clocks": [1, 2, u64::MAX], "rate": 0.1 + 0.2, "names": {"é": null}}),
    }
}

/// Writes the shards' files of a checkpoint, without its manifest.
pub(crate) fn write_shards(
    store: &dyn Store,
    number: u64,
    cuts: &[Cut],
) -> Result<Vec<ShardFile>, StoreError> {
    let mut shards: BTreeMap<u32, Vec<&Cut>> = BTreeMap::new();
    for cut in cuts {
        shards.entry(cut.shard).or_default().push(cut);
    }
    let mut files = Vec::new();
    for (shard, cuts) in shards {
        let kinds = [Kind::Values, Kind::State(STATES[0]), Kind::State(STATES[1])];
        let of = |cut: &&Cut| kinds.map(|kind| floats(number, &cut.variable, kind, cut.start, cut.len));
        let owned: Vec<[Vec<f32>; 3]> = cuts.iter().map(of).collect();
        let parts: Vec<SlicePart<'_>> = cuts
            .iter()
            .zip(&owned)
            .map(|(cut, [values, first, second])| SlicePart {
                variable: &cut.variable,
                start: cut.start,
                values,
                states: vec![(STATES[0], first), (STATES[1], second)],
                updates: cut.updates,
            })
            .collect();
        files.push(write_shard(store, number, shard, &parts, &[])?);
    }
    Ok(files)
}

/// Writes a checkpoint, the manifest last.
pub(crate) fn write(store: &dyn Store, number: u64, cuts: &[Cut]) -> Result<(), StoreError> {
    let files = write_shards(store, number, cuts)?;
    write_manifest(store, &manifest(number, files))
}

/// Whether a checkpoint holds what `write` wrote.
pub(crate) fn assert_holds(checkpoint: &Checkpoint, cuts: &[Cut]) {
    let number = checkpoint.manifest().number;
    assert_eq!(*checkpoint.manifest(), manifest(number, checkpoint.manifest().files.clone()));
    for cut in cuts {
        for kind in [Kind::Values, Kind::State(STATES[0]), Kind::State(STATES[1])] {
            let mut out = vec![0.0; cut.len as usize];
            assert_eq!(checkpoint.read(&cut.variable, kind, cut.start, &mut out), Ok(cut.updates));
            assert_eq!(bits(&out), bits(&floats(number, &cut.variable, kind, cut.start, cut.len)));
        }
    }
}

/// A store that holds checkpoints of these numbers.
pub(crate) fn holding(numbers: impl IntoIterator<Item = u64>, cuts: &[Cut]) -> Arc<FaultyStore> {
    let store = Arc::new(FaultyStore::new(0));
    numbers.into_iter().for_each(|number| write(&*store, number, cuts).expect("nothing befalls it"));
    store
}

/// Counts how often each file is read, and lets a fault befall one operation.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) store: Arc<FaultyStore>,
    reads: Mutex<BTreeMap<String, u32>>,
    /// What befalls a read or delete, and how many of them pass before.
    fault: Mutex<Option<(Fault, u32)>>,
}

impl Watched {
    /// An empty store that nothing befalls.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { store: holding([], &[]), reads: Mutex::default(), fault: Mutex::default() })
    }

    /// A store of which a few operations pass, and the next fails.
    pub(crate) fn failing(store: Arc<FaultyStore>, fault: Fault, after: u32) -> Arc<dyn Store> {
        Arc::new(Self { store, reads: Mutex::default(), fault: Mutex::new(Some((fault, after))) })
    }

    /// How often each file was read since this was last asked.
    pub(crate) fn take(&self) -> BTreeMap<String, u32> {
        std::mem::take(&mut *self.reads.lock().expect("nobody panics with it"))
    }

    fn pass(&self, fault: Fault) {
        let mut expected = self.fault.lock().expect("nobody panics with it");
        match &mut *expected {
            Some((is, 0)) if *is == fault => {
                self.store.script(fault);
                *expected = None;
            }
            Some((is, after)) if *is == fault => *after -= 1,
            _ => {}
        }
    }
}

impl Store for Watched {
    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<(), StoreError> {
        self.store.put(name, parts)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        *self.reads.lock().expect("nobody panics with it").entry(name.to_owned()).or_default() += 1;
        self.pass(Fault::Unreadable);
        self.store.read(name)
    }

    fn list(&self) -> Result<Vec<String>, StoreError> {
        self.store.list()
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.pass(Fault::ReadOnly);
        self.store.delete(name)
    }

    fn place(&self) -> String {
        self.store.place()
    }

    fn sweep(&self, but: Option<&str>) -> Result<(), StoreError> {
        self.store.sweep(but)
    }
}
