//! Histories made by hand. Times are in milliseconds.

use std::collections::HashSet;

use crate::fleet::{
    history::{
        Call, Chain, Fault, History, Issued, Limit, Named, Outcome, Record, Run, SECOND, Sample,
        Verb,
    },
    verdict,
};

/// A run of two nodes in which, so far, nothing happened.
pub(super) struct Script {
    pub(super) history: History,
    /// True if the trail is written along.
    pub(super) recorded: bool,
    rotated: HashSet<(String, u32)>,
}

fn at(ms: u64) -> u64 {
    ms * 1_000
}

pub(super) fn access(jti: &str) -> Named {
    Named::Access { jti: jti.to_owned() }
}

pub(super) fn refresh(family: &str, generation: u32) -> Named {
    Named::Refresh {
        family: family.to_owned(),
        generation,
        print: format!("print-{family}-{generation}"),
    }
}

/// As a server answers it that says when to ask again.
pub(super) fn unknown(code: &str) -> Outcome {
    Outcome::Unknown { code: code.to_owned(), why: "away".to_owned(), retry: true }
}

pub(super) fn refused(reason: &str) -> Outcome {
    Outcome::Refused { code: "INVALID_ARGUMENT".to_owned(), reason: reason.to_owned() }
}

impl Script {
    pub(super) fn new() -> Self {
        let run = Run {
            scenario: "by hand".to_owned(),
            seed: 1,
            wall: 0,
            timed: true,
            longest: 2_500_000,
            delta: SECOND,
            stale: 5 * SECOND,
            grace: 10 * SECOND,
            leeway: SECOND,
            resident: 100_000,
            growth: Some(1_024),
            descriptors: 10,
            limits: vec![Limit { client: "limited".to_owned(), window: 10 * SECOND, calls: 3 }],
        };
        Self { history: History::new(run), recorded: true, rotated: HashSet::new() }
    }

    /// The invariants that the judge finds broken, each once.
    pub(super) fn verdict(mut self) -> Vec<&'static str> {
        self.history.calls.sort_by_key(|call| call.start);
        let mut broken: Vec<_> = verdict::judge(&self.history)
            .into_iter()
            .map(|violation| violation.invariant)
            .collect();
        broken.sort_unstable();
        broken.dedup();
        broken
    }

    /// A call that takes 10 ms; the last one, to be changed.
    fn call(&mut self, ms: u64, node: &str, verb: Verb, client: &str) -> &mut Call {
        let request = format!("request-{}", self.history.calls.len());
        self.history.calls.push(Call {
            start: at(ms),
            end: at(ms + 10),
            node: node.to_owned(),
            verb,
            request,
            client: client.to_owned(),
            token: None,
            outcome: Outcome::Ok,
            issued: None,
            active: None,
        });
        self.history.calls.last_mut().unwrap()
    }

    /// A record of the last call.
    pub(super) fn record(&mut self, action: &str, target: &str, family: &str) {
        let request = self.history.calls.last().unwrap().request.clone();
        let sequence = i64::try_from(self.history.records.len()).unwrap() + 1;
        self.history.records.push(Record {
            chain: "node-1".to_owned(),
            sequence,
            action: action.to_owned(),
            outcome: if action == "refresh_token.reused" { "refused" } else { "ok" }.to_owned(),
            target: target.to_owned(),
            family: family.to_owned(),
            request,
        });
    }

    fn record_if(&mut self, done: bool, action: &str, target: &str, family: &str) {
        if done && self.recorded {
            self.record(action, target, family);
        }
    }

    /// Token: an access token that lives for a minute.
    pub(super) fn token(&mut self, ms: u64, node: &str, client: &str, jti: &str) {
        let issued = Issued { jti: jti.to_owned(), until: at(ms + 60_000), refresh: None };
        self.call(ms, node, Verb::Token, client).issued = Some(issued);
        self.record_if(true, "token.issued", jti, "");
    }

    /// Token, with the first token of a family.
    pub(super) fn open(&mut self, ms: u64, node: &str, family: &str, jti: &str) {
        let issued = Issued {
            jti: jti.to_owned(),
            until: at(ms + 60_000),
            refresh: Some(refresh(family, 0)),
        };
        self.call(ms, node, Verb::Token, "client").issued = Some(issued);
        self.record_if(true, "token.issued", jti, family);
    }

    /// Refresh with this generation.
    pub(super) fn refresh(
        &mut self,
        ms: u64,
        node: &str,
        family: &str,
        generation: u32,
        jti: &str,
    ) {
        let issued = Issued {
            jti: jti.to_owned(),
            until: at(ms + 60_000),
            refresh: Some(refresh(family, generation + 1)),
        };
        let call = self.call(ms, node, Verb::Refresh, "client");
        (call.token, call.issued) = (Some(refresh(family, generation)), Some(issued));
        let first = self.rotated.insert((family.to_owned(), generation));
        self.record_if(
            true,
            if first { "token.refreshed" } else { "refresh_token.repeated" },
            jti,
            family,
        );
    }

    /// Refresh that gets nothing.
    pub(super) fn refresh_fails(
        &mut self,
        ms: u64,
        node: &str,
        family: &str,
        generation: u32,
        outcome: Outcome,
    ) {
        let call = self.call(ms, node, Verb::Refresh, "client");
        (call.token, call.outcome) = (Some(refresh(family, generation)), outcome);
    }

    /// Revoke.
    pub(super) fn revoke(&mut self, ms: u64, node: &str, token: Named, outcome: Outcome) {
        let done = outcome.is_ok();
        let (target, family) = match &token {
            Named::Access { jti } => (jti.clone(), String::new()),
            Named::Refresh { family, .. } | Named::Family { family } => {
                (String::new(), family.clone())
            }
        };
        let call = self.call(ms, node, Verb::Revoke, "client");
        (call.token, call.outcome) = (Some(token), outcome);
        self.record_if(done, "token.revoked", &target, &family);
    }

    /// RevokeAll of a client.
    pub(super) fn revoke_all(&mut self, ms: u64, node: &str, client: &str, outcome: Outcome) {
        let done = outcome.is_ok();
        self.call(ms, node, Verb::RevokeAll, client).outcome = outcome;
        self.record_if(done, "revocation.client", client, "");
    }

    /// CreateClient or DisableClient.
    pub(super) fn administer(
        &mut self,
        ms: u64,
        node: &str,
        verb: Verb,
        client: &str,
        outcome: Outcome,
    ) {
        let done = outcome.is_ok();
        self.call(ms, node, verb, client).outcome = outcome;
        let action = if verb == Verb::CreateClient { "client.created" } else { "client.disabled" };
        self.record_if(done, action, client, "");
    }

    /// A call of Token that gets nothing.
    pub(super) fn token_fails(&mut self, ms: u64, node: &str, client: &str, outcome: Outcome) {
        self.call(ms, node, Verb::Token, client).outcome = outcome;
    }

    /// Introspect.
    pub(super) fn judged(&mut self, ms: u64, node: &str, jti: &str, active: bool) {
        let call = self.call(ms, node, Verb::Introspect, "judge");
        (call.token, call.active) = (Some(access(jti)), Some(active));
    }

    pub(super) fn fault(&mut self, begin: u64, end: u64, recovery: u64, node: Option<&str>) {
        let (begin, end, recovery) = (at(begin), at(end), at(recovery));
        let node = node.map(str::to_owned);
        self.history.faults.push(Fault { name: "broken".to_owned(), node, begin, end, recovery });
    }

    pub(super) fn sample(&mut self, ms: u64, resident: u64, descriptors: u64) {
        self.history.samples.push(Sample {
            at: at(ms),
            node: "node-1".to_owned(),
            resident,
            descriptors,
        });
    }

    pub(super) fn chain(&mut self, intact: bool) {
        let problem = if intact { String::new() } else { "altered".to_owned() };
        self.history.chains.push(Chain { by: "node-1".to_owned(), intact, problem });
    }
}
