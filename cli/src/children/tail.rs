//! Keeps the last lines of what a process writes.

use std::collections::VecDeque;

/// Lines that are kept.
pub(crate) const LINES_KEPT: usize = 20;
/// What a line has beyond this many bytes is not kept.
const LINE_BYTES_MAX: usize = 2000;

/// The last lines of a log.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    lines: VecDeque<String>,
}

impl Tail {
    fn add(&mut self, line: &[u8]) {
        if self.lines.len() == LINES_KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(readable(line));
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}

/// Cuts one stream of bytes into lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    unfinished: Vec<u8>,
    /// The first line, once it has ended.
    pub(crate) first: Option<String>,
}

impl Lines {
    /// Takes in what was read, and adds the lines that end in it.
    pub(crate) fn push(&mut self, mut bytes: &[u8], tail: &mut Tail) {
        while let Some(end) = bytes.iter().position(|&b| b == b'\n') {
            self.keep(&bytes[..end]);
            self.finish(tail);
            bytes = &bytes[end + 1..];
        }
        self.keep(bytes);
    }

    /// The stream has ended; what has come of a last line is one.
    pub(crate) fn end(&mut self, tail: &mut Tail) {
        if !self.unfinished.is_empty() {
            self.finish(tail);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = LINE_BYTES_MAX - self.unfinished.len();
        self.unfinished.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn finish(&mut self, tail: &mut Tail) {
        self.first.get_or_insert_with(|| readable(&self.unfinished));
        tail.add(&self.unfinished);
        self.unfinished.clear();
    }
}

/// What a terminal can show without being told to do anything.
fn readable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim_end().chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail_of(pieces: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut tail) = (Lines::default(), Tail::default());
        for piece in pieces {
            lines.push(piece, &mut tail);
        }
        lines.end(&mut tail);
        tail.lines()
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        assert_eq!(tail_of(&[b"a", b"b\nc", b"\n", b"\n", b"d"]), ["ab", "c", "", "d"]);
        assert!(tail_of(&[]).is_empty());
        assert_eq!(tail_of(&[b"a\r\n"]), ["a"]);
    }

    #[test]
    fn only_the_last_lines_and_the_starts_of_long_ones_are_kept() {
        let many: String = (0..100).map(|i| format!("{i}\n")).collect();
        let kept = tail_of(&[many.as_bytes()]);
        assert_eq!((kept.len(), kept[0].as_str()), (LINES_KEPT, "80"));
        let long = vec![b'x'; 10 * LINE_BYTES_MAX];
        let kept = tail_of(&[&long, &long, b"\nshort\n"]);
        assert_eq!((kept[0].len(), kept[1].as_str()), (LINE_BYTES_MAX, "short"));
    }

    #[test]
    fn what_would_steer_a_terminal_is_replaced() {
        assert_eq!(tail_of(&[b"\x1b[2Jx\xff\n"]), ["\u{fffd}[2Jx\u{fffd}"]);
    }
}
