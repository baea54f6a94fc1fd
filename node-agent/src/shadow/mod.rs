//! Shadows that are made in another way than by starting the command once more. [`cow`] makes one out of the running
//! process itself, as a copy that shares its memory.

pub mod cow;
