//! `--timeout` counts wherever it is offered: servers that accept connections and say nothing, or
//! not enough.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

use crate::cli::home::{CliHome, run};

/// A port whose connections are handled by `serve` and kept open.
fn port(serve: impl Fn(&mut TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            serve(&mut stream);
            open.push(stream);
        }
    });
    address
}

/// Answers the first request of HTTP/2 with the head of a response, and with nothing after it.
fn begin(stream: &mut TcpStream) {
    // Only a client that is gone fails.
    let _ = answer_head(stream);
}

fn answer_head(stream: &mut TcpStream) -> std::io::Result<()> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const HEADERS: u8 = 1;
    stream.write_all(&SETTINGS)?;
    stream.read_exact(&mut [0; 24])?;
    loop {
        let mut frame = [0; 9];
        stream.read_exact(&mut frame)?;
        let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
        stream.read_exact(&mut vec![0; length as usize])?;
        if frame[3] == HEADERS {
            break;
        }
    }
    // END_HEADERS on stream 1: `:status: 200` of the static table, and a literal `content-type`.
    let head = [&[0x88, 0x0f, 0x10, 16], &b"application/grpc"[..]].concat();
    let length = u8::try_from(head.len()).unwrap();
    stream.write_all(&[&[0, 0, length, HEADERS, 4, 0, 0, 0, 1], &head[..]].concat())
}

const COMMANDS: [&[&str]; 10] = [
    &["token"],
    &["refresh", "jrt_x"],
    &["introspect", "eyJ.e30.x"],
    &["introspect", "eyJ.e30.x", "eyJ.e30.y"],
    &[
        "revoke",
        concat!(
            "eyJ.e30.",
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
        ),
    ],
    &["revoke-all", "--client", "c"],
    &["client", "list"],
    &["audience", "list"],
    &["keys", "list"],
    &["audit", "list"],
];

#[test]
fn a_silent_server_is_not_waited_for() {
    let home = CliHome::new();
    let secret = home.file("secret", "jcs_x");
    let (silent, begins) = (port(|_| {}), port(begin));
    let addresses = [
        (format!("http://{silent}"), "no reply within 1 s"),
        (format!("https://{silent}"), "cannot reach"),
        (format!("http://{begins}"), "no reply within 1 s"),
    ];
    for (address, problem) in &addresses {
        for command in COMMANDS {
            let mut ran = home.command(&[]);
            ran.args(command).args(["--timeout", "1s", "--address", address]);
            ran.args(["--client-id", "c", "--client-secret-file", secret.to_str().unwrap()]);
            let ran = run(&mut ran, "");
            let named = ran.code == 4 && ran.err.contains(problem);
            assert!(named, "{command:?} at {address}: {ran:?}");
        }
    }
    let mut none = home.command(&[]);
    assert_eq!(run(none.args(["token", "--timeout", "0"]), "").code, 2);
}
