//! Whom a run talked to, in rows of `run_peer`, the most bytes first.

use super::columns::integer;
use super::record::RunId;
use crate::fingerprint::Peer;
use rusqlite::{Connection, Result, Row, params};

pub(super) fn write(db: &Connection, id: RunId, peers: Option<&[Peer]>) -> Result<()> {
    db.prepare_cached("DELETE FROM run_peer WHERE run_id = ?")?.execute([id.0])?;
    let mut insert = db.prepare_cached(
        "INSERT INTO run_peer (run_id, place, address, port, connections, sent_bytes, received_bytes,
                               connect_ns, held_ns, first_at_ms, answer_ns, open_max)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    for (place, peer) in peers.unwrap_or_default().iter().enumerate() {
        insert.execute(params![
            id.0,
            integer(place as u64),
            peer.address,
            peer.port,
            integer(peer.connections),
            integer(peer.sent_bytes),
            integer(peer.received_bytes),
            integer(peer.connect_ns),
            integer(peer.held_ns),
            peer.first_at_ms,
            integer(peer.answer_ns),
            integer(peer.open_max),
        ])?;
    }
    Ok(())
}

pub(super) fn read(db: &Connection, id: RunId) -> Result<Option<Vec<Peer>>> {
    let peers: Vec<Peer> = db
        .prepare_cached("SELECT * FROM run_peer WHERE run_id = ? ORDER BY place")?
        .query_map([id.0], peer)?
        .collect::<Result<_>>()?;
    Ok((!peers.is_empty()).then_some(peers))
}

fn peer(row: &Row<'_>) -> Result<Peer> {
    let number = |name: &str| Ok::<_, rusqlite::Error>(row.get::<_, i64>(name)?.cast_unsigned());
    Ok(Peer {
        address: row.get("address")?,
        port: row.get("port")?,
        connections: number("connections")?,
        sent_bytes: number("sent_bytes")?,
        received_bytes: number("received_bytes")?,
        connect_ns: number("connect_ns")?,
        held_ns: number("held_ns")?,
        first_at_ms: row.get("first_at_ms")?,
        answer_ns: number("answer_ns")?,
        open_max: number("open_max")?,
    })
}
