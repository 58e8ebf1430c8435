//! Says what a place for files must do, and opens one by its location.

use std::fmt::Debug;
use std::sync::Arc;

use crate::error::StoreError;
use crate::local::LocalStore;

/// A place for files. Names are `folder/file`. One conformance suite runs on every implementation.
pub trait Store: Send + Sync + Debug {
    /// Writes a file, whole or not at all, in place of what had this name; it is durable when this returns.
    ///
    /// # Errors
    /// If it could not be written, or the name is none. What was there before is as it was.
    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<(), StoreError>;

    /// The bytes of a file.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if there is none of this name; others if it could not be read.
    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError>;

    /// The name of every whole file, sorted. A place that nothing was written to has none.
    ///
    /// # Errors
    /// If it could not be read.
    fn list(&self) -> Result<Vec<String>, StoreError>;

    /// Takes a file away, durably. One that is not there is fine.
    ///
    /// # Errors
    /// If it could not be taken away, or the name is none.
    fn delete(&self, name: &str) -> Result<(), StoreError>;

    /// Where it is, for messages.
    fn place(&self) -> String;

    /// Takes away what writers that died have left, but for this folder, which is being written to.
    ///
    /// # Errors
    /// If it could not be taken away.
    fn sweep(&self, but: Option<&str>) -> Result<(), StoreError> {
        let _ = but;
        Ok(())
    }
}

/// Opens a place: the path of a folder, or `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` in a
/// build with the feature `object-store`. Nothing is read or made yet.
///
/// # Errors
/// If the location is of another kind.
pub fn open(location: &str) -> Result<Arc<dyn Store>, StoreError> {
    let error = |why: &str| StoreError::Location { location: location.to_owned(), why: why.to_owned() };
    match location.split_once("://") {
        None if location.is_empty() => Err(error("it is empty; right is the path of a folder")),
        None => Ok(Arc::new(LocalStore::new(location))),
        Some(("s3" | "gs" | "az", _)) => remote(location),
        Some(_) => {
            Err(error("right is the path of a folder, or s3://, gs:// or az:// with bucket and prefix"))
        }
    }
}

#[cfg(feature = "object-store")]
fn remote(location: &str) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(crate::remote::ObjectStore::open(location)?))
}

#[cfg(not(feature = "object-store"))]
fn remote(location: &str) -> Result<Arc<dyn Store>, StoreError> {
    let why = "this program is built without object stores; build it with: cargo build --release --features object-store";
    Err(StoreError::Location { location: location.to_owned(), why: why.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_told_apart() {
        assert_eq!(open("some/folder").unwrap().place(), "some/folder");
        for wrong in ["", "http://host/x", "ftp://x", "S3://bucket"] {
            assert!(matches!(open(wrong), Err(StoreError::Location { .. })), "{wrong}");
        }
    }

    #[cfg(not(feature = "object-store"))]
    #[test]
    fn a_build_without_object_stores_says_how_to_get_one() {
        for location in ["s3://bucket/x", "gs://bucket", "az://container/x"] {
            let error = open(location).unwrap_err().to_string();
            assert!(error.starts_with(location) && error.contains("--features object-store"), "{error}");
        }
    }
}
