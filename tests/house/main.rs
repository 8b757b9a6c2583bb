//! The house rules that no compiler holds: who may import whom, which crate lives where, and that
//! the table of errors in docs/errors.md is the code's.

#![expect(clippy::panic, clippy::unwrap_used, reason = "tests fail by panicking")]

mod circles;
mod deploy;
mod seen;
mod source;
mod words;

use std::{collections::BTreeSet, fs, path::Path};

use jeton::{api::status::row, error::Error, standing::Stale, store::StoreError};
use syn::{Expr, ExprMethodCall, Member, visit::Visit};

use self::source::{Source, sources};

/// A room and the rooms it may import, besides itself.
const ROOMS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("metrics", &[]),
    ("clock", &["model"]),
    ("config", &["model"]),
    ("crypto", &["model"]),
    ("store", &["crypto", "metrics", "model"]),
    ("error", &["crypto", "model", "standing", "store"]),
    ("telemetry", &["config", "metrics", "model"]),
    ("standing", &["crypto", "metrics", "model", "store"]),
    ("limit", &["config", "error", "metrics", "model", "store"]),
    ("audit", &["config", "error", "model", "store"]),
    (
        "oauth",
        &[
            "audit", "clock", "config", "crypto", "error", "limit", "metrics", "model", "standing",
            "store",
        ],
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
        &[
            "admin", "clock", "config", "crypto", "error", "metrics", "model", "oauth", "proto",
            "services",
        ],
    ),
    (
        "server",
        &[
            "admin", "api", "clock", "config", "crypto", "error", "limit", "metrics", "model",
            "oauth", "proto", "services", "standing", "store",
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
    ("prometheus_client", &["metrics", "api"]),
];

/// Verbs of the store that change what administration changes, and the only rules that may call
/// them without a proof: what the master key does without a server, the steps that time takes, a
/// client that ends its own tokens, the new hash of a secret that was just proven, and what undoes a
/// registration or a release that was proven.
const UNPROVEN: &[(&str, &[&str])] = &[
    ("create_client", &["first_client.rs"]),
    ("replace_client", &["clock_reset.rs", "listed_audiences.rs", "presented.rs"]),
    ("end_client", &["first_client.rs", "listed_audiences.rs"]),
    ("delete_client", &["first_client.rs", "listed_audiences.rs"]),
    ("claim_audience", &[]),
    ("replace_audience", &["audiences.rs"]),
    ("release_audience", &[]),
    ("raise_epoch", &["clock_reset.rs", "listed_audiences.rs", "revocation.rs"]),
    ("replace_keyset", &["clock_reset.rs", "keys.rs"]),
    ("revoke", &["revocation.rs"]),
    ("end_family", &["client_credentials.rs", "revocation.rs"]),
];

/// Every change by an administrator goes through `ProofStore::spend`: its verbs are called directly in
/// few places, once in each.
#[test]
fn what_needs_a_proof_is_written_with_one() {
    for source in sources().into_iter().filter(|source| ["admin", "oauth"].contains(&source.room()))
    {
        let (path, called) = (&source.path, verbs(&source));
        for (verb, allowed) in UNPROVEN {
            let calls = called.iter().filter(|called| called.as_str() == *verb).count();
            let most = usize::from(allowed.iter().any(|file| path.ends_with(file)));
            assert!(calls <= most, "{path} calls {verb} {calls} times without a proof");
        }
    }
}

/// Methods that a file calls on something named `store`.
fn verbs(source: &Source) -> Vec<String> {
    #[derive(Default)]
    struct Verbs(Vec<String>);
    impl<'ast> Visit<'ast> for Verbs {
        fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
            let is_store = if let Expr::Field(field) = &*call.receiver {
                matches!(&field.member, Member::Named(name) if name == "store")
            } else {
                matches!(&*call.receiver, Expr::Path(path) if path.path.is_ident("store"))
            };
            if is_store {
                self.0.push(call.method.to_string());
            }
            syn::visit::visit_expr_method_call(self, call);
        }
    }
    let mut verbs = Verbs::default();
    verbs.visit_file(&source.syntax);
    verbs.0
}

#[test]
fn imports_go_one_way() {
    let rooms: BTreeSet<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    let mut wrong = Vec::new();
    for source in sources() {
        let (path, from) = (&source.path, source.room());
        let (_, allowed) = ROOMS
            .iter()
            .find(|(room, _)| *room == from)
            .unwrap_or_else(|| panic!("{path} is in no room"));
        for reference in source.references() {
            let Some(to) = reference.resolved.as_ref().and_then(|path| path.first()) else {
                continue;
            };
            if rooms.contains(to.as_str()) && to != from && !allowed.contains(&to.as_str()) {
                wrong.push(format!("src/{path}:{} imports {to}", reference.line));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn crates_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    for source in sources() {
        for reference in source.references() {
            let named = reference.written.first();
            let Some((name, places)) =
                CRATES.iter().find(|(name, _)| named.is_some_and(|named| named == name))
            else {
                continue;
            };
            if !places.iter().any(|place| source.path.starts_with(place)) {
                wrong.push(format!("src/{}:{} names {name}", source.path, reference.line));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_file_needs_scrolling_to_understand() {
    let long = sources()
        .into_iter()
        .map(|source| (source.code().lines().count(), source.path))
        .filter(|(lines, _)| *lines > 500);
    assert_eq!(long.collect::<Vec<_>>(), []);
}

/// Every error as a row of the table in docs/errors.md: reason, code in gRPC, status and code in HTTP.
#[test]
fn the_documents_list_every_error_as_it_is_answered() {
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
        Error::Stopping,
        Error::Unimplemented("no such method"),
        Error::DeadlineExceeded,
        Error::Internal("defect".into()),
    ];
    let document =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md")).unwrap();
    let missing: Vec<_> = every
        .iter()
        .map(|error| {
            let (reason, row) = (error.code().to_ascii_uppercase(), row(error));
            let (grpc, http) = (grpc_name(row.grpc), row.http.as_u16());
            let row = format!("| `{reason}` | {grpc} | {http} `{}` |", row.http_error);
            (error.code(), row)
        })
        .filter(|(_, row)| !document.contains(row.as_str()))
        .collect();
    assert!(missing.is_empty(), "docs/errors.md lacks {missing:#?}");
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
