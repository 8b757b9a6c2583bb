//! Changes that need a proof, as rules make them.

use crate::{
    error::{Error, Result},
    store::{Proof, ProofStore, ProvenWrite, Spent},
};

/// Makes a change by its proof. A proof that does not hold any more is answered as the credential
/// that it rested on would be.
pub async fn spend<S: ProofStore + ?Sized>(
    store: &S,
    proof: Proof,
    write: ProvenWrite,
) -> Result<Spent> {
    let refusal = if proof.is_by_token() { Error::InvalidToken } else { Error::InvalidClient };
    match store.spend(proof, write).await? {
        Spent::Unproven => Err(refusal),
        spent @ (Spent::Done | Spent::Taken | Spent::Stale) => Ok(spent),
    }
}
