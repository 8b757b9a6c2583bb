//! The figures, and the search for secrets.

use std::fs;

use super::script::{Script, unknown};
use crate::{figures::Figures, leaks};

/// A call each 100 ms, none answered from 1,000 to 3,100 ms.
#[test]
fn a_gap_is_measured_from_success_to_success() {
    let mut run = Script::new();
    for n in 0..50 {
        let ms = n * 100;
        if (1_000..=3_000).contains(&ms) {
            run.token_fails(ms, "node-1", "client", unknown("UNAVAILABLE"));
        } else {
            run.token(ms, "node-1", "client", &format!("{n}"));
        }
    }
    run.fault(1_000, 2_000, 1_500, None);
    let figures = Figures::of(&run.history);
    let [figures] = figures.as_slice() else { panic!("{figures:?}") };
    assert_eq!((figures.rounds, figures.calls, figures.failed), (1, 26, 21));
    assert_eq!(figures.gap(), 2_200_000, "from 900 to 3,100");
    assert_eq!((figures.failing, figures.after), (2_010_000, 1_010_000));
    assert_eq!((figures.median, figures.worst, figures.median_failed), (10_000, 10_000, 10_000));
}

/// I8: in a log and in a file deep down; each only once, and the complaint does not repeat the secret.
#[test]
fn a_secret_in_a_file_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = ["jcs_canary_of_a_secret".to_owned(), "nowhere to be found".to_owned()];
    let places = [dir.path().join("log"), dir.path().join("data")];
    fs::write(&places[0], "nothing here").unwrap();
    fs::create_dir_all(places[1].join("deep")).unwrap();
    fs::write(places[1].join("deep/file"), b"\xff\xfe nothing \x00 here").unwrap();
    assert_eq!(leaks::judge(&secrets, &places), []);
    fs::write(places[1].join("deep/file"), b"\xff\xfe it is jcs_canary_of_a_secret\x00here").unwrap();
    fs::write(&places[0], "error: jcs_canary_of_a_secret is wrong").unwrap();
    let found = leaks::judge(&secrets, &places);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|leak| leak.invariant == "I8" && !leak.to_string().contains("canary")), "{found:?}");
}
