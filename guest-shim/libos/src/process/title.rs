//! The title that a process gives itself by writing over its arguments, as `ps` and `/proc/PID/cmdline` show it.

use cloak_abi::layout::PAGE;

/// What is shown of `memory`: the arguments, of `arguments` bytes, and the environment behind them. Where the arguments' last
/// NUL is gone, a title was written there, which may go on over the environment and ends at its first NUL.
pub fn of(memory: &[u8], arguments: usize) -> &[u8] {
    let own = memory.get(..arguments).unwrap_or(memory);
    if own.last().is_none_or(|&last| last == 0) {
        return own;
    }
    let longest = &memory[..memory.len().min(PAGE as usize)];
    let end = longest.iter().position(|&byte| byte == 0);
    &longest[..end.map_or(longest.len(), |nul| nul + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_shown_whole_and_a_title_to_its_end() {
        assert_eq!(of(b"ls\0-l\0A=b\0", 6), b"ls\0-l\0");
        assert_eq!(of(b"me\0\0\0\0A=b\0", 6), b"me\0\0\0\0");
        assert_eq!(of(b"a title\0=b\0", 6), b"a title\0");
        assert_eq!(of(b"a title that", 6), b"a title that");
        assert_eq!(of(b"", 0), b"");
    }

    #[test]
    fn a_title_has_an_end() {
        let memory = [b'x'; 3 * PAGE as usize];
        assert_eq!(of(&memory, 6).len(), PAGE as usize);
    }
}
