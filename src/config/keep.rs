//! Bound of the audit trail.

use std::{path::Path, time::Duration};

use super::{Audit, ConfigError};

/// Shortest age.
const AGE_MIN: Duration = Duration::from_secs(24 * 60 * 60);

/// Smallest size: 64 MiB.
const SIZE_MIN: u64 = 64 << 20;

/// Value of `audit.archive` that cuts without an archive.
const NO_ARCHIVE: &str = "none";

/// Part of the audit trail that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Everything.
    Forever,
    /// Records that are not older.
    Age(Duration),
    /// The newest records that fit into this number of bytes.
    Size(u64),
}

impl Audit {
    /// Returns the part of the trail that is kept.
    ///
    /// # Errors
    ///
    /// The text is neither a duration nor a size, or too small.
    pub fn keep(&self) -> Result<Keep, ConfigError> {
        let refused = |problem: &str| ConfigError::new("audit.keep", problem);
        let text = self.keep.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        if text.is_empty() {
            return Ok(Keep::Forever);
        }
        let wrong = || refused("must be a duration such as 400d, or a size such as 20GiB");
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let seconds = |unit: u64| Duration::from_secs(number.saturating_mul(unit));
        let keep = match unit {
            "h" => Keep::Age(seconds(60 * 60)),
            "d" => Keep::Age(seconds(24 * 60 * 60)),
            "MiB" => Keep::Size(number.saturating_mul(1 << 20)),
            "GiB" => Keep::Size(number.saturating_mul(1 << 30)),
            "TiB" => Keep::Size(number.saturating_mul(1 << 40)),
            _ => return Err(wrong()),
        };
        match keep {
            Keep::Age(age) if age < AGE_MIN => Err(refused("must be at least 1d")),
            Keep::Size(size) if size < SIZE_MIN => Err(refused("must be at least 64MiB")),
            Keep::Forever | Keep::Age(_) | Keep::Size(_) => Ok(keep),
        }
    }

    /// Returns the directory to which records are archived before they are cut; `None` if they are
    /// not archived.
    pub fn archive(&self) -> Option<&Path> {
        let archive = self.archive.as_str();
        (!archive.is_empty() && archive != NO_ARCHIVE).then(|| Path::new(archive))
    }
}

/// Refuses a trail that would be cut without a decision about the archive, and an archive that is
/// never written.
pub(super) fn check(audit: &Audit) -> Result<(), ConfigError> {
    let refused = |problem: &str| Err(ConfigError::new("audit.archive", problem));
    match (audit.keep()?, audit.archive.as_str()) {
        (Keep::Forever, "") => Ok(()),
        (Keep::Forever, _) => refused("must be empty while audit.keep is: nothing is cut"),
        (_, "") => refused(
            "must be a directory to which records are archived before audit.keep cuts them, or \
             \"none\"",
        ),
        (_, archive) if archive != NO_ARCHIVE && !Path::new(archive).is_absolute() => {
            refused("must be an absolute path, or \"none\"")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Issue;

    fn audit(keep: &str, archive: &str) -> Audit {
        Audit { issue: Issue::Durable, keep: keep.to_owned(), archive: archive.to_owned() }
    }

    #[test]
    fn a_bound_is_an_age_or_a_size() {
        let day = 24 * 60 * 60;
        for (text, keep) in [
            ("", Keep::Forever),
            ("400d", Keep::Age(Duration::from_secs(400 * day))),
            ("36h", Keep::Age(Duration::from_secs(36 * 60 * 60))),
            ("64MiB", Keep::Size(64 << 20)),
            ("20GiB", Keep::Size(20 << 30)),
            ("2TiB", Keep::Size(2 << 40)),
        ] {
            assert_eq!(audit(text, "none").keep().unwrap(), keep, "{text}");
        }
        for text in ["400", "d", "400 d", "1y", "-1d", "20GB", "0d", "23h", "63MiB", "0GiB", "1.5d"]
        {
            assert!(audit(text, "none").keep().is_err(), "{text}");
        }
    }

    #[test]
    fn a_cut_needs_a_decision_about_the_archive() {
        check(&audit("", "")).unwrap();
        check(&audit("400d", "none")).unwrap();
        check(&audit("400d", "/archive")).unwrap();
        for (keep, archive) in [("400d", ""), ("", "/archive"), ("", "none"), ("400d", "archive")] {
            let refused = check(&audit(keep, archive)).unwrap_err();
            assert_eq!(refused.key, "audit.archive", "{keep} {archive}");
        }
        assert_eq!(audit("400d", "none").archive(), None);
        assert_eq!(audit("400d", "/archive").archive(), Some(Path::new("/archive")));
    }
}
