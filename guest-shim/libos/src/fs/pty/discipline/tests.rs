use super::*;

fn lines(discipline: &mut Discipline) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while discipline.has_input(1) {
        all.push(discipline.take(4096));
    }
    all
}

#[test]
fn a_line_is_edited_and_echoed() {
    let mut d = Discipline::default();
    let effects = d.receive(b"ab\x7fc");
    assert_eq!((effects.echo, d.has_input(1)), (b"ab\x08 \x08c".to_vec(), false));
    assert_eq!(d.receive(b"\r").echo, b"\r\n");
    assert_eq!((d.readable(), d.take(100)), (3, b"ac\n".to_vec()));
    assert_eq!(d.receive(b"one two\x17x\x15y\n").echo.len(), 7 + 9 + 1 + 15 + 3);
    assert_eq!(lines(&mut d), [b"y\n"]);
    // A control character takes two columns, a tabulator up to the next stop.
    assert_eq!(d.receive(b"\x01\x7f").echo, b"^A\x08 \x08\x08 \x08");
    assert_eq!(d.receive(b"\x16\x03\n").echo, b"^\x08^C\r\n");
    assert_eq!(lines(&mut d), [b"\x03\n"]);
    d.termios.iflag |= IUTF8;
    d.receive("a\u{e9}\x7f\n".as_bytes());
    assert_eq!(lines(&mut d), [b"a\n"]);
}

#[test]
fn the_end_of_file_ends_a_line_and_is_not_read() {
    let mut d = Discipline::default();
    d.receive(b"ab\x04\x04cd\n\x04");
    assert_eq!(lines(&mut d), [&b"ab"[..], b"", b"cd\n", b""]);
    d.receive(b"abcd\x04");
    assert_eq!(
        (d.take(4), d.has_input(1)),
        (b"abcd".to_vec(), false),
        "no end of file of its own"
    );
}

#[test]
fn signals_flush_and_show() {
    let mut d = Discipline::default();
    let effects = d.receive(b"half\x03");
    assert_eq!(effects.signals, [Signal::Interrupt]);
    assert!(effects.flush_output && effects.echo == b"^C");
    d.receive(b"x\n");
    assert_eq!(lines(&mut d), [b"x\n"]);
    d.termios.lflag &= !ISIG;
    assert_eq!(d.receive(b"\x03\n").signals, []);
    assert_eq!(lines(&mut d), [b"\x03\n"]);
    assert_eq!(d.receive(b"\x13").stops, Some(true));
    assert_eq!(d.receive(b"\x11").stops, Some(false));
}

#[test]
fn raw_input_is_what_was_sent() {
    let mut d = Discipline::default();
    d.receive(b"half");
    let mut raw = Termios::default();
    (raw.iflag, raw.oflag, raw.lflag) = (0, 0, 0);
    d.set(raw);
    assert!(d.has_input(4) && !d.has_input(5), "what was edited can be read");
    let all: Vec<u8> = (0..=255).collect();
    assert_eq!(d.receive(&all), Effects::default());
    assert_eq!(d.take(4), b"half");
    assert_eq!(d.take(1000), all);
    d.receive(b"rest");
    d.set(Termios::default());
    assert_eq!(d.take(1000), b"rest", "what was there becomes a line");
}

#[test]
fn output_is_processed() {
    let mut d = Discipline::default();
    let mut out = Vec::new();
    d.output(b"a\nb\tc", &mut out);
    assert_eq!(out, b"a\r\nb\tc");
    d.termios.oflag |= TABDLY;
    out.clear();
    d.output(b"\r\t|", &mut out);
    assert_eq!(out, b"\r        |");
    d.termios.oflag &= !OPOST;
    out.clear();
    d.output(b"\n\t", &mut out);
    assert_eq!(out, b"\n\t");
}

#[test]
fn a_line_that_is_too_long_loses_its_end_and_no_more() {
    let mut d = Discipline::default();
    for _ in 0..5 {
        assert!(d.room() > 0);
        d.receive(&[b'x'; 1000]);
    }
    assert!(!d.has_input(1));
    d.receive(b"\n");
    let line = d.take(10_000);
    assert_eq!((line.len(), line.last()), (INPUT_MAX + 1, Some(&b'\n')));
    d.receive(b"next\n");
    assert_eq!(lines(&mut d), [b"next\n"]);
}

/// Whatever comes in whatever mode: what is kept is bounded, what can be read is read, and nothing is made up.
#[test]
fn arbitrary_input_and_settings_keep_the_bounds() {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut d = Discipline::default();
    for _ in 0..20_000 {
        match next() % 8 {
            0 => {
                let mut termios = Termios {
                    iflag: next() as u32 & 0xffff,
                    oflag: next() as u32 & 0xffff,
                    lflag: next() as u32 & 0xffff,
                    ..Termios::default()
                };
                termios.cc[next() as usize % 19] = next() as u8;
                d.set(termios);
            }
            1..=3 => {
                let most = next() as usize % 300 + 1;
                let (readable, pending) = (d.readable(), d.pending());
                let got = d.take(most);
                assert!(got.len() <= most && got.len() <= readable);
                assert!(d.pending() + got.len() <= pending);
            }
            _ => {
                let len = next() as usize % 500;
                let bytes: Vec<u8> = (0..len).map(|_| next() as u8).collect();
                let effects = d.receive(&bytes);
                let most = 8 * (len + INPUT_MAX + 1) * 3;
                assert!(effects.echo.len() <= most && effects.signals.len() <= len);
                let mut out = Vec::new();
                d.output(&bytes, &mut out);
                assert!(out.len() <= len * TAB);
            }
        }
        assert!(d.input.len() <= INPUT_MAX + 2 && d.edited <= d.input.len());
    }
}
