//! Inputs that mean harm: what property tests of parsers are fed with. Bytes alone seldom get past the first check of a
//! parser, so most of them begin as something valid and are bent.
//!
//! Such tests are called `hostile_…` in whichever file they are; `cargo xtask fuzz` runs all of them with as many cases
//! as are asked for. What once failed is kept in `node-agent/proptest-regressions/` and tried first every time.

use proptest::collection::vec;
use proptest::prelude::*;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// Bytes of any kind, up to so many.
pub(crate) fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=most)
}

/// One of `samples` with some bytes changed, cut off or added.
pub(crate) fn bent(samples: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (prop::sample::select(samples), changes, prop::option::of(any::<prop::sample::Index>()), bytes(8))
        .prop_map(|(mut bytes, changes, cut, more)| {
            for (place, value) in changes {
                if !bytes.is_empty() {
                    let place = place.index(bytes.len());
                    bytes[place] = value;
                }
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            bytes.extend(more);
            bytes
        })
}

/// A word of those, or any text.
pub(crate) fn word_of(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![4 => prop::sample::select(words).prop_map(str::to_owned), 1 => any::<String>()]
}

/// Numbers as texts write them: sound, huge, with units, of other kinds.
pub(crate) fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<u64>().prop_map(|number| number.to_string()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:e}")),
        (0u32..100_000).prop_map(|number| number.to_string()),
        (any::<u32>(), word_of(&["K", "M", "G", "T", "KiB", "B", "i", "%", "ms", "s", "c", "n", "µ"]))
            .prop_map(|(number, unit)| format!("{number}{unit}")),
        (0u8..99, 0u8..99, 0u16..9999).prop_map(|(a, b, c)| format!("{a}-{b}:{c}:{a}")),
        (0u16..9999, 0u8..99, 0u8..99).prop_map(|(y, m, d)| format!("{y}-{m}-{d}T{m}:{d}:{m}")),
    ]
}

/// Lines of a key and a number, as the kernel's flat keyed files have them, and whatever else.
pub(crate) fn keyed_lines(keys: &'static [&'static str]) -> impl Strategy<Value = String> {
    let line = prop_oneof![
        4 => (word_of(keys), word_of(&[" ", "  ", "\t", "=", ":", ""]), number())
            .prop_map(|(key, between, number)| key + &between + &number),
        1 => any::<String>(),
    ];
    vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}

/// A command line of those words, paths and options, and of any bytes.
pub(crate) fn command_line(words: &'static [&'static str]) -> impl Strategy<Value = Vec<OsString>> {
    let word = prop_oneof![
        4 => word_of(words).prop_map(OsString::from),
        2 => bytes(12).prop_map(OsString::from_vec),
        1 => "[-+./=a-z0-9]{0,12}".prop_map(OsString::from),
    ];
    vec(word, 0..10)
}
