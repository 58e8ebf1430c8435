//! Takes the terminal over for whole screens, and gives it back as it was on every way out.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read, Write};

use parking_lot::Mutex;
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};
use tokio::sync::mpsc;

use super::screen::Size;
use super::table::{Line, Tone};

/// How the terminal was before; nothing while it is not taken. A panic ends the program from any thread, so that this
/// belongs to all of them.
static TAKEN: Mutex<Option<Before>> = Mutex::new(None);

struct Before {
    /// None where keys come from elsewhere.
    modes: Option<Termios>,
}

/// The terminal, taken over.
pub(super) struct Terminal {
    has_colour: bool,
    keys: Option<mpsc::Receiver<u8>>,
}

impl Terminal {
    /// Switches to a screen of its own, where keys come at once and are not shown.
    pub(super) fn take() -> Self {
        let stdin = io::stdin();
        let modes = tcgetattr(&stdin).ok().filter(|before| {
            let mut raw = before.clone();
            // Ctrl-C comes as a key, and Ctrl-Z does not leave a shell on this screen.
            raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN;
            raw.special_codes[SpecialCodeIndex::VMIN] = 1;
            raw.special_codes[SpecialCodeIndex::VTIME] = 0;
            tcsetattr(&stdin, OptionalActions::Now, &raw).is_ok()
        });
        let keys = modes.is_some().then(keys);
        *TAKEN.lock() = Some(Before { modes });
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            report(panic);
        }));
        write("\x1b[?1049h\x1b[?25l");
        Self { has_colour: has_colour(), keys }
    }

    /// Waits for the next key; for ever where there are none.
    pub(super) async fn key(&mut self) -> u8 {
        if let Some(keys) = &mut self.keys {
            match keys.recv().await {
                Some(key) => return key,
                None => self.keys = None,
            }
        }
        std::future::pending().await
    }

    /// Shows these lines and nothing else.
    pub(super) fn draw(&self, lines: &[Line]) {
        let body: Vec<String> = lines.iter().map(|l| styled(l, self.has_colour) + "\x1b[K").collect();
        write(&format!("\x1b[H{}\x1b[J", body.join("\n")));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

/// The size of the terminal, if there is one.
pub(super) fn size() -> Option<Size> {
    let size = tcgetwinsize(io::stdout()).ok().filter(|s| s.ws_col > 0 && s.ws_row > 0)?;
    Some(Size { width: size.ws_col.into(), height: size.ws_row.into() })
}

/// Whether colours are shown and wanted.
pub(super) fn has_colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// These lines as text.
pub(super) fn text(lines: &[Line], has_colour: bool) -> String {
    lines.iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{}", styled(line, has_colour));
        text
    })
}

fn styled(line: &Line, has_colour: bool) -> String {
    let code = match line.tone {
        _ if !has_colour => return line.text.clone(),
        Tone::Plain => return line.text.clone(),
        Tone::Warning => "33",
        Tone::Bad => "31",
    };
    format!("\x1b[{code}m{}\x1b[0m", line.text)
}

fn give_back() {
    if let Some(before) = TAKEN.lock().take() {
        write("\x1b[?25h\x1b[?1049l");
        if let Some(modes) = before.modes {
            // A terminal that is gone needs nothing back.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &modes);
        }
    }
}

/// A terminal that is gone is noticed by the signal that says so.
fn write(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// The keys that are pressed. The thread waits for the next one when the program ends, and ends with it.
fn keys() -> mpsc::Receiver<u8> {
    let (sender, keys) = mpsc::channel(16);
    std::thread::spawn(move || {
        for key in io::stdin().lock().bytes().map_while(Result::ok) {
            if sender.blocking_send(key).is_err() {
                break;
            }
        }
    });
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_lines_that_mean_something() {
        let lines = [Line::plain("a"), Line { text: "b".into(), tone: Tone::Bad }];
        assert_eq!(text(&lines, false), "a\nb\n");
        assert_eq!(text(&lines, true), "a\n\x1b[31mb\x1b[0m\n");
    }
}
