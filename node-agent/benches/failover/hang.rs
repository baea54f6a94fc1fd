//! A server that is stopped, and one that is locked up: how long its clients wait, and who of them gets no answer.
//! A restart loop sees neither.

use crate::contestant::{Contestant, Way};
use crate::own_view::{logged, own_view};
use crate::proxy::{Kind, SILENCE_MS};
use crate::server::Shape;
use crate::strike::{Blow, Under, strike};
use crate::support::{Sandbox, signal};
use crate::table::{Sum, spread};
use crate::{Settings, server};
use anyhow::Result;
use std::time::Duration;

const RATE: u32 = 1000;
/// A primary that has served for less is not taken for sick.
const GRACE: Duration = Duration::from_millis(1100);

pub(crate) fn run(settings: &Settings) -> Result<()> {
    let ways = Way::available(&[Way::Shadow, Way::Proxy(Kind::Nginx), Way::Proxy(Kind::Haproxy)]);
    for (locks_up, name) in [(false, "SIGSTOP"), (true, "a deadlock")] {
        let blow = |contestant: &Contestant<'_>| match locks_up {
            true => Blow::Deadlock(contestant.behind()),
            false => Blow::Stop,
        };
        let sandbox = Sandbox::with_config("probes = false");
        let shape = Shape { silence_ms: SILENCE_MS, ..Shape::light(sandbox.path("marks")) };
        let start = |way: &Way| Contestant::start(*way, &sandbox, "hang", &shape);
        let contestants = ways.iter().map(start).collect::<Result<Vec<_>>>()?;
        let rounds = settings.kills.div_ceil(4);
        let mut sums = vec![Sum::default(); ways.len()];
        for round in 0..rounds {
            for place in 0..ways.len() {
                let chosen = (place + round) % ways.len();
                sums[chosen].add(&once(blow(&contestants[chosen]), &contestants[chosen], &shape));
            }
        }
        println!(
            "\n{name} under {RATE} new connections/s, {rounds} times; proxies give up after {SILENCE_MS} ms"
        );
        println!("{}", Sum::header());
        ways.iter().zip(&sums).for_each(|(way, sum)| println!("{}", sum.row(way.name())));
        beyond_the_threshold(&sandbox, &sums[0]);
    }
    println!("restart loop: not measured, it never sees it");
    Ok(())
}

fn once(blow: Blow, contestant: &Contestant<'_>, shape: &server::Shape) -> crate::strike::Strike {
    contestant.settle();
    std::thread::sleep(GRACE);
    let victim = contestant.settle();
    let under = Under { rate: RATE, marks: Some(&shape.marks), request: b"" };
    let strike = strike(blow, contestant.address(), victim, under);
    // Behind a proxy nobody ends it.
    if contestant.service().is_none() {
        signal(victim, libc::SIGKILL);
    }
    strike
}

/// What a client waits beyond the threshold that the service had learnt.
fn beyond_the_threshold(sandbox: &Sandbox, sum: &Sum) {
    let rows = logged(sandbox, "hang");
    let threshold = |evidence: &str| -> Option<f64> {
        evidence.split("threshold ").nth(1)?.split(' ').next()?.parse().ok()
    };
    let thresholds: Vec<f64> = rows.iter().filter_map(|row| threshold(&row.evidence)).collect();
    let beyond: Vec<f64> =
        sum.longest_ms.iter().zip(&thresholds).map(|(longest, threshold)| longest - threshold).collect();
    println!("thresholds of standin {thresholds:?} ms; longest wait beyond them, ms {}", spread(&beyond));
    own_view(sandbox, "hang");
}
