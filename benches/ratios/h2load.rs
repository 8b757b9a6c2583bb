//! The generator for calls that are all alike.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use crate::{generator::Shape, report::Run};

/// A call as h2load is given it.
pub(crate) struct Call<'a> {
    pub(crate) method: &'static str,
    /// A file with the request and its prefix.
    pub(crate) body: &'a Path,
    /// Length of the answer with its prefix: h2load does not see the status of a call, only that
    /// its data came.
    pub(crate) answer: usize,
}

/// As fast as it goes, for so many seconds.
pub(crate) fn saturate(address: SocketAddr, shape: Shape, seconds: u32, call: &Call<'_>) -> Run {
    let seconds = format!("{seconds}");
    understand(&h2load(address, shape, call, &["-D", &seconds]), call)
}

/// At a rate, in calls per second: how long each took.
pub(crate) fn paced(
    address: SocketAddr,
    shape: Shape,
    seconds: u32,
    rate: f64,
    call: &Call<'_>,
) -> Run {
    let log = call.body.with_extension("log");
    let each = rate / shape.connections as f64;
    let count = (rate * f64::from(seconds)) as u64;
    let (each, count) = (format!("{each:.1}"), count.to_string());
    let _ = fs::remove_file(&log);
    let said = h2load(
        address,
        shape,
        call,
        &["-n", &count, "--rps", &each, "--log-file", log.to_str().unwrap()],
    );
    let run = understand(&said, call);
    let rows = fs::read_to_string(&log).unwrap();
    let micros: Vec<u32> =
        rows.lines().map(|row| row.split('\t').nth(2).unwrap().parse().unwrap()).collect();
    // The first connections and the first calls on them are not what is asked about.
    let settled = micros.len() / 10;
    Run { micros: micros[settled..].to_vec(), ..run }
}

fn h2load(address: SocketAddr, shape: Shape, call: &Call<'_>, more: &[&str]) -> String {
    let (connections, streams) = (shape.connections.to_string(), shape.streams.to_string());
    let output = Command::new("h2load")
        .args(["-t", "1", "-c", &connections, "-m", &streams, "-d", call.body.to_str().unwrap()])
        .args(["-H", "content-type: application/grpc", "-H", "te: trailers"])
        .args(more)
        .arg(format!("http://{address}/jeton.token.v1.TokenService/{}", call.method))
        .output()
        .expect("h2load is installed (Debian: nghttp2-client)");
    assert!(output.status.success(), "h2load: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn understand(said: &str, call: &Call<'_>) -> Run {
    let after = |label: &str, name: &str| -> f64 {
        let line = said
            .lines()
            .find(|line| line.starts_with(label))
            .unwrap_or_else(|| panic!("no {label} in {said}"));
        let words: Vec<&str> =
            line.split([' ', ',', '(', ')']).filter(|word| !word.is_empty()).collect();
        let at = words
            .iter()
            .position(|word| *word == name)
            .unwrap_or_else(|| panic!("no {name} in {line}"));
        words[at - 1].parse().unwrap_or_else(|_| panic!("no number in {line}"))
    };
    let (done, good) = (after("requests:", "done"), after("status codes:", "2xx"));
    // "traffic: 12.3MB (12345) total, 1MB (1234) headers (space savings 9%), 3MB (34567) data"
    let data = after("traffic:", "data");
    let answered = (data / call.answer as f64).min(good);
    // Answers in flight when the time was up, and the last digits of a number in a token, make some
    // difference.
    let failed = if answered > good * 0.97 { done - good } else { done - answered };
    Run {
        calls: done as u64,
        per_second: after("finished in", "req/s"),
        failed: failed.max(0.0) as u64,
        ..Run::default()
    }
}
