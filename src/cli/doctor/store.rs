//! A store that nodes share: whether it can be opened as `serve` would, and whether it is what it
//! should be.

use std::{os::unix::fs::MetadataExt, path::Path, time::Duration};

use super::{
    super::{failure::deepest, values},
    Finding,
};
use crate::{
    config::Config,
    crypto::{
        keyring::{Judging, Keyring, KeyringError},
        master,
        seal::Sealer,
    },
    model::Keyset,
    store::{
        embedded::Embedded,
        mongo::{
            self, Defect, Inspection, NodeSeen, OpenError, ReplicaSettings, Role, ServerState,
        },
    },
};

const STORE: &str = "store";
const SET: &str = "replica set";
const NODE: &str = "node";

/// How far the clocks may be apart: tokens end by this machine's, documents are forgotten by the
/// server's.
const APART: (i64, i64) = (5_000, 60_000);
/// The election timeouts that we recommend.
const ELECTION: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(2)..=Duration::from_secs(5);
/// What an election takes behind the timeout, as measured.
const ELECTS: Duration = Duration::from_secs(1);
/// What it takes behind the timeout of a heartbeat until all follow another primary than one that
/// is there and silent, as measured: only then has that one a majority.
const FOLLOWS: Duration = Duration::from_secs(4);
/// A majority write that takes longer is slow for calls of two seconds.
const SLOW: Duration = Duration::from_millis(50);

const ELECTION_ADVICE: &str = "cfg = rs.conf(); cfg.settings.electionTimeoutMillis = 2000; \
                               cfg.settings.heartbeatIntervalMillis = 500; \
                               cfg.settings.heartbeatTimeoutSecs = 2; rs.reconfig(cfg)";

/// Looks at the keys in a data directory; nothing where there are none yet.
pub(super) fn embedded(config: &Config) -> Option<Finding> {
    let keyset = Embedded::read_only(&config.data_dir, None).ok()?.keyset().ok()??;
    keys(config, &keyset)
}

/// Looks at the store. `answers`: whether the service of this configuration answers here.
pub(super) async fn shared(config: &Config, answers: bool) -> Vec<Finding> {
    let address = match config.store.address() {
        Ok(address) => address,
        Err(error) => {
            return vec![Finding::problem(
                STORE,
                error.to_string(),
                "put the address there, for this user to read",
            )];
        }
    };
    let mut findings = Vec::from_iter(exposed(&config.store.uri_file));
    match Box::pin(mongo::inspect(&address, &config.node, config.store.call_timeout(), values::now))
        .await
    {
        Ok(found) => {
            findings.extend(servers(&found));
            findings.extend(found.settings.iter().flat_map(|settings| set(&found, settings)));
            findings.push(written(&found));
            findings.push(clocks(found.ahead_ms));
            findings.push(schema(&found));
            findings.extend(found.defects.iter().map(index));
            findings.extend(found.keyset.as_ref().and_then(|keyset| keys(config, keyset)));
            findings.push(node(&config.node, found.node, answers));
            if !found.others.is_empty() {
                findings.push(Finding::ok("other nodes", found.others.join(", ")));
            }
        }
        Err(error) => findings.push(refused(&error)),
    }
    findings
}

/// A file with a password is its owner's alone.
fn exposed(file: &Path) -> Option<Finding> {
    let mode = std::fs::metadata(file).ok()?.mode() & 0o777;
    let shown = file.display();
    let readable = || {
        Finding::problem(
            STORE,
            format!("{shown} has mode {mode:04o}"),
            format!("chmod 0600 {shown}"),
        )
    };
    (mode & 0o077 != 0).then(readable)
}

/// The same line as `serve` says, and what to do.
fn refused(error: &OpenError) -> Finding {
    let advice = match error {
        OpenError::Uri(_) => {
            "write it as mongodb://user:password@host1,host2,host3/jeton?replicaSet=NAME; a % in a \
             password is %25, an @ is %40"
        }
        OpenError::WrongReplicaSet(_) => {
            "set replicaSet= to the name that rs.conf() shows on a member, or name other hosts"
        }
        OpenError::Unreachable(_) => {
            "start mongod there, look at names, firewalls and tls=; the names in rs.conf() must be \
             reachable from here too; a primary needs more than half of the votes, and \
             rs.initiate() once"
        }
        OpenError::Credentials(_) => {
            "check user, password and authSource= (the database that the user was created in)"
        }
        OpenError::Forbidden => {
            "db.grantRolesToUser(\"jeton\", [{ role: \"readWrite\", db: \"jeton\" }]) with your \
             names"
        }
        OpenError::TooOld { .. } => "upgrade MongoDB to 4.4 or later",
        OpenError::Newer { .. } => "run a jeton as new as the newest node that was there",
        OpenError::MasterKey(_) => "give this node the master key of the others",
        OpenError::Corrupt(_) => {
            "stop the nodes and restore a backup; `jeton audit verify` says what is missing"
        }
        OpenError::Failed(_) => "look at the log of mongod, and at store.call_timeout_ms",
    };
    Finding::problem(STORE, said(error), advice)
}

fn said(error: &OpenError) -> String {
    if let OpenError::Failed(cause) = error {
        format!("{error}: {}", deepest(cause.as_ref()))
    } else {
        error.to_string()
    }
}

/// Who answers.
fn servers(found: &Inspection) -> Vec<Finding> {
    let list = found.members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let text = format!("database {}: {list}", found.database);
    if found.sharded {
        return vec![Finding::note(
            STORE,
            text,
            "the shards' replica sets are not looked at: see deploy/SCALING.md",
        )];
    }
    if found.members.iter().any(|member| member.state == ServerState::Standalone) {
        let advice = "make it a replica set of three: without one, what was acknowledged is lost \
                      with its one disk, every stop of it stops all nodes, and what other nodes \
                      end is seen up to a second later";
        return vec![Finding::note(STORE, text, advice)];
    }
    let down = found.members.iter().filter(|member| {
        !member.answers() || matches!(member.state, ServerState::ReplicaSetMember(_, Role::Other))
    });
    match down.count() {
        0 => vec![Finding::ok(STORE, text)],
        _ => vec![Finding::note(
            STORE,
            text,
            "bring back the member that is away, before another one goes",
        )],
    }
}

/// How the replica set is configured.
fn set(found: &Inspection, settings: &Result<ReplicaSettings, String>) -> Vec<Finding> {
    let settings = match settings {
        Ok(settings) => settings,
        Err(problem) => {
            let advice =
                "for this look only, run doctor with a user that has the role clusterMonitor too";
            return vec![Finding::note(
                SET,
                format!("its settings cannot be read: {problem}"),
                advice,
            )];
        }
    };
    let mut findings = vec![election(settings)];
    let holds = |role| matches!(role, Role::Primary | Role::Secondary);
    let keeping = found
        .members
        .iter()
        .filter(|member| {
            matches!(&member.state, ServerState::ReplicaSetMember(_, role) if holds(*role))
        })
        .count();
    let majority = (settings.keeping + settings.arbiters) / 2 + 1;
    if keeping < majority {
        let text = format!(
            "{keeping} members hold data, and {majority} must before a write is acknowledged"
        );
        findings.push(Finding::problem(
            SET,
            text,
            "bring members back: until then every write fails",
        ));
    }
    if settings.arbiters > 0 {
        let text = format!("{} of its votes are arbiters', who hold nothing", settings.arbiters);
        let advice = "make them members with data: with one of those away, majorities can vote and \
                      not acknowledge";
        findings.push(Finding::note(SET, text, advice));
    } else if settings.keeping < 3 {
        let text = format!("{} members hold data and vote", settings.keeping);
        findings.push(Finding::note(SET, text, "have three: with fewer, no member may be lost"));
    }
    if !settings.majority_journals {
        let text = "writeConcernMajorityJournalDefault is false: what was read of the majority may \
                    have been in memory only";
        let advice = "cfg = rs.conf(); cfg.writeConcernMajorityJournalDefault = true; \
                      rs.reconfig(cfg); and let every member journal";
        findings.push(Finding::problem(SET, text, advice));
    }
    findings
}

fn election(settings: &ReplicaSettings) -> Finding {
    let ReplicaSettings { election_timeout, heartbeat_interval, heartbeat_timeout, .. } = settings;
    let text = format!(
        "election timeout {election_timeout:?}, heartbeat every {heartbeat_interval:?} and within \
         {heartbeat_timeout:?}: a primary that dies is missed for about {:?}, one that freezes for \
         about {:?}",
        *election_timeout + ELECTS,
        *heartbeat_timeout + FOLLOWS
    );
    if *election_timeout > *ELECTION.end() {
        return Finding::note(SET, text, format!("recommended is 2 to 5 s: {ELECTION_ADVICE}"));
    }
    if *election_timeout < *ELECTION.start() {
        return Finding::note(
            SET,
            text,
            format!("below 2 s a busy disk looks like a death: {ELECTION_ADVICE}"),
        );
    }
    if heartbeat_interval.saturating_mul(2) > *election_timeout {
        return Finding::note(
            SET,
            text,
            format!("several heartbeats should fit into the timeout: {ELECTION_ADVICE}"),
        );
    }
    if heartbeat_timeout > ELECTION.end() {
        let advice = format!(
            "a member that says nothing should count as gone when another is elected: \
             {ELECTION_ADVICE}"
        );
        return Finding::note(SET, text, advice);
    }
    Finding::ok(SET, text)
}

fn written(found: &Inspection) -> Finding {
    const SUBJECT: &str = "majority write";
    match &found.write {
        Ok(took) if *took > SLOW => {
            let advice = "look at the members' disks and at the way between them; Token and \
                          Refresh take two such writes";
            Finding::note(SUBJECT, format!("takes {took:.1?} (median of 9)"), advice)
        }
        Ok(took) => Finding::ok(SUBJECT, format!("takes {took:.1?} (median of 9)")),
        Err(error @ OpenError::Forbidden) => refused(error),
        Err(error) => {
            let advice = "more than half of the members must be up, hold data and journal; then \
                          look at their disks";
            Finding::problem(SUBJECT, format!("fails: {}", said(error)), advice)
        }
    }
}

fn clocks((ahead, uncertain): (i64, u64)) -> Finding {
    const SUBJECT: &str = "clocks";
    let which = if ahead < 0 { "behind" } else { "ahead of" };
    let by = format!(
        "the server's is {} ms {which} this machine's (within {uncertain} ms)",
        ahead.saturating_abs()
    );
    let apart = ahead.saturating_abs().saturating_sub(i64::try_from(uncertain).unwrap_or(i64::MAX));
    let advice = "keep both set by NTP: tokens end by this machine's clock, and those of all nodes \
                  must agree";
    if apart > APART.1 {
        return Finding::problem(SUBJECT, by, advice);
    }
    if apart > APART.0 {
        return Finding::note(SUBJECT, by, advice);
    }
    Finding::ok(SUBJECT, by)
}

fn schema(found: &Inspection) -> Finding {
    const SUBJECT: &str = "schema";
    let known = found.schema_known;
    if found.importing {
        return Finding::problem(
            SUBJECT,
            "an import has begun and not ended",
            "drop the database and import again",
        );
    }
    match found.schema {
        None => Finding::note(
            SUBJECT,
            "nobody has served from this database yet",
            "the first `jeton serve` makes everything",
        ),
        Some(version) if version > known => {
            let text =
                format!("has version {version}, and this jeton knows versions up to {known}");
            Finding::problem(SUBJECT, text, "run a jeton as new as the newest node that was there")
        }
        Some(version) if version < known => {
            let text = format!("has version {version}, and this jeton writes {known}");
            Finding::note(
                SUBJECT,
                text,
                "the next `jeton serve` brings it up; older nodes refuse it then",
            )
        }
        Some(version) => Finding::ok(SUBJECT, format!("has version {version}")),
    }
}

fn index(defect: &Defect) -> Finding {
    const SUBJECT: &str = "index";
    match defect {
        Defect::Missing(name) => Finding::problem(
            SUBJECT,
            format!("{name} is missing, or not as it should be"),
            "restart a node: it makes it",
        ),
        Defect::Unique(name) => Finding::problem(
            SUBJECT,
            format!("{name} is unique, and refuses what jeton writes"),
            "drop it: _id is enough",
        ),
    }
}

/// Whether the master key opens the signing keys; nothing where there is no master key, which is
/// said elsewhere.
fn keys(config: &Config, keyset: &Keyset) -> Option<Finding> {
    const SUBJECT: &str = "signing keys";
    let master = master::load_or_make(&config.master_key_path(), false).ok()?;
    let judging =
        Judging { max_lifetime: config.token.access_lifetime_max(), skew: Duration::ZERO };
    Some(match Keyring::open(keyset, &Sealer::new(master), &config.issuer, judging) {
        Ok(_) => Finding::ok(SUBJECT, "are genuine and open under this master key"),
        Err(error @ KeyringError::Keyset(_)) => {
            let advice = "nodes that run go on with the last genuine keyset: find out who writes \
                          to the store, then restore a backup";
            Finding::problem(SUBJECT, error.to_string(), advice)
        }
        Err(error) => Finding::problem(
            SUBJECT,
            format!("do not open: {error}"),
            "give this node the master key of the others",
        ),
    })
}

/// Whether the name is this node's alone.
fn node(name: &str, seen: Option<NodeSeen>, answers: bool) -> Finding {
    let advice = "give each node a name of its own: --node, or `node` in the configuration";
    match seen {
        Some(NodeSeen { disputed: true, .. }) => Finding::problem(
            NODE,
            format!("processes take the name {name} from each other"),
            advice,
        ),
        Some(NodeSeen { alive: true, .. }) if !answers => {
            let text = format!(
                "a process runs under the name {name}, and not here, or it answers elsewhere"
            );
            Finding::note(NODE, text, format!("before this one is started: {advice}"))
        }
        Some(NodeSeen { alive: true, heartbeat_ms, .. }) => Finding::ok(
            NODE,
            format!(
                "{name} runs: its heartbeat is {} ms old",
                heartbeat_ms.unwrap_or_default().max(0)
            ),
        ),
        Some(NodeSeen { alive: false, .. }) if answers => {
            let text =
                format!("a service answers here, and {name} has no heartbeat in this database");
            Finding::problem(
                NODE,
                text,
                "look whether it was started with this name and this store, and at its log",
            )
        }
        Some(_) => {
            Finding::ok(NODE, format!("{name} was there before, and no process has the name now"))
        }
        None => Finding::ok(NODE, format!("nobody has the name {name}")),
    }
}
