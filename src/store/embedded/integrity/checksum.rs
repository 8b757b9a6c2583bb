//! Sums over rows. SQLite notices a torn page by its structure, not a bit that flipped inside a
//! value: these do.

use aws_lc_rs::digest;

/// How much of the SHA-256 a row keeps.
const KEPT: usize = 16;

/// The sum of a row: over its table and columns, each with its length.
pub(crate) fn row(table: &str, columns: &[&[u8]]) -> [u8; KEPT] {
    let mut sum = [0; KEPT];
    sum.iter_mut().zip(hash(table, columns).as_ref()).for_each(|(to, from)| *to = *from);
    sum
}

fn hash(table: &str, columns: &[&[u8]]) -> digest::Digest {
    let mut bytes = Vec::with_capacity(512);
    for part in std::iter::once(table.as_bytes()).chain(columns.iter().copied()) {
        bytes.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    digest::digest(&digest::SHA256, &bytes)
}

/// A sum over a set of rows, kept up row by row: shows a row that is missing, which no sum inside
/// the row can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally([u64; 4]);

impl Tally {
    /// A row came into the set.
    pub(crate) fn add(&mut self, table: &str, columns: &[&[u8]]) {
        self.step(table, columns, u64::wrapping_add);
    }

    /// A row left the set.
    pub(crate) fn remove(&mut self, table: &str, columns: &[&[u8]]) {
        self.step(table, columns, u64::wrapping_sub);
    }

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        self.0.iter().flat_map(|lane| lane.to_be_bytes()).collect()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let lanes: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|lane| Some(u64::from_be_bytes(lane.try_into().ok()?)))
            .collect::<Option<_>>()?;
        (bytes.len() == 32).then_some(Self(lanes.try_into().ok()?))
    }

    fn step(&mut self, table: &str, columns: &[&[u8]], by: fn(u64, u64) -> u64) {
        let hash = hash(table, columns);
        let lanes = hash
            .as_ref()
            .chunks_exact(8)
            .filter_map(|lane| lane.try_into().ok().map(u64::from_be_bytes));
        self.0.iter_mut().zip(lanes).for_each(|(total, lane)| *total = by(*total, lane));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_depends_on_the_rows_and_not_on_their_order() {
        let (mut one, mut other) = (Tally::default(), Tally::default());
        one.add("t", &[b"a"]);
        one.add("t", &[b"b"]);
        other.add("t", &[b"b"]);
        other.add("t", &[b"x"]);
        other.add("t", &[b"a"]);
        assert_ne!(one, other);
        other.remove("t", &[b"x"]);
        assert_eq!(one, other);
        assert_ne!(one.to_bytes(), Tally::default().to_bytes());
    }

    #[test]
    fn columns_do_not_run_into_each_other() {
        assert_ne!(row("t", &[b"ab", b"c"]), row("t", &[b"a", b"bc"]));
        assert_ne!(row("t", &[b"a"]), row("u", &[b"a"]));
    }
}
