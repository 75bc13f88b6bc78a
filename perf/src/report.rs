//! Tables, targets, JSON.

use crate::process::Sample;
use crate::rows::{Measured, Shape, Way};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// What the CPU and memory columns hold.
pub(crate) const COUNTED: &str = "CPU s/GB is user and system time of both ends: here the command and what it starts \
    (its ssh), there all that our sshd starts; in ticks of 10 ms.\nRSS is the peak of the command alone, without its \
    ssh; far RSS that of haul on the other end.";

/// What is aimed at: id, which of haul's rows, of a tree, peer, and the ratio that is not to be exceeded.
const TARGETS: [(&str, &[&str], bool, &str, f64); 10] = [
    ("T1", &["ssh"], false, "scp", 0.70),
    ("T2", &["direct", "daemon"], false, "scp", 0.40),
    ("T2", &["direct", "daemon"], false, "syq", 0.60),
    ("T2", &["direct", "daemon"], false, "rsync daemon", 0.90),
    ("T3", &["fast"], false, "rsync daemon", 0.60),
    ("R6", &["direct", "daemon"], false, "syq", 1.05),
    ("R6", &["direct", "daemon"], false, "rsync", 0.50),
    ("T5", &["ssh"], true, "rsync", 0.70),
    ("T5", &["ssh"], true, "scp", 0.20),
    ("T6", &["direct", "daemon"], true, "rsync daemon", 0.70),
];
/// T4: processor seconds per GB, both ends, of the same rows as T2.
const CPU_PER_GB: f64 = 1.3;

/// Which kind of row of haul's this is: how the content travels.
fn kind(tool: &str) -> Option<&str> {
    let last = tool.strip_prefix("haul ")?.rsplit(' ').next()?;
    Some(if ["direct", "daemon", "plain", "fast"].contains(&last) { last } else { "ssh" })
}

/// Medians of a row.
struct Medians {
    wall: f64,
    cpu_near: Option<f64>,
    cpu_far: Option<f64>,
    rss_near: Option<u64>,
    rss_far: Option<u64>,
}

fn medians(measured: &Measured) -> Option<Medians> {
    let samples = measured.samples.as_ref().ok().filter(|samples| !samples.is_empty())?;
    let of = |value: fn(&Sample) -> Option<f64>| median(samples.iter().map(value).collect::<Option<Vec<f64>>>()?);
    Some(Medians {
        wall: of(|sample| Some(sample.wall))?,
        cpu_near: of(|sample| sample.cpu_near),
        cpu_far: of(|sample| sample.cpu_far),
        // Peaks are bounds: the highest of all rounds counts.
        rss_near: samples.iter().filter_map(|sample| sample.rss_near).max(),
        rss_far: samples.iter().filter_map(|sample| sample.rss_far).max(),
    })
}

/// Halves of the values are above and below.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    Some((values.get(values.len().checked_sub(1)? / 2)? + values[values.len() / 2]) / 2.0)
}

/// Wall time of a row against that of another tool going the same way.
fn ratio(rows: &[Measured], row: &Measured, peer: &str) -> Option<f64> {
    let peer = rows.iter().find(|other| other.row.tool == peer && other.row.way == row.row.way)?;
    Some(medians(row)?.wall / medians(peer)?.wall)
}

/// Prints the rows of one shape.
pub(crate) fn table(shape: &Shape, rows: &[Measured]) {
    println!(
        "{:<28} {:>8} {:>9} {:>9} {:>9} {:>10} {:>7} {:>7}",
        shape.title, "wall s", "MB/s", "CPU s/GB", "RSS MiB", "far RSS", "x scp", "x rsync"
    );
    for row in rows {
        let Some(medians) = medians(row) else {
            let why = row.samples.as_ref().err().map_or("not run", String::as_str);
            println!("{:<28} failed: {why}", row.row.name);
            continue;
        };
        let bytes = shape.bytes as f64;
        println!(
            "{:<28} {:>8.3} {:>9.0} {:>9} {:>9} {:>10} {:>7} {:>7}",
            row.row.name,
            medians.wall,
            bytes / medians.wall / 1e6,
            shown(cpu(row.row.way, &medians).map(|seconds| seconds / (bytes / 1e9)), 2),
            shown(medians.rss_near.map(|kib| kib as f64 / 1024.0), 1),
            shown(medians.rss_far.map(|kib| kib as f64 / 1024.0), 1),
            shown(ratio(rows, row, "scp"), 2),
            shown(ratio(rows, row, "rsync"), 2),
        );
    }
    println!();
}

/// Both ends; nothing rather than half of it.
fn cpu(way: Way, medians: &Medians) -> Option<f64> {
    let far = if way == Way::Local { Some(0.0) } else { medians.cpu_far };
    Some(medians.cpu_near? + far?)
}

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_string(), |value| format!("{value:.digits$}"))
}

/// Prints which targets are met; returns the same for JSON.
pub(crate) fn targets(results: &[(&Shape, Vec<Measured>)]) -> Vec<Value> {
    let mut found = Vec::new();
    for (id, kinds, recursive, peer, at_most) in TARGETS {
        let results = results.iter().filter(|(shape, _)| shape.recursive == recursive);
        let rows = results.flat_map(|(shape, rows)| rows.iter().map(move |row| (&shape.title, rows, row)));
        let ours = |tool: &str| kind(tool).is_some_and(|kind| kinds.contains(&kind));
        for (shape, rows, row) in rows.filter(|(_, _, row)| ours(&row.row.tool)) {
            let Some(ratio) = ratio(rows, row, peer) else { continue };
            let (met, name) = (ratio <= at_most, &row.row.name);
            let verdict = if met { "met" } else { "MISSED" };
            println!("{id} {shape:<16} {name:<28} {ratio:.2} x {peer:<6} at most {at_most:.2}: {verdict}");
            found.push(json!({
                "id": id, "shape": shape, "row": name, "peer": peer, "ratio": ratio, "at_most": at_most, "met": met,
            }));
        }
    }
    for (shape, rows) in results.iter().filter(|(shape, _)| !shape.recursive) {
        for row in rows.iter().filter(|row| matches!(kind(&row.row.tool), Some("direct" | "daemon"))) {
            let Some(cpu) = medians(row).and_then(|medians| cpu(row.row.way, &medians)) else { continue };
            let (per_gb, name) = (cpu / (shape.bytes as f64 / 1e9), &row.row.name);
            let met = per_gb <= CPU_PER_GB;
            let verdict = if met { "met" } else { "MISSED" };
            println!("T4 {:<16} {name:<28} {per_gb:.2} s/GB at most {CPU_PER_GB:.2}: {verdict}", shape.title);
            found.push(json!({
                "id": "T4", "shape": shape.title, "row": name, "cpu_s_per_gb": per_gb, "at_most": CPU_PER_GB, "met": met,
            }));
        }
    }
    found
}

/// The whole result.
pub(crate) fn json(
    haul: &Path,
    rounds: u32,
    load_before: &str,
    notes: &[String],
    results: &[(&Shape, Vec<Measured>)],
    targets: &[Value],
) -> Value {
    let row = |shape: &Shape, rows: &[Measured], row: &Measured| {
        let walls: Option<Vec<f64>> = row.samples.as_ref().ok().map(|all| all.iter().map(|one| one.wall).collect());
        let medians = medians(row);
        let medians = medians.as_ref();
        let wall = medians.map(|m| m.wall);
        json!({
            "name": row.row.name,
            "tool": row.row.tool,
            "way": row.row.way.name(),
            "failed": row.samples.as_ref().err(),
            "wall_s": walls,
            "wall_s_median": wall,
            "mb_per_s": wall.map(|wall| shape.bytes as f64 / wall / 1e6),
            "cpu_s_near_median": medians.and_then(|m| m.cpu_near),
            "cpu_s_far_median": medians.and_then(|m| m.cpu_far),
            "cpu_s_per_gb": medians.and_then(|m| cpu(row.row.way, m)).map(|s| s / (shape.bytes as f64 / 1e9)),
            "rss_kib_near_max": medians.and_then(|m| m.rss_near),
            "rss_kib_far_haul_max": medians.and_then(|m| m.rss_far),
            "ratio_scp": ratio(rows, row, "scp"),
            "ratio_rsync": ratio(rows, row, "rsync"),
        })
    };
    let shape = |(shape, rows): &(&Shape, Vec<Measured>)| {
        let all: Vec<Value> = rows.iter().map(|one| row(shape, rows, one)).collect();
        json!({ "title": shape.title, "files": shape.files, "bytes": shape.bytes, "rows": all })
    };
    json!({
        "schema": "haul-perf/1",
        "haul": haul.display().to_string(),
        "rounds_counted": rounds - 1,
        "loadavg_before": load_before,
        "notes": notes,
        "counted": COUNTED,
        "shapes": results.iter().map(shape).collect::<Vec<Value>>(),
        "targets": targets,
    })
}

/// /proc/loadavg, where there is one.
pub(crate) fn load() -> String {
    fs::read_to_string("/proc/loadavg").map_or_else(|_| "unknown".to_string(), |text| text.trim().to_string())
}

/// What the reader must know of the machine before believing a number.
pub(crate) fn machine_notes() -> Vec<String> {
    let (kernel, cpus) = (rustix::system::uname(), std::thread::available_parallelism().map_or(0, usize::from));
    let (name, release) = (kernel.sysname().to_string_lossy(), kernel.release().to_string_lossy());
    let mut notes = vec![format!("{name} {release}, {cpus} CPUs")];
    let one_minute: Option<f64> = load().split(' ').next().and_then(|first| first.parse().ok());
    // Above this something else is running.
    if one_minute.is_some_and(|load| load > 0.5) {
        notes.push(format!("WARNING: the machine is busy (load {}): these numbers say little", load()));
    }
    notes
}
