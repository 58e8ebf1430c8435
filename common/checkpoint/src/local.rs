//! Keeps files in a folder of this machine, or of one that is mounted.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::error::StoreError;
use crate::name;
use crate::store::Store;

/// What the name of a file ends with before it is whole. It also begins with a point.
const TEMPORARY: &str = ".new";
/// Small parts are gathered to this many bytes before they are written.
const GATHERED_BYTES: usize = 1 << 16;

/// A folder with one folder for each checkpoint.
///
/// A file is written under another name in its own folder, synchronised, renamed, and its folder synchronised with the
/// one above.
#[derive(Debug)]
pub struct LocalStore(PathBuf);

impl LocalStore {
    /// The store in this folder, which is made when something is written.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    fn write(&self, folder: &str, file: &str, parts: &[&[u8]]) -> io::Result<()> {
        let folder = self.0.join(folder);
        make_durable(&folder)?;
        write_whole(&folder.join(file), |temporary| {
            let mut writer =
                BufWriter::with_capacity(GATHERED_BYTES, OpenOptions::new().write(true).open(temporary)?);
            parts.iter().try_for_each(|part| writer.write_all(part))?;
            writer.into_inner().map_err(io::IntoInnerError::into_error)
        })?;
        // Whoever made the folder may have died before the folder above was synchronised.
        synchronise(&self.0)
    }

    /// The folders of the store, with their names.
    fn folders(&self) -> io::Result<Vec<(String, PathBuf)>> {
        let mut folders = Vec::new();
        for name in names(&self.0)? {
            let path = self.0.join(&name);
            if name::is_plain(&name) && path.is_dir() {
                folders.push((name, path));
            }
        }
        Ok(folders)
    }

    fn files(&self) -> io::Result<Vec<String>> {
        let mut files = Vec::new();
        for (folder, path) in self.folders()? {
            for file in names(&path)? {
                if name::is_plain(&file) && path.join(&file).is_file() {
                    files.push(format!("{folder}/{file}"));
                }
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    fn remove(&self, folder: &str, file: &str) -> io::Result<()> {
        let path = self.0.join(folder);
        if !present(fs::remove_file(path.join(file)))? {
            return Ok(());
        }
        synchronise(&path)?;
        remove_if_empty(&path)
    }

    fn remove_temporaries(&self, but: Option<&str>) -> io::Result<()> {
        for (folder, path) in self.folders()? {
            if Some(folder.as_str()) == but {
                continue;
            }
            for file in names(&path)? {
                if file.starts_with('.') && file.ends_with(TEMPORARY) {
                    present(fs::remove_file(path.join(file)))?;
                }
            }
            remove_if_empty(&path)?;
        }
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Store for LocalStore {
    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<(), StoreError> {
        let (folder, file) = name::parts(name)?;
        self.write(folder, file, parts).map_err(|error| StoreError::failed("write", self.path(name), &error))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        name::parts(name)?;
        fs::read(self.0.join(name)).map_err(|error| match error.kind() {
            ErrorKind::NotFound => StoreError::Missing { place: self.place(), name: name.to_owned() },
            _ => StoreError::failed("read", self.path(name), &error),
        })
    }

    fn list(&self) -> Result<Vec<String>, StoreError> {
        self.files().map_err(|error| StoreError::failed("list", self.place(), &error))
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let (folder, file) = name::parts(name)?;
        self.remove(folder, file).map_err(|error| StoreError::failed("delete", self.path(name), &error))
    }

    fn place(&self) -> String {
        self.0.display().to_string()
    }

    fn sweep(&self, but: Option<&str>) -> Result<(), StoreError> {
        self.remove_temporaries(but).map_err(|error| StoreError::failed("clean up", self.place(), &error))
    }
}

/// Writes a file whole or not at all: `write` fills a temporary one, which takes its place when it is durable.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&Path) -> io::Result<File>) -> io::Result<()> {
    let folder = folder_of(path);
    let file =
        path.file_name().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "it has no file name"))?;
    let temporary = claim(folder, file)?;
    let written =
        write(&temporary).and_then(|file| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // What went wrong first is what is told; a file that stays is swept later.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    synchronise(folder)
}

/// Makes a temporary file that nobody else writes to, not even one who writes the same file.
fn claim(folder: &Path, file: &OsStr) -> io::Result<PathBuf> {
    let process = std::process::id();
    for attempt in 0_u64.. {
        let path = folder.join(format!(".{}.{process}-{attempt}{TEMPORARY}", file.display()));
        match File::create_new(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(path),
        }
    }
    unreachable!("there are more numbers than files")
}

/// Makes a folder and those above it, so that they are there after a crash.
fn make_durable(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder_of(folder);
    make_durable(above)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => synchronise(above),
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if above != Path::new("") => above,
        Some(_) => Path::new("."),
        None => path,
    }
}

fn synchronise(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The names in a folder that can be ours. A folder that is not there has none.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// Takes a folder away unless something is in it, or somebody else has taken it away.
fn remove_if_empty(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
        result => present(result).map(|_| ()),
    }
}

/// Whether it was there to be taken away.
fn present(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        result => result.map(|()| true),
    }
}
