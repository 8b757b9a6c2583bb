//! The house rules that no compiler holds: who may import whom, which crate lives where, and that
//! README's table of errors is the code's.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use jeton::{api::status::code, error::Error, standing::Stale, store::StoreError};

/// A room and the rooms it may import, besides itself.
const ROOMS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("clock", &["model"]),
    ("config", &["model"]),
    ("crypto", &["model"]),
    ("store", &["crypto", "model"]),
    ("error", &["crypto", "model", "standing", "store"]),
    ("telemetry", &["config", "model"]),
    ("standing", &["crypto", "model", "store"]),
    ("limit", &["config", "error", "model", "store"]),
    ("audit", &["config", "error", "model", "store"]),
    (
        "oauth",
        &["audit", "clock", "config", "crypto", "error", "limit", "model", "standing", "store"],
    ),
    (
        "admin",
        &[
            "audit", "clock", "config", "crypto", "error", "limit", "model", "oauth", "standing",
            "store",
        ],
    ),
    (
        "services",
        &["admin", "audit", "clock", "config", "crypto", "limit", "oauth", "standing", "store"],
    ),
    (
        "api",
        &["admin", "clock", "config", "crypto", "error", "model", "oauth", "proto", "services"],
    ),
    (
        "server",
        &[
            "admin", "api", "clock", "config", "crypto", "limit", "model", "oauth", "proto",
            "services", "standing", "store",
        ],
    ),
    (
        "cli",
        &[
            "admin",
            "clock",
            "config",
            "crypto",
            "error",
            "model",
            "oauth",
            "proto",
            "server",
            "standing",
            "store",
            "telemetry",
        ],
    ),
    // For tests alone.
    ("fuzzing", &["api", "cli", "crypto"]),
    ("main", &[]),
    ("lib", &[]),
];

/// A crate that only some rooms may name.
const CRATES: &[(&str, &[&str])] = &[
    ("tonic", &["api", "server", "cli", "lib"]),
    ("tonic_types", &["api", "server", "cli"]),
    ("prost", &["api", "cli"]),
    ("prost_types", &["api", "cli"]),
    ("axum", &["api", "server"]),
    ("rusqlite", &["store/embedded"]),
    ("mongodb", &["store/mongo"]),
    ("jsonwebtoken", &["crypto"]),
    ("argon2", &["crypto"]),
    ("governor", &["limit"]),
];

/// Source files with their path below `src`, without what is there for tests only.
fn sources() -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    let name = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    let files = files.iter().filter(|path| !name(path).contains("tests"));
    files
        .map(|path| {
            let text = fs::read_to_string(path).unwrap();
            // One line that is there for tests only, in the middle of a file, must not hide what
            // comes behind it.
            let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
            let code: String = code
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect::<Vec<_>>()
                .join("\n");
            (name(path), code)
        })
        .collect()
}

fn room(path: &str) -> &str {
    path.split('/').next().unwrap().trim_end_matches(".rs")
}

/// The rooms a file names: `crate::room` and `crate::{room::…, room::…}`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            rooms.insert(
                rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned(),
            );
            continue;
        };
        let (mut depth, mut item) = (0, String::new());
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => item.clear(),
                c if depth == 0 && (c.is_alphanumeric() || c == '_' || c == ':') => {
                    item.push(c);
                    if let Some(name) = item.strip_suffix("::").filter(|name| !name.contains(':')) {
                        rooms.insert(name.to_owned());
                    }
                }
                _ => {}
            }
        }
    }
    rooms
}

/// Verbs of the store that change what administration changes, and the only rules that may call
/// them without a proof: the first client, the steps that time takes, a client that ends its own
/// tokens, the new hash of a secret that was just proven, and what undoes a registration or a
/// release that was proven.
const UNPROVEN: &[(&str, &[&str])] = &[
    ("create_client", &["clients.rs"]),
    ("replace_client", &["listed_audiences.rs", "presented.rs"]),
    ("end_client", &["listed_audiences.rs"]),
    ("delete_client", &["listed_audiences.rs"]),
    ("claim_audience", &[]),
    ("replace_audience", &["audiences.rs"]),
    ("release_audience", &[]),
    ("raise_epoch", &["listed_audiences.rs", "revocation.rs"]),
    ("replace_keyset", &["keys.rs"]),
    ("revoke", &["revocation.rs"]),
    ("end_family", &["client_credentials.rs", "revocation.rs"]),
];

/// What an administrator changes goes through `ProofStore::spend`: its verbs are called directly in
/// few places, once in each.
#[test]
fn what_needs_a_proof_is_written_with_one() {
    for (path, code) in
        sources().into_iter().filter(|(path, _)| ["admin", "oauth"].contains(&room(path)))
    {
        for (verb, allowed) in UNPROVEN {
            let calls = code.matches(&format!("store.{verb}(")).count();
            let most = usize::from(allowed.iter().any(|file| path.ends_with(file)));
            assert!(calls <= most, "{path} calls {verb} {calls} times without a proof");
        }
    }
}

#[test]
fn imports_go_one_way() {
    let rooms: BTreeSet<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    let mut wrong = Vec::new();
    for (path, code) in sources() {
        let from = room(&path);
        let (_, allowed) = ROOMS
            .iter()
            .find(|(room, _)| *room == from)
            .unwrap_or_else(|| panic!("{path} is in no room"));
        for to in imports(&code) {
            if rooms.contains(to.as_str()) && to != from && !allowed.contains(&to.as_str()) {
                wrong.push(format!("{path} imports {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn crates_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    for (path, code) in sources() {
        for (name, places) in CRATES {
            let named = [
                format!("use {name}::"),
                format!(" {name}::"),
                format!("({name}::"),
                format!("<{name}::"),
            ];
            if named.iter().any(|form| code.contains(form.as_str()))
                && !places.iter().any(|place| path.starts_with(place))
            {
                wrong.push(format!("{path} names {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_file_needs_scrolling_to_understand() {
    let long = sources()
        .into_iter()
        .map(|(path, code)| (code.lines().count(), path))
        .filter(|(lines, _)| *lines > 500);
    assert_eq!(long.collect::<Vec<_>>(), []);
}

/// Every error as a row of README's table: reason, code.
#[test]
fn the_readme_lists_every_error_as_it_is_answered() {
    let store =
        |make: fn(Box<dyn std::error::Error + Send + Sync>) -> StoreError| make("away".into());
    let every = [
        Error::field("field", "wrong"),
        Error::InvalidClient,
        Error::InvalidGrant,
        Error::InvalidScope("wrong".into()),
        Error::InvalidTarget("wrong".into()),
        Error::UnauthorizedClient,
        Error::UnsupportedGrantType,
        Error::InvalidToken,
        Error::InsufficientScope("scope"),
        Error::NotFound("client"),
        Error::AlreadyExists("client"),
        Error::Stale("client"),
        Error::precondition("no"),
        Error::TooLarge,
        Error::Throttled { retry_after: std::time::Duration::from_secs(1) },
        Error::Unavailable(store(StoreError::Unavailable)),
        Error::Behind(Stale),
        Error::Exhausted(store(StoreError::Full)),
        Error::DeadlineExceeded,
        Error::Internal("defect".into()),
    ];
    let readme =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let missing: Vec<_> = every
        .iter()
        .map(|error| {
            format!("| `{}` | {} |", error.code().to_ascii_uppercase(), grpc_name(code(error)))
        })
        .filter(|row| !readme.contains(row.as_str()))
        .collect();
    assert!(missing.is_empty(), "README's table lacks {missing:#?}");
}

/// As the protocol writes it.
fn grpc_name(code: tonic::Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}
