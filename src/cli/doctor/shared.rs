//! Checks of a shared store: that `serve` could open it, and its settings, schema and keys.

use std::{os::unix::fs::MetadataExt, path::Path, time::Duration};

use super::{
    super::{args, cause::deepest},
    Finding,
    store::{audit_trail, service_clock, signing_keys},
};
use crate::{
    config::Config,
    store::mongo::{
        self, Defect, Inspection, NodeSeen, OpenError, ReplicaSettings, Role, ServerState,
    },
};

const STORE: &str = "store";
const SET: &str = "replica set";
const NODE: &str = "node";

/// Clock differences above which there is a note, and a problem: tokens expire by this machine's
/// clock, documents by the server's.
const CLOCK_DIFFERENCE_MS: (i64, i64) = (5_000, 60_000);
/// Recommended election timeouts.
const ELECTION_TIMEOUT_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(2)..=Duration::from_secs(5);
/// Duration of an election after its timeout, as measured.
const ELECTION_DURATION: Duration = Duration::from_secs(1);
/// Time after the heartbeat timeout until all members follow a new primary while the old one is
/// frozen, as measured: only then does the new one have a majority.
const FAILOVER_DURATION: Duration = Duration::from_secs(4);
/// Duration above which a majority write is slow for calls of two seconds.
const SLOW_WRITE: Duration = Duration::from_millis(50);

const ELECTION_ADVICE: &str = "cfg = rs.conf(); cfg.settings.electionTimeoutMillis = 2000; \
                               cfg.settings.heartbeatIntervalMillis = 500; \
                               cfg.settings.heartbeatTimeoutSecs = 2; rs.reconfig(cfg)";

/// Checks the store. `answers` is true if the service of this configuration answers here.
pub(super) async fn store(config: &Config, answers: bool) -> Vec<Finding> {
    let address = match config.store.address() {
        Ok(address) => address,
        Err(error) => {
            return vec![Finding::problem(
                STORE,
                error.to_string(),
                "write the address to the file and give this user read access",
            )];
        }
    };
    let mut findings = Vec::from_iter(check_file_mode(&config.store.uri_file));
    match Box::pin(mongo::inspect(&address, &config.node, config.store.call_timeout(), args::now))
        .await
    {
        Ok(found) => {
            findings.extend(servers(&found));
            findings
                .extend(found.settings.iter().flat_map(|settings| replica_set(&found, settings)));
            findings.push(majority_write(&found));
            findings.push(clocks(found.ahead_ms));
            findings.extend(service_clock(found.newest, args::now()));
            findings.push(schema(&found));
            findings.extend(found.defects.iter().map(index));
            findings.extend(found.keyset.as_ref().and_then(|keyset| signing_keys(config, keyset)));
            findings.extend(found.trail.iter().map(|size| audit_trail(config, size, None)));
            findings.push(node(&config.node, found.node, answers));
            if !found.other_nodes.is_empty() {
                findings.push(Finding::ok("other nodes", found.other_nodes.join(", ")));
            }
        }
        Err(error) => findings.push(refused(&error)),
    }
    findings
}

/// Checks that only its owner can read a file with a password.
fn check_file_mode(file: &Path) -> Option<Finding> {
    let metadata = std::fs::metadata(file).ok()?;
    let mode = metadata.mode() & 0o777;
    // A Secret with `defaultMode: 0400` and `fsGroup`, or a systemd credential.
    let from_platform = metadata.uid() == 0 && mode == 0o440;
    let shown = file.display();
    let readable = || {
        Finding::problem(
            STORE,
            format!("{shown} has mode {mode:04o}"),
            format!("chmod 0600 {shown}"),
        )
    };
    (mode & 0o077 != 0 && !from_platform).then(readable)
}

/// Converts an error to the line that `serve` prints, with a suggested fix.
fn refused(error: &OpenError) -> Finding {
    let advice = match error {
        OpenError::Uri(_) => {
            "use mongodb://user:password@host1,host2,host3/jeton?replicaSet=NAME; write % in a \
             password as %25 and @ as %40"
        }
        OpenError::WrongReplicaSet(_) => {
            "set replicaSet= to the name that rs.conf() shows on a member, or use other hosts"
        }
        OpenError::Unreachable(_) => {
            "check that mongod runs there, host names, firewalls and tls=; this machine must also \
             reach the names in rs.conf(); a primary needs more than half of the votes, and \
             rs.initiate() once"
        }
        OpenError::Credentials(_) => {
            "check user, password and authSource= (the database in which the user was created)"
        }
        OpenError::Forbidden => {
            "run db.grantRolesToUser(\"jeton\", [{ role: \"readWrite\", db: \"jeton\" }]) with \
             your names"
        }
        OpenError::TooOld { .. } => "upgrade MongoDB to 4.4 or later",
        OpenError::Newer { .. } => {
            "run a jeton at least as new as the newest node of this database"
        }
        OpenError::MasterKey(_) => "give this node the master key of the other nodes",
        OpenError::Corrupt(_) => {
            "stop the nodes and restore a backup; `jeton audit verify` shows what is missing"
        }
        OpenError::Failed(_) => "check the log of mongod and store.call_timeout_ms",
    };
    Finding::problem(STORE, describe(error), advice)
}

fn describe(error: &OpenError) -> String {
    if let OpenError::Failed(cause) = error {
        format!("{error}: {}", deepest(cause.as_ref()))
    } else {
        error.to_string()
    }
}

/// Checks the members of the deployment.
fn servers(found: &Inspection) -> Vec<Finding> {
    let list = found.members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let text = format!("database {}: {list}", found.database);
    if found.sharded {
        return vec![Finding::note(
            STORE,
            text,
            "the replica sets of the shards are not checked: see docs/scaling.md",
        )];
    }
    if found.members.iter().any(|member| member.state == ServerState::Standalone) {
        let advice = "use a replica set of three: a standalone server loses acknowledged writes \
                      with its disk, stops all nodes when it stops, and delays revocations of \
                      other nodes by up to a second";
        return vec![Finding::note(STORE, text, advice)];
    }
    let down = found.members.iter().filter(|member| {
        !member.answers() || matches!(member.state, ServerState::ReplicaSetMember(_, Role::Other))
    });
    match down.count() {
        0 => vec![Finding::ok(STORE, text)],
        _ => vec![Finding::note(STORE, text, "start the missing member before another one fails")],
    }
}

/// Checks the settings of the replica set.
fn replica_set(found: &Inspection, settings: &Result<ReplicaSettings, String>) -> Vec<Finding> {
    let settings = match settings {
        Ok(settings) => settings,
        Err(problem) => {
            let advice =
                "to check them, run doctor with a user that also has the role clusterMonitor";
            return vec![Finding::note(
                SET,
                format!("cannot read its settings: {problem}"),
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
        let text = format!("{keeping} members hold data, a majority write needs {majority}");
        findings.push(Finding::problem(
            SET,
            text,
            "start the missing members: until then every write fails",
        ));
    }
    if settings.arbiters > 0 {
        let text = format!("{} of its votes are arbiters, which hold no data", settings.arbiters);
        let advice = "replace them with members that hold data: with one of those down, a majority \
                      can vote but not acknowledge writes";
        findings.push(Finding::note(SET, text, advice));
    } else if settings.keeping < 3 {
        let text = format!("{} voting members hold data", settings.keeping);
        findings.push(Finding::note(
            SET,
            text,
            "use three: with fewer, the set cannot lose a member",
        ));
    }
    if !settings.majority_journals {
        let text = "writeConcernMajorityJournalDefault is false: majority reads may return data \
                    that is only in memory";
        let advice = "cfg = rs.conf(); cfg.writeConcernMajorityJournalDefault = true; \
                      rs.reconfig(cfg); and enable the journal on every member";
        findings.push(Finding::problem(SET, text, advice));
    }
    findings
}

fn election(settings: &ReplicaSettings) -> Finding {
    let ReplicaSettings { election_timeout, heartbeat_interval, heartbeat_timeout, .. } = settings;
    let text = format!(
        "election timeout {election_timeout:?}, heartbeat interval {heartbeat_interval:?}, \
         heartbeat timeout {heartbeat_timeout:?}: writes fail for about {:?} after the primary \
         dies and about {:?} after it freezes",
        *election_timeout + ELECTION_DURATION,
        *heartbeat_timeout + FAILOVER_DURATION
    );
    if *election_timeout > *ELECTION_TIMEOUT_RANGE.end() {
        return Finding::note(SET, text, format!("use 2 to 5 s: {ELECTION_ADVICE}"));
    }
    if *election_timeout < *ELECTION_TIMEOUT_RANGE.start() {
        return Finding::note(
            SET,
            text,
            format!("below 2 s a busy disk triggers elections: {ELECTION_ADVICE}"),
        );
    }
    if heartbeat_interval.saturating_mul(2) > *election_timeout {
        return Finding::note(
            SET,
            text,
            format!("the election timeout must allow several heartbeats: {ELECTION_ADVICE}"),
        );
    }
    if heartbeat_timeout > ELECTION_TIMEOUT_RANGE.end() {
        let advice = format!(
            "the heartbeat timeout must not exceed the election timeout: {ELECTION_ADVICE}"
        );
        return Finding::note(SET, text, advice);
    }
    Finding::ok(SET, text)
}

fn majority_write(found: &Inspection) -> Finding {
    const SUBJECT: &str = "majority write";
    match &found.write {
        Ok(took) if *took > SLOW_WRITE => {
            let advice = "check the members' disks and the network between them; Token and Refresh \
                          take two such writes";
            Finding::note(SUBJECT, format!("takes {took:.1?} (median of 9)"), advice)
        }
        Ok(took) => Finding::ok(SUBJECT, format!("takes {took:.1?} (median of 9)")),
        Err(error @ OpenError::Forbidden) => refused(error),
        Err(error) => {
            let advice = "check that more than half of the members are up, hold data and journal, \
                          then their disks";
            Finding::problem(SUBJECT, format!("fails: {}", describe(error)), advice)
        }
    }
}

fn clocks((ahead, uncertain): (i64, u64)) -> Finding {
    const SUBJECT: &str = "clocks";
    let which = if ahead < 0 { "behind" } else { "ahead of" };
    let by = format!(
        "the clock of MongoDB is {} ms {which} this machine's (accuracy {uncertain} ms)",
        ahead.saturating_abs()
    );
    let apart = ahead.saturating_abs().saturating_sub(i64::try_from(uncertain).unwrap_or(i64::MAX));
    let advice = "synchronize both with NTP: token expiry depends on this machine's clock, and the \
                  clocks of all nodes must agree";
    if apart > CLOCK_DIFFERENCE_MS.1 {
        return Finding::problem(SUBJECT, by, advice);
    }
    if apart > CLOCK_DIFFERENCE_MS.0 {
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
            "an import was interrupted",
            "drop the database and import again",
        );
    }
    match found.schema {
        None => Finding::note(
            SUBJECT,
            "the database is not initialized yet",
            "the first `jeton serve` creates collections and indexes",
        ),
        Some(version) if version > known => {
            let text = format!("version {version}, this jeton supports versions up to {known}");
            Finding::problem(
                SUBJECT,
                text,
                "run a jeton at least as new as the newest node of this database",
            )
        }
        Some(version) => Finding::ok(SUBJECT, format!("version {version}")),
    }
}

fn index(defect: &Defect) -> Finding {
    const SUBJECT: &str = "index";
    match defect {
        Defect::Missing(name) => Finding::problem(
            SUBJECT,
            format!("{name} is missing or has another definition"),
            "restart a node: it creates the index",
        ),
        Defect::Unique(name) => Finding::problem(
            SUBJECT,
            format!("{name} is unique and rejects records that jeton writes"),
            "drop the index",
        ),
    }
}

/// Checks that no other process uses the name of this node.
fn node(name: &str, seen: Option<NodeSeen>, answers: bool) -> Finding {
    let advice = "give each node a unique name: --node, or `node` in the configuration";
    match seen {
        Some(NodeSeen { disputed: true, .. }) => {
            Finding::problem(NODE, format!("several processes use the name {name}"), advice)
        }
        Some(NodeSeen { alive: true, .. }) if !answers => {
            let text = format!(
                "a process elsewhere uses the name {name}, or this one listens on another address"
            );
            Finding::note(NODE, text, format!("before starting this node: {advice}"))
        }
        Some(NodeSeen { alive: true, heartbeat_ms, .. }) => Finding::ok(
            NODE,
            format!(
                "{name} is running: its heartbeat is {} ms old",
                heartbeat_ms.unwrap_or_default().max(0)
            ),
        ),
        Some(NodeSeen { alive: false, .. }) if answers => {
            let text =
                format!("a service answers here, but {name} has no heartbeat in this database");
            Finding::problem(
                NODE,
                text,
                "check that it was started with this name and this store, and its log",
            )
        }
        Some(_) => Finding::ok(NODE, format!("{name} is known and not running")),
        None => Finding::ok(NODE, format!("the name {name} is free")),
    }
}
