//! Shadows: warm stand-ins of a service's process, frozen until they are needed. [`cow`] makes one out of the
//! running process itself, as a copy that shares its memory.

pub mod cow;
