//! Advice to a client whose request names a scope that it may not have. It reads about its own scopes
//! alone.

use super::scope::{Scope, Scopes};

/// Maximum scopes that are listed.
const LISTED_MAX: usize = 5;
/// Maximum characters that differ in a scope that may have been meant.
const DIFFERING_MAX: usize = 2;
/// Minimum characters that are alike.
const ALIKE_MIN: usize = 3;

impl Scopes {
    /// Returns, in brackets, the scope of this set that `refused` may be a misspelling of, else the
    /// first scopes of the set.
    pub fn advice(&self, refused: &Scope) -> String {
        if let Some(meant) = self.iter().find(|own| is_like(own.as_str(), refused.as_str())) {
            return format!("(did you mean {meant}?)");
        }
        let listed: Vec<_> = self.iter().take(LISTED_MAX).map(Scope::as_str).collect();
        match self.iter().count() - listed.len() {
            0 if listed.is_empty() => "(it may request none)".to_owned(),
            0 => format!("(it may request {})", listed.join(" ")),
            more => format!("(it may request {} and {more} more)", listed.join(" ")),
        }
    }
}

/// Returns true if two texts differ in few adjacent characters. Runs for every refused request, so
/// it takes one look at each byte.
fn is_like(one: &str, other: &str) -> bool {
    if one.eq_ignore_ascii_case(other) {
        return true;
    }
    let alike =
        |pairs: &mut dyn Iterator<Item = (u8, u8)>| pairs.take_while(|(a, b)| a == b).count();
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let (copied, reversed) = (one.iter().copied(), one.iter().rev().copied());
    let start = alike(&mut copied.zip(other.iter().copied()));
    let shorter = one.len().min(other.len());
    let end = alike(&mut reversed.zip(other.iter().rev().copied())).min(shorter - start);
    let differing = one.len().max(other.len()) - start - end;
    differing <= DIFFERING_MAX && start + end >= ALIKE_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice(own: &[&str], refused: &str) -> String {
        Scopes::parse(own).unwrap().advice(&refused.parse().unwrap())
    }

    /// OPERATORS 4.17
    #[test]
    fn a_misspelled_scope_is_recognized() {
        let own = ["orders:read", "orders:write", "billing:read"];
        for (refused, meant) in [
            ("orders:raed", "orders:read"),
            ("order:read", "orders:read"),
            ("orderss:read", "orders:read"),
            ("Orders:Read", "orders:read"),
            ("orders.write", "orders:write"),
            ("orders:writes", "orders:write"),
            ("billing:rea", "billing:read"),
        ] {
            assert_eq!(advice(&own, refused), format!("(did you mean {meant}?)"), "{refused}");
        }
        let listed = "(it may request orders:read orders:write billing:read)";
        for refused in ["everything", "orders:delete", "a", "read"] {
            assert_eq!(advice(&own, refused), listed, "{refused}");
        }
    }

    #[test]
    fn few_scopes_are_listed() {
        assert_eq!(advice(&[], "a"), "(it may request none)");
        assert_eq!(advice(&["x"], "a"), "(it may request x)");
        let many: Vec<String> = (0..7).map(|number| format!("s{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(advice(&many, "a"), "(it may request s0 s1 s2 s3 s4 and 2 more)");
    }
}
