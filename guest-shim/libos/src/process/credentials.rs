//! Who a process is.

use alloc::vec::Vec;

/// User and group identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Real, effective, saved, file-system user.
    pub uid: [u32; 4],
    /// Real, effective, saved, file-system group.
    pub gid: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl Credentials {
    /// Another program begins, which sets the effective user and group to these: they are the saved ones then.
    pub fn take_identity(&mut self, (user, group): (Option<u32>, Option<u32>)) {
        let user = user.unwrap_or(self.uid[1]);
        let group = group.unwrap_or(self.gid[1]);
        (self.uid[1], self.uid[2], self.uid[3]) = (user, user, user);
        (self.gid[1], self.gid[2], self.gid[3]) = (group, group, group);
    }

    /// Whether a program must not trust its environment (`AT_SECURE`): it may do what its user may not.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.uid[0] != self.uid[1] || self.gid[0] != self.gid[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_id_program_has_another_effective_identity_and_is_secure() {
        let mut who = Credentials {
            uid: [7; 4],
            gid: [8; 4],
            groups: Vec::new(),
        };
        who.take_identity((None, None));
        assert!(!who.is_secure());
        who.take_identity((Some(0), None));
        assert_eq!((who.uid, who.gid), ([7, 0, 0, 0], [8; 4]));
        assert!(who.is_secure());
        who.take_identity((None, Some(9)));
        assert_eq!((who.uid, who.gid), ([7, 0, 0, 0], [8, 9, 9, 9]));
    }
}
