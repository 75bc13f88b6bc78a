//! Pieces of haul, timed in process.
fn main() {}
