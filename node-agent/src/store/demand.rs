//! CPU demand of a run, in rows of `run_cpu_demand`, one per length of window.

use super::columns::{integer, json};
use super::record::RunId;
use crate::fingerprint::demand::{CpuDemand, Windows};
use rusqlite::{Connection, Result, Row, params};

pub(super) fn write(db: &Connection, id: RunId, demand: Option<&CpuDemand>) -> Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT OR REPLACE INTO run_cpu_demand
             (run_id, window_ms, windows, windows_busy, cpu_us, squares, peak_us, cpus_peak, late, counts)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    for windows in demand.map_or(&[][..], |demand| &demand.0) {
        insert.execute(params![
            id.0,
            integer(windows.window_ms),
            integer(windows.windows),
            integer(windows.busy),
            integer(windows.cpu_us),
            integer(windows.squares),
            integer(windows.peak_us),
            integer(windows.cpus_peak),
            integer(windows.late),
            json(&windows.counts),
        ])?;
    }
    Ok(())
}

pub(super) fn read(db: &Connection, id: RunId) -> Result<Option<CpuDemand>> {
    let scales = db
        .prepare_cached("SELECT * FROM run_cpu_demand WHERE run_id = ? ORDER BY window_ms")?
        .query_map([id.0], windows)?
        .collect::<Result<Vec<_>>>()?;
    Ok((!scales.is_empty()).then_some(CpuDemand(scales)))
}

fn windows(row: &Row<'_>) -> Result<Windows> {
    let number = |name: &str| Ok::<_, rusqlite::Error>(row.get::<_, i64>(name)?.cast_unsigned());
    let counts: String = row.get("counts")?;
    Ok(Windows {
        window_ms: number("window_ms")?,
        windows: number("windows")?,
        busy: number("windows_busy")?,
        cpu_us: number("cpu_us")?,
        squares: number("squares")?,
        peak_us: number("peak_us")?,
        cpus_peak: number("cpus_peak")?,
        late: number("late")?,
        counts: serde_json::from_str(&counts).unwrap_or_default(),
    })
}
