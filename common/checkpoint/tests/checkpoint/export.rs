//! One plain file of a checkpoint's values.

use std::fs;
use std::sync::Arc;

use windlass_checkpoint::faults::FaultyStore;
use windlass_checkpoint::{Checkpoint, Damage, ExportError, Kind, Store, export, shard_file};

use crate::support::{bits, floats, holding, small};

const SHAPES: [(&str, &[u64]); 2] = [("w", &[2, 4]), ("b/scale", &[2])];

fn opened() -> (Arc<FaultyStore>, Checkpoint) {
    let store = holding([3], &small());
    let shared: Arc<dyn Store> = store.clone();
    let checkpoint = Checkpoint::open(&shared, 3).unwrap();
    (store, checkpoint)
}

#[test]
fn the_file_is_that_of_a_result() {
    let (_, checkpoint) = opened();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, "an older one").unwrap();
    export(&checkpoint, SHAPES, &path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let model = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(model.len(), 2);
    for (name, shape) in SHAPES {
        let tensor = model.tensor(name).unwrap();
        assert_eq!(tensor.shape(), shape.iter().map(|&side| side as usize).collect::<Vec<_>>());
        let len = shape.iter().product();
        let stored: Vec<f32> =
            tensor.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        assert_eq!(bits(&stored), bits(&floats(3, name, Kind::Values, 0, len)));
    }
    // As the servers write a result.
    assert_eq!(bytes, safetensors::serialize(model.tensors(), None).unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file is left");
}

#[test]
fn what_cannot_be_exported_leaves_no_file() {
    let (store, checkpoint) = opened();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let failed = |shapes: [(&str, &[u64]); 2]| match export(&checkpoint, shapes, &path) {
        Err(ExportError::Damage(damage)) => damage.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(failed([("w", &[9]), SHAPES[1]]).contains("nothing holds the values 8..9 of variable w"));
    assert!(failed([("w", &[7]), SHAPES[1]]).contains("variable w has 8 values, right are 7"));
    assert!(failed([("w", &[u64::MAX, 2]), SHAPES[1]]).contains("cannot have the shape"));
    assert!(failed([("v", &[8]), SHAPES[1]]).contains("variable v"));
    store.tamper(&shard_file(3, 1), |bytes| bytes[200] ^= 1);
    assert!(matches!(export(&checkpoint, SHAPES, &path), Err(ExportError::Damage(Damage::Checksum { .. }))));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let (_, checkpoint) = opened();
    let error = export(&checkpoint, SHAPES, &folder.path().join("no/where")).unwrap_err();
    assert!(matches!(error, ExportError::Write { .. }), "{error}");
}
