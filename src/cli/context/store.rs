//! Stores that contexts belong to: which context a started server changes, and which one is the
//! current one then.

use std::{fs, path::Path};

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};
use serde::Deserialize;

use super::{Context, Contexts};

/// Names of the contexts that a start has changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Name of the server's context.
    pub name: String,
    /// True if commands use it without `--context`.
    pub is_current: bool,
    /// Name of another context that was the current one, and still exists.
    pub replaced: Option<String>,
    /// Names of contexts that were dropped since their data directory is gone.
    pub dropped: Vec<String>,
}

impl Context {
    /// Returns true if the data directory of this context is gone, and its store with it.
    pub fn is_gone(&self) -> bool {
        self.data_dir.as_ref().is_some_and(|dir| !dir.exists())
    }

    /// Returns true if a service of this machine serves the store.
    fn is_served(&self) -> bool {
        self.data_dir.as_deref().is_some_and(is_served)
    }

    fn is_of_store(&self, other: &Self) -> bool {
        self.data_dir.is_some() && self.data_dir == other.data_dir && self.store == other.store
    }
}

impl Contexts {
    /// Saves the context of a development server. A context of the same store keeps its name, and
    /// its secret if there is no new one; contexts whose directory is gone are dropped.
    ///
    /// It becomes the current one unless that was added by hand, or belongs to a server that runs
    /// at another address: commands would reach another server than before.
    pub fn remember(&mut self, mut context: Context) -> Remembered {
        let gone = self.contexts.iter().filter(|(_, old)| old.is_gone());
        let dropped: Vec<String> = gone.map(|(name, _)| name.clone()).collect();
        self.contexts.retain(|_, old| !old.is_gone());
        let known = self.contexts.iter().find(|(_, old)| old.is_of_store(&context));
        let name = match known {
            Some((name, old)) => {
                if old.client_id == context.client_id && context.client_secret.is_none() {
                    context.client_secret.clone_from(&old.client_secret);
                    context.client_secret_file.clone_from(&old.client_secret_file);
                }
                if old.cert_file.is_some() {
                    context.cert_file.clone_from(&old.cert_file);
                    context.key_file.clone_from(&old.key_file);
                }
                name.clone()
            }
            None => self.free_name(),
        };
        let before = self.contexts.get(&self.current).filter(|_| self.current != name);
        let is_kept = before.is_some_and(|before| {
            before.data_dir.is_none() || (before.address != context.address && before.is_served())
        });
        let replaced = before.filter(|_| !is_kept).map(|_| self.current.clone());
        self.contexts.insert(name.clone(), context);
        if !is_kept {
            self.current.clone_from(&name);
        }
        Remembered { name, is_current: !is_kept, replaced, dropped }
    }

    /// Returns `dev` or, if that is taken, the first free name of `dev-2`, `dev-3` and so on.
    fn free_name(&self) -> String {
        let numbered = (2..).map(|number| format!("dev-{number}"));
        let mut names = std::iter::once("dev".to_owned()).chain(numbered);
        names.find(|name| !self.contexts.contains_key(name)).unwrap_or_default()
    }
}

/// Process that serves a data directory, as the service itself records it.
#[derive(Deserialize)]
struct Service {
    pid: u32,
}

/// Returns true if a process that runs has left its record in the directory.
fn is_served(data_dir: &Path) -> bool {
    let Ok(files) = fs::read_dir(data_dir) else { return false };
    files.flatten().any(|file| {
        let name = file.file_name();
        let is_record = name.as_encoded_bytes().starts_with(b"service.")
            && name.as_encoded_bytes().ends_with(b".json");
        let record = || serde_json::from_slice::<Service>(&fs::read(file.path()).ok()?).ok();
        is_record && record().is_some_and(|service| is_running(service.pid))
    })
}

fn is_running(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| matches!(test_kill_process(pid), Ok(()) | Err(Errno::PERM)))
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::{
        super::tests::{context, secret},
        *,
    };

    /// Leaves the record that a service of this process would leave.
    fn serve(dir: &Path, pid: u32) {
        fs::write(dir.join("service.json"), format!("{{\"pid\":{pid},\"tls\":false}}")).unwrap();
    }

    #[test]
    fn a_server_started_again_keeps_its_name_and_secret() {
        let dir = tempfile::tempdir().unwrap();
        let mut contexts = Contexts::default();
        contexts.remember(context(dir.path(), Some("first")));
        let mut again = context(dir.path(), None);
        again.address = "127.0.0.1:2".to_owned();
        assert_eq!(contexts.remember(again).name, "dev");
        assert_eq!(contexts.contexts["dev"].address, "127.0.0.1:2");
        assert_eq!(secret(&contexts, "dev").as_deref(), Some("first"));
        let mut other = context(dir.path(), None);
        other.client_id = "another".to_owned();
        contexts.remember(other);
        assert_eq!(secret(&contexts, "dev"), None, "another client's secret is not its own");
    }

    #[test]
    fn a_second_server_does_not_take_the_firsts_secret_away() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut contexts = Contexts::default();
        contexts.remember(context(one.path(), Some("one")));
        let second = contexts.remember(context(two.path(), Some("two")));
        assert_eq!((second.name.as_str(), second.is_current), ("dev-2", true));
        assert_eq!(second.replaced.as_deref(), Some("dev"), "the first has the same address");
        assert_eq!(secret(&contexts, "dev").as_deref(), Some("one"));
        drop(two);
        let first = contexts.remember(context(one.path(), None));
        assert_eq!((first.name.as_str(), first.dropped), ("dev", vec!["dev-2".to_owned()]));
        assert_eq!(contexts.contexts.len(), 1, "the one whose directory is gone is dropped");
    }

    /// OPERATORS 4.4: commands reach the same server as before, unless that has ended.
    #[test]
    fn a_second_server_is_not_the_current_one_while_the_first_runs() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut contexts = Contexts::default();
        contexts.remember(context(one.path(), Some("one")));
        serve(one.path(), process::id());
        let second = Context { address: "127.0.0.1:2".to_owned(), ..context(two.path(), None) };
        let remembered = contexts.remember(second.clone());
        assert_eq!((remembered.is_current, contexts.current.as_str()), (false, "dev"));
        assert_eq!(remembered.replaced, None);
        // A process with no such number: the first was killed, and its record stays.
        serve(one.path(), i32::MAX.unsigned_abs());
        let remembered = contexts.remember(second);
        assert_eq!((remembered.is_current, contexts.current.as_str()), (true, "dev-2"));
        assert_eq!(remembered.replaced.as_deref(), Some("dev"));
    }

    #[test]
    fn a_context_made_by_hand_stays_the_current_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut contexts = Contexts::default();
        contexts.contexts.insert("prod".to_owned(), Context::default());
        contexts.current = "prod".to_owned();
        let remembered = contexts.remember(context(dir.path(), Some("x")));
        assert_eq!((remembered.name.as_str(), remembered.is_current), ("dev", false));
        assert_eq!(contexts.current, "prod");
    }

    /// Two databases, one directory that neither of them uses.
    #[test]
    fn a_secret_stays_with_its_store() {
        let dir = tempfile::tempdir().unwrap();
        let mut contexts = Contexts::default();
        contexts.remember(context(dir.path(), Some("embedded")));
        let mut shared = context(dir.path(), None);
        shared.store = Some("mongodb://db:27017/jeton".to_owned());
        assert_eq!(contexts.remember(shared).name, "dev-2");
        assert_eq!(secret(&contexts, "dev-2"), None);
        assert_eq!(contexts.remember(context(dir.path(), None)).name, "dev");
        assert_eq!(secret(&contexts, "dev").as_deref(), Some("embedded"));
    }

    #[test]
    fn a_context_whose_directory_is_gone_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let of = context(dir.path(), None);
        assert!(!of.is_gone() && !Context::default().is_gone());
        drop(dir);
        assert!(of.is_gone());
    }
}
