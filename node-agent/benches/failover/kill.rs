//! kill -9: under a steady load of new connections, at three sizes, and with a queue that waits.

use crate::contestant::{Contestant, Way};
use crate::own_view::own_view;
use crate::server::Shape;
use crate::strike::{Blow, Under, strike, strike_at_a_queue};
use crate::table::{Sum, median};
use crate::{Settings, support::Sandbox};
use anyhow::Result;
use std::time::Duration;

const RATE: u32 = 1000;

/// All ways, a small server.
pub(crate) fn small(settings: &Settings) -> Result<()> {
    rounds(settings, 0, &Way::ALL)
}

/// 300 MiB and 2 GiB, which take long to be torn down and longer to be filled again.
pub(crate) fn large(settings: &Settings) -> Result<()> {
    rounds(settings, 300, &Way::ALL)?;
    // Proxies would keep two more each.
    rounds(settings, 2048, &[Way::Shadow, Way::Held, Way::Restart])
}

fn rounds(settings: &Settings, mebibytes: usize, ways: &[Way]) -> Result<()> {
    let sandbox = Sandbox::with_config("probes = false");
    let shape = Shape { mebibytes, ..Shape::light(sandbox.path("marks")) };
    let ways = Way::available(ways);
    let start = |way: &Way| {
        let name = if *way == Way::Shadow { "shadow" } else { "held" };
        Contestant::start(*way, &sandbox, name, &shape)
    };
    let contestants = ways.iter().map(start).collect::<Result<Vec<_>>>()?;
    let mut sums = vec![Sum::default(); ways.len()];
    for round in 0..settings.kills {
        for place in 0..ways.len() {
            let chosen = (place + round) % ways.len();
            let contestant = &contestants[chosen];
            let victim = contestant.settle();
            let under = Under { rate: RATE, marks: Some(&shape.marks), request: b"" };
            sums[chosen].add(&strike(Blow::Kill, contestant.address(), victim, under));
        }
    }
    let size = if mebibytes == 0 { "small".into() } else { format!("{mebibytes} MiB") };
    println!("\nkill -9, {size}, {RATE} new connections/s, 8 threads, 1 ms of work per request");
    println!("{}", Sum::header());
    ways.iter().zip(&sums).for_each(|(way, sum)| println!("{}", sum.row(way.name())));
    let of = |wanted: Way| {
        let index = ways.iter().position(|way| *way == wanted)?;
        Some(median(&sums[index].first_answer_ms))
    };
    if let (Some(shadow), Some(restart)) = (of(Way::Shadow), of(Way::Restart)) {
        println!("first answer, restart loop / standin with a shadow: {:.0}", restart / shadow);
    }
    own_view(&sandbox, "shadow");
    Ok(())
}

/// Connections that wait when the server is killed.
pub(crate) fn queue(settings: &Settings) -> Result<()> {
    const QUEUED: u64 = 250;
    let sandbox = Sandbox::with_config("probes = false");
    let shape = Shape { threads: 4, work: Duration::from_millis(3), ..Shape::light(sandbox.path("marks")) };
    let ways = Way::available(&Way::ALL);
    let start = |way: &Way| {
        let name = if *way == Way::Shadow { "shadow" } else { "held" };
        Contestant::start(*way, &sandbox, name, &shape)
    };
    let contestants = ways.iter().map(start).collect::<Result<Vec<_>>>()?;
    let kills = settings.kills.div_ceil(4);
    let mut lost = vec![(0, 0); ways.len()];
    for round in 0..kills {
        for place in 0..ways.len() {
            let chosen = (place + round) % ways.len();
            let victim = contestants[chosen].settle();
            let address = contestants[chosen].address();
            let (read, unread) = strike_at_a_queue(address, victim, QUEUED, &shape.marks);
            lost[chosen].0 += read;
            lost[chosen].1 += unread;
        }
    }
    println!(
        "\nkill -9 with {QUEUED} requests sent at once, 4 threads, 3 ms of work per request, {kills} kills"
    );
    println!("{:<26}{:>10}{:>14}{:>14}", "", "sent", "lost, unread", "lost, read");
    for (way, (read, unread)) in ways.iter().zip(&lost) {
        println!("{:<26}{:>10}{unread:>14}{read:>14}", way.name(), QUEUED * kills as u64);
    }
    own_view(&sandbox, "shadow");
    Ok(())
}
