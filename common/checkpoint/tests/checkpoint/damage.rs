//! No byte of a checkpoint can be changed, lost or added without being noticed.

use std::sync::Arc;

use windlass_checkpoint::faults::{Fault, FaultyStore};
use windlass_checkpoint::{
    Checkpoint, Damage, Kind, Manifest, ShardFile, SliceEntry, Store, StoreError, folder, list,
    manifest_file, newest, shard_file, write_manifest,
};

use crate::support::{
    STATES, Watched, assert_holds, bits, cut, floats, holding, manifest, small, write, write_shards,
};

fn sound() -> Arc<FaultyStore> {
    holding(1..=2, &small())
}

/// Checkpoint 2 is not believed for what is wrong with this file, and checkpoint 1 is found in its place.
fn assert_noticed(store: &Arc<FaultyStore>, file: &str, what: &str) {
    let shared: Arc<dyn Store> = store.clone();
    let (found, skipped) = newest(&shared).unwrap();
    assert_eq!(found.map(|found| found.manifest().number), Some(1), "{file}, {what}");
    assert_eq!(skipped.len(), 1, "{file}, {what}");
    assert_eq!(skipped[0].number, 2);
    let why = skipped[0].why.to_string();
    assert!(why.starts_with(file), "{file}, {what}: {why}");
    // Nor does it give a single value of that file.
    if let Ok(checkpoint) = Checkpoint::open(&shared, 2) {
        let shard =
            checkpoint.manifest().files.iter().find(|shard| shard.name == file).expect("it is a shard's");
        for slice in &shard.slices {
            let mut out = vec![0.0; slice.values as usize];
            let error = checkpoint.read(&slice.variable, Kind::Values, slice.start, &mut out).unwrap_err();
            assert!(error.to_string().starts_with(file), "{error}");
            assert_eq!(bits(&out), vec![0; out.len()]);
        }
    }
}

#[test]
fn any_bit_of_any_file_is_noticed() {
    let store = sound();
    let mut tried = 0;
    for (file, bytes) in store.files().into_iter().filter(|(file, _)| file.starts_with(&folder(2))) {
        for place in 0..bytes.len() {
            for mask in (0..8).map(|bit| 1 << bit).chain([0xff]) {
                store.tamper(&file, |bytes| bytes[place] ^= mask);
                assert_noticed(&store, &file, &format!("byte {place} ^ {mask:#x}"));
                store.tamper(&file, |bytes| bytes[place] ^= mask);
                tried += 1;
            }
        }
    }
    assert!(tried > 9 * 1000, "the files are too small to show anything: {tried}");
    let shared: Arc<dyn Store> = store;
    assert_holds(&newest(&shared).unwrap().0.unwrap(), &small());
}

#[test]
fn any_length_of_any_file_but_its_own_is_noticed() {
    let store = sound();
    for (file, bytes) in store.files().into_iter().filter(|(file, _)| file.starts_with(&folder(2))) {
        for len in 0..bytes.len() {
            store.tamper(&file, |bytes| bytes.truncate(len));
            assert_noticed(&store, &file, &format!("cut to {len}"));
            store.tamper(&file, |old| old.clone_from(&bytes));
        }
        for more in [&b"\0"[..], b"\n", b" ", b"}", &bytes] {
            store.tamper(&file, |bytes| bytes.extend_from_slice(more));
            assert_noticed(&store, &file, "longer");
            store.tamper(&file, |bytes| bytes.insert(0, b' '));
            assert_noticed(&store, &file, "longer at its beginning");
            store.tamper(&file, |old| old.clone_from(&bytes));
        }
    }
}

#[test]
fn a_file_that_is_missing_or_in_anothers_place_is_noticed() {
    let (first, second) = (shard_file(2, 0), shard_file(2, 1));
    let store = sound();
    store.delete(&second).unwrap();
    assert_noticed(&store, &second, "missing");
    let shared: Arc<dyn Store> = store.clone();
    assert_eq!(newest(&shared).unwrap().1[0].why, Damage::Missing { file: second.clone() });

    let store = sound();
    let files = store.files();
    store.put(&first, &[&files[&second]]).unwrap();
    assert_noticed(&store, &first, "the other shard's");

    // The same shard's file of another checkpoint has the same length.
    let store = sound();
    store.put(&first, &[&files[&shard_file(1, 0)]]).unwrap();
    assert_noticed(&store, &first, "another checkpoint's");

    let store = sound();
    store.put(&manifest_file(2), &[&files[&manifest_file(1)]]).unwrap();
    assert_noticed(&store, &manifest_file(2), "another checkpoint's");
}

#[test]
fn the_line_before_the_manifest_is_taken_in_one_spelling_only() {
    let store = sound();
    let bytes = &store.files()[&manifest_file(2)];
    let line = bytes.iter().position(|&byte| byte == b'\n').unwrap();
    let (head, body) = bytes.split_at(line);
    let head = std::str::from_utf8(head).unwrap();
    let words: Vec<&str> = head.split(' ').collect();
    assert_eq!(words[..3], ["windlass", "checkpoint", "1"]);
    assert_eq!(words[3], (body.len() - 1).to_string());
    let with = |place: usize, word: &str| {
        let mut words = words.clone();
        words[place] = word;
        words.join(" ")
    };
    let spellings = [
        (with(2, "2"), "it is of format \"2\", this program knows format 1"),
        (with(2, "01"), "it is of format \"01\""),
        (with(3, &format!("+{}", words[3])), "its first line is not"),
        (with(3, &format!("0{}", words[3])), "its first line is not"),
        (with(3, "99999999999999999999"), "its first line is not"),
        (with(3, &u64::MAX.to_string()), "has"),
        (with(4, &words[4].to_uppercase()), "checksum"),
        (with(4, &format!("0{}", words[4])), "checksum"),
        (format!("{head} "), "its first line is not"),
        (format!("{head}\r"), "checksum"),
        (head.replacen(' ', "  ", 1), "its first line is not"),
        (format!(" {head}"), "its first line is not"),
    ];
    for (spelling, why) in spellings {
        store.put(&manifest_file(2), &[spelling.as_bytes(), body]).unwrap();
        assert_noticed(&store, &manifest_file(2), &spelling);
        let shared: Arc<dyn Store> = store.clone();
        let text = newest(&shared).unwrap().1[0].why.to_string();
        assert!(text.contains(why), "{spelling}: {text}");
    }
}

/// Writes a manifest that is whole, whatever it says.
fn put_manifest(store: &dyn Store, manifest: &Manifest) {
    let body = serde_json::to_vec(manifest).unwrap();
    let hash = xxhash_rust::xxh3::xxh3_128(&body);
    let head = format!("windlass checkpoint 1 {} {hash:032x}\n", body.len());
    store.put(&manifest_file(manifest.number), &[head.as_bytes(), &body]).unwrap();
}

#[test]
fn slices_that_do_not_fit_together_make_no_checkpoint() {
    let store: Arc<dyn Store> = Arc::new(FaultyStore::new(0));
    let good = write_shards(&*store, 1, &small()).unwrap();
    put_manifest(&*store, &manifest(1, good.clone()));
    assert_holds(&newest(&store).unwrap().0.unwrap(), &small());
    let refused = |change: &dyn Fn(&mut Vec<ShardFile>), why: &str| {
        let mut files = good.clone();
        change(&mut files);
        let manifest = manifest(1, files);
        let error = write_manifest(&*store, &manifest).unwrap_err();
        assert!(matches!(error, StoreError::Unsound { .. }) && error.to_string().contains(why), "{error}");
        put_manifest(&*store, &manifest);
        let (found, skipped) = newest(&store).unwrap();
        assert!(found.is_none() && skipped[0].why.to_string().contains(why), "{:?}", skipped[0].why);
    };
    refused(&|files| files[1].slices[0].start = 6, "nothing holds the values 5..6 of variable w");
    refused(&|files| files[1].slices[0].start = 4, "two slices hold the values 4..5 of variable w");
    refused(&|files| files[1].slices[0].start = 0, "two slices hold the values 0..3 of variable w");
    refused(&|files| drop(files.remove(0)), "nothing holds the values 0..5 of variable w");
    refused(&|files| files[0].slices[0].values = 0, "a slice of w has 0 values");
    refused(&|files| files[0].slices[0].values = u64::MAX, "w");
    refused(
        &|files| files[1].slices[0].start = u64::MAX,
        "a slice of w has 3 values from 18446744073709551615",
    );
    refused(&|files| files[0].shard = 1, "the file of shard 1 is called");
    refused(&|files| files.push(files[0].clone()), "shard 0 has two files");
    refused(
        &|files| files[0].name = "../../etc/passwd".into(),
        "right is checkpoint-00000001/shard-000.safetensors",
    );
}

#[test]
fn a_file_that_is_whole_but_holds_other_slices_is_noticed() {
    let store: Arc<dyn Store> = Arc::new(FaultyStore::new(0));
    let good = write_shards(&*store, 1, &small()).unwrap();
    let noticed = |files: Vec<ShardFile>, why: &str| {
        put_manifest(&*store, &manifest(1, files));
        let (found, skipped) = newest(&store).unwrap();
        assert!(found.is_none() && skipped[0].why.to_string().contains(why), "{:?}", skipped[0].why);
    };
    let mut renamed = good.clone();
    renamed[1].slices[1].variable = "c".into();
    noticed(renamed, "values/0/c is not there, right are 2 values of F32");
    let mut longer = good.clone();
    longer[1].slices[1].values = 3;
    noticed(longer, "is [2] of F32, right are 3 values of F32");
    let mut fewer = good.clone();
    fewer[1].slices.pop();
    noticed(fewer, "of a slice that the manifest does not name");
    // Half of w with what Adam remembers, half without.
    let mut bare = good;
    let values = floats(1, "w", Kind::Values, 0, 5);
    let slice = windlass_checkpoint::SlicePart {
        variable: "w",
        start: 0,
        values: &values,
        states: vec![],
        updates: 7,
    };
    bare[0] = windlass_checkpoint::write_shard(&*store, 1, 0, &[slice], &[]).unwrap();
    noticed(bare, "the slice of w at 5 has the states");
}

#[test]
fn the_model_knows_what_the_slices_cannot() {
    let store: Arc<dyn Store> = sound();
    let checkpoint = Checkpoint::open(&store, 2).unwrap();
    let manifest = checkpoint.manifest();
    assert_eq!(manifest.lengths().into_iter().collect::<Vec<_>>(), [("b/scale", 2), ("w", 8)]);
    assert_eq!(manifest.fits([("w", 8), ("b/scale", 2)]), Ok(()));
    let error =
        |variables: &[(&'static str, u64)]| manifest.fits(variables.iter().copied()).unwrap_err().to_string();
    assert!(error(&[("w", 9), ("b/scale", 2)]).contains("nothing holds the values 8..9 of variable w"));
    assert!(error(&[("w", 7), ("b/scale", 2)]).contains("variable w has 8 values, right are 7"));
    assert!(error(&[("w", 8)]).contains("it holds a variable b/scale, which the model does not have"));
    assert!(
        error(&[("w", 8), ("b/scale", 2), ("c", 1)]).contains("nothing holds the values 0..1 of variable c")
    );
}

#[test]
fn what_a_checkpoint_does_not_hold_is_an_error() {
    let store: Arc<dyn Store> = sound();
    let checkpoint = Checkpoint::open(&store, 2).unwrap();
    let mut out = [0.0; 3];
    let mut error =
        |variable: &str, kind, start| checkpoint.read(variable, kind, start, &mut out).unwrap_err();
    let gap = |variable: &str, start, end| Damage::Gap {
        file: manifest_file(2),
        variable: variable.into(),
        start,
        end,
    };
    assert_eq!(error("w", Kind::Values, 6), gap("w", 8, 9));
    assert_eq!(error("v", Kind::Values, 0), gap("v", 0, 3));
    assert_eq!(error("w", Kind::Values, u64::MAX), gap("w", u64::MAX, u64::MAX));
    assert!(error("w", Kind::State("velocity"), 0).to_string().contains("state/velocity/0/w is not there"));
    assert_eq!(checkpoint.read("w", Kind::State(STATES[0]), 8, &mut []), Ok(0));
}

#[test]
fn a_store_that_cannot_be_read_is_no_reason_to_go_back() {
    let store = sound();
    for reads in 0..3 {
        let shared: Arc<dyn Store> = Watched::failing(store.clone(), Fault::Unreadable, reads);
        assert!(matches!(newest(&shared), Err(StoreError::Failed { doing: "read", .. })), "{reads}");
    }
    store.script(Fault::Unreadable);
    let shared: Arc<dyn Store> = store.clone();
    assert!(matches!(list(&*shared), Err(StoreError::Failed { doing: "list", .. })));
}

#[test]
#[should_panic(expected = "a slice or state is there twice")]
fn a_slice_that_is_given_twice_is_our_fault() {
    let store = FaultyStore::new(0);
    let _ = write(&store, 1, &[cut(0, "w", 0, 2), cut(0, "w", 0, 2)]);
}

#[test]
fn what_is_remembered_beside_the_values_keeps_its_bits() {
    let store: Arc<dyn Store> = Arc::new(FaultyStore::new(0));
    let numbers: Vec<f64> = (0..2000_u64)
        .map(|i| f64::from_bits(xxhash_rust::xxh3::xxh3_64(&i.to_le_bytes())))
        .filter(|number| number.is_finite())
        .collect();
    let mut manifest = manifest(1, write_shards(&*store, 1, &small()).unwrap());
    manifest.state = serde_json::json!(numbers);
    write_manifest(&*store, &manifest).unwrap();
    let read = Checkpoint::open(&store, 1).unwrap();
    let back: Vec<f64> = serde_json::from_value(read.manifest().state.clone()).unwrap();
    let bits = |numbers: &[f64]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&back), bits(&numbers));
    assert_eq!(*read.manifest(), manifest);
}

#[test]
fn other_fields_in_a_manifest_are_not_passed_over() {
    let store: Arc<dyn Store> = Arc::new(FaultyStore::new(0));
    let mut value = serde_json::to_value(manifest(1, vec![])).unwrap();
    value["more"] = 1.into();
    let body = serde_json::to_vec(&value).unwrap();
    let head = format!("windlass checkpoint 1 {} {:032x}\n", body.len(), xxhash_rust::xxh3::xxh3_128(&body));
    store.put(&manifest_file(1), &[head.as_bytes(), &body]).unwrap();
    let error = Checkpoint::open(&store, 1).unwrap_err().to_string();
    assert!(error.contains("unknown field `more`"), "{error}");
    let _: SliceEntry = serde_json::from_str(r#"{"variable":"w","start":0,"values":1,"updates":2}"#).unwrap();
}
