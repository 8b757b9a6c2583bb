//! The master key: its sources, and the checks of its file and its value.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use rustix::{fs::OFlags, process};
use zeroize::Zeroizing;

use super::random;
use crate::model::text::unquoted;

/// Size in bytes above which a file is not a master key.
const MAX_FILE: u64 = 1_024;

/// Reason that there is no master key.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// The file does not exist and must not be created.
    #[error("no master key at {}: write 32 random bytes in base64 to it, mode 0600, for example \
             with `openssl rand -base64 32`", .0.display())]
    Missing(PathBuf),
    /// The file could not be read or created.
    #[error("master key at {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// Other users than the owner can access it (K06).
    #[error(
        "master key at {} has mode {mode:04o} and other users can access it: chmod 0600; from a \
         Kubernetes Secret, set defaultMode: 0400 and fsGroup; from Swarm or Podman, set uid=65532 \
         and mode=0400",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to another user (K06).
    #[error(
        "master key at {} belongs to user {owner}, not to the user of this process: chown it; from \
         Swarm or Podman, set uid={own} and mode=0400",
        path.display(),
        own = process::geteuid().as_raw()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The owner.
        owner: u32,
    },
    /// The path names no regular file.
    #[error("master key at {} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// The text is not 32 bytes in base64 or hexadecimal.
    #[error("the master key must be 32 bytes in base64 or hexadecimal")]
    Malformed,
    /// 32 bytes that are not random.
    #[error(
        "the master key is predictable: use 32 random bytes, for example from `openssl rand \
         -base64 32`"
    )]
    Weak,
}

/// Parses a master key: base64 or base64url, padded or not, or hexadecimal; white space, quotes and
/// a byte order mark around it are ignored.
///
/// # Errors
///
/// [`MasterKeyError::Malformed`] or [`MasterKeyError::Weak`].
pub fn parse(text: &str) -> Result<Zeroizing<[u8; 32]>, MasterKeyError> {
    let text = unquoted(text);
    let bytes = match text.len() {
        64 => from_hex(text),
        43 | 44 => from_base64(text),
        _ => None,
    };
    let bytes = bytes.ok_or(MasterKeyError::Malformed)?;
    let key = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| MasterKeyError::Malformed)?;
    if is_weak(&key) { Err(MasterKeyError::Weak) } else { Ok(Zeroizing::new(key)) }
}

/// Decodes base64 of either alphabet; the bytes are wiped on drop, also after an error.
fn from_base64(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; text.len()]);
    let engines = [URL_SAFE_NO_PAD, URL_SAFE, STANDARD_NO_PAD, STANDARD];
    let length =
        engines.iter().find_map(|engine| engine.decode_slice(text, bytes.as_mut_slice()).ok())?;
    bytes.truncate(length);
    Some(bytes)
}

/// Decodes hexadecimal in place: no copy of the key is left.
fn from_hex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
    for pair in text.as_bytes().chunks_exact(2) {
        let [high, low] = pair else { return None };
        bytes.push(digit(*high)? << 4 | digit(*low)?);
    }
    Some(bytes)
}

/// Returns true for a key that 32 random bytes are with a probability below 2^-40: few different
/// bytes, equal steps, or all printable (a passphrase).
fn is_weak(key: &[u8; 32]) -> bool {
    let different = key.iter().collect::<std::collections::HashSet<_>>().len();
    let steps = key.iter().zip(key.iter().skip(1)).map(|(a, b)| b.wrapping_sub(*a));
    let equal_steps = steps.clone().zip(steps.skip(1)).all(|(a, b)| a == b);
    different < 16 || equal_steps || key.iter().all(|b| b.is_ascii_graphic() || *b == b' ')
}

/// Reads or creates the key in a data directory, as [`load_or_make`] does. A volume's owner may have
/// given its group access, as Kubernetes does with `fsGroup` at every mount: a file of this
/// process's user, of a group of this process, is made its owner's alone again.
///
/// # Errors
///
/// See [`MasterKeyError`].
pub fn load_or_make_beside_data(
    path: &Path,
    may_make: bool,
) -> Result<Zeroizing<[u8; 32]>, MasterKeyError> {
    match load_or_make(path, may_make) {
        Err(MasterKeyError::Exposed { mode, .. }) if mode & 0o007 == 0 && restrict(path) => {
            tracing::warn!(
                path = %path.display(), mode = format!("{mode:04o}"),
                "the group could access the master key; its mode is 0600 again"
            );
            load_or_make(path, may_make)
        }
        loaded => loaded,
    }
}

/// Sets the mode 0600 of a file that belongs to this process's user and to one of its groups;
/// returns false for any other file.
fn restrict(path: &Path) -> bool {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    let Ok(file) = options.open(path) else { return false };
    let Ok(metadata) = file.metadata() else { return false };
    let in_group = process::getegid().as_raw() == metadata.gid()
        || process::getgroups()
            .unwrap_or_default()
            .iter()
            .any(|group| group.as_raw() == metadata.gid());
    metadata.uid() == process::geteuid().as_raw()
        && in_group
        && file.set_permissions(fs::Permissions::from_mode(0o600)).is_ok()
}

/// Reads the master key from a file that only its owner, the user of this process or root, can
/// access. If there is none and `may_make` is true, creates one atomically: complete under its
/// name, or not at all.
///
/// # Errors
///
/// See [`MasterKeyError`]; an existing file is never changed.
pub fn load_or_make(path: &Path, may_make: bool) -> Result<Zeroizing<[u8; 32]>, MasterKeyError> {
    match load(path) {
        Err(MasterKeyError::Missing(_)) if may_make => {
            match make(path) {
                // Another process created the file first: its key is used.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => {
                    made.map_err(|source| MasterKeyError::Io { path: path.to_owned(), source })?
                }
            }
            load(path)
        }
        loaded => loaded,
    }
}

fn load(path: &Path) -> Result<Zeroizing<[u8; 32]>, MasterKeyError> {
    let io = |source| MasterKeyError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound {
            MasterKeyError::Missing(path.to_owned())
        } else {
            io(source)
        }
    })?;
    // Metadata of the open file: the file that is checked is the file that is read.
    let metadata = file.metadata().map_err(io)?;
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    if !metadata.is_file() {
        return Err(MasterKeyError::NotAFile(path.to_owned()));
    }
    // A systemd credential belongs to root, with an access list that lets only this user read it:
    // its mode is then 0440.
    let credential = owner == 0 && mode == 0o440;
    if mode & 0o077 != 0 && !credential {
        return Err(MasterKeyError::Exposed { path: path.to_owned(), mode });
    }
    if owner != 0 && process::geteuid().as_raw() != owner {
        return Err(MasterKeyError::Foreign { path: path.to_owned(), owner });
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE as usize + 1));
    file.take(MAX_FILE).read_to_string(&mut text).map_err(|source| {
        if source.kind() == io::ErrorKind::InvalidData {
            MasterKeyError::Malformed
        } else {
            io(source)
        }
    })?;
    parse(&text)
}

/// Creates the file under another name and links it: a crash leaves no partial key under `path`,
/// and the key of another process is never replaced.
fn make(path: &Path) -> io::Result<()> {
    let key = Zeroizing::new(random::bytes::<32>());
    let mut text = Zeroizing::new(STANDARD.encode(*key));
    text.push('\n');
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", URL_SAFE_NO_PAD.encode(random::bytes::<6>())));
    let draft = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let linked = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&draft, path));
    fs::remove_file(&draft)?;
    linked?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "Q2Qf8mKTpTqBnSg2OWGLhX0l9H3aiYvHkxS6zVq3r+8=";

    fn file(mode: u32, text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.key");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn one_key_reads_the_same_in_every_spelling() {
        let key = parse(KEY).unwrap();
        let hex: String = key.iter().map(|b| format!("{b:02x}")).collect();
        let unpadded = KEY.trim_end_matches('=');
        let url = URL_SAFE_NO_PAD.encode(*key);
        for text in [
            unpadded,
            &url,
            &URL_SAFE.encode(*key),
            &hex,
            &hex.to_uppercase(),
            &format!(" {KEY}\n"),
            &format!("\u{feff}{KEY}\r\n\n"),
            &format!("\"{KEY}\"\n"),
            &format!("'{KEY} '"),
        ] {
            assert_eq!(parse(text).unwrap(), key, "{text}");
        }
    }

    /// TL14: no step on the way leaves the key behind: every buffer that holds it is wiped.
    #[test]
    fn what_is_decoded_is_wiped() {
        let hex: Option<Zeroizing<Vec<u8>>> = from_hex(&"a5".repeat(32));
        assert_eq!(hex.unwrap().as_slice(), [0xa5; 32]);
        let base64: Option<Zeroizing<Vec<u8>>> = from_base64(&STANDARD.encode([0xfb; 32]));
        assert_eq!(base64.unwrap().as_slice(), [0xfb; 32]);
        for odd in ["a", "g0", "0g"] {
            assert!(from_hex(odd).is_none_or(|bytes| bytes.is_empty()), "{odd}");
        }
    }

    /// K05: short keys, words and patterns are no master keys.
    #[test]
    fn what_can_be_guessed_is_refused() {
        let words = [
            "",
            "secret",
            "password",
            "123456",
            "changeme",
            "your-256-bit-secret",
            "secret123",
            "jwt",
            "AC8d83&21Almnis710sds",
        ];
        for word in words {
            assert!(matches!(parse(word), Err(MasterKeyError::Malformed)), "{word}");
        }
        let counted: [u8; 32] = std::array::from_fn(|n| n as u8);
        let phrase = *b"correct horse battery staple 123";
        let repeated: [u8; 32] = std::array::from_fn(|n| [0xde, 0xad, 0xbe, 0xef][n % 4]);
        for weak in [[0; 32], [0xff; 32], [b'a'; 32], counted, phrase, repeated] {
            assert!(matches!(parse(&STANDARD.encode(weak)), Err(MasterKeyError::Weak)), "{weak:?}");
        }
        let [short, long] =
            [STANDARD.encode(random::bytes::<31>()), STANDARD.encode(random::bytes::<33>())];
        for wrong in [short.as_str(), long.as_str(), &"g".repeat(64), &format!("{KEY}{KEY}")] {
            assert!(matches!(parse(wrong), Err(MasterKeyError::Malformed)), "{wrong}");
        }
    }

    /// K06: a key that others can read, or write, is refused.
    #[test]
    fn a_file_that_others_can_get_at_is_refused() {
        for mode in [0o644, 0o640, 0o660, 0o604, 0o622, 0o610] {
            let (_directory, path) = file(mode, KEY);
            let refused = load_or_make(&path, true).unwrap_err();
            assert!(
                matches!(refused, MasterKeyError::Exposed { mode: said, .. } if said == mode),
                "{refused}"
            );
        }
        for mode in [0o600, 0o400] {
            let (_directory, path) = file(mode, KEY);
            assert_eq!(load_or_make(&path, false).unwrap(), parse(KEY).unwrap());
        }
    }

    /// B02: a secret of a platform cannot be given another mode by `chmod`.
    #[test]
    fn an_exposed_key_names_what_to_set_on_each_platform() {
        let (_directory, path) = file(0o644, KEY);
        let refused = load_or_make(&path, false).unwrap_err().to_string();
        for advice in ["chmod 0600", "defaultMode: 0400", "fsGroup", "uid=65532", "mode=0400"] {
            assert!(refused.contains(advice), "{refused}");
        }
    }

    /// B43: the kubelet gives the group access to every file of a volume, at every mount.
    #[test]
    fn a_key_in_the_data_directory_is_its_owners_alone_again() {
        let (_directory, path) = file(0o660, KEY);
        assert_eq!(load_or_make_beside_data(&path, false).unwrap(), parse(KEY).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let (_directory, path) = file(0o664, KEY);
        let refused = load_or_make_beside_data(&path, false);
        assert!(matches!(refused, Err(MasterKeyError::Exposed { mode: 0o664, .. })));
    }

    #[test]
    fn a_systemd_credential_is_accepted_as_it_looks() {
        let (_directory, path) = file(0o440, KEY);
        let roots = fs::metadata(&path).unwrap().uid() == 0;
        assert_eq!(load_or_make(&path, false).is_ok(), roots);
    }

    #[test]
    fn a_missing_key_is_said_and_made_only_where_it_may_be() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.key");
        assert!(matches!(load_or_make(&path, false), Err(MasterKeyError::Missing(_))));
        let made = load_or_make(&path, true).unwrap();
        assert_eq!(load_or_make(&path, true).unwrap(), made, "made once");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn of_many_that_start_at_once_all_get_the_same_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.key");
        let keys: std::collections::HashSet<[u8; 32]> = std::thread::scope(|scope| {
            let starts: Vec<_> =
                (0..8).map(|_| scope.spawn(|| *load_or_make(&path, true).unwrap())).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert_eq!(keys.len(), 1);
    }

    #[test]
    fn what_is_there_is_never_replaced() {
        let (_directory, path) = file(0o600, "half a k");
        assert!(matches!(load_or_make(&path, true), Err(MasterKeyError::Malformed)));
        assert_eq!(fs::read_to_string(&path).unwrap(), "half a k");
        assert!(matches!(
            load_or_make(path.parent().unwrap(), true),
            Err(MasterKeyError::NotAFile(_) | MasterKeyError::Io { .. })
        ));
    }

    /// O01: the error names the file and never the text in it.
    #[test]
    fn errors_do_not_repeat_the_key() {
        let (_directory, path) = file(0o600, "canary-secret");
        let refused = load_or_make(&path, false).unwrap_err();
        assert!(!format!("{refused} {refused:?}").contains("canary"));
    }
}
