//! What a blocked port costs a copy that may go over ssh: R10 of the acceptance list.
//!
//! A file of 6 bytes with `--direct=auto`, in turns: the port open; a firewall at the far end that drops what comes for it;
//! one that resets it. The other two may take 0.3 s longer than the first.

use crate::netns::{self, Pair};
use crate::process::Far;
use crate::report::{self, median};
use crate::sshd;
use crate::turns::{self, Turn};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

/// What a blocked port costs a small copy: R10. Root; needs iproute2, nftables, openssh.
#[derive(Args)]
pub(crate) struct BlockedPort {
    /// Rounds; the first is dropped.
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = clap::value_parser!(u32).range(2..))]
    rounds: u32,
}

/// Ports for direct connections.
const PORTS: &str = "5000-5099";
/// What a firewall does with them, and what that is called.
const FIREWALLS: [(&str, &str); 3] = [("open", ""), ("dropped", "drop"), ("reset", "reject with tcp reset")];
/// Seconds that a blocked one may cost.
const EXTRA_SECONDS: f64 = 0.3;
const CONTENT: &str = "6 byte";

/// Measures, and prints what is met.
pub(crate) fn measure(haul: &Path, args: &BlockedPort) -> Result<()> {
    netns::find("nft").context("apt-get install nftables")?;
    let dir = tempfile::Builder::new().prefix("haul-perf-").tempdir()?;
    let source = dir.path().join("tiny");
    fs::write(&source, CONTENT)?;
    let pair = Pair::joined("tbf rate 1gbit burst 256kb latency 20ms")?;
    pair.far.run("nft add table inet firewall")?;
    pair.far.run("nft add chain inet firewall input {type filter hook input priority 0;}")?;
    let mut notes = report::machine_notes();
    let sshds = sshd::start_both(haul, sshd::Place::Far(&pair.far), &mut notes)?;
    ensure!(!sshds.is_empty(), "{}", notes.join("; "));
    let mut turns = Vec::new();
    for sshd in &sshds {
        for (name, verdict) in FIREWALLS {
            let (source, pair) = (&source, &pair);
            let command = move |place: &Path| {
                let mut command = pair.near.command(haul);
                command.args(["copy", "-q", "--direct=auto", "--port-range", PORTS, "-F"]).arg(sshd.ssh_config());
                let mut target = OsString::from("far:");
                target.push(place.join("tiny"));
                command.arg(source).arg(target).env("HAUL_BACKEND", sshd.backend);
                command
            };
            let before = move || set(pair, verdict);
            turns.push(Turn {
                name: format!("{} {name}", sshd.backend),
                command: Box::new(command),
                before: Some(Box::new(before)),
                far: Some(Far::Children(sshd.child.id())),
                makes: Some(("tiny", CONTENT.len() as u64)),
            });
        }
    }
    notes.iter().for_each(|note| println!("note: {note}"));
    println!(
        "measuring {}, 6 bytes with --direct=auto, ssh login included; load before: {}",
        haul.display(),
        report::load()
    );
    let taken = turns::take(&turns, args.rounds, dir.path())?;
    let walls: Vec<Option<f64>> =
        taken.iter().map(|taken| median(taken.as_ref().ok()?.iter().map(|sample| sample.wall).collect())).collect();
    for (number, (turn, wall)) in turns.iter().zip(&walls).enumerate() {
        match (wall, walls[number - number % FIREWALLS.len()]) {
            (Some(wall), Some(open)) => {
                let met = if wall - open <= EXTRA_SECONDS { "met" } else { "MISSED" };
                println!("R10 {:<16} {wall:.3} s, {:+.3} s, at most +{EXTRA_SECONDS} s: {met}", turn.name, wall - open);
            }
            _ => println!("R10 {:<16} failed: {:?}", turn.name, taken[number].as_ref().err()),
        }
    }
    Ok(())
}

/// The only rule of the firewall from here on.
fn set(pair: &Pair, verdict: &str) -> Result<()> {
    pair.far.run("nft flush chain inet firewall input")?;
    if verdict.is_empty() {
        return Ok(());
    }
    pair.far.run(&format!("nft add rule inet firewall input tcp dport {PORTS} {verdict}"))
}
