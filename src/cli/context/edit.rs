//! `context add`, `edit` and `remove`.

use std::path::{self, Path, PathBuf};

use clap::{Args, ValueEnum};
use rustls::{
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use secrecy::SecretString;

use super::{Context, Contexts, found};
use crate::cli::{args, error::Failure, output::Output, trust::Trust};

/// Maximum bytes of a context's name.
const NAME_MAX_BYTES: usize = 64;

/// Properties that `add` sets and `edit` changes.
#[derive(Args, Debug, Default)]
pub(super) struct Properties {
    /// Server address, HOST:PORT or URL
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// Client id
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// File with the client secret; the context keeps its path, not the secret. With - the secret
    /// is read from stdin and kept in the context, in a file that only its owner can read
    #[arg(long, value_name = "FILE")]
    client_secret_file: Option<PathBuf>,
    /// PEM file with the CA of the server's certificate, or with that certificate itself
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// PEM file with the client certificate (mTLS)
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// PEM file with the key of the client certificate
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// Place of a client secret.
enum Secret {
    Kept(SecretString),
    InFile(PathBuf),
}

/// Properties with their files read or checked, before the contexts are locked.
pub(super) struct Checked<'a> {
    given: &'a Properties,
    secret: Option<Secret>,
}

/// A property that `--clear` can reset.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Clearable {
    ClientSecret,
    Ca,
    Cert,
}

impl Properties {
    fn is_empty(&self) -> bool {
        let files = [&self.client_secret_file, &self.ca, &self.cert, &self.key];
        self.address.is_none() && self.client_id.is_none() && files.into_iter().all(Option::is_none)
    }

    fn check(&self) -> Result<Checked<'_>, Failure> {
        let secret = match &self.client_secret_file {
            None => None,
            Some(file) => {
                let secret = args::secret_file(file)?;
                if secret.is_empty() {
                    let problem = format!("{} contains no secret", file.display());
                    return Err(Failure::setting("client_secret_file", problem));
                }
                Some(if file == Path::new("-") {
                    Secret::Kept(secret.into())
                } else {
                    Secret::InFile(absolute(file)?)
                })
            }
        };
        if let Some(file) = &self.ca {
            Trust::file(file, true)?;
        }
        Ok(Checked { given: self, secret })
    }
}

impl Checked<'_> {
    /// Sets the properties that are given.
    fn set(self, context: &mut Context) -> Result<(), Failure> {
        let Properties { address, client_id, ca, cert, key, .. } = self.given;
        if let Some(address) = address {
            if context.address != *address {
                // It is another server now: a later start in the directory must not change it.
                context.data_dir = None;
                context.store = None;
            }
            context.address.clone_from(address);
        }
        if let Some(client_id) = client_id {
            if context.client_id != *client_id {
                // The secret is the other client's.
                context.client_secret = None;
                context.client_secret_file = None;
            }
            context.client_id.clone_from(client_id);
        }
        match self.secret {
            Some(Secret::Kept(secret)) => {
                context.client_secret = Some(secret);
                context.client_secret_file = None;
            }
            Some(Secret::InFile(file)) => {
                context.client_secret = None;
                context.client_secret_file = Some(file);
            }
            None => {}
        }
        let files = [
            (ca, &mut context.ca_file),
            (cert, &mut context.cert_file),
            (key, &mut context.key_file),
        ];
        for (given, kept) in files {
            if let Some(file) = given {
                *kept = Some(absolute(file)?);
            }
        }
        match (&context.cert_file, &context.key_file) {
            (None, None) => Ok(()),
            (Some(cert), Some(key)) => check_pair(cert, key),
            (Some(_), None) | (None, Some(_)) => {
                Err(Failure::Usage("--cert and --key must be used together".to_owned()))
            }
        }
    }
}

/// Refuses a client certificate that no server could accept.
fn check_pair(cert: &Path, key: &Path) -> Result<(), Failure> {
    let read = |path: &Path| std::fs::read(path).map_err(Failure::reading(path));
    let chain = CertificateDer::pem_slice_iter(&read(cert)?).collect::<Result<Vec<_>, _>>();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| {
        let problem = format!("{} is not a PEM file with certificates", cert.display());
        Failure::setting("cert", problem)
    })?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| {
        let problem = format!("{} is not a PEM file with an unencrypted key", key.display());
        Failure::setting("key", problem)
    })?;
    CertifiedKey::from_der(chain, private, &default_provider()).map(drop).map_err(|error| {
        let (cert, key) = (cert.display(), key.display());
        Failure::setting("cert", format!("cannot use {cert} with {key}: {error}"))
    })
}

/// Returns a path that means the same in every working directory.
fn absolute(file: &Path) -> Result<PathBuf, Failure> {
    path::absolute(file).map_err(Failure::reading(file))
}

/// Parses the name of a new context.
fn name(text: &str) -> Result<String, String> {
    let is_shown = |text: &str| !text.chars().any(char::is_control) && text.trim() == text;
    if (1..=NAME_MAX_BYTES).contains(&text.len()) && is_shown(text) && !text.starts_with('-') {
        return Ok(text.to_owned());
    }
    Err(format!(
        "must be 1 to {NAME_MAX_BYTES} bytes without control characters, blanks around it or a \
         hyphen at its start"
    ))
}

/// `jeton context add`
#[derive(Args, Debug)]
pub(super) struct Add {
    /// Context name
    #[arg(value_parser = name)]
    name: String,
    #[command(flatten)]
    properties: Properties,
}

impl Add {
    pub(super) fn checked(&self) -> Result<Checked<'_>, Failure> {
        if self.properties.address.is_none() || self.properties.client_id.is_none() {
            return Err(Failure::Usage("a context needs --address and --client-id".to_owned()));
        }
        self.properties.check()
    }

    pub(super) fn apply(
        &self,
        properties: Checked<'_>,
        contexts: &mut Contexts,
    ) -> Result<String, Failure> {
        if contexts.contexts.contains_key(&self.name) {
            let problem = format!("context {0} exists: use `jeton context edit {0}`", self.name);
            return Err(Failure::Usage(problem));
        }
        let mut context = Context::default();
        properties.set(&mut context)?;
        contexts.contexts.insert(self.name.clone(), context);
        if contexts.find(None).is_none() {
            contexts.current.clone_from(&self.name);
        }
        let is_current = contexts.current == self.name;
        let state = if is_current {
            "it is the current one"
        } else {
            "select it with `jeton context use`, or for one command with --context"
        };
        Ok(format!("added context {}; {state}", self.name))
    }
}

/// `jeton context edit`
#[derive(Args, Debug)]
pub(super) struct Edit {
    /// Context name
    name: String,
    #[command(flatten)]
    properties: Properties,
    /// Reset this property, repeatable
    #[arg(long, value_name = "PROPERTY")]
    clear: Vec<Clearable>,
}

impl Edit {
    pub(super) fn checked(&self) -> Result<Checked<'_>, Failure> {
        let Properties { client_secret_file, ca, cert, key, .. } = &self.properties;
        if self.properties.is_empty() && self.clear.is_empty() {
            return Err(Failure::Usage("name at least one property to change".to_owned()));
        }
        let is_both = self.clear.iter().any(|cleared| match cleared {
            Clearable::ClientSecret => client_secret_file.is_some(),
            Clearable::Ca => ca.is_some(),
            Clearable::Cert => cert.is_some() || key.is_some(),
        });
        if is_both {
            return Err(Failure::Usage("a property is both set and cleared".to_owned()));
        }
        self.properties.check()
    }

    pub(super) fn apply(
        &self,
        properties: Checked<'_>,
        contexts: &mut Contexts,
    ) -> Result<String, Failure> {
        found(contexts, Some(&self.name))?;
        let context = contexts.contexts.entry(self.name.clone()).or_default();
        let had_secret = context.client_secret.is_some();
        for cleared in &self.clear {
            match cleared {
                Clearable::ClientSecret => {
                    context.client_secret = None;
                    context.client_secret_file = None;
                }
                Clearable::Ca => context.ca_file = None,
                Clearable::Cert => {
                    context.cert_file = None;
                    context.key_file = None;
                }
            }
        }
        properties.set(context)?;
        let dropped = had_secret && context.client_secret.is_none();
        let note = if dropped { "; the secret that it kept is removed" } else { "" };
        Ok(format!("changed context {}{note}", self.name))
    }
}

/// `jeton context remove`
#[derive(Args, Debug)]
pub(super) struct Remove {
    /// Context name
    name: String,
    /// Do not ask before a secret is removed with the context
    #[arg(long)]
    yes: bool,
}

impl Remove {
    /// Asks, before the contexts are locked.
    pub(super) fn confirm(&self, output: Output, contexts: &Contexts) -> Result<(), Failure> {
        let (_, context) = found(contexts, Some(&self.name))?;
        if context.client_secret.is_some() && !self.yes {
            let question =
                format!("remove context {} and the secret that only it keeps?", self.name);
            output.confirm(&question)?;
        }
        Ok(())
    }

    pub(super) fn apply(&self, contexts: &mut Contexts) -> Result<String, Failure> {
        found(contexts, Some(&self.name))?;
        contexts.contexts.remove(&self.name);
        let was_current = contexts.current == self.name;
        if was_current {
            contexts.current.clear();
        }
        let note = if was_current { "; no context is the current one now" } else { "" };
        Ok(format!("removed context {}{note}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_and_typed_as_they_are() {
        for good in ["prod", "a.b", "ä", "two words", "\"quoted\"", "[x]", "a=b#c", "x-1"] {
            assert_eq!(name(good).as_deref(), Ok(good));
        }
        let long = "x".repeat(NAME_MAX_BYTES + 1);
        for bad in ["", " ", "a\nb", "\u{1b}[31m", "-x", " a", "a ", long.as_str()] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }
}
