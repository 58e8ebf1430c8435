//! Opens files that may be compressed with gzip, within limits on what comes out.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::{BYTES_MAX, DataError};

/// Deflate makes at most 1,032 bytes of one: 258 bytes of a match, coded in two bits.
const INFLATION_MAX: u64 = 1032;

/// The content of one file, inflated where it is compressed.
pub(super) struct Source<'a> {
    file: &'a Path,
    content: Content<'a>,
    /// No more bytes than this can come; nothing is allocated beyond it whatever a header says.
    possible: u64,
}

enum Content<'a> {
    Plain(Box<dyn BufRead + 'a>),
    Gzip(Box<MultiGzDecoder<Box<dyn BufRead + 'a>>>),
}

impl<'a> Source<'a> {
    pub(super) fn open(file: &'a Path) -> Result<Self, DataError> {
        let read_error = |source| DataError::Read { file: file.to_owned(), source };
        let opened = File::open(file).map_err(read_error)?;
        let length = opened.metadata().map_err(read_error)?.len();
        Self::new(file, BufReader::with_capacity(1 << 16, opened), length)
    }

    /// Recognises gzip by its first two bytes, not by the name of the file. `length` is that of the file.
    pub(super) fn new(file: &'a Path, reader: impl BufRead + 'a, length: u64) -> Result<Self, DataError> {
        let mut reader: Box<dyn BufRead + 'a> = Box::new(reader);
        let start = reader.fill_buf().map_err(|source| DataError::Read { file: file.to_owned(), source })?;
        Ok(if start.starts_with(&[0x1f, 0x8b]) {
            let possible = length.saturating_mul(INFLATION_MAX);
            Self { file, content: Content::Gzip(Box::new(MultiGzDecoder::new(reader))), possible }
        } else {
            Self { file, content: Content::Plain(reader), possible: length }
        })
    }

    /// Appends up to `count` bytes to `buffer`, fewer only at the end of the file.
    pub(super) fn read_up_to(&mut self, count: u64, buffer: &mut Vec<u8>) -> Result<(), DataError> {
        let file = self.file;
        let capacity = usize::try_from(count.min(self.possible)).unwrap_or(usize::MAX);
        buffer.try_reserve_exact(capacity).map_err(|_| DataError::Read {
            file: file.to_owned(),
            source: io::ErrorKind::OutOfMemory.into(),
        })?;
        match &mut self.content {
            Content::Plain(reader) => reader
                .take(count)
                .read_to_end(buffer)
                .map_err(|source| DataError::Read { file: file.to_owned(), source })?,
            Content::Gzip(reader) => reader
                .take(count)
                .read_to_end(buffer)
                .map_err(|source| DataError::Gzip { file: file.to_owned(), source })?,
        };
        Ok(())
    }

    /// The content as a reader that fails after `BYTES_MAX` bytes.
    pub(super) fn into_reader(self) -> Box<dyn Read + 'a> {
        let reader: Box<dyn Read + 'a> = match self.content {
            Content::Plain(reader) => Box::new(reader),
            Content::Gzip(reader) => reader,
        };
        Box::new(Limited { reader, left: BYTES_MAX })
    }
}

struct Limited<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_fails_beyond_its_limit() {
        let mut at_the_limit = Limited { reader: &[7; 10][..], left: 10 };
        assert_eq!(at_the_limit.read_to_end(&mut Vec::new()).unwrap(), 10);
        let mut beyond = Limited { reader: &[7; 11][..], left: 10 };
        let error = beyond.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn nothing_is_allocated_for_bytes_that_cannot_come() {
        let mut source = Source::new(Path::new("x"), &b"abc"[..], 3).unwrap();
        let mut buffer = Vec::new();
        source.read_up_to(1 << 60, &mut buffer).unwrap();
        assert_eq!(buffer, b"abc");
        assert!(buffer.capacity() < 1000);
    }
}
