//! Carries what went wrong to the shell: one sentence and an exit code.

use std::fmt::{Display, Write};

use windlass_common::exit::Exit;

/// Why a command could not be done.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) error: anyhow::Error,
    /// Lines that help to understand it, such as the last ones of a log.
    pub(crate) details: Vec<String>,
}

pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(exit: Exit, sentence: impl Into<String>) -> Self {
        Self { exit, error: anyhow::Error::msg(sentence.into()), details: Vec::new() }
    }

    pub(crate) fn usage(sentence: impl Into<String>) -> Self {
        Self::new(Exit::Usage, sentence)
    }

    pub(crate) fn with_details(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }

    /// The error and its causes in one line. A cause that the text before it already tells is not told again.
    pub(crate) fn sentence(&self) -> String {
        let mut text = String::new();
        for cause in self.error.chain().map(ToString::to_string) {
            if text.is_empty() {
                text = cause;
            } else if !text.contains(&cause) {
                let _ = write!(text, ": {cause}");
            }
        }
        text
    }
}

/// Gives an error its exit code.
pub(crate) trait OrExit<T> {
    /// The error as it is, with this exit code.
    fn or_exit(self, exit: Exit) -> Outcome<T>;
    /// The error after words of ours, with this exit code.
    fn or_fail(self, exit: Exit, sentence: impl Display) -> Outcome<T>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Outcome<T> {
        self.map_err(|error| Failure { exit, error: error.into(), details: Vec::new() })
    }

    fn or_fail(self, exit: Exit, sentence: impl Display) -> Outcome<T> {
        self.map_err(|error| {
            let error = error.into().context(sentence.to_string());
            Failure { exit, error, details: Vec::new() }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let cause = || std::io::Error::other("no such file");
        let failure = Err::<(), _>(cause()).or_fail(Exit::Input, "could not read x").unwrap_err();
        assert_eq!(failure.sentence(), "could not read x: no such file");
        let failure =
            Err::<(), _>(cause()).or_fail(Exit::Input, "x: no such file; name another").unwrap_err();
        assert_eq!(failure.sentence(), "x: no such file; name another");
        assert_eq!(failure.exit, Exit::Input);
    }
}
