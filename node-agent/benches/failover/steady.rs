//! What it costs while nothing fails: a new connection, and a request on a kept one, against the same server
//! without anything and behind proxies; and the steering programs' own time, as the kernel counts it.

use crate::Settings;
use crate::contestant::{Contestant, OFTEN, Way, answers};
use crate::proxy::Kind;
use crate::quartiles::Quartiles;
use crate::server::{Shape, request, request_kept};
use crate::service::{Service, free_port};
use crate::support::{Sandbox, wait_until};
use anyhow::{Context, Result};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const ROUNDS: usize = 12;
const CONNECTIONS: u32 = 500;
const REQUESTS: u32 = 2000;
/// Connections and requests while the kernel counts.
const COUNTED: u32 = 10_000;

pub(crate) fn run(_: &Settings) -> Result<()> {
    let sandbox = Sandbox::with_config("probes = false");
    let profiled = Sandbox::new();
    let shape = Shape { work: Duration::ZERO, ..Shape::light(sandbox.path("marks")) };
    let mut contestants = vec![("bare", Contestant::start(Way::Restart, &sandbox, "bare", &shape)?)];
    let others = [
        (Way::Shadow, &sandbox, "standin, steering only"),
        (Way::Shadow, &profiled, "standin, profiling too"),
        (Way::Proxy(Kind::Nginx), &sandbox, "nginx"),
        (Way::Proxy(Kind::Haproxy), &sandbox, "HAProxy"),
    ];
    for (way, sandbox, name) in others {
        if !Way::available(&[way]).is_empty() {
            contestants.push((name, Contestant::start(way, sandbox, "steady", &shape)?));
        }
    }
    for (_, contestant) in &contestants {
        contestant.settle();
    }
    let mut took = vec![(Vec::new(), Vec::new()); contestants.len()];
    for round in 0..ROUNDS {
        for place in 0..contestants.len() {
            let chosen = (place + round) % contestants.len();
            let address = contestants[chosen].1.address();
            took[chosen].0.push(connections(address, CONNECTIONS)?);
            took[chosen].1.push(requests(address, REQUESTS)?);
        }
    }
    println!(
        "\nclosed loop of one client, µs, median [p25 p75] of {ROUNDS} rounds, and times the bare median"
    );
    println!("{:<26}{:>26}{:>8}{:>26}{:>8}", "", "a new connection", "", "a request on a kept one", "");
    let show = |of: &[f64], bare: &[f64]| -> Option<String> {
        let (of, bare) = (Quartiles::of(of)?, Quartiles::of(bare)?);
        Some(format!("{:>26}{:>8.2}", of.show(1), of.median / bare.median))
    };
    for ((name, _), (new, kept)) in contestants.iter().zip(&took) {
        let new = show(new, &took[0].0).context("no rounds")?;
        println!("{name:<26}{new}{}", show(kept, &took[0].1).context("no rounds")?);
    }
    drop(contestants);
    counted(&sandbox, &shape)
}

/// Mean time of a new connection with one request, microseconds.
fn connections(address: SocketAddr, count: u32) -> Result<f64> {
    let began = Instant::now();
    let mut answer = [0; 512];
    for _ in 0..count {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(&request(0))?;
        while stream.read(&mut answer)? > 0 {}
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / f64::from(count))
}

/// Mean time of a request on a kept connection, microseconds.
fn requests(address: SocketAddr, count: u32) -> Result<f64> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let began = Instant::now();
    let mut answer = [0; 512];
    for _ in 0..count {
        stream.write_all(&request_kept(0))?;
        anyhow::ensure!(stream.read(&mut answer)? > 0, "the kept connection was closed");
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / f64::from(count))
}

/// The steering programs of one service: what each has run and how often.
fn counted(sandbox: &Sandbox, shape: &Shape) -> Result<()> {
    let strangers: HashSet<u32> = loaded_programs().flatten().map(|program| program.id()).collect();
    let port = free_port();
    let mut options = vec!["--shadows", "1"];
    options.extend(OFTEN);
    let command = shape.command(port);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let service = Service::start(sandbox, "counted", port, &options, &command);
    service.wait_for_shadows(1);
    wait_until("it answers", || answers(service.address()).is_some());
    let _counting = enable_stats(Stats::RunTime).context("the kernel does not count what programs take")?;
    let ours = || -> Vec<(String, u64, Duration)> {
        let new = loaded_programs().flatten().filter(|program| !strangers.contains(&program.id()));
        let count = new.map(|program| {
            let name = program.name_as_str().unwrap_or("?").to_owned();
            (name, program.run_count(), program.run_time())
        });
        count.filter(|(name, ..)| ["select", "service_ops"].contains(&name.as_str())).collect()
    };
    println!(
        "\nthe programs in the path of a connection, by the kernel's count (its own reading of clocks included)"
    );
    println!(
        "{:<18}{:>22}{:>22}{:>24}",
        "", "runs per connection", "ns per connection", "runs per kept request"
    );
    let before = ours();
    connections(service.address(), COUNTED)?;
    let between = ours();
    requests(service.address(), COUNTED)?;
    let after = ours();
    let mut all = 0.0;
    for ((before, between), after) in before.iter().zip(&between).zip(&after) {
        let per = |difference: f64| difference / f64::from(COUNTED);
        let ns = per((between.2 - before.2).as_nanos() as f64);
        all += ns;
        let runs = per((between.1 - before.1) as f64);
        println!("{:<18}{runs:>22.2}{ns:>22.0}{:>24.4}", before.0, per((after.1 - between.1) as f64));
    }
    println!("{:<18}{:>22}{all:>22.0}", "together", "");
    Ok(())
}
