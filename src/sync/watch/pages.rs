//! Owns which pages of the newest changes a look reads. Pure: times come in.

use std::time::Duration;

use crate::time::Millis;

/// Users on a page.
pub const PAGE: u16 = 100;
/// Pages overlap by so many users: those who are deleted while pages are read move the others to the front.
const OVERLAP: u64 = 20;
/// The most pages of one look: for more changes a whole run is the better way.
const PAGES_MAX: u32 = 100;
/// Clocks that are less apart than this count as one, and Clerk may show a change a little after it has dated it.
const SLACK: Duration = Duration::from_secs(10);

/// How far a look has come.
#[derive(Clone, Debug)]
pub struct Pages {
    floor: Option<Millis>,
    offset: u64,
    read: u32,
    /// The first and the last user of the page before.
    before: Option<(Option<String>, Option<String>)>,
}

/// What is known of a page that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Users on it.
    pub users: usize,
    /// Users that were asked for.
    pub limit: u16,
    /// The oldest change on it.
    pub oldest: Option<Millis>,
    /// Its first user, ...
    pub first: Option<String>,
    /// ... and its last.
    pub last: Option<String>,
}

/// What to do after a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The look has seen all that changed since the last one.
    Enough,
    /// Read the page at this offset.
    Page(u64),
    /// More has changed than a look reads.
    TooMany,
    /// The same page came again: the API ignores the offset.
    Repeats,
}

impl Pages {
    /// For a look after one that began at `last`, by Clerk's clock. The first look of all reads one page: for what changed
    /// before anybody watched there is the whole run.
    pub fn since(last: Option<Millis>, grace: Duration, every: Duration) -> Self {
        let back = Millis::try_from((grace + every + SLACK).as_millis()).unwrap_or(Millis::MAX);
        Self { floor: last.map(|last| last.saturating_sub(back)), offset: 0, read: 0, before: None }
    }

    /// Judges a page that was read.
    pub fn next(&mut self, page: &Page) -> Next {
        self.read += 1;
        let reached = match (self.floor, page.oldest) {
            (Some(floor), Some(oldest)) => oldest < floor,
            (None, _) | (_, None) => true,
        };
        if reached || page.users < usize::from(page.limit) {
            return Next::Enough;
        }
        let ends = (page.first.clone(), page.last.clone());
        if self.before.replace(ends.clone()) == Some(ends) {
            return Next::Repeats;
        }
        if self.read >= PAGES_MAX {
            return Next::TooMany;
        }
        let users = page.users as u64;
        self.offset += users.saturating_sub(OVERLAP).max(1);
        Next::Page(self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Millis = 1000;

    fn page(number: u32, oldest: Millis) -> Page {
        let id = |end: &str| Some(format!("user_{number}_{end}"));
        Page { users: 100, limit: 100, oldest: Some(oldest), first: id("first"), last: id("last") }
    }

    fn pages(last: Option<Millis>) -> Pages {
        Pages::since(last, Duration::from_secs(60), Duration::from_secs(60))
    }

    #[test]
    fn pages_are_read_until_they_reach_behind_the_last_look() {
        let mut pages = pages(Some(1000 * SECOND));
        assert_eq!(pages.next(&page(1, 950 * SECOND)), Next::Page(80));
        assert_eq!(pages.next(&page(2, 870 * SECOND)), Next::Page(160));
        assert_eq!(pages.next(&page(3, 869 * SECOND)), Next::Enough);
    }

    #[test]
    fn the_first_look_reads_one_page() {
        assert_eq!(pages(None).next(&page(1, 0)), Next::Enough);
    }

    #[test]
    fn a_short_page_is_the_last() {
        let mut pages = pages(Some(0));
        assert_eq!(pages.next(&Page { users: 99, ..page(1, 5) }), Next::Enough);
        assert_eq!(pages.next(&Page { limit: 100, ..Page::default() }), Next::Enough);
        // Fewer were asked for, because so many were too large for one answer.
        assert_eq!(pages.next(&Page { users: 5, limit: 5, ..page(2, 5) }), Next::Page(1));
    }

    #[test]
    fn a_page_that_comes_again_ends_the_look() {
        let mut pages = pages(Some(0));
        assert_eq!(pages.next(&page(1, 5)), Next::Page(80));
        assert_eq!(pages.next(&page(1, 5)), Next::Repeats);
    }

    #[test]
    fn more_changes_than_a_look_reads_are_too_many() {
        let mut pages = pages(Some(0));
        for number in 1..PAGES_MAX {
            assert!(matches!(pages.next(&page(number, 5)), Next::Page(_)), "{number}");
        }
        assert_eq!(pages.next(&page(PAGES_MAX, 5)), Next::TooMany);
    }
}
