//! Memory areas of an address space: which addresses are mapped, with which rights, from what.
//!
//! Only bookkeeping: an ordered map of disjoint areas, with the splits and joins that `munmap`,
//! `mprotect` and friends need. Page tables follow in `space`.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use bitflags::bitflags;

use crate::fs::OpenFile;
use crate::mem::pages::{Frame, PageCache};
use crate::mem::swap::Left;

bitflags! {
    /// Access rights (`PROT_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Protection: u8 {
        /// `PROT_READ`.
        const READ = 1;
        /// `PROT_WRITE`.
        const WRITE = 2;
        /// `PROT_EXEC`.
        const EXECUTE = 4;
    }
}

/// What an area's pages come from.
#[derive(Clone)]
pub enum Backing {
    /// Zeros, private.
    Anonymous,
    /// A private copy of a file from an offset on.
    File(Arc<OpenFile>, u64),
    /// Pages shared with other mappings of a file, from an offset on; the file is kept open.
    Pages(Arc<PageCache>, u64, Option<Arc<OpenFile>>),
}

impl core::fmt::Debug for Backing {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::File(_, offset) => write!(f, "File(+{offset:#x})"),
            Self::Pages(_, offset, _) => write!(f, "Pages(+{offset:#x})"),
        }
    }
}

impl Backing {
    /// The same, `by` bytes further on.
    #[must_use]
    pub fn advance(&self, by: u64) -> Self {
        match self {
            Self::Anonymous => Self::Anonymous,
            Self::File(file, offset) => Self::File(file.clone(), offset + by),
            Self::Pages(pages, offset, file) => Self::Pages(pages.clone(), offset + by, file.clone()),
        }
    }

    fn continues(&self, next: &Self, by: u64) -> bool {
        match (self, next) {
            (Self::Anonymous, Self::Anonymous) => true,
            (Self::File(a, x), Self::File(b, y)) => Arc::ptr_eq(a, b) && x + by == *y,
            (Self::Pages(a, x, _), Self::Pages(b, y, _)) => Arc::ptr_eq(a, b) && x + by == *y,
            _ => false,
        }
    }
}

/// One area, `[start, end)` with `start` as its key in [`Areas`].
#[derive(Debug, Clone)]
pub struct Area {
    /// First address after it.
    pub end: u64,
    /// Rights.
    pub protection: Protection,
    /// `MAP_SHARED`.
    pub shared: bool,
    /// Where pages come from.
    pub backing: Backing,
    /// `MADV_DONTFORK`.
    pub dont_fork: bool,
    /// `MADV_WIPEONFORK`: zeros in a child.
    pub wipe_on_fork: bool,
    /// `MAP_STACK`, `MADV_NOHUGEPAGE`: no large pages, of which a stack would use a few KiB.
    pub small_pages: bool,
    /// Frames of a page cache that are mapped here, by address: they live while mapped.
    pub pins: BTreeMap<u64, Frame>,
    /// Pages that have left guest memory, by address.
    pub left: BTreeMap<u64, Left>,
    /// Next address at which a fault would be sequential, and the window that it would get.
    pub ahead: (u64, u64),
    /// Shown in `/proc/self/maps` (`[heap]`, `[stack]`).
    pub name: &'static str,
}

impl Area {
    /// An anonymous private area.
    #[must_use]
    pub fn anonymous(end: u64, protection: Protection) -> Self {
        Self {
            end,
            protection,
            shared: false,
            backing: Backing::Anonymous,
            dont_fork: false,
            wipe_on_fork: false,
            small_pages: false,
            pins: BTreeMap::new(),
            left: BTreeMap::new(),
            ahead: (0, 0),
            name: "",
        }
    }

    /// Whether what is private here counts as the file's: the program may not write it. (What a loader relocates and then
    /// protects is taken for the file's, too.)
    #[must_use]
    pub fn is_as_in_file(&self) -> bool {
        matches!(self.backing, Backing::File(..)) && !self.protection.contains(Protection::WRITE)
    }

    /// The same with other ends: nothing of it is mapped yet. It starts `by` bytes further on.
    #[must_use]
    pub fn more(&self, by: u64, end: u64) -> Self {
        Self {
            end,
            protection: self.protection,
            shared: self.shared,
            backing: self.backing.advance(by),
            dont_fork: self.dont_fork,
            wipe_on_fork: self.wipe_on_fork,
            small_pages: self.small_pages,
            pins: BTreeMap::new(),
            left: BTreeMap::new(),
            ahead: (0, 0),
            name: self.name,
        }
    }
}

/// The areas of an address space.
#[derive(Debug, Default, Clone)]
pub struct Areas {
    map: BTreeMap<u64, Area>,
}

impl Areas {
    /// The area that contains `address`.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<(u64, &Area)> {
        self.map
            .range(..=address)
            .next_back()
            .filter(|(_, a)| address < a.end)
            .map(|(&s, a)| (s, a))
    }

    /// The area that contains `address`, to change.
    pub fn find_mut(&mut self, address: u64) -> Option<(u64, &mut Area)> {
        self.map
            .range_mut(..=address)
            .next_back()
            .filter(|(_, a)| address < a.end)
            .map(|(&s, a)| (s, a))
    }

    /// All areas in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, &Area)> {
        self.map.iter().map(|(&s, a)| (s, a))
    }

    /// The areas from the one that starts at `start` on, in order.
    pub fn from(&self, start: u64) -> impl Iterator<Item = (u64, &Area)> {
        self.map.range(start..).map(|(&s, a)| (s, a))
    }

    /// The areas that touch `[start, end)`, cut to it.
    #[must_use]
    pub fn within(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let first = self.find(start).map_or(start, |(s, _)| s);
        self.map
            .range(first..end)
            .map(|(&s, a)| (s.max(start), a.end.min(end)))
            .filter(|(s, e)| s < e)
            .collect()
    }

    /// Whether nothing lies in `[start, end)`.
    #[must_use]
    pub fn is_free(&self, start: u64, end: u64) -> bool {
        self.within(start, end).is_empty()
    }

    /// Whether `[start, end)` has no hole.
    #[must_use]
    pub fn covers(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        for (s, e) in self.within(start, end) {
            if s != at {
                return false;
            }
            at = e;
        }
        at >= end
    }

    /// Bytes mapped.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.map.iter().map(|(s, a)| a.end - s).sum()
    }

    /// Cuts areas at `address`, so that one ends and one begins there.
    pub fn split(&mut self, address: u64) {
        let Some((start, area)) = self.find_mut(address) else {
            return;
        };
        if start == address {
            return;
        }
        let mut right = area.clone();
        right.backing = area.backing.advance(address - start);
        right.pins = area.pins.split_off(&address);
        right.left = area.left.split_off(&address);
        area.end = address;
        self.map.insert(address, right);
    }

    /// Takes the areas of `[start, end)` out, cutting those at its edges.
    pub fn remove(&mut self, start: u64, end: u64) -> Vec<(u64, Area)> {
        self.split(start);
        self.split(end);
        let keys: Vec<u64> = self.map.range(start..end).map(|(&s, _)| s).collect();
        keys.into_iter()
            .filter_map(|k| self.map.remove(&k).map(|a| (k, a)))
            .collect()
    }

    /// Puts an area at `start`; the range must be free. Joins it with equal neighbours.
    pub fn insert(&mut self, start: u64, area: Area) {
        debug_assert!(self.is_free(start, area.end));
        self.map.insert(start, area);
        self.join(start);
    }

    /// Changes each area of `[start, end)`, cutting those at its edges.
    pub fn change(&mut self, start: u64, end: u64, mut change: impl FnMut(&mut Area)) {
        self.split(start);
        self.split(end);
        let keys: Vec<u64> = self.map.range(start..end).map(|(&s, _)| s).collect();
        for &key in &keys {
            if let Some(area) = self.map.get_mut(&key) {
                change(area);
            }
        }
        keys.into_iter().for_each(|key| self.join(key));
        self.join(end);
    }

    /// Joins the area that starts at `start` with its left and right neighbours where they are alike.
    fn join(&mut self, start: u64) {
        let Some(area) = self.map.get(&start) else { return };
        if let Some(next) = self.map.get(&area.end)
            && alike(start, area, next)
        {
            let end = area.end;
            if let Some(next) = self.map.remove(&end)
                && let Some(area) = self.map.get_mut(&start)
            {
                area.end = next.end;
                area.pins.extend(next.pins);
                area.left.extend(next.left);
            }
        }
        let Some((&left, before)) = self.map.range(..start).next_back() else {
            return;
        };
        let Some(area) = self.map.get(&start) else { return };
        if before.end == start
            && alike(left, before, area)
            && let Some(area) = self.map.remove(&start)
            && let Some(before) = self.map.get_mut(&left)
        {
            before.end = area.end;
            before.pins.extend(area.pins);
            before.left.extend(area.left);
        }
    }

    /// The highest free range of `len` bytes in `[low, high)` whose start is a multiple of `align`, so that
    /// a gap of `gap` bytes stays below the next area.
    #[must_use]
    pub fn free_range(&self, low: u64, high: u64, len: u64, align: u64) -> Option<u64> {
        let mut end = high;
        for (&start, area) in self.map.range(..high).rev() {
            if area.end <= low {
                break;
            }
            let candidate = end.checked_sub(len).map(|s| s & !(align - 1));
            if let Some(c) = candidate
                && c >= area.end.max(low)
                && c >= low
            {
                return Some(c);
            }
            end = end.min(start);
        }
        let candidate = end.checked_sub(len)? & !(align - 1);
        (candidate >= low).then_some(candidate)
    }
}

fn alike(start: u64, a: &Area, b: &Area) -> bool {
    a.protection == b.protection
        && a.shared == b.shared
        && a.dont_fork == b.dont_fork
        && a.wipe_on_fork == b.wipe_on_fork
        && a.small_pages == b.small_pages
        && a.name == b.name
        && a.backing.continues(&b.backing, a.end - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RW: Protection = Protection::READ.union(Protection::WRITE);

    #[test]
    fn areas_agree_with_a_map_of_pages() {
        let mut seed = 7u64;
        let mut random = |below: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let mut areas = Areas::default();
        let mut model: BTreeMap<u64, Protection> = BTreeMap::new();
        for _ in 0..5000 {
            let start = random(60);
            let end = start + 1 + random(10);
            let protection = if random(2) == 0 { RW } else { Protection::READ };
            match random(3) {
                0 => {
                    areas.remove(start, end);
                    areas.insert(start, Area::anonymous(end, protection));
                    model.extend((start..end).map(|p| (p, protection)));
                }
                1 => {
                    areas.remove(start, end);
                    model.retain(|p, _| !(start..end).contains(p));
                }
                _ => {
                    areas.change(start, end, |a| a.protection = protection);
                    model.range_mut(start..end).for_each(|(_, m)| *m = protection);
                }
            }
            for page in 0..80 {
                assert_eq!(
                    areas.find(page).map(|(_, a)| a.protection),
                    model.get(&page).copied()
                );
            }
            let joined = areas
                .iter()
                .zip(areas.iter().skip(1))
                .all(|((_, a), (s, b))| a.end < s || a.protection != b.protection);
            assert!(joined, "neighbours that are alike are one area");
        }
    }

    #[test]
    fn free_ranges_are_free_and_aligned() {
        let mut areas = Areas::default();
        areas.insert(100, Area::anonymous(200, RW));
        areas.insert(240, Area::anonymous(300, RW));
        assert_eq!(areas.free_range(0, 300, 40, 1), Some(200));
        assert_eq!(areas.free_range(0, 300, 41, 1), Some(59));
        assert_eq!(areas.free_range(0, 1000, 64, 64), Some(896));
        assert_eq!(areas.free_range(60, 300, 41, 1), None);
    }
}
