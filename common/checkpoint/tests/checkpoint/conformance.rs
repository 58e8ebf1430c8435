//! What every store must do, run on each.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use windlass_checkpoint::faults::FaultyStore;
use windlass_checkpoint::{LocalStore, Store, StoreError, newest, open, prune};

use crate::support::{assert_holds, small, write};

/// Runs on an empty store, and leaves it empty.
fn conforms(store: &Arc<dyn Store>) {
    let names = |expected: &[&str]| assert_eq!(store.list().unwrap(), expected);
    names(&[]);
    missing(&**store, "a/b");
    store.delete("a/b").unwrap();

    store.put("b/two", &[b"x", b"", b"yz"]).unwrap();
    store.put("b/one", &[]).unwrap();
    store.put("a/b-1_c.safetensors", &[&[0, 255, 10, 13]]).unwrap();
    names(&["a/b-1_c.safetensors", "b/one", "b/two"]);
    assert_eq!(store.read("b/two").unwrap(), b"xyz");
    assert_eq!(store.read("b/one").unwrap(), b"");
    assert_eq!(store.read("a/b-1_c.safetensors").unwrap(), [0, 255, 10, 13]);
    missing(&**store, "b/three");
    missing(&**store, "c/one");

    // A file is replaced as a whole, by a shorter one too.
    store.put("b/two", &[b"n"]).unwrap();
    assert_eq!(store.read("b/two").unwrap(), b"n");

    for name in ["", "a", "/a", "a/", "a/b/c", "../b", "a/..", ".a/b", "a/.b", "a b/c", "a/\n"] {
        let error = Err(StoreError::Name { name: name.into() });
        assert_eq!(store.put(name, &[b"x"]), error, "{name:?}");
        assert_eq!(store.delete(name), error, "{name:?}");
        assert_eq!(store.read(name).map(|_| ()), error, "{name:?}");
    }

    store.delete("b/one").unwrap();
    store.delete("b/one").unwrap();
    missing(&**store, "b/one");
    names(&["a/b-1_c.safetensors", "b/two"]);
    store.delete("b/two").unwrap();
    store.delete("a/b-1_c.safetensors").unwrap();
    names(&[]);

    large(&**store);
    at_once(&**store);
    checkpoints(store);
    names(&[]);
    assert!(!store.place().is_empty());
}

fn missing(store: &dyn Store, name: &str) {
    assert_eq!(store.read(name), Err(StoreError::Missing { place: store.place(), name: name.into() }));
}

/// More than any store takes in one request, in parts whose lengths fit no piece.
fn large(store: &dyn Store) {
    let bytes: Vec<u8> = (0..20_000_003_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let parts: Vec<&[u8]> = bytes.chunks(3_333_333).collect();
    store.put("large/file", &parts).unwrap();
    assert!(store.read("large/file").unwrap() == bytes, "the large file came back otherwise");
    store.delete("large/file").unwrap();
}

/// Whoever writes a file while others do: one of them is there, whole.
fn at_once(store: &dyn Store) {
    std::thread::scope(|scope| {
        for writer in 0..4_u8 {
            scope.spawn(move || {
                for _ in 0..5 {
                    store.put("at/once", &[&[writer; 1000], &[writer; 5000]]).unwrap();
                    let read = store.read("at/once").unwrap();
                    assert_eq!(read, [read[0]; 6000]);
                }
            });
        }
    });
    assert_eq!(store.list().unwrap(), ["at/once"]);
    store.delete("at/once").unwrap();
}

fn checkpoints(store: &Arc<dyn Store>) {
    for number in 1..=3 {
        write(&**store, number, &small()).unwrap();
        let (found, skipped) = newest(store).unwrap();
        let found = found.unwrap();
        assert_eq!((found.manifest().number, skipped), (number, vec![]));
        assert_holds(&found, &small());
    }
    assert_eq!(prune(store, 2, None).unwrap(), [1]);
    assert_eq!(newest(store).unwrap().0.unwrap().manifest().number, 3);
    for file in store.list().unwrap() {
        store.delete(&file).unwrap();
    }
}

#[test]
fn a_folder_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some/where");
    let store: Arc<dyn Store> = open(path.to_str().unwrap()).unwrap();
    conforms(&store);
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "folders are left");
}

#[test]
fn memory_without_faults_conforms() {
    let store: Arc<dyn Store> = Arc::new(FaultyStore::new(1));
    conforms(&store);
}

/// Against the service at the location in WINDLASS_TEST_S3, which `scripts/test-s3.sh` starts.
#[cfg(feature = "object-store")]
#[test]
fn an_object_store_conforms() {
    let Ok(location) = std::env::var("WINDLASS_TEST_S3") else {
        eprintln!("WINDLASS_TEST_S3 is not set: nothing was tested; see scripts/test-s3.sh");
        return;
    };
    conforms(&open(&location).unwrap());
    conforms(&open(&format!("{location}/deep/prefix/")).unwrap());
    // A prefix is a folder, not the beginning of a name.
    let (one, other) =
        (open(&format!("{location}/run")).unwrap(), open(&format!("{location}/run-2")).unwrap());
    other.put("a/b", &[b"x"]).unwrap();
    assert_eq!(one.list().unwrap(), [""; 0]);
    other.delete("a/b").unwrap();
}

/// From threads that belong to a runtime, too, and dropped there.
#[cfg(feature = "object-store")]
#[test]
fn an_object_store_may_be_used_within_a_runtime() {
    let Ok(location) = std::env::var("WINDLASS_TEST_S3") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = open(&format!("{location}/runtime")).unwrap();
        store.put("a/b", &[b"x"]).unwrap();
        assert_eq!(store.read("a/b").unwrap(), b"x");
        store.delete("a/b").unwrap();
    });
}

#[cfg(feature = "object-store")]
#[test]
fn a_bucket_that_is_not_there_is_named() {
    let Ok(location) = std::env::var("WINDLASS_TEST_S3") else { return };
    let (scheme, _) = location.split_once("://").unwrap();
    let store = open(&format!("{scheme}://gone-with-the-wind/x")).unwrap();
    let text = |result: Result<(), StoreError>| match result.unwrap_err() {
        StoreError::Missing { .. } => panic!("a file is said to be missing"),
        error => error.to_string(),
    };
    let large = vec![0; 9 << 20];
    for error in [
        text(store.put("a/b", &[b"x"])),
        text(store.put("a/b", &[&large])),
        text(store.read("a/b").map(|_| ())),
        text(store.list().map(|_| ())),
        text(store.delete("a/b")),
        newest(&store).unwrap_err().to_string(),
    ] {
        assert!(error.contains("there is no bucket gone-with-the-wind"), "{error}");
    }
}

#[test]
fn what_writers_that_died_have_left_is_not_listed_and_is_swept() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path()));
    write(&*store, 1, &small()).unwrap();
    let left =
        |number: u64| folder.path().join(format!("checkpoint-{number:08}/.shard-000.safetensors.7-0.new"));
    for number in [1, 2, 3] {
        fs::create_dir_all(left(number).parent().unwrap()).unwrap();
        fs::write(left(number), "half").unwrap();
    }
    fs::write(folder.path().join("notes.txt"), "of somebody").unwrap();
    assert_eq!(store.list().unwrap().len(), 3);
    assert_eq!(prune(&store, 1, Some(3)).unwrap(), [0_u64; 0]);
    assert_eq!([1, 2, 3].map(|number| left(number).exists()), [false, false, true]);
    assert!(!left(2).parent().unwrap().exists(), "an empty folder is left");
    assert!(folder.path().join("notes.txt").exists());
    assert_eq!(newest(&store).unwrap().0.unwrap().manifest().number, 1);
}

#[test]
fn a_put_that_fails_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::new(folder.path());
    store.put("a/b", &[b"old"]).unwrap();
    // A folder in the file's place cannot be replaced by a file.
    fs::create_dir_all(folder.path().join("a/taken/by")).unwrap();
    let error = store.put("a/taken", &[b"new"]).unwrap_err();
    assert!(
        matches!(&error, StoreError::Failed { doing: "write", what, .. } if what.ends_with("a/taken")),
        "{error}"
    );
    assert_eq!(files(&folder.path().join("a")), ["b", "taken"]);
    // Nor can a folder be made where a file is.
    fs::write(folder.path().join("c"), "").unwrap();
    assert!(store.put("c/d", &[b"x"]).is_err());
    assert_eq!(store.list().unwrap(), ["a/b"]);
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
