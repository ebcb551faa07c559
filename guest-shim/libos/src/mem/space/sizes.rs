//! How large an address space is, and what of it is in memory.

use cloak_abi::layout::PAGE;

use super::Inner;
use crate::fs::providers::{Sizes, Usage};
use crate::mem::area::{Area, Backing, Protection};
use crate::mem::frames;

impl Inner {
    /// What of it all is in memory. Goes through the tables of files that are mapped to be read, and no others.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let (resident, most) = self.tables.held();
        let mut sizes = Sizes {
            resident,
            most,
            ..Sizes::default()
        };
        for (start, area) in self.areas.iter() {
            let pinned = area.pins.len() as u64 * PAGE;
            match &area.backing {
                Backing::Pages(pages, ..) if pages.is_tracked() => sizes.file += pinned,
                Backing::Pages(..) => sizes.memory_file += pinned,
                Backing::File(..) if area.is_as_in_file() => sizes.file += self.present(start, area.end),
                Backing::File(..) | Backing::Anonymous => {}
            }
            if area.name == "[stack]" {
                sizes.stack += area.end - start;
            } else if !area.shared && area.protection.contains(Protection::WRITE) {
                sizes.data += area.end - start;
            }
        }
        sizes
    }

    fn present(&self, start: u64, end: u64) -> u64 {
        let parts = self.tables.present(start, end);
        parts.into_iter().map(|(first, last)| last - first).sum()
    }

    /// Where an area's bytes are.
    #[must_use]
    pub fn usage(&self, start: u64, area: &Area) -> Usage {
        let mut usage = Usage {
            left: area.left.len() as u64 * PAGE,
            ..Usage::default()
        };
        let mut va = start;
        while va < area.end {
            let (leaf, end) = self.tables.look(va);
            let Some(leaf) = leaf else {
                va = end;
                continue;
            };
            let owners = if leaf.is_shared() {
                1
            } else {
                frames::owners(leaf.gpa)
            };
            let kind = match owners {
                _ if leaf.is_shared() || area.is_as_in_file() => &mut usage.file,
                1 => &mut usage.private,
                _ => &mut usage.shared,
            };
            *kind += PAGE;
            usage.part += PAGE / owners;
            va += PAGE;
        }
        usage
    }
}
