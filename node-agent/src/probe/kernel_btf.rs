//! The kernel's description of its own types (BTF), as far as standin needs it: in goes the file, out come
//! byte offsets of struct fields and the number of arguments of tracepoints.
//!
//! Only the wanted structs are indexed, so reading the 126,000 types of a distribution kernel takes a few
//! milliseconds, which counts where a launcher loads the probes for a single task. The format is that of
//! `Documentation/bpf/btf.rst`; kernel BTF is in the machine's byte order.
use std::{collections::HashMap, fs, io, path::Path};

/// Where the kernel shows its BTF.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: usize = 24;
/// The kernel names the type of a tracepoint's functions so.
const TRACEPOINT_PREFIX: &str = "btf_trace_";
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;
/// How deep structs, anonymous members and typedefs may nest; input that goes deeper is malformed.
const DEPTH_MAX: usize = 32;

/// Numbers of `enum btf_kind` (`BTF_KIND_…` in `include/uapi/linux/btf.h`).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Why BTF could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file is not there or not readable.
    #[error("failed to read {KERNEL_BTF}: {0}; the kernel needs CONFIG_DEBUG_INFO_BTF")]
    Read(#[source] io::Error),
    /// The content is not BTF as we know it.
    #[error("malformed BTF at byte {at}: {what}")]
    Malformed {
        /// Position in the file, bytes.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
}

fn malformed(at: usize, what: &'static str) -> BtfError {
    BtfError::Malformed { at, what }
}

/// Parsed BTF.
#[derive(Debug)]
pub struct KernelBtf {
    data: Vec<u8>,
    /// Position of each type; type 0 is void and has none.
    types: Vec<u32>,
    strings: std::ops::Range<usize>,
    structs: HashMap<&'static str, u32>,
    tracepoints: HashMap<String, u32>,
}

/// The fixed part of a type.
struct Type {
    at: usize,
    name: usize,
    kind: u32,
    /// Members, arguments or the like that follow it.
    entries: usize,
    /// Members carry the size of a bit field beside their offset.
    has_bit_fields: bool,
    /// Size or the type referred to.
    refers: u32,
}

impl KernelBtf {
    /// Reads the running kernel's BTF and indexes the named structs.
    pub fn of_this_kernel(structs: &[&'static str]) -> Result<Self, BtfError> {
        Self::parse(fs::read(Path::new(KERNEL_BTF)).map_err(BtfError::Read)?, structs)
    }

    /// Parses BTF and indexes the named structs; those that are not there stay unknown.
    pub fn parse(data: Vec<u8>, structs: &[&'static str]) -> Result<Self, BtfError> {
        if data.len() < HEADER_BYTES || data[..2] != MAGIC.to_ne_bytes() {
            return Err(malformed(0, "no header of BTF in this byte order"));
        }
        let field = |at| word(&data, at).map(|value| value as usize);
        let header = field(4)?;
        let types = section(&data, header, field(8)?, field(12)?)?;
        let strings = section(&data, header, field(16)?, field(20)?)?;
        let mut btf =
            Self { data, types: vec![0], strings, structs: HashMap::new(), tracepoints: HashMap::new() };
        btf.index(types, structs)?;
        Ok(btf)
    }

    fn index(&mut self, types: std::ops::Range<usize>, structs: &[&'static str]) -> Result<(), BtfError> {
        let mut at = types.start;
        while at < types.end {
            let found = self.type_at(at)?;
            let id = self.types.len() as u32;
            match found.kind {
                kind::STRUCT if found.entries > 0 => {
                    let name = self.name(found.name)?;
                    if let Some(wanted) = structs.iter().find(|wanted| wanted.as_bytes() == name) {
                        self.structs.entry(wanted).or_insert(id);
                    }
                }
                kind::TYPEDEF => {
                    if let Some(name) = self.name(found.name)?.strip_prefix(TRACEPOINT_PREFIX.as_bytes()) {
                        let name = String::from_utf8_lossy(name).into_owned();
                        self.tracepoints.insert(name, id);
                    }
                }
                _ => {}
            }
            self.types.push(at as u32);
            at += TYPE_BYTES + extra_bytes(&found)?;
        }
        if at > types.end { Err(malformed(types.end, "the last type is cut off")) } else { Ok(()) }
    }

    /// Offset in bytes of a field: `offset("task_struct", "se.sum_exec_runtime")`. `None` if the kernel has
    /// no such field, or it is a bit field.
    pub fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        let mut id = *self.structs.get(structure)?;
        let mut bits = 0u32;
        for field in path.split('.') {
            let (at, member) = self.member(id, field.as_bytes(), 0).ok()??;
            bits = bits.checked_add(at)?;
            id = member;
        }
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// Number of arguments of a tracepoint; `None` if the kernel does not have it.
    pub fn tracepoint_arguments(&self, name: &str) -> Option<usize> {
        // typedef void (*btf_trace_NAME)(void *data, arguments…)
        let pointer = self.type_of(*self.tracepoints.get(name)?).ok()?.refers;
        let prototype = self.type_of(self.type_of(pointer).ok()?.refers).ok()?;
        (prototype.kind == kind::FUNC_PROTO).then(|| prototype.entries.saturating_sub(1))
    }

    /// BTF in which every type has its number, but only the tracepoints have names: what is needed to
    /// attach to them, at a tenth of the whole's time to parse.
    pub fn tracepoints_only(&self) -> Vec<u8> {
        const FORWARD: u32 = kind::FWD << 24;
        let mut types = [0, FORWARD, 0].repeat(self.types.len() - 1);
        let mut strings = vec![0];
        for (name, id) in &self.tracepoints {
            let at = (*id as usize - 1) * 3;
            types[at..at + 3].copy_from_slice(&[strings.len() as u32, kind::TYPEDEF << 24, 0]);
            strings.extend(format!("{TRACEPOINT_PREFIX}{name}\0").bytes());
        }
        let types_bytes = (types.len() * 4) as u32;
        let header = [HEADER_BYTES as u32, 0, types_bytes, types_bytes, strings.len() as u32];
        let mut data = [MAGIC.to_ne_bytes(), [1, 0]].concat();
        data.reserve(HEADER_BYTES + types.len() * 4 + strings.len());
        data.extend(header.iter().chain(&types).flat_map(|word| word.to_ne_bytes()));
        data.extend(strings);
        data
    }

    /// Offset in bits and type of a member, also inside anonymous members.
    fn member(&self, id: u32, field: &[u8], depth: usize) -> Result<Option<(u32, u32)>, BtfError> {
        let structure = self.type_of(self.without_qualifiers(id)?)?;
        if depth > DEPTH_MAX {
            return Err(malformed(structure.at, "structs nest too deep"));
        }
        if !matches!(structure.kind, kind::STRUCT | kind::UNION) {
            return Ok(None);
        }
        for entry in 0..structure.entries {
            let at = structure.at + TYPE_BYTES + entry * MEMBER_BYTES;
            let (name, id) = (self.name(word(&self.data, at)? as usize)?, word(&self.data, at + 4)?);
            let position = word(&self.data, at + 8)?;
            let bits = if structure.has_bit_fields { position & 0xff_ffff } else { position };
            if name == field {
                let is_bit_field = structure.has_bit_fields && position >> 24 != 0;
                return Ok((!is_bit_field).then_some((bits, id)));
            }
            if name.is_empty()
                && let Some((inner, id)) = self.member(id, field, depth + 1)?
            {
                return Ok(bits.checked_add(inner).map(|bits| (bits, id)));
            }
        }
        Ok(None)
    }

    fn without_qualifiers(&self, mut id: u32) -> Result<u32, BtfError> {
        for _ in 0..DEPTH_MAX {
            let found = self.type_of(id)?;
            match found.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = found.refers;
                }
                _ => return Ok(id),
            }
        }
        Err(malformed(0, "typedefs nest too deep"))
    }

    fn type_of(&self, id: u32) -> Result<Type, BtfError> {
        match self.types.get(id as usize) {
            Some(at) if id != 0 => self.type_at(*at as usize),
            _ => Err(malformed(0, "reference to a type that does not exist")),
        }
    }

    fn type_at(&self, at: usize) -> Result<Type, BtfError> {
        let info = word(&self.data, at + 4)?;
        Ok(Type {
            at,
            name: word(&self.data, at)? as usize,
            kind: (info >> 24) & 0x1f,
            entries: (info & 0xffff) as usize,
            has_bit_fields: info >> 31 != 0,
            refers: word(&self.data, at + 8)?,
        })
    }

    fn name(&self, offset: usize) -> Result<&[u8], BtfError> {
        let strings = &self.data[self.strings.clone()];
        let rest = strings.get(offset..).ok_or(malformed(offset, "a name outside the strings"))?;
        let end = rest.iter().position(|byte| *byte == 0);
        end.map(|end| &rest[..end]).ok_or(malformed(offset, "a name without end"))
    }
}

fn word(data: &[u8], at: usize) -> Result<u32, BtfError> {
    let bytes = data.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_ne_bytes).ok_or(malformed(at, "the data ends here"))
}

fn section(
    data: &[u8],
    header: usize,
    offset: usize,
    length: usize,
) -> Result<std::ops::Range<usize>, BtfError> {
    let start = header + offset;
    let end = start + length;
    if end > data.len() {
        return Err(malformed(start, "a section longer than the file"));
    }
    Ok(start..end)
}

/// Bytes that follow the fixed part of a type.
fn extra_bytes(found: &Type) -> Result<usize, BtfError> {
    Ok(match found.kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * found.entries,
        kind::ENUM | kind::FUNC_PROTO => 8 * found.entries,
        kind::PTR
        | kind::FWD
        | kind::TYPEDEF
        | kind::VOLATILE
        | kind::CONST
        | kind::RESTRICT
        | kind::FUNC
        | kind::FLOAT
        | kind::TYPE_TAG => 0,
        _ => {
            return Err(malformed(found.at, "a kind of type that is too new for this reader"));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF of:
    /// ```c
    /// struct inner { int a; int b; };                      // 2
    /// struct outer { int first; union { int u; struct inner in; }; int flag : 3; };   // 4, union 3
    /// typedef void (*btf_trace_ping)(void *, int);         // 7 → pointer 6 → prototype 5
    /// ```
    fn sample() -> Vec<u8> {
        let strings = b"\0inner\0a\0b\0outer\0first\0u\0in\0flag\0btf_trace_ping\0int\0".to_vec();
        let name = |text: &str| {
            let text = format!("\0{text}\0");
            let found = strings.windows(text.len()).position(|window| window == text.as_bytes());
            found.map_or(0, |at| at as u32 + 1)
        };
        let info = |kind: u32, entries: u32, flag: u32| (flag << 31) | (kind << 24) | entries;
        let words: Vec<u32> = [
            vec![name("int"), info(kind::INT, 0, 0), 4, 32],
            vec![name("inner"), info(kind::STRUCT, 2, 0), 8, name("a"), 1, 0, name("b"), 1, 32],
            vec![0, info(kind::UNION, 2, 0), 8, name("u"), 1, 0, name("in"), 2, 0],
            [
                vec![name("outer"), info(kind::STRUCT, 3, 1), 16, name("first"), 1, 0, 0, 3, 32],
                vec![name("flag"), 1, (3 << 24) | 96],
            ]
            .concat(),
            vec![0, info(kind::FUNC_PROTO, 2, 0), 0, 0, 6, 0, 1],
            vec![0, info(kind::PTR, 0, 0), 5],
            vec![name("btf_trace_ping"), info(kind::TYPEDEF, 0, 0), 6],
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut data = [&MAGIC.to_ne_bytes()[..], &[1, 0]].concat();
        for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            data.extend(word.to_ne_bytes());
        }
        [data, types, strings].concat()
    }

    #[test]
    fn finds_fields_by_path() {
        let btf = KernelBtf::parse(sample(), &["outer", "inner", "nowhere"]).unwrap();
        assert_eq!(btf.offset("inner", "b"), Some(4));
        assert_eq!(btf.offset("outer", "first"), Some(0));
        assert_eq!(btf.offset("outer", "u"), Some(4), "through an anonymous union");
        assert_eq!(btf.offset("outer", "in.b"), Some(8));
        assert_eq!(btf.offset("outer", "flag"), None, "bit fields have no byte offset");
        assert_eq!(btf.offset("outer", "first.a"), None);
        assert_eq!(btf.offset("nowhere", "a"), None);
        assert_eq!(btf.tracepoint_arguments("ping"), Some(1));
        assert_eq!(btf.tracepoint_arguments("pong"), None);
    }

    #[test]
    fn tracepoints_keep_their_numbers() {
        let whole = KernelBtf::parse(sample(), &["outer"]).unwrap();
        let reduced = KernelBtf::parse(whole.tracepoints_only(), &["outer"]).unwrap();
        assert_eq!(reduced.types.len(), whole.types.len());
        assert_eq!(reduced.tracepoints, whole.tracepoints);
    }

    #[test]
    fn malformed_input_is_an_error_or_unknown_but_never_a_panic() {
        let whole = sample();
        for length in 0..whole.len() {
            assert!(KernelBtf::parse(whole[..length].to_vec(), &["outer"]).is_err(), "cut at {length}");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut broken = whole.clone();
                broken[at] = value;
                if let Ok(btf) = KernelBtf::parse(broken, &["outer", "inner"]) {
                    let _ = (btf.offset("outer", "in.b"), btf.offset("outer", "none"));
                    let _ = btf.tracepoint_arguments("ping");
                }
            }
        }
    }

    #[test]
    fn a_struct_that_contains_itself_is_unknown() {
        let mut data = sample();
        // The union's anonymous-to-be member `in` refers to `outer` (4) and loses its name.
        let union_at = HEADER_BYTES + 16 + 36;
        data[union_at + 24..union_at + 28].copy_from_slice(&0u32.to_ne_bytes());
        data[union_at + 28..union_at + 32].copy_from_slice(&4u32.to_ne_bytes());
        let btf = KernelBtf::parse(data, &["outer"]).unwrap();
        assert_eq!(btf.offset("outer", "missing"), None);
    }

    #[test]
    fn reads_this_kernel() {
        match KernelBtf::of_this_kernel(&["task_struct"]) {
            Ok(btf) => assert!(btf.offset("task_struct", "pid").is_some()),
            Err(error) => crate::skip::skip(&error.to_string()),
        }
    }

    proptest::proptest! {
        #[test]
        fn hostile_btf(bytes in crate::hostile::bent(vec![sample()])) {
            if let Ok(btf) = KernelBtf::parse(bytes, &["inner", "outer"]) {
                _ = (btf.offset("outer", "in.b"), btf.offset("outer", "first"), btf.tracepoint_arguments("ping"));
                _ = btf.tracepoints_only();
            }
        }
    }
}
