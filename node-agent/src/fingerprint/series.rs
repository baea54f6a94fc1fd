//! The course of a run over time, in bounded room: at most [`POINTS_MAX`] points, however long it runs.
//! When it is full, neighbours are merged pairwise and the interval doubles.

use serde::{Deserialize, Serialize};

/// Most points a series holds.
pub const POINTS_MAX: usize = 240;

/// One stretch of time: rates are means over it, memory is the largest sample in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// End of the stretch, milliseconds since the start of the run.
    pub at_ms: u64,
    /// Length of the stretch, milliseconds.
    pub length_ms: u64,
    /// Cores in use.
    pub cpu_cores: f64,
    /// Memory in use, bytes (what [`super::Fingerprint::memory_peak_bytes`] is the peak of).
    pub memory_bytes: u64,
    /// Block bytes read per second.
    pub read_bytes_per_s: f64,
    /// Block bytes written per second.
    pub write_bytes_per_s: f64,
    /// Network payload received per second.
    pub received_bytes_per_s: f64,
    /// Network payload sent per second.
    pub sent_bytes_per_s: f64,
}

impl Point {
    /// `self` and the point that follows it as one.
    fn merge(self, next: Self) -> Self {
        let (a, b) = (self.length_ms as f64, next.length_ms as f64);
        let mean = |x: f64, y: f64| if a + b > 0.0 { (x * a + y * b) / (a + b) } else { y };
        Self {
            at_ms: next.at_ms,
            length_ms: self.length_ms + next.length_ms,
            cpu_cores: mean(self.cpu_cores, next.cpu_cores),
            memory_bytes: self.memory_bytes.max(next.memory_bytes),
            read_bytes_per_s: mean(self.read_bytes_per_s, next.read_bytes_per_s),
            write_bytes_per_s: mean(self.write_bytes_per_s, next.write_bytes_per_s),
            received_bytes_per_s: mean(self.received_bytes_per_s, next.received_bytes_per_s),
            sent_bytes_per_s: mean(self.sent_bytes_per_s, next.sent_bytes_per_s),
        }
    }
}

/// A bounded series of [`Point`]s.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    points: Vec<Point>,
    /// How many pushed points make one stored point: a power of two.
    stride: usize,
    pending: usize,
}

impl Series {
    /// Adds the stretch that just ended.
    pub fn push(&mut self, point: Point) {
        self.stride = self.stride.max(1);
        if self.pending > 0
            && let Some(last) = self.points.last_mut()
        {
            *last = last.merge(point);
        } else {
            if self.points.len() == POINTS_MAX {
                self.halve();
            }
            self.points.push(point);
        }
        self.pending = (self.pending + 1) % self.stride;
    }

    fn halve(&mut self) {
        self.points = self
            .points
            .chunks(2)
            .map(|pair| pair.iter().copied().reduce(Point::merge).unwrap_or_default())
            .collect();
        self.stride *= 2;
    }

    /// The points, oldest first.
    pub fn points(&self) -> &[Point] {
        &self.points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(i: u64) -> Point {
        Point { at_ms: (i + 1) * 10, length_ms: 10, cpu_cores: 1.0, memory_bytes: i, ..Point::default() }
    }

    #[test]
    fn stays_bounded_and_keeps_time_and_peaks() {
        let mut series = Series::default();
        for i in 0..10_000 {
            series.push(point(i));
            assert!(series.points().len() <= POINTS_MAX);
        }
        let points = series.points();
        assert_eq!(points.iter().map(|p| p.length_ms).sum::<u64>(), 100_000);
        assert_eq!(points.last().map(|p| (p.at_ms, p.memory_bytes)), Some((100_000, 9_999)));
        assert!(points.windows(2).all(|w| w[0].at_ms + w[1].length_ms == w[1].at_ms));
        assert!(points.iter().all(|p| (p.cpu_cores - 1.0).abs() < 1e-9));
    }

    #[test]
    fn short_runs_keep_every_point() {
        let mut series = Series::default();
        (0..5).for_each(|i| series.push(point(i)));
        assert_eq!(series.points().len(), 5);
    }
}
