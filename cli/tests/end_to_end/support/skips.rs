//! Tests that cannot run where they are: each says why and what it needs, and all of that stands at the end of the run.
//!
//! The harness shows nothing of a test that passed, and a skipped one has. So a small process is told of every skip, waits
//! for the end of this one, and then prints what it was told; where nothing was skipped there is no such process.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// What lists them at the end: stdin ends when this process does.
const LIST: &str = "list=$(sort); printf 'skipped here, and what each needs:\\n%s\\n' \"$list\" >&2";

/// The listing process, and what it was told.
static TOLD: Mutex<(Option<ChildStdin>, BTreeSet<String>)> = Mutex::new((None, BTreeSet::new()));

/// The calling test does not run, or not all of it, because of `why`; it would with `needs`. Where HAUL_REQUIRE, a list
/// with commas, has `name` in it, that is a failure.
#[track_caller]
pub(crate) fn skip(name: &str, why: &str, needs: &str) {
    let required = std::env::var("HAUL_REQUIRE").is_ok_and(|list| list.split(',').any(|word| word == name));
    assert!(!required, "HAUL_REQUIRE={name}, and {why}; this needs {needs}");
    let thread = std::thread::current();
    let test = thread.name().filter(|name| *name != "main").unwrap_or("a test");
    let line = format!("  {test}: {why}; needs {needs} (HAUL_REQUIRE={name} makes it fail)\n");
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if !told.1.insert(line.clone()) {
        return;
    }
    if told.0.is_none() {
        let mut list = Command::new("/bin/sh");
        list.args(["-c", LIST]).env("PATH", "/usr/bin:/bin").stdin(Stdio::piped()).stdout(Stdio::null());
        // Nobody waits for it: it ends after this process.
        told.0 = list.spawn().unwrap().stdin.take();
    }
    told.0.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
}
