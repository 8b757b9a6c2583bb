//! Tokens for administration, kept until they expire: a command takes the token of the one before
//! instead of a new one. Each is in a file of its own, beside the contexts, which only its owner
//! can read.
//!
//! The name of a file is a digest of everything that the token depends on: the server, the client,
//! the scope and the secret. With another secret there is no token.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::model::Timestamp;

/// Maximum bytes of a file that is read.
const FILE_MAX_BYTES: u64 = 64 * 1024;
/// Maximum time before its expiry at which a token is no longer used: the call takes time, and
/// clocks differ.
const MARGIN_MAX: Duration = Duration::from_secs(30);
/// Maximum files that one command looks at for expired tokens.
const CLEANED_MAX: usize = 256;

/// Directory of tokens.
#[derive(Clone, Debug)]
pub(super) struct TokenCache {
    directory: PathBuf,
}

/// Name of the file of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key(String);

impl Key {
    pub(super) fn of(url: &str, client_id: &str, client_secret: &str, scope: &str) -> Self {
        let mut digest = digest::Context::new(&digest::SHA256);
        for part in ["jeton token cache", url, client_id, scope, client_secret] {
            digest.update(&(part.len() as u64).to_be_bytes());
            digest.update(part.as_bytes());
        }
        Self(HEXLOWER.encode(digest.finish().as_ref()))
    }
}

/// Content of a file.
#[derive(Serialize, Deserialize)]
struct Entry {
    access_token: String,
    /// Milliseconds since 1970.
    saved_at: i64,
    /// The same of the time from which the token is not used any more.
    use_until: i64,
}

impl Entry {
    /// Returns true if the token is still valid. A clock that was set back makes it unknown.
    fn is_usable(&self, now: Timestamp) -> bool {
        (self.saved_at..self.use_until).contains(&now.millis())
    }
}

impl TokenCache {
    /// Returns the cache beside a file of contexts.
    pub(super) fn beside(contexts: &Path) -> Self {
        Self { directory: contexts.with_file_name("tokens") }
    }

    /// Removes all tokens: those of a context that is removed are among them, and any other is
    /// requested again.
    pub(super) fn clear(&self) {
        // A token that stays expires.
        let _ = fs::remove_dir_all(&self.directory);
    }

    /// Returns a token that is valid for some time, and that time.
    pub(super) fn find(&self, key: &Key, now: Timestamp) -> Option<(String, Duration)> {
        let entry = read(&self.directory.join(&key.0))?;
        let left = u64::try_from(entry.use_until.checked_sub(now.millis())?).ok()?;
        entry.is_usable(now).then(|| (entry.access_token, Duration::from_millis(left)))
    }

    /// Keeps a token. Where that is impossible, the next command gets another one.
    pub(super) fn save(&self, key: &Key, token: &str, lifetime: Duration, now: Timestamp) {
        let margin = MARGIN_MAX.min(lifetime / 5);
        let entry = Entry {
            access_token: token.to_owned(),
            saved_at: now.millis(),
            use_until: (now + lifetime.saturating_sub(margin)).millis(),
        };
        let _ = self.write(key, &entry).inspect(|()| self.clean(now));
    }

    /// Removes a token that the server refused, unless another command has replaced it.
    pub(super) fn remove(&self, key: &Key, token: &str) {
        let path = self.directory.join(&key.0);
        if read(&path).is_some_and(|entry| entry.access_token == token) {
            // A file that stays is refused again, and replaced then.
            let _ = fs::remove_file(path);
        }
    }

    /// Writes a whole new file over the old one: a reader gets one or the other.
    fn write(&self, key: &Key, entry: &Entry) -> io::Result<()> {
        let Self { directory } = self;
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        // Not a link to files of others, which `clean` would remove.
        let found = fs::symlink_metadata(directory)?;
        if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let new = directory.join(format!("{}.{}.new", key.0, process::id()));
        // Left over from a process of the same number that was killed here.
        let _ = fs::remove_file(&new);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
        let written = file.and_then(|mut file| file.write_all(&serde_json::to_vec(entry)?));
        written.and_then(|()| fs::rename(&new, directory.join(&key.0))).inspect_err(|_| {
            let _ = fs::remove_file(&new);
        })
    }

    /// Removes tokens that have expired. Those of a secret that has changed are among them in time.
    fn clean(&self, now: Timestamp) {
        let Ok(files) = fs::read_dir(&self.directory) else { return };
        for file in files.take(CLEANED_MAX).flatten() {
            let path = file.path();
            let is_old = || path.metadata().is_ok_and(|found| found.mtime() + 3600 < now.seconds());
            let is_expired = match path.extension() {
                None => read(&path).is_some_and(|entry| !entry.is_usable(now)),
                // A file of a command that was killed while it wrote.
                Some(extension) => extension == "new" && is_old(),
            };
            if is_expired {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Reads a file that belongs to this user and that no other user can read or write.
fn read(path: &Path) -> Option<Entry> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    let is_own = metadata.uid() == rustix::process::geteuid().as_raw();
    if !metadata.is_file() || !is_own || metadata.mode() & 0o077 != 0 {
        return None;
    }
    let mut text = String::new();
    file.take(FILE_MAX_BYTES).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LIFETIME: Duration = Duration::from_secs(900);
    const NOW: Timestamp = Timestamp::from_millis(1_763_769_600_000);

    fn cache() -> (tempfile::TempDir, TokenCache) {
        let home = tempfile::tempdir().unwrap();
        let cache = TokenCache { directory: home.path().join("jeton/tokens") };
        (home, cache)
    }

    /// A directory that is a link is not used: its files belong to something else.
    #[test]
    fn a_link_in_place_of_the_directory_is_not_used() {
        let (home, cache) = cache();
        let other = home.path().join("other");
        std::fs::create_dir_all(&other).unwrap();
        std::fs::write(other.join("old.new"), "").unwrap();
        std::fs::create_dir_all(cache.directory.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&other, &cache.directory).unwrap();
        let key = Key::of("http://a", "c", "s", "x");
        cache.save(&key, "t", LIFETIME, NOW + Duration::from_secs(1 << 40));
        assert_eq!(std::fs::read_dir(&other).unwrap().count(), 1);
    }

    fn found(cache: &TokenCache, key: &Key, now: Timestamp) -> Option<String> {
        cache.find(key, now).map(|(token, _)| token)
    }

    #[test]
    fn a_token_belongs_to_all_that_it_depends_on() {
        let (_home, cache) = cache();
        let own = Key::of("http://a", "c", "s", "x");
        cache.save(&own, "t", LIFETIME, NOW);
        assert_eq!(cache.find(&own, NOW), Some(("t".to_owned(), LIFETIME - MARGIN_MAX)));
        for other in [
            Key::of("http://b", "c", "s", "x"),
            Key::of("http://a", "d", "s", "x"),
            Key::of("http://a", "c", "changed", "x"),
            Key::of("http://a", "c", "s", "x y"),
            Key::of("http://a", "cs", "", "x"),
        ] {
            assert_eq!(cache.find(&other, NOW), None, "{other:?}");
        }
    }

    #[test]
    fn a_token_is_used_until_shortly_before_it_expires() {
        let (_home, cache) = cache();
        let own = Key::of("http://a", "c", "s", "x");
        for (lifetime, last) in [(900, 870), (10, 8), (1, 0)] {
            cache.save(&own, "t", Duration::from_secs(lifetime), NOW);
            let at = |millis| NOW + Duration::from_millis(millis);
            let end = if last == 0 { 800 } else { last * 1000 };
            assert!(cache.find(&own, at(end - 1)).is_some(), "{lifetime}");
            assert_eq!(cache.find(&own, at(end)), None, "{lifetime}");
        }
        let before = NOW - Duration::from_millis(1);
        assert_eq!(cache.find(&own, before), None, "the clock was set back");
    }

    #[test]
    fn only_its_owner_can_read_a_token_and_others_files_are_not_used() {
        let (home, cache) = cache();
        let own = Key::of("http://a", "c", "s", "x");
        cache.save(&own, "t", LIFETIME, NOW);
        let path = cache.directory.join(&own.0);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&cache.directory)), (0o600, 0o700));
        for (mode, is_used) in [(0o640, false), (0o602, false), (0o400, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(cache.find(&own, NOW).is_some(), is_used, "{mode:o}");
        }
        let elsewhere = home.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert_eq!(cache.find(&own, NOW), None, "a link is not followed");
        cache.save(&own, "new", LIFETIME, NOW);
        assert_eq!(found(&cache, &own, NOW).as_deref(), Some("new"));
        assert!(fs::read_to_string(&elsewhere).unwrap().contains("\"t\""), "nor written through");
        for broken in ["", "{", "{\"access_token\":1}"] {
            fs::remove_file(&path).unwrap();
            fs::write(&path, broken).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!(cache.find(&own, NOW), None, "{broken}");
        }
    }

    #[test]
    fn a_refused_token_is_removed_but_not_its_successor() {
        let (_home, cache) = cache();
        let own = Key::of("http://a", "c", "s", "x");
        cache.save(&own, "new", LIFETIME, NOW);
        cache.remove(&own, "old");
        assert_eq!(found(&cache, &own, NOW).as_deref(), Some("new"));
        cache.remove(&own, "new");
        assert_eq!(cache.find(&own, NOW), None);
    }

    #[test]
    fn expired_tokens_are_removed() {
        let (_home, cache) = cache();
        cache.save(&Key::of("http://a", "c", "old", "x"), "t", LIFETIME, NOW);
        let left = cache.directory.join("0.1.new");
        fs::write(&left, "half").unwrap();
        let long_after = crate::cli::args::now() + Duration::from_secs(2 * 3600);
        cache.save(&Key::of("http://a", "c", "new", "x"), "t", LIFETIME, long_after);
        let names = fs::read_dir(&cache.directory).unwrap();
        assert_eq!(names.count(), 1, "the one that was saved last");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_no_failure() {
        let (home, _) = cache();
        fs::write(home.path().join("file"), "").unwrap();
        let cache = TokenCache { directory: home.path().join("file/tokens") };
        let own = Key::of("http://a", "c", "s", "x");
        cache.save(&own, "t", LIFETIME, NOW);
        cache.remove(&own, "t");
        assert_eq!(cache.find(&own, NOW), None);
    }
}
