//! The line discipline: what a terminal makes of bytes on their way. No system calls, no waiting: bytes in, bytes and
//! signals out, as termios(3) describes it and Linux's `n_tty` does it.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::termios::*;

/// Most bytes of input kept; a line longer than that loses its end.
pub const INPUT_MAX: usize = 4095;
/// Columns between tabulator stops.
const TAB: usize = 8;

/// A signal for the foreground group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT.
    Interrupt,
    /// SIGQUIT.
    Quit,
    /// SIGTSTP.
    Suspend,
}

/// What input did besides becoming readable.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// What the other side is to see.
    pub echo: Vec<u8>,
    /// Signals, in order.
    pub signals: Vec<Signal>,
    /// Output that was not yet taken is to be thrown away, with the first signal.
    pub flush_output: bool,
    /// Output stops (true) or goes on.
    pub stops: Option<bool>,
}

/// A byte of input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    byte: u8,
    /// A line ends with it.
    ends: bool,
    /// It is an end of file: it ends a line and is not read.
    eof: bool,
}

/// The state of one terminal.
#[derive(Debug, Default)]
pub struct Discipline {
    /// Its settings.
    pub termios: Termios,
    input: VecDeque<Cell>,
    /// Where the line that is being edited begins in the input; what is before it can be read.
    edited: usize,
    /// The next byte is taken as it is.
    literal: bool,
    column: usize,
    /// Column at which the edited line began.
    line_column: usize,
}

impl Discipline {
    fn input_has(&self, flag: u32) -> bool {
        self.termios.iflag & flag != 0
    }

    fn local_has(&self, flag: u32) -> bool {
        self.termios.lflag & flag != 0
    }

    fn is_special(&self, which: usize, byte: u8) -> bool {
        let special = self.termios.cc[which];
        special == byte && special != 0
    }

    /// Changes the settings.
    pub fn set(&mut self, termios: Termios) {
        let before = self.local_has(ICANON);
        self.termios = termios;
        match (before, self.local_has(ICANON)) {
            (true, false) => self.edited = self.input.len(),
            // What was there becomes a line.
            (false, true) => {
                if let Some(last) = self.input.back_mut() {
                    last.ends = true;
                }
                self.edited = self.input.len();
            }
            _ => {}
        }
        self.literal = false;
    }

    /// Bytes that [`Discipline::receive`] takes now. A line that is too long takes any, and loses them.
    #[must_use]
    pub fn room(&self) -> usize {
        let left = INPUT_MAX.saturating_sub(self.input.len());
        if self.local_has(ICANON) && self.edited == 0 {
            left.max(1)
        } else {
            left
        }
    }

    /// Bytes that a read gives at most now: of one line, if lines are edited.
    #[must_use]
    pub fn readable(&self) -> usize {
        if !self.local_has(ICANON) {
            return self.input.len();
        }
        let line = self.input.iter().take(self.edited);
        let len = line.clone().position(|cell| cell.ends);
        len.map_or(self.edited, |at| at + usize::from(!self.input[at].eof))
    }

    /// Bytes of all that can be read.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.input
            .iter()
            .take(self.edited)
            .filter(|cell| !cell.eof)
            .count()
    }

    /// Whether a read gives something now, the end of the file included. `enough`: bytes that are enough when lines are
    /// not edited.
    #[must_use]
    pub fn has_input(&self, enough: usize) -> bool {
        if self.local_has(ICANON) {
            self.edited > 0
        } else {
            !self.input.is_empty() && self.input.len() >= enough
        }
    }

    /// Takes at most `most` bytes: of one line, if lines are edited. Nothing means the end of the file then.
    pub fn take(&mut self, most: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let canonical = self.local_has(ICANON);
        while out.len() < most && self.edited > 0 {
            let Some(cell) = self.input.pop_front() else { break };
            self.edited -= 1;
            if !cell.eof {
                out.push(cell.byte);
            }
            if canonical && cell.ends {
                return out;
            }
        }
        // An end of file right behind what filled the buffer belongs to the line that was just read.
        if canonical && !out.is_empty() && self.edited > 0 && self.input.front().is_some_and(|c| c.eof) {
            self.input.pop_front();
            self.edited -= 1;
        }
        out
    }

    /// Throws all input away.
    pub fn flush_input(&mut self) {
        self.input.clear();
        self.edited = 0;
        self.literal = false;
    }

    /// Output of a program, as the other side sees it.
    pub fn output(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for &byte in bytes {
            self.put(byte, out);
        }
    }

    fn output_has(&self, flag: u32) -> bool {
        self.termios.oflag & flag != 0
    }

    fn put(&mut self, byte: u8, out: &mut Vec<u8>) {
        if !self.output_has(OPOST) {
            out.push(byte);
            return;
        }
        match byte {
            b'\n' => {
                if self.output_has(ONLRET) {
                    self.column = 0;
                }
                if self.output_has(ONLCR) {
                    out.push(b'\r');
                    self.column = 0;
                }
                out.push(b'\n');
            }
            b'\r' => {
                if self.output_has(ONOCR) && self.column == 0 {
                    return;
                }
                if self.output_has(OCRNL) {
                    out.push(b'\n');
                    if self.output_has(ONLRET) {
                        self.column = 0;
                    }
                    return;
                }
                self.column = 0;
                out.push(b'\r');
            }
            b'\t' => {
                let width = TAB - self.column % TAB;
                self.column += width;
                if self.termios.oflag & TABDLY == TABDLY {
                    out.resize(out.len() + width, b' ');
                } else {
                    out.push(b'\t');
                }
            }
            8 => {
                self.column = self.column.saturating_sub(1);
                out.push(byte);
            }
            _ => {
                let byte = if self.output_has(OLCUC) {
                    byte.to_ascii_uppercase()
                } else {
                    byte
                };
                let continues = self.input_has(IUTF8) && is_continuation(byte);
                if !byte.is_ascii_control() && !continues {
                    self.column += 1;
                }
                out.push(byte);
            }
        }
    }

    /// Input, as it comes from the other side.
    pub fn receive(&mut self, bytes: &[u8]) -> Effects {
        let mut effects = Effects::default();
        for &byte in bytes {
            self.receive_byte(byte, &mut effects);
        }
        effects
    }

    fn receive_byte(&mut self, byte: u8, effects: &mut Effects) {
        let mut byte = if self.input_has(ISTRIP) { byte & 0x7f } else { byte };
        if core::mem::take(&mut self.literal) {
            self.echo(byte, effects);
            return self.store(byte, false, false, effects);
        }
        if self.input_has(IUCLC) && self.local_has(IEXTEN) {
            byte = byte.to_ascii_lowercase();
        }
        if self.input_has(IXON) {
            if self.is_special(VSTART, byte) {
                effects.stops = Some(false);
                return;
            }
            if self.is_special(VSTOP, byte) {
                effects.stops = Some(true);
                return;
            }
            if self.input_has(IXANY) {
                effects.stops = Some(false);
            }
        }
        if self.local_has(ISIG)
            && let Some(signal) = self.signal_of(byte)
        {
            return self.signal(byte, signal, effects);
        }
        match byte {
            b'\r' if self.input_has(IGNCR) => return,
            b'\r' if self.input_has(ICRNL) => byte = b'\n',
            b'\n' if self.input_has(INLCR) => byte = b'\r',
            _ => {}
        }
        if self.local_has(ICANON) && self.edit(byte, effects) {
            return;
        }
        if self.local_has(ECHO) {
            self.echo(byte, effects);
        }
        self.store(byte, false, false, effects);
    }

    fn signal_of(&self, byte: u8) -> Option<Signal> {
        let all = [
            (VINTR, Signal::Interrupt),
            (VQUIT, Signal::Quit),
            (VSUSP, Signal::Suspend),
        ];
        all.into_iter()
            .find(|(which, _)| self.is_special(*which, byte))
            .map(|(_, signal)| signal)
    }

    fn signal(&mut self, byte: u8, signal: Signal, effects: &mut Effects) {
        if !self.local_has(NOFLSH) {
            self.flush_input();
            effects.echo.clear();
            effects.flush_output = true;
        }
        effects.stops = Some(false);
        self.echo(byte, effects);
        effects.signals.push(signal);
    }

    /// Carries out what a byte means to a line that is edited; false: it is text.
    fn edit(&mut self, byte: u8, effects: &mut Effects) -> bool {
        let extended = self.local_has(IEXTEN);
        let echoes = self.local_has(ECHO);
        if self.is_special(VERASE, byte) {
            self.erase_character(effects);
        } else if self.is_special(VKILL, byte) {
            self.kill(effects);
        } else if extended && self.is_special(VWERASE, byte) {
            self.erase_word(effects);
        } else if extended && self.is_special(VLNEXT, byte) {
            self.literal = true;
            if echoes && self.local_has(ECHOCTL) {
                effects.echo.extend_from_slice(b"^\x08");
            }
        } else if extended && echoes && self.is_special(VREPRINT, byte) {
            self.reprint(effects);
        } else if byte == b'\n' {
            if echoes || self.local_has(ECHONL) {
                self.put(b'\n', &mut effects.echo);
            }
            self.store(byte, true, false, effects);
        } else if self.is_special(VEOF, byte) {
            self.store(0, true, true, effects);
        } else if self.is_special(VEOL, byte) || extended && self.is_special(VEOL2, byte) {
            self.echo(byte, effects);
            self.store(byte, true, false, effects);
        } else {
            return false;
        }
        true
    }

    fn store(&mut self, byte: u8, ends: bool, eof: bool, effects: &mut Effects) {
        let canonical = self.local_has(ICANON);
        // There is room for an end of a line even when there is none for more of it.
        if self.input.len() >= INPUT_MAX && !(ends && self.input.len() == INPUT_MAX) {
            if self.input_has(IMAXBEL) {
                effects.echo.push(7);
            }
            return;
        }
        if canonical && self.input.len() == self.edited {
            let own = effects.echo.len().min(1);
            self.line_column = self.column.saturating_sub(own);
        }
        if byte == 0xff && self.input_has(PARMRK) && !eof {
            self.input.push_back(Cell {
                byte,
                ends: false,
                eof: false,
            });
        }
        self.input.push_back(Cell { byte, ends, eof });
        if ends || !canonical {
            self.edited = self.input.len();
        }
    }

    /// Shows a byte of input, control characters as `^X`.
    fn echo(&mut self, byte: u8, effects: &mut Effects) {
        if !self.local_has(ECHO) {
            return;
        }
        if self.local_has(ECHOCTL) && byte.is_ascii_control() && byte != b'\t' && byte != b'\n' {
            effects.echo.extend_from_slice(&[b'^', byte ^ 0x40]);
            self.column += 2;
        } else {
            self.put(byte, &mut effects.echo);
        }
    }

    fn line_is_empty(&self) -> bool {
        self.input.len() <= self.edited
    }

    /// Takes the last character off the line; gives its first byte.
    fn pop_character(&mut self) -> Option<u8> {
        loop {
            if self.line_is_empty() {
                return None;
            }
            let byte = self.input.pop_back()?.byte;
            if !(self.input_has(IUTF8) && is_continuation(byte)) || self.line_is_empty() {
                return Some(byte);
            }
        }
    }

    fn erase_character(&mut self, effects: &mut Effects) {
        let Some(byte) = self.pop_character() else { return };
        if !self.local_has(ECHO) {
            return;
        }
        if self.local_has(ECHOE) {
            self.rub_out(byte, effects);
        } else {
            let erase = self.termios.cc[VERASE];
            self.echo(erase, effects);
        }
    }

    /// Columns that a byte takes on the screen, as it was echoed.
    fn width(&self, byte: u8, column: usize) -> usize {
        match byte {
            b'\t' => TAB - column % TAB,
            _ if byte.is_ascii_control() => 2 * usize::from(self.local_has(ECHOCTL)),
            _ if self.input_has(IUTF8) && is_continuation(byte) => 0,
            _ => 1,
        }
    }

    fn rub_out(&mut self, byte: u8, effects: &mut Effects) {
        let before = self
            .input
            .iter()
            .skip(self.edited)
            .fold(self.line_column, |column, cell| {
                column + self.width(cell.byte, column)
            });
        for _ in 0..self.width(byte, before) {
            // A tab leaves nothing to blank out.
            let blank: &[u8] = if byte == b'\t' { b"\x08" } else { b"\x08 \x08" };
            effects.echo.extend_from_slice(blank);
            self.column = self.column.saturating_sub(1);
        }
    }

    fn kill(&mut self, effects: &mut Effects) {
        let all = self.local_has(ECHOK) && self.local_has(ECHOKE) && self.local_has(ECHOE);
        if self.local_has(ECHO) && all {
            while !self.line_is_empty() {
                self.erase_character(effects);
            }
            return;
        }
        self.input.truncate(self.edited);
        let kill = self.termios.cc[VKILL];
        self.echo(kill, effects);
        if self.local_has(ECHOK) && self.local_has(ECHO) {
            self.put(b'\n', &mut effects.echo);
        }
    }

    fn erase_word(&mut self, effects: &mut Effects) {
        let mut seen = false;
        while !self.line_is_empty() {
            let is_word = self.input.back().is_some_and(|cell| {
                cell.byte.is_ascii_alphanumeric() || cell.byte == b'_' || cell.byte >= 0x80
            });
            if seen && !is_word {
                return;
            }
            seen |= is_word;
            self.erase_character(effects);
        }
    }

    fn reprint(&mut self, effects: &mut Effects) {
        let byte = self.termios.cc[VREPRINT];
        self.echo(byte, effects);
        self.put(b'\n', &mut effects.echo);
        let line: Vec<u8> = self
            .input
            .iter()
            .skip(self.edited)
            .map(|cell| cell.byte)
            .collect();
        for byte in line {
            self.echo(byte, effects);
        }
    }
}

const fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

#[cfg(test)]
mod tests;
