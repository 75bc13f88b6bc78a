//! Notices a nonce that is used twice. Of the process, not of a connection: two connections with one key are the danger.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Of the key, by its BLAKE3, and the nonce.
type Pair = ([u8; 32], [u8; 12]);

/// Pairs that are kept: some 60 MiB. Later ones are compared with these only.
const MAX_PAIRS: usize = 1 << 20;

static PAIRS: LazyLock<Mutex<HashSet<Pair>>> = LazyLock::new(Mutex::default);

/// Panics where this key has sealed with this nonce before.
pub(super) fn record(fingerprint: [u8; 32], nonce: [u8; 12]) {
    let mut pairs = PAIRS.lock().unwrap_or_else(PoisonError::into_inner);
    let pair = (fingerprint, nonce);
    let is_new = if pairs.len() < MAX_PAIRS { pairs.insert(pair) } else { !pairs.contains(&pair) };
    drop(pairs);
    assert!(is_new, "a nonce was used twice with one key: {nonce:02x?}");
}

/// Records that were sealed in this process and are remembered, to show that somebody watches. At most 1,048,576.
pub fn sealed_records() -> usize {
    PAIRS.lock().unwrap_or_else(PoisonError::into_inner).len()
}
