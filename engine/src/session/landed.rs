//! Which operand a name at the target came from: what one of them has written, a later one does not replace.
//!
//! Directories of several operands may become one, files may not: the second is left out, and both are named. Where no two
//! operands can meet, which is known before anything is copied, nothing is remembered; else a few bytes for each name.

use super::Failure;
use super::plan::{Landing, Operand};
use crate::limits::NAMES_KNOWN;
use crate::wire::display::Printable;
use crate::wire::frame::Kind;
use crate::wire::path::{RelPath, RequestPath, Target};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// What the operands of a run have written.
#[derive(Default)]
pub struct Landed {
    operands: Vec<Known>,
    /// How many of them have begun.
    begun: usize,
    /// Names by their hash, with the operand that has written there.
    names: HashMap<u64, u32>,
    key: RandomState,
}

struct Known {
    operand: Operand,
    /// Where it lands, once that is known.
    base: Option<RequestPath>,
    /// One before it may have written where it writes.
    meets_earlier: bool,
    /// One after it may write where it does.
    meets_later: bool,
}

/// Operands by number, the first and the last.
#[derive(Clone, Copy)]
struct Span(usize, usize);

impl Span {
    fn add(span: &mut Option<Span>, number: usize) {
        let Span(first, last) = span.unwrap_or(Span(number, number));
        *span = Some(Span(first.min(number), last.max(number)));
    }
}

/// The operands that land at a path, and those that land there or below.
#[derive(Default)]
struct There {
    at: Option<Span>,
    below: Option<Span>,
}

impl Landed {
    /// For a run that copies these sources, in this order.
    pub fn new<'a>(landing: &Landing, sources: impl Iterator<Item = &'a Operand>) -> Landed {
        let sources: Vec<&Operand> = sources.collect();
        // Of what kind each is, is not known yet.
        let kinds = [Kind::Directory, Kind::Regular];
        let bases: Vec<(usize, RequestPath)> = sources
            .iter()
            .enumerate()
            .flat_map(|(number, source)| {
                kinds.iter().filter_map(move |&kind| Some((number, landing.of(source, kind).ok()?.joined())))
            })
            .collect();
        let mut there: HashMap<&[u8], There> = HashMap::new();
        for (number, base) in &bases {
            Span::add(&mut there.entry(base.as_bytes()).or_default().at, *number);
        }
        for (number, base) in &bases {
            for path in upwards(base.as_bytes()) {
                if let Some(there) = there.get_mut(path) {
                    Span::add(&mut there.below, *number);
                }
            }
        }
        let known = |operand: &&Operand| Known {
            operand: Operand::clone(operand),
            base: None,
            meets_earlier: false,
            meets_later: false,
        };
        let mut operands: Vec<Known> = sources.iter().map(known).collect();
        for (number, base) in &bases {
            let above = upwards(base.as_bytes()).filter_map(|path| there.get(path)?.at);
            let below = there.get(base.as_bytes()).and_then(|there| there.below);
            for Span(first, last) in above.chain(below) {
                operands[*number].meets_earlier |= first < *number;
                operands[*number].meets_later |= last > *number;
            }
        }
        Landed { operands, ..Landed::default() }
    }

    /// The next operand begins.
    pub fn next(&mut self) {
        self.begun += 1;
    }

    /// It lands here.
    pub fn land(&mut self, target: &Target) {
        if let Some(known) = self.begun.checked_sub(1).and_then(|number| self.operands.get_mut(number)) {
            known.base = Some(target.joined());
        }
    }

    /// The operand that has begun last writes a file or a link to `target`, from `source`; both as the user knows them, too.
    /// A failure where an earlier one has written there.
    pub fn claim(&mut self, target: &Target, source: &[u8], shown: &[u8]) -> Result<(), Failure> {
        let Some(number) = self.begun.checked_sub(1) else { return Ok(()) };
        let Some(&Known { meets_earlier, meets_later, .. }) = self.operands.get(number) else { return Ok(()) };
        if !meets_earlier && !meets_later {
            return Ok(());
        }
        let path = target.joined();
        let full = self.names.len() >= NAMES_KNOWN;
        let hash = self.key.hash_one(&path);
        match self.names.get(&hash) {
            Some(&first) if first as usize != number => {
                let first = self.source_of(first as usize, &path);
                let rule = format!("{} is copied to {} already", Printable(&first), Printable(shown));
                return Err(Failure::rule(source, "left out", rule));
            }
            Some(_) => {}
            None if full && meets_earlier => {
                let rule = "it is not known any more whether another source is copied there; copy it by itself";
                return Err(Failure::rule(source, "left out", rule));
            }
            None if full || !meets_later => {}
            None => _ = self.names.insert(hash, number as u32),
        }
        Ok(())
    }

    /// What operand `number` has for this path, as the user knows it.
    fn source_of(&self, number: usize, path: &RequestPath) -> Vec<u8> {
        let known = &self.operands[number];
        let base = known.base.as_ref().map_or(&b""[..], RequestPath::as_bytes);
        let below = path.as_bytes().strip_prefix(base).map(|below| below.strip_prefix(b"/").unwrap_or(below));
        known.operand.shown_below(below.and_then(|below| RelPath::parse(below).ok()).as_ref())
    }
}

/// A path and every directory above it, the root or where relative paths begin included.
pub(super) fn upwards(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(Some(path), |path| match path.iter().rposition(|&byte| byte == b'/') {
        _ if matches!(*path, b"" | b"/") => None,
        None => Some(&path[..0]),
        Some(0) => Some(&path[..1]),
        Some(slash) => Some(&path[..slash]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::plan::Options;

    fn operand(path: &str) -> Operand {
        let shown = path.as_bytes().to_vec();
        Operand { path: RequestPath::parse(path.as_bytes()).unwrap(), shown, contents: path.ends_with('/') }
    }

    fn target(path: &str) -> Target {
        Target { operand: RequestPath::parse(path.as_bytes()).unwrap(), below: None }
    }

    /// What became of files that operands, by number, wrote to `o`.
    fn told(sources: &[&str], writes: &[(usize, &str)]) -> Vec<Option<String>> {
        let options = Options { recursive: true, ..Options::default() };
        let landing = Landing { target: operand("o"), options, many: true, present: None };
        let sources: Vec<Operand> = sources.iter().map(|path| operand(path)).collect();
        let mut landed = Landed::new(&landing, sources.iter());
        let mut begun = 0;
        let write = |&(number, path): &(usize, &str)| {
            while begun <= number {
                landed.next();
                landed.land(&landing.of(&sources[begun], Kind::Directory).unwrap());
                begun += 1;
            }
            landed.claim(&target(path), b"it", path.as_bytes()).err().map(|failure| failure.reason())
        };
        writes.iter().map(write).collect()
    }

    #[test]
    fn what_an_operand_has_written_a_later_one_does_not_replace() {
        let refused = |text: &str| Some(format!("left out: {text} already"));
        assert_eq!(
            told(&["A/n", "B/n"], &[(0, "o/n/x"), (1, "o/n/y"), (1, "o/n/x"), (1, "o/n/y")]),
            [None, None, refused("A/n/x is copied to o/n/x"), None]
        );
        assert_eq!(told(&["A/", "x"], &[(0, "o/x"), (1, "o/x")]), [None, refused("A/x is copied to o/x")]);
        assert_eq!(told(&["x", "A/"], &[(0, "o/x"), (1, "o/x")]), [None, refused("x is copied to o/x")]);
        assert_eq!(told(&["A/n", "q", "B/"], &[(0, "o/n/x"), (2, "o/n/x")])[1], refused("A/n/x is copied to o/n/x"));
    }

    #[test]
    fn nothing_is_remembered_of_operands_that_cannot_meet() {
        let landing = Landing { target: operand("o"), options: Options::default(), many: true, present: None };
        let sources: Vec<Operand> = (0..3).map(|number| operand(&format!("d/{number}"))).collect();
        let mut landed = Landed::new(&landing, sources.iter());
        for number in 0..3 {
            landed.next();
            landed.claim(&target(&format!("o/{number}")), b"", b"").unwrap();
        }
        assert!(landed.names.is_empty());
    }
}
