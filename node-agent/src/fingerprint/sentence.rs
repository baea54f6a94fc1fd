//! The character of a run in one sentence for people.

use super::character::{Character, CpuShape, Io, MemoryShape, Order, Service};
use crate::units::{format_bytes, format_count, format_duration, format_rate};

/// One sentence: clauses from what a run does most to what is told beside; empty where nothing is known.
pub fn sentence(character: &Character) -> String {
    let clauses: Vec<String> = [
        cpu(character),
        character.service.map(service),
        io("reads", character.reads),
        io("writes", character.writes),
        (character.flushes > 0).then(|| format!("flushes the disk's cache {}", times(character.flushes))),
        traffic(character),
        memory(character),
        character.programs.map(|programs| format!("starts {programs} programs")),
        character
            .waiting_share
            .map(|share| format!("waited {} of the time that it wanted a CPU", percent(share))),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut text = clauses.join("; ");
    if let Some(first) = text.get(..1).map(str::to_uppercase) {
        text.replace_range(..1, &first);
        text.push('.');
    }
    text
}

fn cpu(character: &Character) -> Option<String> {
    let mean = cores(character.cpu_mean?);
    let text = match character.cpu_shape {
        CpuShape::Idle => "hardly any CPU".to_owned(),
        CpuShape::Steady => format!("steady CPU: {mean} cores"),
        CpuShape::Unknown => format!("{mean} cores on average"),
        CpuShape::Varying { peak } => {
            format!("varying CPU: {mean} cores on average, {} at peak", cores(peak))
        }
        CpuShape::Bursty { peak, lasting_s } => {
            let lasting = match lasting_s {
                Some(seconds) => format!("about {}", roughly(seconds)),
                None => "a second or more".into(),
            };
            format!("bursty CPU: {mean} cores on average, {} at peak for {lasting}", cores(peak))
        }
    };
    let kernel = character.kernel_share.map(|share| format!(", {} of it in the kernel", percent(share)));
    Some(text + &kernel.unwrap_or_default())
}

fn service(service: Service) -> String {
    let within = match (service.half_s, service.most_s) {
        (Some(half), Some(most)) => {
            format!(", half within {}, 99 % within {}", format_duration(half), format_duration(most))
        }
        (Some(half), None) => format!(", half within {}", format_duration(half)),
        _ => String::new(),
    };
    format!("answers {} requests{within}", format_count(service.answers))
}

fn io(verb: &str, io: Option<Io>) -> Option<String> {
    let Io { bytes, bytes_per_s, request_bytes, order, is_much } = io?;
    if !is_much {
        return Some(format!("{verb} {} in all", format_bytes(bytes as f64)));
    }
    let how = match order {
        Some(Order::Sequential) => " in order".to_owned(),
        Some(Order::Random) => " at random".to_owned(),
        Some(Order::Partly(share)) => format!(", {} in order", percent(share)),
        None => String::new(),
    };
    let (all, piece) = (format_bytes(bytes as f64), format_bytes(request_bytes));
    Some(format!("{verb} {all}{how}, {piece} at a time, {}", format_rate(bytes_per_s)))
}

fn traffic(character: &Character) -> Option<String> {
    match (character.received_bytes_per_s, character.sent_bytes_per_s) {
        (None, None) => None,
        (Some(received), None) => Some(format!("receives {}", format_rate(received))),
        (None, Some(sent)) => Some(format!("sends {}", format_rate(sent))),
        (Some(received), Some(sent)) => {
            Some(format!("receives {} and sends {}", format_rate(received), format_rate(sent)))
        }
    }
}

fn memory(character: &Character) -> Option<String> {
    let mut text = format!("{} of memory", format_bytes(character.memory_bytes? as f64));
    text += match character.memory_shape {
        Some(MemoryShape::Held) => " from early on",
        Some(MemoryShape::Growing) => ", growing to the end",
        Some(MemoryShape::Spike) => " at a short peak",
        None => "",
    };
    if let Some(feature) = &character.memory_grows_with {
        text += &match feature.as_str() {
            "input_bytes" | "input_bytes_max" => ", more for larger inputs".to_owned(),
            feature => format!(", more for larger {feature}"),
        };
    }
    text += match character.touches {
        Some(Order::Sequential) => ", first touched in order",
        Some(Order::Random) => ", first touched at random",
        _ => "",
    };
    Some(text)
}

fn cores(cores: f64) -> String {
    if cores < 9.95 { format!("{cores:.2}") } else { format!("{cores:.0}") }
}

/// A time in two figures: it was estimated.
fn roughly(seconds: f64) -> String {
    let unit = 10_f64.powf(seconds.max(1e-6).log10().floor() - 1.0);
    match (seconds / unit).round() * unit {
        seconds if seconds < 0.9995 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{seconds:.1} s"),
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

fn times(count: u64) -> String {
    if count == 1 { "once".into() } else { format!("{} times", format_count(count)) }
}
