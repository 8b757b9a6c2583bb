//! What is measured, in which order.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    generator::{self, Shape},
    h2load::{self, Call},
    report::{Pairs, Run, Spread},
    scale,
    scene::{Caller, Scene},
    servers::Server,
    talk::{Issuing, Refreshing, Revoking, Talk},
};

/// 256 calls in flight.
const BUSY: Shape = Shape { connections: 16, streams: 16 };
/// What no load here takes.
const FOREVER: Duration = Duration::from_secs(600);

/// From the command line.
pub(crate) struct Options {
    only: Vec<String>,
    rounds: usize,
    seconds: u32,
    jeton: PathBuf,
    store: Option<String>,
    counts: Counts,
}

/// Sizes of the loads, and what fails a run.
struct Counts {
    /// Families that are refreshed in turn.
    families: usize,
    /// Tokens revoked in one round.
    revoked: usize,
    scale: scale::Counts,
    /// True if one failed call fails the run.
    strict: bool,
}

impl Counts {
    /// More revocations than two seconds' worth.
    const FULL: Self =
        Self { families: 50_000, revoked: 25_000, scale: scale::Counts::FULL, strict: false };
    const SMOKE: Self =
        Self { families: 1_000, revoked: 200, scale: scale::Counts::SMOKE, strict: true };
}

impl Options {
    pub(crate) fn parse(arguments: Vec<String>) -> Self {
        let jeton = PathBuf::from(env!("CARGO_BIN_EXE_jeton"));
        let (only, counts) = (Vec::new(), Counts::FULL);
        let mut options = Self { only, rounds: 5, seconds: 5, jeton, store: None, counts };
        let mut arguments = arguments.into_iter();
        while let Some(name) = arguments.next() {
            if name == "--smoke" {
                options = Self { rounds: 1, seconds: 1, counts: Counts::SMOKE, ..options };
                continue;
            }
            let value = arguments.next().unwrap_or_else(|| panic!("{name} needs a value"));
            match name.as_str() {
                "--only" => options.only = value.split(',').map(str::to_owned).collect(),
                "--rounds" => options.rounds = value.parse().expect("a number of rounds"),
                "--seconds" => options.seconds = value.parse().expect("a number of seconds"),
                "--jeton" => options.jeton = value.into(),
                "--store" => options.store = Some(value),
                _ => panic!("{name} is no option: see the top of benches/ratios/main.rs"),
            }
        }
        options
    }

    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }
}

/// Measures and prints.
pub(crate) fn run(options: &Options) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if ["introspect", "token", "refresh", "revoke", "p99"].iter().any(|part| options.wants(part)) {
        Bench::ready(options, &dir.path().join("ratios")).measure();
    }
    // What the embedded store holds, and no other.
    if options.wants("scale") && options.store.is_none() {
        scale::run(&options.jeton, &dir.path().join("scale"), &options.counts.scale);
    }
}

struct Bench<'o> {
    options: &'o Options,
    jeton: Server,
    echo: Server,
    scene: Scene,
}

impl<'o> Bench<'o> {
    fn ready(options: &'o Options, dir: &Path) -> Self {
        let jeton = Server::jeton(&options.jeton, dir, options.store.as_deref());
        let scene = Scene::set(&jeton, dir);
        let echo = Server::echo(dir);
        println!("processes             jeton {}, echo {}", jeton.pid(), echo.pid());
        Self { options, jeton, echo, scene }
    }

    fn measure(self) {
        let Scene { token_body, introspect_body, .. } = &self.scene;
        let introspect = Call {
            method: "Introspect",
            body: introspect_body,
            answer: self.scene.introspect_answer,
        };
        let token = Call { method: "Token", body: token_body, answer: self.scene.token_answer };
        if self.options.wants("introspect") || self.options.wants("p99") {
            let pairs = self.alternate(|server| {
                server.under(|at| h2load::saturate(at, BUSY, self.options.seconds, &introspect))
            });
            pairs.print("Introspect", Some(0.75));
            if self.options.wants("p99") {
                let rate =
                    Spread::of(pairs.0.iter().map(|(_, jeton)| jeton.per_second)).median / 2.0;
                let pace = |server: &Server| {
                    server.under(|at| {
                        h2load::paced(at, BUSY, self.options.seconds, rate, &introspect)
                    })
                };
                self.alternate(pace).print("Introspect, half load", None);
            }
        }
        if self.options.wants("token") {
            let pairs = self.alternate(|server| {
                server.under(|at| h2load::saturate(at, BUSY, self.options.seconds, &token))
            });
            pairs.print("Token", Some(0.14));
            self.alternate(|server| self.issue_families(server)).print("Token with a family", None);
        }
        if self.options.wants("refresh") {
            self.refresh();
        }
        if self.options.wants("revoke") {
            self.revoke("Revoke, access", &self.scene.plain, |issued| issued.access_token.clone());
            self.revoke("Revoke, refresh", &self.scene.refreshing, |issued| {
                issued.refresh_token.clone()
            });
        }
        println!(
            "resident at the end   jeton {:.0} MiB, echo {:.0} MiB",
            self.jeton.resident(),
            self.echo.resident()
        );
        self.jeton.stop();
    }

    fn alternate(&self, mut run: impl FnMut(&Server) -> Run) -> Pairs {
        Pairs((0..self.options.rounds).map(|_| (run(&self.echo), run(&self.jeton))).collect())
    }

    /// Makes calls by our own generator.
    fn drive(&self, at: SocketAddr, time: Duration, talk: &mut (impl Talk + 'static)) -> Run {
        let run = generator::run(at, BUSY, time, talk);
        assert!(run.calls > 0, "no call succeeded");
        assert!(!self.options.counts.strict || run.failed == 0, "{} calls failed", run.failed);
        run
    }

    fn time(&self) -> Duration {
        Duration::from_secs(u64::from(self.options.seconds))
    }

    fn issue_families(&self, server: &Server) -> Run {
        let mut talk =
            Issuing { caller: self.scene.refreshing.clone(), left: usize::MAX, issued: Vec::new() };
        server.under(|at| self.drive(at, self.time(), &mut talk))
    }

    /// Both are driven by our own generator, for each call brings another token. The echo is given
    /// as many.
    fn refresh(&self) {
        let caller = self.scene.refreshing.clone();
        let tokens = self
            .issue(&caller, self.options.counts.families, |issued| issued.refresh_token.clone());
        let mut to_echo = Refreshing { caller: caller.clone(), tokens: tokens.clone().into() };
        let mut to_jeton = Refreshing { caller, tokens: tokens.into() };
        let pairs = self.alternate(|server| {
            let talk =
                if server.address == self.jeton.address { &mut to_jeton } else { &mut to_echo };
            server.under(|at| self.drive(at, self.time(), talk))
        });
        pairs.print("Refresh", Some(0.07));
    }

    fn revoke(
        &self,
        name: &str,
        caller: &Caller,
        which: impl Fn(&jeton::proto::token::TokenResponse) -> String,
    ) {
        let pairs = self.alternate(|server| {
            let tokens = self.issue(caller, self.options.counts.revoked, &which);
            let mut talk = Revoking { caller: caller.clone(), tokens };
            let run = server.under(|at| self.drive(at, FOREVER, &mut talk));
            assert!(talk.next().is_none(), "every token was revoked");
            run
        });
        pairs.print(name, Some(0.12));
    }

    /// So many tokens of jeton's, beforehand.
    fn issue(
        &self,
        caller: &Caller,
        count: usize,
        which: impl Fn(&jeton::proto::token::TokenResponse) -> String,
    ) -> Vec<String> {
        let mut talk =
            Issuing { caller: caller.clone(), left: count, issued: Vec::with_capacity(count) };
        generator::run(self.jeton.address, BUSY, FOREVER, &mut talk);
        assert_eq!(talk.issued.len(), count, "every token was issued");
        talk.issued.iter().map(which).collect()
    }
}
