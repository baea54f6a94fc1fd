//! Shadows that are made in another way than by starting the command once more.
