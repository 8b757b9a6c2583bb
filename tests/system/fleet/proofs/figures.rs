//! The figures, and the search for secrets.

use std::fs;

use super::script::{Script, unknown};
use crate::fleet::{
    figures::{Figures, HEAD},
    leaks,
};

/// A call each 100 ms, none answered from 1,000 to 3,100 ms: that is one round of three, and in the
/// others nobody noticed.
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
    run.fault(4_000, 4_100, 0, None);
    run.fault(4_500, 4_600, 0, None);
    run.history.calls[30].end += 2_000;
    let figures = Figures::of(&run.history);
    let [figures] = figures.as_slice() else { panic!("{figures:?}") };
    assert_eq!((figures.calls, figures.failed), (30, 21));
    assert_eq!(figures.gaps, [100_000, 100_000, 2_200_000], "from 900 to 3,100 at worst");
    assert_eq!(figures.gap(), 2_200_000);
    assert_eq!((figures.median, figures.worst), (10_000, 12_000));
    assert_eq!(
        figures.to_string(),
        "| broken | 3 | 30, 21 | 0.100 s / 2.200 s | 0.010 s / 0.012 s |"
    );
    assert_eq!(figures.to_string().matches('|').count(), HEAD.matches('|').count());
}

/// I8: in a log and in a file deep down; each only once, and the complaint does not repeat the
/// secret.
#[test]
fn a_secret_in_a_file_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = ["jcs_canary_of_a_secret".to_owned(), "nowhere to be found".to_owned()];
    let places = [dir.path().join("log"), dir.path().join("data")];
    fs::write(&places[0], "nothing here").unwrap();
    fs::create_dir_all(places[1].join("deep")).unwrap();
    fs::write(places[1].join("deep/file"), b"\xff\xfe nothing \x00 here").unwrap();
    assert_eq!(leaks::judge(&secrets, &places), []);
    fs::write(places[1].join("deep/file"), b"\xff\xfe it is jcs_canary_of_a_secret\x00here")
        .unwrap();
    fs::write(&places[0], "error: jcs_canary_of_a_secret is wrong").unwrap();
    let found = leaks::judge(&secrets, &places);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found.iter().all(|leak| leak.invariant == "I8" && !leak.to_string().contains("canary")),
        "{found:?}"
    );
}
