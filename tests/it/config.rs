//! Configuration, from outside: the file in `deploy/` is the default, and every refusal names its
//! key and its source.

use std::{collections::BTreeSet, fs, path::PathBuf};

use figment::{
    providers::{Format, Toml},
    value::{Dict, Value},
};
use jeton::config::{
    Config, ConfigError, DEFAULTS, Flag, ProxyHeader, ProxyProtocol, Sources, check,
};

fn sources(environment: &[(&str, &str)]) -> Sources {
    let environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Sources { environment, ..Sources::default() }
}

fn refused(environment: &[(&str, &str)]) -> ConfigError {
    Config::load(&sources(environment)).unwrap_err()
}

/// The defaults with one change, checked.
fn checked(change: impl FnOnce(&mut Config)) -> Result<(), ConfigError> {
    let mut config = Config::load(&sources(&[("HOME", "/home/u")])).unwrap().0;
    change(&mut config);
    check(&config, false)
}

fn keys(prefix: &str, dict: &Dict, into: &mut BTreeSet<String>) {
    for (name, value) in dict {
        let key = format!("{prefix}{name}");
        if let Value::Dict(_, inner) = value {
            keys(&format!("{key}."), inner, into);
        } else {
            into.insert(key);
        }
    }
}

#[test]
fn the_file_in_deploy_holds_exactly_the_structs_keys_and_every_one_is_commented() {
    let (config, _) = Config::load(&Sources::default()).unwrap();
    let (mut of_file, mut of_struct) = (BTreeSet::new(), BTreeSet::new());
    keys("", &Toml::from_str::<Dict>(DEFAULTS).unwrap(), &mut of_file);
    let Value::Dict(_, dict) = Value::serialize(&config).unwrap() else {
        panic!("a struct is a table")
    };
    keys("", &dict, &mut of_struct);
    assert_eq!(of_file, of_struct);
    assert_eq!(of_file.len(), config.settings().len());
    assert_eq!(
        DEFAULTS,
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/config.toml")).unwrap()
    );
}

#[test]
fn the_defaults_make_sense_and_are_all_called_default() {
    let (config, origins) = Config::load(&sources(&[("HOME", "/home/u")])).unwrap();
    check(&config, false).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:50051");
    assert_eq!(config.limits.plans["bulk"].per_second, 1_000_000);
    assert_eq!(origins.of("limits.plans.bulk.burst"), Some("default"));
    assert_eq!(origins.of("token.refresh_grace_seconds"), Some("default"));
}

#[test]
fn flags_go_before_the_environment_and_that_before_the_file_and_each_says_where_it_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    fs::write(
        &file,
        "node = \"file\"\nlisten = \"127.0.0.1:1\"\n[token]\naccess_lifetime_seconds \
                      = 1\n[limits.plans.gold]\nper_second = 1\nburst = 2\n",
    )
    .unwrap();
    let mut sources = sources(&[
        ("JETON_LISTEN", "127.0.0.1:2"),
        ("JETON_TOKEN__ACCESS_LIFETIME_SECONDS", "2"),
        ("JETON_LIMITS__PLANS__GOLD__BURST", "3"),
    ]);
    sources.file = Some(file.clone());
    sources.flags = vec![Flag { name: "--listen", key: "listen", value: "127.0.0.1:3".to_owned() }];
    let (config, origins) = Config::load(&sources).unwrap();
    assert_eq!(config.node, "file");
    assert_eq!(origins.of("node"), Some(format!("file {}", file.display()).as_str()));
    assert_eq!(config.token.access_lifetime_seconds, 2);
    assert_eq!(
        origins.of("token.access_lifetime_seconds"),
        Some("environment JETON_TOKEN__ACCESS_LIFETIME_SECONDS")
    );
    assert_eq!(config.listen.port(), 3);
    assert_eq!(origins.of("listen"), Some("flag --listen"));
    assert_eq!((config.limits.plans["gold"].per_second, config.limits.plans["gold"].burst), (1, 3));
    assert!(config.limits.plans.contains_key("standard"), "plans are added to the default ones");
}

#[test]
fn the_users_own_file_is_read_where_it_exists() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("jeton")).unwrap();
    fs::write(dir.path().join("jeton/config.toml"), "node = \"mine\"\n").unwrap();
    let home = dir.path().to_str().unwrap();
    assert_eq!(Config::load(&sources(&[("XDG_CONFIG_HOME", home)])).unwrap().0.node, "mine");
    assert_eq!(
        Config::load(&sources(&[("XDG_CONFIG_HOME", "relative")])).unwrap().0.node,
        "node-1"
    );
}

#[test]
fn a_file_that_was_asked_for_must_be_there() {
    let mut sources = sources(&[]);
    sources.file = Some(PathBuf::from("/nowhere/config.toml"));
    let error = Config::load(&sources).unwrap_err().to_string();
    assert!(error.contains("/nowhere/config.toml") && error.contains("cannot be read"), "{error}");
}

#[test]
fn an_unknown_setting_is_named_with_its_source() {
    let error = refused(&[("JETON_LISTN", "127.0.0.1:1")]);
    assert_eq!(error.key, "listn");
    assert_eq!(error.origin.as_deref(), Some("environment JETON_LISTN"));
    assert!(error.problem.contains("listen"), "{error}");
    let nested = refused(&[("JETON_TOKEN__LIFETIME", "5")]);
    assert_eq!(
        (nested.key.as_str(), nested.origin.as_deref()),
        ("token.lifetime", Some("environment JETON_TOKEN__LIFETIME"))
    );
    let plan = refused(&[("JETON_LIMITS__PLANS__GOLD__RATE", "5")]);
    assert!(plan.to_string().contains("JETON_LIMITS__PLANS__GOLD__RATE"), "{plan}");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    for (text, key) in [
        ("speed = 1\n", "speed"),
        ("[keys]\nsize = 1\n", "keys.size"),
        ("[door]\nopen = true\n", "door"),
    ] {
        fs::write(&file, text).unwrap();
        let error =
            Config::load(&Sources { file: Some(file.clone()), ..Sources::default() }).unwrap_err();
        assert_eq!(error.key, key, "{error}");
        assert_eq!(error.origin, Some(format!("file {}", file.display())), "{error}");
    }
}

#[test]
fn the_clients_variables_are_no_settings() {
    assert!(
        Config::load(&sources(&[("JETON_CLI_CLIENT_SECRET", "x"), ("JETON_CLI_ADDRESS", "y")]))
            .is_ok()
    );
}

/// B01, 3.7 and 3.11 of the operators' cases: the environment has other writers than the operator.
#[test]
fn variables_of_a_platform_are_passed_over_and_empty_ones_are_no_values() {
    let (config, origins) = Config::load(&sources(&[
        ("JETON_SERVICE_HOST", "10.96.0.7"),
        ("JETON_SERVICE_PORT", "50051"),
        ("JETON_SERVICE_PORT_GRPC", "50051"),
        ("JETON_PORT", "tcp://10.96.0.7:50051"),
        ("JETON_PORT_50051_TCP", "tcp://10.96.0.7:50051"),
        ("JETON_PORT_50051_TCP_ADDR", "10.96.0.7"),
        ("JETON_MONGO_PORT_27017_TCP_PROTO", "tcp"),
        ("JETON_VERSION", "1.2.3"),
        ("JETON_TEST_MONGODB", "mongodb://127.0.0.1"),
        ("JETON_LISTEN", ""),
        ("JETON_STORE__URI", ""),
        ("JETON_INSECURE", ""),
        ("JETON_REFLECTION", "True"),
        ("JETON_LIMITS__WORKERS", "3"),
    ]))
    .unwrap();
    assert_eq!(config.listen, Config::default().listen);
    assert_eq!(origins.of("listen"), Some("default"));
    assert_eq!((config.reflection, config.insecure, config.limits.workers), (true, false, 3));
    assert_eq!(origins.passed_over(), ["JETON_VERSION"]);
    assert_eq!(refused(&[("JETON_PORT", "8443")]).key, "port");
}

#[test]
fn metrics_are_turned_off_by_a_word() {
    let (config, _) = Config::load(&sources(&[("JETON_METRICS_LISTEN", "off")])).unwrap();
    assert_eq!(config.metrics_listen, "");
}

#[test]
fn a_value_of_the_wrong_kind_is_refused_without_repeating_it() {
    for (name, value, key) in [
        ("JETON_INSECURE", "maybe-hunter2", "insecure"),
        ("JETON_TOKEN__ACCESS_LIFETIME_SECONDS", "hunter2", "token.access_lifetime_seconds"),
        ("JETON_TOKEN__ACCESS_LIFETIME_SECONDS", "-1", "token.access_lifetime_seconds"),
        ("JETON_KEYS__ALGORITHM", "hunter2", "keys.algorithm"),
        ("JETON_AUDIT__ISSUE", "hunter2", "audit.issue"),
        ("JETON_LISTEN", "hunter2", "listen"),
        ("JETON_TOKEN", "hunter2", "token"),
        ("JETON_TOKEN__", "hunter2", "token."),
    ] {
        let error = refused(&[(name, value)]);
        assert_eq!(error.key, key, "{error}");
        assert_eq!(error.origin, Some(format!("environment {name}")), "{error}");
        assert!(
            !error.to_string().contains("hunter2") && !error.to_string().contains('\n'),
            "{error}"
        );
    }
}

#[test]
fn a_number_is_a_name_where_a_name_is_due() {
    assert_eq!(Config::load(&sources(&[("JETON_NODE", "5")])).unwrap().0.node, "5");
}

#[test]
fn a_file_that_is_no_toml_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    fs::write(&file, "listen = hunter2\n").unwrap();
    let error =
        Config::load(&Sources { file: Some(file), ..Sources::default() }).unwrap_err().to_string();
    assert!(
        error.contains("line 1") && !error.contains('\n') && !error.contains("hunter2"),
        "{error}"
    );
}

#[test]
fn the_data_directory_follows_the_environment() {
    let at = |environment: &[(&str, &str)]| {
        let (config, origins) = Config::load(&sources(environment)).unwrap();
        (config.data_dir.to_str().unwrap().to_owned(), origins.of("data_dir").unwrap().to_owned())
    };
    assert_eq!(
        at(&[("HOME", "/h"), ("XDG_STATE_HOME", "/s")]),
        ("/s/jeton".into(), "environment XDG_STATE_HOME".into())
    );
    assert_eq!(at(&[("HOME", "/h")]), ("/h/.local/state/jeton".into(), "environment HOME".into()));
    assert_eq!(
        at(&[("HOME", "/h"), ("JETON_DATA_DIR", "/d")]),
        ("/d".into(), "environment JETON_DATA_DIR".into())
    );
    let (config, origins) = Config::load(&Sources::default()).unwrap();
    assert_eq!(origins.blame(check(&config, false).unwrap_err()).key, "data_dir");
}

/// OPERATORS 4.11: a list is a list in the file, and separated by commas in the environment.
#[test]
fn proxies_are_networks() {
    let of = |value: &str| {
        let environment = [("JETON_PROXY__TRUSTED", value), ("JETON_PROXY__PROTOCOL", "v2")];
        Config::load(&sources(&environment))
    };
    let (config, origins) = of("10.0.0.0/8, 2001:db8::7").unwrap();
    assert_eq!(config.proxy.trusted.len(), 2);
    assert_eq!(config.proxy.protocol, ProxyProtocol::V2);
    assert_eq!(origins.of("proxy.trusted"), Some("environment JETON_PROXY__TRUSTED"));
    let shown = config.settings().into_iter().find(|(key, _)| key == "proxy.trusted").unwrap();
    assert_eq!(shown.1, "10.0.0.0/8,2001:db8::7");
    for wrong in ["10.0.0.1/8", "balancer", "10.0.0.0/8 2001:db8::7"] {
        let error = of(wrong).unwrap_err();
        assert!(error.key.starts_with("proxy.trusted"), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    let wrong = refused(&[("JETON_PROXY__PROTOCOL", "v1")]);
    assert_eq!((wrong.key.as_str(), wrong.problem.contains("v2")), ("proxy.protocol", true));
}

#[test]
fn a_systemd_credential_is_the_master_key_unless_a_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("master_key"), "x").unwrap();
    let credentials = dir.path().to_str().unwrap();
    let (config, origins) =
        Config::load(&sources(&[("CREDENTIALS_DIRECTORY", credentials)])).unwrap();
    assert_eq!(config.master_key_file, dir.path().join("master_key"));
    assert_eq!(origins.of("master_key_file"), Some("systemd credential master_key"));
    let named = [("CREDENTIALS_DIRECTORY", credentials), ("JETON_MASTER_KEY_FILE", "/k")];
    assert_eq!(Config::load(&sources(&named)).unwrap().0.master_key_file, PathBuf::from("/k"));
}

/// T03: an address that others can reach needs TLS, or the word that it is meant.
#[test]
fn a_public_address_without_tls_is_refused() {
    let listen =
        |address: &'static str| move |config: &mut Config| config.listen = address.parse().unwrap();
    for public in [
        "0.0.0.0:50051",
        "192.168.1.4:50051",
        "[::]:50051",
        "[2001:db8::1]:1",
        "[::ffff:10.0.0.1]:1",
    ] {
        assert_eq!(checked(listen(public)).unwrap_err().key, "listen", "{public}");
    }
    for local in ["127.0.0.1:0", "127.8.8.8:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        checked(listen(local)).unwrap();
    }
    let secured = |config: &mut Config| {
        listen("192.168.1.4:1")(config);
        config.tls.cert_file = "/c".into();
        config.tls.key_file = "/k".into();
    };
    checked(secured).unwrap();
    checked(|config| {
        listen("192.168.1.4:1")(config);
        config.insecure = true;
    })
    .unwrap();
}

/// T06: metrics are for this machine.
#[test]
fn public_metrics_are_refused() {
    for bad in ["0.0.0.0:9464", "10.0.0.1:1", "9464", "localhost:1", "127.0.0.1:50051"] {
        assert_eq!(
            checked(|config| config.metrics_listen = bad.to_owned()).unwrap_err().key,
            "metrics_listen",
            "{bad}"
        );
    }
    checked(|config| config.metrics_listen.clear()).unwrap();
    // B13: one switch for one danger.
    let meant = |config: &mut Config| {
        config.metrics_listen = "0.0.0.0:9464".to_owned();
        config.metrics_insecure = true;
    };
    checked(meant).unwrap();
    let public = |config: &mut Config| {
        meant(config);
        config.listen = "0.0.0.0:1".parse().unwrap();
    };
    assert_eq!(checked(public).unwrap_err().key, "listen");
    for bad in ["x", "0.0.0.0", "127.0.0.1:50051"] {
        let refused = checked(|config| config.probe_listen = bad.to_owned()).unwrap_err();
        assert_eq!(refused.key, "probe_listen", "{bad}");
    }
    checked(|config| config.probe_listen = "0.0.0.0:8081".to_owned()).unwrap();
}

#[test]
fn half_a_tls_setting_is_refused_by_the_missing_half() {
    assert_eq!(
        checked(|config| config.tls.cert_file = "/c".into()).unwrap_err().key,
        "tls.key_file"
    );
    assert_eq!(
        checked(|config| config.tls.key_file = "/k".into()).unwrap_err().key,
        "tls.cert_file"
    );
    assert_eq!(
        checked(|config| config.tls.client_ca_file = "/a".into()).unwrap_err().key,
        "tls.cert_file"
    );
}

#[test]
fn an_issuer_that_is_no_https_url_is_refused() {
    let with = |issuer: &str, insecure: bool| {
        checked(|config| {
            config.issuer = issuer.to_owned();
            config.insecure = insecure;
        })
    };
    for good in [
        "https://id.example.com",
        "https://id.example.com:8443/tenant",
        "http://127.0.0.1:50051",
        "http://localhost:1",
        "http://[::1]:1",
    ] {
        with(good, false).unwrap();
    }
    for bad in [
        "id.example.com",
        "http://id.example.com",
        "https://",
        "https://x/?a",
        "https://x/#a",
        "https://u@x",
        "ftp://x",
        "https://x y",
        "https://x/{tenant}",
        "https://x/:a",
        "https://x//a",
        "https://x/.well-known/oauth-authorization-server",
        "file:///x",
    ] {
        assert_eq!(with(bad, false).unwrap_err().key, "issuer", "{bad}");
    }
    with("http://id.example.com", true).unwrap();
    let everywhere = |config: &mut Config| {
        config.listen = "0.0.0.0:1".parse().unwrap();
        config.insecure = true;
    };
    assert_eq!(checked(everywhere).unwrap_err().key, "issuer");
}

#[test]
fn every_bound_is_kept_and_its_key_named() {
    type Change = fn(&mut Config);
    let cases: &[(&str, Change)] = &[
        ("node", |c| c.node = "a b".into()),
        ("node", |c| c.node.clear()),
        ("log.level", |c| c.log.level = "loud".into()),
        ("token.access_lifetime_seconds", |c| c.token.access_lifetime_seconds = 0),
        ("token.access_lifetime_seconds", |c| c.token.access_lifetime_seconds = 3601),
        ("token.access_lifetime_max_seconds", |c| c.token.access_lifetime_max_seconds = 0),
        ("token.refresh_lifetime_seconds", |c| c.token.refresh_lifetime_seconds = 0),
        ("token.refresh_idle_seconds", |c| c.token.refresh_idle_seconds = 0),
        ("token.refresh_idle_seconds", |c| c.token.refresh_idle_seconds = 2_592_001),
        ("token.refresh_grace_seconds", |c| c.token.refresh_grace_seconds = 61),
        ("keys.rotate_every_seconds", |c| c.keys.rotate_every_seconds = 600),
        ("proxy.trusted", |c| c.proxy.trusted = vec!["10.0.0.0/8".parse().unwrap()]),
        ("proxy.trusted", |c| c.proxy.protocol = ProxyProtocol::V2),
        ("proxy.trusted", |c| c.proxy.header = ProxyHeader::Forwarded),
        ("proxy.trusted", |c| {
            c.proxy.header = ProxyHeader::XForwardedFor;
            c.proxy.trusted = vec!["10.0.0.1".parse().unwrap(), "::/0".parse().unwrap()];
        }),
        ("limits.connections", |c| c.limits.connections = 0),
        ("limits.connections_per_peer", |c| c.limits.connections_per_peer = 0),
        ("limits.streams_per_connection", |c| c.limits.streams_per_connection = 0),
        ("limits.handshake_seconds", |c| c.limits.handshake_seconds = 0),
        ("limits.deadline_seconds", |c| c.limits.deadline_seconds = 0),
        ("limits.unread_seconds", |c| c.limits.unread_seconds = 0),
        ("limits.connection_idle_seconds", |c| c.limits.connection_idle_seconds = 9),
        ("limits.connection_age_seconds", |c| c.limits.connection_age_seconds = 9),
        ("limits.shutdown_delay_seconds", |c| c.limits.shutdown_delay_seconds = 301),
        ("limits.tracked_keys", |c| c.limits.tracked_keys = 0),
        ("limits.argon2_parallel", |c| c.limits.argon2_parallel = 0),
        ("limits.per_peer.per_second", |c| c.limits.per_peer.per_second = 0),
        ("limits.failed_authentication.burst", |c| c.limits.failed_authentication.burst = 0),
        ("limits.plans", |c| c.limits.plans.retain(|name, _| name != "standard")),
        ("limits.plans.bulk.burst", |c| c.limits.plans.get_mut("bulk").unwrap().burst = 0),
        ("limits.plans.No", |c| c.limits.plans.extend([("No".to_owned(), c.limits.per_peer)])),
    ];
    for &(key, change) in cases {
        let error = checked(change).unwrap_err();
        assert_eq!(error.key, key, "{error}");
        assert!(error.to_string().starts_with(key) && !error.to_string().contains('\n'), "{error}");
    }
    checked(|c| c.keys.rotate_every_seconds = 0).unwrap();
}

/// A deployment names no variable that the program does not know.
#[test]
fn every_variable_in_deploy_is_a_setting() {
    let known: Vec<String> = Config::default().settings().into_iter().map(|(key, _)| key).collect();
    // Named in a comment as the variables of Kubernetes.
    let foreign = ["service_host", "port"];
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let mut found = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md" || extension == "toml") {
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for rest in text.split("JETON_").skip(1) {
            let end = rest.find(|c: char| !c.is_ascii_uppercase() && c != '_');
            let key = rest[..end.unwrap_or(rest.len())].to_ascii_lowercase().replace("__", ".");
            let is_known = known.contains(&key) || foreign.contains(&key.as_str());
            assert!(is_known, "{}: {key}", path.display());
            found += 1;
        }
    }
    assert!(found > 20, "{found}");
}
