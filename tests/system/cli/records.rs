//! A client record that somebody wrote into the data directory without the master key: what the
//! operator is told.

use jeton::{
    config::Config,
    crypto::{chain::ChainKey, master, seal::Sealer},
    model::{Action, Client, Stamp},
    store::{ClientStore, Creation, Store, embedded::Embedded},
};

use crate::cli::home::CliHome;

/// Puts a copy of the first client under another name into the store of a stopped server.
async fn intrude(home: &CliHome) {
    // The trail's key opens the directory; the codes of client records are under another.
    let master = master::load_or_make(&home.data().join("master.key"), false).unwrap();
    let chain = ChainKey::new(Sealer::new(*master).derive("audit head"));
    let store = Embedded::open(&home.data(), &Config::default().node, chain).unwrap();
    let real = store.client(&"bootstrap".parse().unwrap()).await.unwrap().unwrap();
    let event = Stamp::internal(real.created_at).done(Action::ClientCreated, "backdoor");
    let forged = Client { id: "backdoor".parse().unwrap(), ..real };
    assert_eq!(store.create_client(&forged, event).await.unwrap(), Creation::Created);
    store.close().await.unwrap();
}

/// `doctor` names it, a backup with it is a backup all the same, and the import says whom it will
/// refuse.
#[test]
fn a_forged_client_is_named_by_doctor_and_by_import() {
    let home = CliHome::new();
    home.serve().stop();
    let doctor = |home: &CliHome| {
        let report = home.jeton(&["doctor", "--dev", "--listen", "127.0.0.1:0", "--json"]).json();
        let findings = report["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["subject"] == "client records").unwrap();
        (found["verdict"].as_str().unwrap().to_owned(), found["text"].as_str().unwrap().to_owned())
    };
    assert_eq!(
        doctor(&home),
        ("ok".to_owned(), "1 client and 0 audiences, all written by the service".to_owned())
    );
    tokio::runtime::Runtime::new().unwrap().block_on(intrude(&home));
    let expected =
        ("problem".to_owned(), "not written by the service and ignored: backdoor".to_owned());
    assert_eq!(doctor(&home), expected);

    let backup = home.path("backup.ndjson");
    home.jeton(&["export", backup.to_str().unwrap()]).ok();
    let restored = CliHome::new();
    std::fs::copy(home.data().join("master.key"), restored.data().join("master.key")).unwrap();
    let import = restored.jeton(&["import", backup.to_str().unwrap()]).ok();
    assert!(
        import.err.contains(
            "the record of client backdoor was not written by this service; it is imported and ignored"
        ),
        "{import:?}"
    );
    assert!(!import.err.contains("client bootstrap"), "{import:?}");
    assert_eq!(doctor(&restored), expected);
    restored.serve().stop();
}

/// AUDIT AZ10: `doctor` notes which clients list another tenant's audience, as the operator may
/// share it.
#[test]
fn a_shared_audience_is_noted_by_doctor() {
    let home = CliHome::new();
    let server = home.serve();
    home.jeton(&["audience", "assign", "urn:pay", "--tenant", "globex"]).ok();
    home.jeton(&["client", "create", "own", "--tenant", "globex", "--serves", "urn:pay"]).ok();
    home.jeton(&["client", "create", "guest", "--tenant", "acme", "--audience", "urn:pay"]).ok();
    server.stop();
    let report = home.jeton(&["doctor", "--dev", "--listen", "127.0.0.1:0", "--json"]).json();
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["subject"] == "client records").unwrap();
    assert_eq!(
        (&found["verdict"], &found["text"]),
        (&"note".into(), &"guest lists urn:pay".into())
    );
}
