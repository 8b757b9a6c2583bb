//! Scopes (RFC 6749 section 3.3) and the one way to narrow them.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::id::Invalid;

/// The most scopes in one set.
pub const MAX_SCOPES: usize = 100;

/// One scope: 1 to 128 bytes of `%x21 / %x23-5B / %x5D-7E`, and not `*`, which some peers read as
/// "everything".
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Scope(Arc<str>);

impl Scope {
    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Scopes that grant something in this service itself; never granted unless asked for or listed
    /// as a default.
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with("jeton:")
    }
}

impl FromStr for Scope {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let valid = |b: u8| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
        if text.is_empty() || text.len() > 128 || text == "*" || !text.bytes().all(valid) {
            return Err(Invalid(
                "a scope must be 1 to 128 characters of RFC 6749 section 3.3, and not \"*\"",
            ));
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Scope {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({})", self.0)
    }
}

/// A set of scopes in the order given, without repeats, at most [`MAX_SCOPES`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Scope>")]
pub struct Scopes(Arc<[Scope]>);

impl Scopes {
    /// Parses what a caller sent: every entry valid, none twice.
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, Invalid> {
        let scopes =
            texts.iter().map(|text| text.as_ref().parse()).collect::<Result<Vec<Scope>, _>>()?;
        Self::try_from(scopes)
    }

    /// Returns true if no scope is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The scopes in order.
    pub fn iter(&self) -> impl Iterator<Item = &Scope> {
        self.0.iter()
    }

    /// Returns true if `scope` is in the set, byte by byte.
    pub fn contains(&self, scope: &str) -> bool {
        self.0.iter().any(|own| own.as_str() == scope)
    }

    /// The first scope of `asked` that is not in this set.
    pub fn lacks<'a>(&self, asked: &'a Self) -> Option<&'a Scope> {
        asked.iter().find(|scope| !self.contains(scope.as_str()))
    }

    /// The scopes that grant nothing in this service itself.
    pub fn without_reserved(&self) -> Self {
        Self(self.0.iter().filter(|scope| !scope.is_reserved()).cloned().collect())
    }

    /// Returns the scopes as owned strings, for a message.
    pub fn to_strings(&self) -> Vec<String> {
        self.0.iter().map(|scope| scope.as_str().to_owned()).collect()
    }
}

impl TryFrom<Vec<Scope>> for Scopes {
    type Error = Invalid;

    fn try_from(scopes: Vec<Scope>) -> Result<Self, Invalid> {
        if scopes.len() > MAX_SCOPES {
            return Err(Invalid("at most 100 scopes"));
        }
        let repeated = scopes
            .iter()
            .enumerate()
            .any(|(at, scope)| scopes.iter().take(at).any(|earlier| earlier == scope));
        if repeated {
            return Err(Invalid("a scope is repeated"));
        }
        Ok(Self(scopes.into()))
    }
}

/// Scopes cut to what a client may have: the only thing a token is minted with.
#[derive(Debug, PartialEq, Eq)]
pub struct Granted(Scopes);

impl Granted {
    /// Returns the granted scopes of a request for `asked`, by a client with `allowed` scopes, and
    /// `default` for an empty request. The error is the first scope that is not allowed: the
    /// request is never silently widened or narrowed (RFC 6749 section 3.3).
    pub fn asked<'a>(
        asked: &'a Scopes,
        allowed: &Scopes,
        default: impl FnOnce() -> Scopes,
    ) -> Result<Self, &'a Scope> {
        if asked.is_empty() {
            return Ok(Self(default()));
        }
        match allowed.lacks(asked) {
            Some(scope) => Err(scope),
            None => Ok(Self(asked.clone())),
        }
    }

    /// Returns the scopes that a family opened with `opened` keeps for a client that may still have
    /// `allowed`.
    pub fn still(opened: &Scopes, allowed: &Scopes) -> Self {
        Self(Scopes(
            opened.iter().filter(|scope| allowed.contains(scope.as_str())).cloned().collect(),
        ))
    }

    /// The scopes.
    pub const fn scopes(&self) -> &Scopes {
        &self.0
    }
}

/// Space-separated, as in the `scope` claim (RFC 8693 section 4.2).
impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, scope) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(" ")?;
            }
            f.write_str(scope.as_str())?;
        }
        Ok(())
    }
}

/// Reads the `scope` claim back.
impl FromStr for Scopes {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        Self::parse(&text.split(' ').collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A14: what is not a scope is refused, never trimmed or widened.
    #[test]
    fn odd_scopes_are_refused() {
        let long = "s".repeat(10 * 1024);
        for bad in ["", "*", " scope", "scope ", "a b", "a\"b", "a\\b", "a\tb", "é", long.as_str()]
        {
            assert!(bad.parse::<Scope>().is_err(), "{bad:?}");
        }
        assert!(Scopes::parse(&["a", "a"]).is_err());
        assert!(Scopes::parse(&(0..101).map(|n| n.to_string()).collect::<Vec<_>>()).is_err());
    }

    #[test]
    fn the_claim_reads_back_as_it_was_written() {
        let scopes = Scopes::parse(&["orders:read", "orders:write"]).unwrap();
        assert_eq!(scopes.to_string(), "orders:read orders:write");
        assert_eq!(scopes.to_string().parse::<Scopes>().unwrap(), scopes);
    }

    #[test]
    fn asking_for_nothing_gives_the_default_and_asking_too_much_gives_nothing() {
        let allowed = Scopes::parse(&["a", "b", "jeton:admin"]).unwrap();
        let granted =
            Granted::asked(&Scopes::default(), &allowed, || allowed.without_reserved()).unwrap();
        assert_eq!(granted.scopes().to_string(), "a b");
        let wide = Scopes::parse(&["a", "c"]).unwrap();
        assert_eq!(Granted::asked(&wide, &allowed, Scopes::default).unwrap_err().as_str(), "c");
        assert_eq!(Granted::still(&wide, &allowed).scopes().to_string(), "a");
    }

    #[test]
    fn the_missing_scope_is_named() {
        let own = Scopes::parse(&["a", "b"]).unwrap();
        assert_eq!(own.lacks(&Scopes::parse(&["b"]).unwrap()), None);
        assert_eq!(own.lacks(&Scopes::parse(&["b", "B"]).unwrap()).unwrap().as_str(), "B");
    }
}
