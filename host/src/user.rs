//! As whom a program runs: `--user`.
//!
//! Only root can run a program as somebody else. The program then has that user's numbers inside, and the OS service
//! becomes that user before the program starts, so the host's own checks hold for its files: what the program makes on
//! a volume is the user's, and what the user may not read it can't.

use std::io::ErrorKind;

use crate::jail::privileges::Identity;
use crate::vm::error::VmError;

/// The one who runs this process.
///
/// # Errors
/// When the groups can't be read.
pub fn caller() -> Result<Identity, VmError> {
    let groups = rustix::process::getgroups().map_err(|source| VmError::Os {
        step: "reading the user's groups",
        source: source.into(),
    })?;
    Ok(Identity {
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        groups: groups.into_iter().map(rustix::process::Gid::as_raw).collect(),
    })
}

/// From `USER[:GROUP]`, each a name of the host's `/etc/passwd` and `/etc/group` or a number. Without a group: the
/// user's own and those it is a member of; for a number that `/etc/passwd` doesn't know, group 0, as container
/// engines have it.
///
/// # Errors
/// When a name is unknown, a file can't be read, or the caller may not become that user.
pub fn named(text: &str) -> Result<Identity, VmError> {
    let unknown = |what: &'static str| VmError::User {
        name: text.to_owned(),
        why: what,
    };
    let read = |path: &str| match std::fs::read_to_string(path) {
        // A host without it knows numbers only.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        result => result.map_err(|_| unknown("/etc/passwd or /etc/group can't be read")),
    };
    let wanted = parse(text, &read("/etc/passwd")?, &read("/etc/group")?).map_err(unknown)?;
    if wanted != caller()? && !rustix::process::geteuid().is_root() {
        return Err(unknown("only root runs programs as another user"));
    }
    Ok(wanted)
}

/// Fields of the line whose first is `name`, or whose third is.
fn line<'t>(table: &'t str, name: &str) -> Option<Vec<&'t str>> {
    let lines = || table.lines().map(|l| l.split(':').collect::<Vec<_>>());
    lines()
        .find(|l| l[0] == name && l.len() > 2)
        .or_else(|| lines().find(|l| l.get(2) == Some(&name)))
}

fn number(text: Option<&&str>) -> Option<u32> {
    // The last one means "leave it" to the kernel.
    text?.parse().ok().filter(|&n| n != u32::MAX)
}

fn parse(text: &str, passwd: &str, group: &str) -> Result<Identity, &'static str> {
    let (name, wanted_group) = match text.split_once(':') {
        Some((name, wanted)) => (name, Some(wanted)),
        None => (text, None),
    };
    let entry = line(passwd, name);
    let uid = match &entry {
        Some(fields) => number(fields.get(2)),
        None => number(Some(&name)),
    };
    let uid = uid.ok_or("no such user in /etc/passwd, and no number")?;
    if let Some(wanted) = wanted_group {
        let fields = line(group, wanted);
        let gid = match &fields {
            Some(fields) => number(fields.get(2)),
            None => number(Some(&wanted)),
        };
        let gid = gid.ok_or("no such group in /etc/group, and no number")?;
        return Ok(Identity {
            uid,
            gid,
            groups: vec![gid],
        });
    }
    let Some(fields) = entry else {
        return Ok(Identity {
            uid,
            gid: 0,
            groups: vec![0],
        });
    };
    let gid = number(fields.get(3)).ok_or("its line in /etc/passwd has no group")?;
    let mut groups = vec![gid];
    for other in group.lines().map(|l| l.split(':').collect::<Vec<_>>()) {
        let member = other
            .get(3)
            .is_some_and(|members| members.split(',').any(|m| m == fields[0]));
        if let Some(id) = number(other.get(2)).filter(|id| member && !groups.contains(id)) {
            groups.push(id);
        }
    }
    Ok(Identity { uid, gid, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nsql:x:101:104:SQL,,,:/var/lib/sql:/bin/sh\nodd:x:7\n";
    const GROUP: &str = "root:x:0:\nsql:x:104:\nssl:x:105:other,sql\nnot:x:106:sqlite\n";

    fn user(text: &str) -> Result<Identity, &'static str> {
        parse(text, PASSWD, GROUP)
    }

    fn numbers(uid: u32, groups: &[u32]) -> Identity {
        Identity {
            uid,
            gid: groups[0],
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn names_and_numbers_are_found_with_their_groups() {
        assert_eq!(user("sql"), Ok(numbers(101, &[104, 105])));
        assert_eq!(user("101"), Ok(numbers(101, &[104, 105])));
        assert_eq!(user("sql:ssl"), Ok(numbers(101, &[105])));
        assert_eq!(user("sql:9"), Ok(numbers(101, &[9])));
        assert_eq!(user("4000"), Ok(numbers(4000, &[0])));
    }

    #[test]
    fn what_is_nobody_is_refused() {
        for text in [
            "",
            "nobody-here",
            "-1",
            "4294967295",
            "odd",
            "sql:nowhere",
            "sql:",
        ] {
            assert!(user(text).is_err(), "{text:?}");
        }
    }
}
