//! Random bytes from the operating system.

use aws_lc_rs::rand;

/// Returns `N` random bytes.
///
/// # Panics
///
/// The system's random source fails: a secret of any other bytes could be guessed.
#[expect(clippy::expect_used, reason = "going on without randomness would be worse than stopping")]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system's random source");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_draws_are_alike() {
        let drawn: std::collections::HashSet<[u8; 16]> = (0..1_000).map(|_| bytes()).collect();
        assert_eq!(drawn.len(), 1_000);
    }
}
