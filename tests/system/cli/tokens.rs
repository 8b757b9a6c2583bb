//! The four RPCs by command.

use crate::cli::home::CliHome;

#[test]
fn a_token_stands_until_it_is_revoked() {
    let home = CliHome::new();
    let server = home.serve();
    let token = home.jeton(&["token", "--raw"]).ok();
    let judged = home.jeton_reading(&["introspect", "-", "--json"], &token.out).ok().json();
    assert_eq!(
        (&judged["active"], &judged["client_id"]),
        (&true.into(), &server.said["client_id"])
    );
    assert_eq!(judged["iss"], crate::cli::home::ISSUER);
    let file = home.file("token", &token.out);
    home.jeton(&["revoke", "--file", file.to_str().unwrap()]).ok();
    let gone = home.jeton(&["introspect", "--check", "--json", token.line()]);
    assert_eq!((gone.code, gone.line()), (1, "{\"active\":false}"));
    assert_eq!(home.jeton(&["introspect", token.line()]).ok().line(), "active  false");
    server.stop();
}

/// AZ16, O01: a token among the arguments is warned of, one from stdin or a file is not.
#[test]
fn a_token_in_the_arguments_is_warned_of() {
    let home = CliHome::new();
    let server = home.serve();
    let token = home.jeton(&["token", "--raw"]).ok();
    let file = home.file("token", &token.out);
    const WARNING: &str = "warning: other users of this machine can see a token on the command \
                           line";
    for command in ["introspect", "revoke"] {
        assert!(home.jeton(&[command, token.line()]).ok().err.contains(WARNING), "{command}");
        assert_eq!(home.jeton_reading(&[command, "-"], &token.out).ok().err, "", "{command}");
        assert_eq!(
            home.jeton(&[command, "--file", file.to_str().unwrap()]).ok().err,
            "",
            "{command}"
        );
    }
    assert_eq!(home.jeton(&["introspect", "nonsense"]).ok().err, "");
    server.stop();
}

/// AZ16: contexts that others can write to are refused, those that others can read are warned of.
#[test]
fn open_contexts_are_not_followed() {
    use std::os::unix::fs::PermissionsExt;
    let home = CliHome::new();
    let server = home.serve();
    let contexts = home.path(".config/jeton/contexts.toml");
    let chmod = |mode: u32| {
        std::fs::set_permissions(&contexts, std::fs::Permissions::from_mode(mode)).unwrap()
    };
    chmod(0o666);
    let refused = home.jeton(&["token"]);
    assert!(
        refused.code == 1
            && refused.err.contains("other users can write to the file (mode 0666): chmod 0600"),
        "{refused:?}"
    );
    chmod(0o644);
    assert!(
        home.jeton(&["token"]).ok().err.contains("warning: other users can read the secrets in ")
    );
    chmod(0o600);
    assert_eq!(home.jeton(&["token"]).ok().err, "");
    server.stop();
}

#[test]
fn refresh_gives_a_successor_and_a_scope_can_be_left_out() {
    let home = CliHome::new();
    let server = home.serve();
    let first = home.jeton(&["token", "--json"]).ok().json();
    let refresh = first["refresh_token"].as_str().unwrap();
    let second = home
        .jeton_reading(&["refresh", "-", "--json", "--scope", "jeton:admin"], refresh)
        .ok()
        .json();
    assert_eq!(second["scopes"], serde_json::json!(["jeton:admin"]));
    assert_ne!(second["refresh_token"], first["refresh_token"]);
    let raw = home.jeton(&["refresh", "--raw", second["refresh_token"].as_str().unwrap()]).ok();
    let judged =
        home.jeton(&["introspect", "--refresh-token", "--check", "--json", raw.line()]).ok().json();
    assert_eq!(judged["token_type"], "refresh_token");
    server.stop();
}

#[test]
fn many_tokens_are_judged_in_their_order() {
    let home = CliHome::new();
    let server = home.serve();
    let token = home.jeton(&["token", "--raw"]).ok();
    let judged = home.jeton(&["introspect", "--json", "nonsense", token.line(), "x"]).ok().json();
    let active: Vec<_> =
        judged["results"].as_array().unwrap().iter().map(|one| one["active"].clone()).collect();
    assert_eq!(active, [false, true, false]);
    let file = home.file("tokens", &format!("{}\nnonsense\n", token.line()));
    let table = home.jeton(&["introspect", "--file", file.to_str().unwrap(), "--check"]);
    assert_eq!(table.code, 1);
    assert_eq!(table.out.lines().count(), 3, "{table:?}");
    server.stop();
}

#[test]
fn refusals_have_their_reason_and_code() {
    let home = CliHome::new();
    let server = home.serve();
    let wrong = home.file("wrong", "jcs_wrong");
    let wrong = wrong.to_str().unwrap();
    let refused = home.jeton(&["token", "--client-secret-file", wrong]);
    assert_eq!((refused.code, refused.out.as_str()), (3, ""));
    assert!(
        refused.err.starts_with("error: invalid_client: client authentication failed\nhint: "),
        "{refused:?}"
    );
    let refused = home.jeton(&["token", "--json", "--client-secret-file", wrong]);
    let error: serde_json::Value = serde_json::from_str(&refused.err).unwrap();
    assert_eq!(error["error"]["reason"], "invalid_client");
    assert_eq!(error["error"]["exit_code"], 3);
    let scope = home.jeton(&["token", "--scope", "everything"]);
    assert!(scope.code == 3 && scope.err.starts_with("error: invalid_scope: "), "{scope:?}");
    assert!(scope.err.contains("(it may request jeton:admin jeton:introspect:any)"), "{scope:?}");
    let typo = home.jeton(&["token", "--scope", "jeton:admni"]);
    assert!(typo.err.contains("(did you mean jeton:admin?)"), "{typo:?}");
    let refresh = home.jeton(&["refresh", "jrt_nonsense"]);
    assert!(refresh.code == 3 && refresh.err.starts_with("error: invalid_grant: "), "{refresh:?}");
    server.stop();
}

#[test]
fn nobody_there_is_told_apart_from_a_refusal() {
    let home = CliHome::new();
    let server = home.serve();
    server.stop();
    let gone = home.jeton(&["token"]);
    assert_eq!(gone.code, 4, "{gone:?}");
    assert!(
        gone.err.contains("cannot reach http://127.0.0.1:")
            && gone.err.contains("hint: check that the server is running"),
        "{gone:?}"
    );
}

#[test]
fn without_a_context_credentials_come_from_the_environment() {
    let home = CliHome::new();
    let server = home.serve();
    let secret = server.said["client_secret"].as_str().unwrap();
    let stranger = CliHome::new();
    assert_eq!(stranger.jeton(&["token", "--address", server.address()]).code, 64);
    let mut command = stranger.command(&["token", "--raw"]);
    command.env("JETON_CLI_ADDRESS", server.address()).env("JETON_CLI_CLIENT_ID", "bootstrap");
    crate::cli::home::run(command.env("JETON_CLI_CLIENT_SECRET", secret), "").ok();
    let file = stranger.file("secret", &format!("{secret}\n"));
    let named = [
        "token",
        "--address",
        server.address(),
        "--client-id",
        "bootstrap",
        "--client-secret-file",
    ];
    stranger.jeton(&[&named[..], &[file.to_str().unwrap()]].concat()).ok();
    stranger.jeton_reading(&[&named[..], &["-"]].concat(), secret).ok();
    server.stop();
}

/// B07: the server answers alike for whatever is no token, so that the command line has to say it.
#[test]
fn what_is_no_token_by_its_shape_reaches_no_server() {
    let home = CliHome::new();
    let server = home.serve();
    let json = home.jeton(&["token", "--json"]).ok();
    let token = json.json()["access_token"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {token}");
    for command in ["revoke", "introspect", "refresh"] {
        for (input, advice) in
            [(&json.out, "access_token"), (&bearer, "the word Bearer"), (&String::new(), "token")]
        {
            let ran = home.jeton_reading(&[command, "-"], input);
            assert!(ran.code == 2 && ran.err.contains(advice), "{command} {input}: {ran:?}");
        }
        assert_eq!(home.jeton(&[command, &bearer]).code, 2, "{command}");
    }
    let padded = format!(" {token} \r\n\n");
    home.jeton_reading(&["introspect", "--check", "-"], &padded).ok();
    home.jeton_reading(&["revoke", "-"], &padded).ok();
    assert_eq!(home.jeton(&["introspect", "--check", &token]).code, 1);
    server.stop();
}

/// OPERATORS 4.14
#[test]
fn administration_leaves_no_refresh_family_behind() {
    let home = CliHome::new();
    let server = home.serve();
    let create = ["client", "create", "adm", "--scope", "jeton:admin", "--raw"];
    let grants = ["--grant", "client_credentials", "--grant", "refresh_token"];
    let secret = home.jeton(&[&create[..], &grants[..]].concat()).ok().out;
    let adm = ["--client-id", "adm", "--client-secret-file", "-"];
    home.jeton_reading(&[&["keys", "list"][..], &adm[..]].concat(), &secret).ok();
    let events = home.jeton(&["audit", "list", "--client", "adm", "--json"]).ok().out;
    assert!(events.contains("token.issued"), "{events}");
    assert!(!events.contains("\"family\":\"0"), "{events}");
    server.stop();
}

/// OPERATORS 4.6: a client that introspects and serves nothing is noted, and the log of the server
/// explains each inactive token; the caller gets no reason.
#[test]
fn an_inactive_token_is_explained_to_the_operator() {
    let home = CliHome::new();
    let log = std::fs::File::create(home.path("log")).unwrap();
    let mut serve = home.command(&["serve", "--dev", "--json", "--listen", "127.0.0.1:0"]);
    let server =
        home.serve_by(serve.env("JETON_LOG__LEVEL", "info,jeton::oauth=debug").stderr(log));
    let create = ["client", "create", "api", "--scope", "jeton:introspect"];
    let file = home.path("secret");
    let path = file.to_str().unwrap();
    let created = home.jeton(&[&create[..], &["--secret-out", path]].concat()).ok();
    assert!(created.err.contains("serves no audience"), "{created:?}");
    let token = home.jeton(&["token", "--raw"]).ok();
    let as_api = ["--client-id", "api", "--client-secret-file", path];
    let answer = home.jeton(&[&["introspect", token.line()], &as_api[..]].concat()).ok();
    assert_eq!(answer.line(), "active  false");
    let served = home.jeton(&["client", "update", "api", "--add-serves", "https://x.test"]).ok();
    assert!(!served.err.contains("serves no audience"), "{served:?}");
    server.stop();
    let log = home.log();
    let line = log.lines().find(|line| line.contains("not active for this caller")).unwrap();
    for part in ["not_served", "caller=api", "client=bootstrap", crate::cli::home::ISSUER] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!log.contains(token.line()));
}
