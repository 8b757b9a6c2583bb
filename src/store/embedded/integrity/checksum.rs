//! Checksums of rows and of sets of rows. SQLite finds a torn page by its structure, but not a
//! flipped bit inside a value: these do.

use aws_lc_rs::digest;

/// Length in bytes of a row's checksum, a truncated SHA-256.
const KEPT: usize = 16;

/// Returns the checksum of a row, over its table and columns, each with its length.
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

/// Incremental checksum of a set of rows (AdHash: the sum of the rows' hashes). It shows a missing
/// row, which no checksum inside a row can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SetChecksum([u64; 4]);

impl SetChecksum {
    /// Adds a row to the set.
    pub(crate) fn add(&mut self, table: &str, columns: &[&[u8]]) {
        self.step(table, columns, u64::wrapping_add);
    }

    /// Removes a row from the set.
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
        let (mut one, mut other) = (SetChecksum::default(), SetChecksum::default());
        one.add("t", &[b"a"]);
        one.add("t", &[b"b"]);
        other.add("t", &[b"b"]);
        other.add("t", &[b"x"]);
        other.add("t", &[b"a"]);
        assert_ne!(one, other);
        other.remove("t", &[b"x"]);
        assert_eq!(one, other);
        assert_ne!(one.to_bytes(), SetChecksum::default().to_bytes());
    }

    #[test]
    fn columns_do_not_run_into_each_other() {
        assert_ne!(row("t", &[b"ab", b"c"]), row("t", &[b"a", b"bc"]));
        assert_ne!(row("t", &[b"a"]), row("u", &[b"a"]));
    }
}
