//! Verification without a server: in a data directory or a database.

use super::report::Report;
use crate::{
    admin::audit::{Known, Step, Verdict, Verification, VerifyRequest},
    cli::{cause::deepest, error::Failure, transfer},
    config::Config,
    error::Error,
    model::digits::{hex, unhex},
    proto::admin::{ChainState, ChainVerdict, KnownHead, VerifyTrailRequest, VerifyTrailResponse},
};

/// Verifies the chains of the configured store.
pub(super) async fn verify(
    config: &Config,
    request: VerifyTrailRequest,
    report: &mut Report,
) -> Result<(), Failure> {
    let (key, trail) = transfer::trail(config).await?;
    let mut request = parsed(request)?;
    // What the store acknowledged last, by a note beside the database, must be in it.
    request.known.extend(trail.last_acknowledged);
    let mut verification =
        Verification::begin(trail.chains.as_ref(), &key, request).await.map_err(failed)?;
    verification.measure().await.map_err(failed)?;
    loop {
        let step = verification.step().await.map_err(failed)?;
        let is_end = matches!(step, Step::End);
        let chains = match step {
            Step::Chain(verdict) => vec![judged(verdict)],
            Step::Records | Step::End => Vec::new(),
        };
        let (checked, total) = verification.progress();
        let state = if is_end { ChainState::Intact } else { ChainState::Unspecified };
        report.take(VerifyTrailResponse {
            checked: number(checked),
            total: number(total),
            chains,
            reached: verification.reached().map(head),
            state: state.into(),
        })?;
        if is_end {
            return Ok(());
        }
    }
}

fn parsed(request: VerifyTrailRequest) -> Result<VerifyRequest, Failure> {
    let VerifyTrailRequest { chain, known, start_after, .. } = request;
    let known_head = |KnownHead { chain, sequence, hash }: KnownHead| {
        let digits = unhex(&hash.to_ascii_lowercase());
        let hash = digits.ok_or_else(|| {
            Failure::Usage(format!("the hash of {chain}:{sequence} must be 64 hexadecimal digits"))
        })?;
        Ok(Known { chain: chain.into(), sequence: sequence.unsigned_abs(), hash })
    };
    let heads = |heads: Vec<KnownHead>| {
        heads.into_iter().map(known_head).collect::<Result<Vec<Known>, Failure>>()
    };
    let only = (!chain.is_empty()).then(|| chain.into());
    let (known, from) = (heads(known)?, heads(start_after)?);
    Ok(VerifyRequest { only, known, from, ..VerifyRequest::default() })
}

/// Converts the error of a store that is open.
fn failed(error: Error) -> Failure {
    if let Error::NotFound(what) = error {
        return Failure::NotFound(what);
    }
    Failure::Other(format!("cannot read the store: {}", deepest(&error)))
}

fn head(known: Known) -> KnownHead {
    let Known { chain, sequence, hash } = known;
    KnownHead { chain: chain.as_ref().to_owned(), sequence: number(sequence), hash: hex(&hash) }
}

fn judged(verdict: Verdict) -> ChainVerdict {
    let state = match verdict.flaw {
        Some(_) => ChainState::Broken,
        None if verdict.is_end_sure => ChainState::Intact,
        None => ChainState::EndNotSure,
    };
    let (first_bad, problem) = verdict.flaw.unwrap_or_default();
    ChainVerdict {
        chain: verdict.chain.as_ref().to_owned(),
        intact: Some(state == ChainState::Intact),
        state: state.into(),
        witnessed_sequence: number(verdict.witnessed),
        cut_sequence: number(verdict.cut),
        checked: number(verdict.checked),
        first_bad_sequence: number(first_bad),
        problem,
        head_sequence: number(verdict.head.0),
        head_hash: hex(&verdict.head.1),
    }
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
