//! A service that an installed standin keeps up.
use crate::host::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const PORT: u16 = 8087;

/// Answers every connection with its process id.
const SERVER: &str = "use IO::Socket::INET; \
    my $s = IO::Socket::INET->new(Listen => 64, LocalAddr => '127.0.0.1', LocalPort => 8087, ReuseAddr => 1) or die; \
    while (my $c = $s->accept) { my $question = <$c>; print $c qq($$\\n); close $c }";

fn ask() -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", PORT)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    stream.write_all(b"?\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then(|| answer.trim().to_owned())
}

/// Whether `standin ps` shows a shadow that is ready to take over.
fn has_shadow() -> bool {
    let services = output(&["standin", "ps", "--json"]);
    let services: serde_json::Value = serde_json::from_slice(&services.stdout).unwrap_or_default();
    services.to_string().contains("\"role\":\"shadow\"")
}

#[test]
#[ignore = "for an installed package"]
fn the_shadow_answers_when_the_primary_is_killed() {
    ensure_started();
    _ = output(&["ip", "link", "set", "lo", "up"]);
    let mut service =
        Job::start(&["standin", "run", "--name", "web", "--shadows", "1", "--", "perl", "-e", SERVER]);
    wait_until("it serves", || ask().is_some());
    wait_until("a shadow stands by", has_shadow);
    let primary = ask().unwrap();
    printed(&["kill", "-KILL", &primary]);
    let next = ask().expect("the next request is answered");
    assert_ne!(next, primary);
    let failovers = "SELECT count(*) FROM failover_log WHERE service = 'web'";
    wait_until("it is recorded", || recorded::<i64>(failovers).is_some_and(|count| count > 0));
    printed(&["standin", "stop", "web"]);
    wait_until("it has ended", || !service.is_running());
}
