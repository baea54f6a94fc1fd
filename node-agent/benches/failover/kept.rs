//! Connections that clients keep open: those of a process that is killed end with it. Only something in front of
//! it can keep them.

use crate::contestant::{Contestant, Way};
use crate::server::{Shape, numbers, request_kept};
use crate::support::Sandbox;
use crate::{Settings, load};
use anyhow::Result;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const CONNECTIONS: usize = 50;

pub(crate) fn run(settings: &Settings) -> Result<()> {
    let sandbox = Sandbox::with_config("probes = false");
    // A thread per connection, and some for those who ask whether it is up.
    let threads = CONNECTIONS + 14;
    let shape = Shape { threads, work: Duration::ZERO, ..Shape::light(sandbox.path("marks")) };
    let ways = Way::available(&[
        Way::Shadow,
        Way::Proxy(crate::proxy::Kind::Nginx),
        Way::Proxy(crate::proxy::Kind::Haproxy),
        Way::Restart,
    ]);
    let start = |way: &Way| Contestant::start(*way, &sandbox, "kept", &shape);
    let contestants = ways.iter().map(start).collect::<Result<Vec<_>>>()?;
    let kills = settings.kills.div_ceil(5);
    println!("\nkill -9 with {CONNECTIONS} kept connections, idle at the moment, {kills} kills");
    println!("{:<26}{:>12}{:>12}{:>14}", "", "kept", "lost", "lost, reset");
    for (way, contestant) in ways.iter().zip(&contestants) {
        let (mut lost, mut reset) = (0, 0);
        for _ in 0..kills {
            let victim = contestant.settle();
            let mut streams: Vec<TcpStream> =
                (0..CONNECTIONS).filter_map(|_| open(contestant.address())).collect();
            crate::support::signal(victim, libc::SIGKILL);
            contestant.settle();
            for stream in &mut streams {
                let error = ask(stream).err();
                lost += usize::from(error.is_some());
                reset += usize::from(error.is_some_and(|error| error != std::io::ErrorKind::UnexpectedEof));
            }
        }
        println!("{:<26}{:>12}{lost:>12}{reset:>14}", way.name(), CONNECTIONS * kills);
    }
    println!("(a connection that was closed while idle is an end of file to its client, no error)");
    Ok(())
}

fn open(address: SocketAddr) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(load::TIMEOUT)).ok()?;
    ask(&mut stream).ok().map(|()| stream)
}

fn ask(stream: &mut TcpStream) -> Result<(), std::io::ErrorKind> {
    let sent = stream.write_all(&request_kept(numbers(1)));
    let mut answer = [0; 512];
    match sent.and_then(|()| stream.read(&mut answer)) {
        Ok(0) => Err(std::io::ErrorKind::UnexpectedEof),
        Ok(_) => Ok(()),
        Err(error) => Err(error.kind()),
    }
}
