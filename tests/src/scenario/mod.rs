//! Plays text files: events for a core go in, and in words what the core answers comes out.
//!
//! A file is a list of blocks. A block is comments, commands, a line of four dashes, and what the commands must bring
//! about; a blank line ends it. The command `run` opens shards, `coordinator` opens a coordinator, and the commands
//! after it are for them until the next such command, over as many blocks as one likes.

mod command;
mod coordinator;
mod shards;
mod words;

use std::fmt::Write as _;
use std::path::Path;

use command::Command;

/// Rewrites the files with what came out, instead of comparing.
pub const UPDATE_VARIABLE: &str = "UPDATE_SCENARIOS";

/// Whoever the commands are for.
trait Stage {
    /// Carries out one command and says what came of it, a line each.
    fn play(&mut self, command: &Command) -> Result<Vec<String>, String>;
}

/// Plays a whole file and returns it with the answers as they came out.
///
/// # Errors
/// Names the first line that cannot be understood.
pub fn play(text: &str) -> Result<String, String> {
    let mut played = String::new();
    let mut stage: Option<Box<dyn Stage>> = None;
    let mut answers: Option<Vec<String>> = None;
    let mut expected = false;
    let flush = |answers: &mut Option<Vec<String>>, played: &mut String| {
        if let Some(lines) = answers.take() {
            played.push_str("----\n");
            lines.iter().for_each(|line| played.extend([line.as_str(), "\n"]));
        }
    };
    for (number, line) in (1..).zip(text.lines()) {
        match line.trim() {
            "" => {
                flush(&mut answers, &mut played);
                played.push('\n');
                expected = false;
            }
            "----" => expected = true,
            _ if expected => {}
            comment if comment.starts_with('#') => played.extend([comment, "\n"]),
            line => {
                played.extend([line, "\n"]);
                let told = Command::parse(line).and_then(|command| perform(&mut stage, &command));
                answers
                    .get_or_insert_default()
                    .extend(told.map_err(|e| format!("line {number}, {line:?}: {e}"))?);
            }
        }
    }
    flush(&mut answers, &mut played);
    Ok(played)
}

fn perform(stage: &mut Option<Box<dyn Stage>>, command: &Command) -> Result<Vec<String>, String> {
    match command.name.as_str() {
        "run" => *stage = Some(Box::new(shards::Shards::open(command)?)),
        "coordinator" => *stage = Some(Box::new(coordinator::Played::open(command)?)),
        _ => {
            let lines = stage.as_mut().ok_or("a file begins with run or coordinator")?.play(command)?;
            command.check_all_used()?;
            return Ok(lines);
        }
    }
    command.check_all_used()?;
    Ok(Vec::new())
}

/// Plays one file and compares, or rewrites it if [`UPDATE_VARIABLE`] is set. Returns what differs.
///
/// # Errors
/// Shows the lines that differ, or says why the file cannot be played.
pub fn check(path: &Path) -> Result<(), String> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| format!("{name}: {e}"))?;
    let played = play(&text).map_err(|e| format!("{name}: {e}"))?;
    if played == text {
        return Ok(());
    }
    if std::env::var_os(UPDATE_VARIABLE).is_some() {
        return std::fs::write(path, played).map_err(|e| format!("{name}: {e}"));
    }
    Err(format!("{name} ({UPDATE_VARIABLE}=1 rewrites it)\n{}", difference(&text, &played)))
}

/// The lines that are only in the one or only in the other, with the line before each group of them.
fn difference(expected: &str, found: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    // lengths[i][j] is the length of the longest common subsequence of a[i..] and b[j..].
    let mut lengths = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            lengths[i][j] = if a[i] == b[j] {
                lengths[i + 1][j + 1] + 1
            } else {
                lengths[i + 1][j].max(lengths[i][j + 1])
            };
        }
    }
    let mut text = String::new();
    let (mut i, mut j, mut shown) = (0, 0, usize::MAX);
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
            continue;
        }
        if shown != i && i > 0 {
            let _ = writeln!(text, "{:5} {}", i, a[i - 1]);
        }
        if j == b.len() || (i < a.len() && lengths[i + 1][j] >= lengths[i][j + 1]) {
            let _ = writeln!(text, "    - {}", a[i]);
            i += 1;
        } else {
            let _ = writeln!(text, "    + {}", b[j]);
            j += 1;
        }
        shown = i;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# one worker\nrun mode=async workers=1\njoin w0\n----\nadmitted w0 incarnation=1 next push=0 step=0\n";

    #[test]
    fn what_is_right_stays_as_it_is() {
        assert_eq!(play(TEXT), Ok(TEXT.to_owned()));
        let unanswered = TEXT.split("----").next().unwrap();
        assert_eq!(play(unanswered), Ok(TEXT.to_owned()), "a new file gets its answers");
    }

    #[test]
    fn what_differs_is_shown() {
        let wrong = TEXT.replace("push=0", "push=7");
        let shown = difference(&wrong, &play(&wrong).unwrap());
        assert!(shown.contains("- admitted w0 incarnation=1 next push=7"), "{shown}");
        assert!(shown.contains("+ admitted w0 incarnation=1 next push=0"), "{shown}");
        assert!(!shown.contains("# one worker"), "{shown}");
    }

    #[test]
    fn a_line_that_cannot_be_meant_is_named() {
        let error = |text: &str| play(text).unwrap_err();
        assert!(error("join w0\n").contains("line 1"));
        assert!(error("run mode=async workers=1\ndance w0\n").contains("line 2, \"dance w0\""));
        assert!(error("run mode=async workers=1 speed=3\n").contains("speed"));
        assert!(error("run mode=async workers=one\n").contains("workers"));
    }
}
