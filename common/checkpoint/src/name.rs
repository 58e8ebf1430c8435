//! Names the folders and files of checkpoints.

use crate::error::StoreError;

const FOLDER: &str = "checkpoint-";
const MANIFEST: &str = "manifest";

/// The folder of the checkpoint of this number.
pub fn folder(number: u64) -> String {
    format!("{FOLDER}{number:08}")
}

/// The file of a shard in it.
pub fn shard_file(number: u64, shard: u32) -> String {
    format!("{}/shard-{shard:03}.safetensors", folder(number))
}

/// The file that makes it a checkpoint.
pub fn manifest_file(number: u64) -> String {
    format!("{}/{MANIFEST}", folder(number))
}

/// The number of the checkpoint that a file belongs to.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    let (found, _) = name.split_once('/')?;
    let number = found.strip_prefix(FOLDER)?.parse().ok()?;
    (folder(number) == found).then_some(number)
}

/// Folder and file of a name.
///
/// # Errors
/// If it could mean another place than the one it says.
pub(crate) fn parts(name: &str) -> Result<(&str, &str), StoreError> {
    match name.split_once('/') {
        Some((folder, file)) if is_plain(folder) && is_plain(file) => Ok((folder, file)),
        _ => Err(StoreError::Name { name: name.to_owned() }),
    }
}

/// Whether it can be a folder's or file's name in every store. What begins with a point is a store's own affair.
pub(crate) fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= 200
        && !part.starts_with('.')
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_tell_their_number() {
        for number in [0, 12, 99_999_999, 100_000_000, u64::MAX] {
            assert_eq!(number_of(&manifest_file(number)), Some(number));
        }
        assert_eq!(shard_file(12, 0), "checkpoint-00000012/shard-000.safetensors");
        for other in
            ["checkpoint-12/manifest", "checkpoint-+0000012/manifest", "checkpoint-00000012", "x/manifest"]
        {
            assert_eq!(number_of(other), None, "{other}");
        }
    }

    #[test]
    fn names_stay_in_their_place() {
        assert_eq!(parts("a-1/b_2.c"), Ok(("a-1", "b_2.c")));
        for wrong in ["", "a", "a/", "/b", "a/b/c", "../b", "a/..", "a/.b", "a b/c", "ä/b", "a\\b/c", "a/b\n"]
        {
            assert_eq!(parts(wrong), Err(StoreError::Name { name: wrong.into() }));
        }
    }
}
