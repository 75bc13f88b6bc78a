//! What the options of a copy promise, seen from outside: system calls where it is about the disk, bytes and frames on the
//! wire where it is about the wire.

use crate::support::interop::raw;
use crate::support::interop::raw::{Raw, kind};
use crate::support::kept::{Kept, summary};
use crate::support::processes::{self, LIMIT, assert_nobody_at_home, names, signal, wait_for};
use crate::support::record::{Record, Wire};
use crate::support::routes::{Route, assert_same_tree, contents_of, finish, json_lines, of_type};
use crate::support::transfer::Way;
use crate::support::{BACKENDS, Pipes, Remote, assert_exit, at, binary, hash_of, haul, random_file, trees};
use rustix::process::Signal;
use serde_json::Value;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const MIB: usize = 1 << 20;

/// Both backends, both ways.
fn ways() -> impl Iterator<Item = (&'static str, Way)> {
    BACKENDS.into_iter().flat_map(|backend| [Way::Up, Way::Down].map(|way| (backend, way)))
}

/// `haul copy FLAGS..` between `source` and `target`, one of which is on the other end.
fn copy(backend: &str, pipes: &Pipes, way: Way, flags: &[&str], source: &Path, target: &Path) -> Command {
    let mut args: Vec<OsString> = vec!["copy".into()];
    args.extend(flags.iter().map(OsString::from));
    args.extend(pipes.args());
    args.extend(match way {
        Way::Up => [source.into(), at(pipes, target)],
        Way::Down => [at(pipes, source), target.into()],
        Way::Local => [source.into(), target.into()],
    });
    haul(backend, args)
}

/// True where system calls can be watched; else the test is skipped.
pub(crate) fn can_trace() -> bool {
    let mut probe = Command::new("strace");
    probe.args(["-f", "-o", "/dev/null", "true"]).stdin(Stdio::null()).stderr(Stdio::null());
    let able = probe.status().is_ok_and(|status| status.success());
    if !able {
        crate::support::skips::skip("strace", "system calls cannot be watched here", "strace, and leave to trace");
    }
    able
}

/// The command with these system calls of it written to a file.
pub(crate) fn traced(command: &Command, calls: &str, into: &Path) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", &format!("trace={calls}"), "-o"]).arg(into).arg("--");
    strace.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    strace
}

/// A far end whose system calls of these names are written to a file.
pub(crate) fn traced_far_end(backend: &str, calls: &str, dir: &Path) -> (Pipes, PathBuf) {
    let (program, into) = (dir.join("traced"), dir.join("trace"));
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = serve ] || exec '{0}' \"$@\"\n\
         exec strace -f -qq -e trace={calls} -o '{1}' -- '{0}' \"$@\"\n",
        binary().display(),
        into.display()
    );
    processes::script(&program, &script);
    (Pipes::with_program(backend, &program), into)
}

/// The calls in such a file that succeeded, as name and result.
pub(crate) fn calls(trace: &Path) -> Vec<(String, u64)> {
    let text = fs::read_to_string(trace).unwrap();
    let parsed = text.lines().filter_map(|line| {
        // `PID name(..) = RESULT`, or in two parts: `PID name(.. <unfinished ...>`, `PID <... name resumed>..) = RESULT`.
        let (_, call) = line.split_once(' ')?;
        let call = call.trim_start();
        let name = call.strip_prefix("<... ").map_or(call.split('(').next()?, |rest| rest.split(' ').next().unwrap());
        Some((name.to_owned(), line.rsplit_once(" = ")?.1.split(' ').next()?.parse().ok()?))
    });
    parsed.collect()
}

#[test]
fn sync_flushes_every_file_and_its_directory_where_it_is_received_and_nothing_does_without_it() {
    const FLUSHES: &str = "fsync,fdatasync,syncfs,sync,sync_file_range,msync";
    if !can_trace() {
        return;
    }
    for (backend, way) in ways().chain(BACKENDS.map(|backend| (backend, Way::Local))) {
        for flag in ["--sync", "--fsync", "--stats"] {
            let dir = trees::scratch();
            let (source, target) = (dir.path().join("source"), dir.path().join("target"));
            trees::files_of_sizes(&source.join("sub"), &[0, 100, 100_000, 3_000_000]);
            let (traced_far, far) = traced_far_end(backend, FLUSHES, dir.path());
            let pipes = if way == Way::Up { traced_far } else { Pipes::new(backend) };
            let command = copy(backend, &pipes, way, &["-r", flag], &contents_of(&source), &target);
            let near = dir.path().join("near");
            assert_exit(&finish(if way == Way::Up { command } else { traced(&command, FLUSHES, &near) }), 0);
            assert_nobody_at_home(&pipes.home(), LIMIT);
            assert_same_tree(&target, &source);
            let flushes = calls(if way == Way::Up { &far } else { &near });
            let expected = if flag == "--stats" { 0 } else { 2 * 4 };
            assert_eq!(flushes.len(), expected, "{backend}, {way:?}, {flag}: {flushes:?}");
        }
    }
}

#[test]
fn with_v_a_byte_that_changes_after_it_was_written_keeps_the_old_file() {
    for (backend, way) in ways() {
        let copy = Kept::new((backend, backend), way, 96 * MIB);
        fs::write(copy.target(), "old").unwrap();
        // -C gives what is being received a name, by which it can be damaged.
        let (mut client, server) = copy.start(&["-C", "-V"]);
        let sender = copy.sender((client.pid(), server));
        assert!(wait_for(LIMIT, || copy.partial_size() >= 16 * MIB as u64 || client.is_over()));
        assert!(!client.is_over() && signal(sender, Signal::STOP));
        let partial = copy.partial().unwrap();
        let file = fs::File::options().read(true).write(true).open(partial).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 1_000_000).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], 1_000_000).unwrap();
        assert!(signal(sender, Signal::CONT));
        let ended = client.finish();
        assert_nobody_at_home(&copy.pipes.home(), LIMIT);
        assert!(ended.status.code().is_some_and(|code| code != 0), "{ended:?}");
        assert!(ended.stderr.contains("hash"), "{ended:?}");
        assert_eq!(fs::read(copy.target()).unwrap(), b"old");
        assert_eq!(names(&copy.to()).len(), 1 + usize::from(copy.partial().is_some()));
        // What was damaged is found and sent again.
        copy.completed(&["-C", "-V"]);
    }
}

#[test]
fn v_is_no_obstacle_to_any_copy() {
    let dir = trees::scratch();
    let source = dir.path().join("source");
    trees::files_of_sizes(&source, &trees::SIZES);
    Route::all().iter().for_each(|route| route.copies_tree(&["-rV"], &source));
}

/// The one line about a file, and the summary.
fn told(output: &Output) -> (Value, Value) {
    let lines = json_lines(output);
    let [file] = of_type(&lines, "file")[..] else { panic!("{lines:?}") };
    (file.clone(), summary(output))
}

#[test]
fn a_fast_download_has_no_hash_and_says_so() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    for size in [0, 1, 64 * 1024, 3 * MIB + 1, 20 * MIB] {
        random_file(&source, size, 3);
        for (near, far) in BACKENDS.into_iter().flat_map(|near| BACKENDS.map(|far| (near, far))) {
            let Record { pipes, wire } = Record::new(far, "");
            let output = finish(copy(near, &pipes, Way::Down, &["--fast", "--json"], &source, &target));
            assert_exit(&output, 0);
            assert_nobody_at_home(&pipes.home(), LIMIT);
            assert_eq!(hash_of(&target), hash_of(&source));
            let (file, summary) = told(&output);
            assert_eq!((&file["verified"], &file["blake3"]), (&false.into(), &Value::Null));
            assert_eq!((&summary["verified"], &summary["hashes"]), (&false.into(), &Value::Null));
            assert_eq!(oks(&wire), [None], "{near}, {far}, {size}");
        }
    }
}

/// The hashes in what the server has agreed to.
fn oks(wire: &Wire) -> Vec<Option<String>> {
    let sessions = wire.sessions();
    let [session] = &sessions[..] else { panic!("{} connections", sessions.len()) };
    let down = session.down();
    raw::split(&down).unwrap().iter().filter_map(Raw::ok).collect()
}

#[test]
fn what_is_shown_of_a_fast_copy_does_not_claim_a_proof() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, 3 * MIB, 4);
    for backend in BACKENDS {
        let pipes = Pipes::new(backend);
        let run = |way, flags: &[&str]| {
            let output = finish(copy(backend, &pipes, way, flags, &source, &target));
            assert_exit(&output, 0);
            assert_eq!(hash_of(&target), hash_of(&source));
            (String::from_utf8(output.stderr.clone()).unwrap(), output)
        };
        let (said, _) = run(Way::Down, &["--fast", "-v"]);
        assert!(said.contains("(not verified)  ") && said.ends_with("not verified by haul\n"), "{said}");
        let (said, _) = run(Way::Down, &["--no-hash"]);
        assert!(said.ends_with("not verified by haul\n") && !said.contains("every file verified"), "{said}");
        let (said, _) = run(Way::Up, &["--fast"]);
        assert!(said.ends_with("not verified by haul\n") && !said.contains("every file verified"), "{said}");
        // What is read again is proved.
        for way in [Way::Up, Way::Down] {
            let (_, output) = run(way, &["--fast", "-V", "--json"]);
            let (file, summary) = told(&output);
            assert_eq!((&file["verified"], &file["blake3"]), (&true.into(), &hash_of(&source).into()));
            assert_eq!(summary["verified"], true);
        }
    }
}

#[test]
fn the_kernel_sends_the_file_of_a_fast_download_from_a_ring() {
    // Splices wait in threads that the kernel has for the ring; reads of what is in memory never do.
    for (flags, expected) in [(&[][..], false), (&["--fast"], true)] {
        let copy = Kept::new(("poll", "uring"), Way::Down, 128 * MIB);
        let (mut client, server) = copy.start(&[&["--compress", "none"], flags].concat());
        let mut seen = false;
        while !client.is_over() {
            seen |= threads(server).iter().any(|name| name.starts_with("iou-wrk-"));
        }
        client.finish().assert_exit(0);
        assert_eq!(hash_of(&copy.target()), copy.hash);
        assert_eq!(seen, expected, "{flags:?}");
    }
}

/// The names of a process's threads.
pub(crate) fn threads(pid: i32) -> Vec<String> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok()).collect()
}

#[test]
fn no_system_call_reads_the_file_of_a_fast_download_from_a_ring() {
    if !can_trace() {
        return;
    }
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, 24 * MIB, 5);
    let (pipes, trace) = traced_far_end("uring", "read,pread64,preadv,preadv2,readv,mmap", dir.path());
    assert_exit(&finish(copy("uring", &pipes, Way::Down, &["--fast"], &source, &target)), 0);
    assert_nobody_at_home(&pipes.home(), LIMIT);
    assert_eq!(hash_of(&target), hash_of(&source));
    let read: u64 = calls(&trace).iter().filter(|(name, _)| name != "mmap").map(|(_, bytes)| bytes).sum();
    assert!(read < MIB as u64, "{read} bytes were read");
}

#[test]
fn the_kernel_sends_the_file_of_a_fast_download_to_a_socket_without_a_ring() {
    if !can_trace() {
        return;
    }
    let dir = trees::scratch();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    random_file(&root.join("file"), 24 * MIB, 6);
    let trace = dir.path().join("trace");
    let mut serve = Command::new(binary());
    serve
        .args(["--backend", "poll", "serve", "--allow-every-local-user", "--listen", "127.0.0.1:0", "--root"])
        .arg(&root);
    let mut serve = traced(&serve, "sendfile,splice,read,pread64,preadv2", &trace);
    let mut child = serve.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut stream = TcpStream::connect(line.trim().strip_prefix("LISTENING ").unwrap()).unwrap();
    const FAST: u8 = 8;
    stream.write_all(&[raw::hello(1, FAST), raw::get("file", 0)].concat()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    // strace ends when what it watches does.
    let serving = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    signal(serving.trim().parse().unwrap(), Signal::TERM);
    assert!(wait_for(LIMIT, || child.try_wait().unwrap().is_some()));
    let frames = raw::split(&answer).unwrap();
    let content: Vec<u8> = frames.iter().filter(|frame| frame.kind == kind::DATA).fold(Vec::new(), |mut all, frame| {
        all.extend_from_slice(frame.fields().bytes().unwrap());
        all
    });
    assert_eq!(raw::hex(&content), hash_of(&root.join("file")));
    assert_eq!(frames.last().unwrap().ok(), Some(None));
    let calls = calls(&trace);
    let bytes = |names: &[&str]| -> u64 {
        calls.iter().filter(|(name, _)| names.contains(&name.as_str())).map(|(_, bytes)| bytes).sum()
    };
    assert_eq!(bytes(&["sendfile", "splice"]), 24 * MIB as u64);
    assert!(bytes(&["read", "pread64", "preadv2"]) < MIB as u64);
}

/// Text as programs write it, of about this size.
fn text_file(path: &Path, size: usize) {
    let mut text = String::with_capacity(size + 100);
    let mut number = 1_u32;
    while text.len() < size {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (level, worker, file) = (["info", "warn"][number as usize >> 8 & 1], number >> 20 & 7, number >> 12);
        writeln!(text, "{level}: worker {worker} moved file-{file:07} to its place, hash compared and equal").unwrap();
    }
    fs::write(path, text).unwrap();
}

#[test]
fn compression_shrinks_text_and_does_not_grow_noise() {
    let dir = trees::scratch();
    let (text, noise, target) = (dir.path().join("text"), dir.path().join("noise"), dir.path().join("target"));
    text_file(&text, 9 * MIB);
    random_file(&noise, 9 * MIB, 7);
    for (backend, way) in ways() {
        let Record { pipes, wire } = Record::new(backend, "");
        for mode in ["none", "off", "lz4", "zstd", "auto"] {
            for source in [&text, &noise] {
                wire.forget();
                assert_exit(&finish(copy(backend, &pipes, way, &["--compress", mode], source, &target)), 0);
                assert_nobody_at_home(&pipes.home(), LIMIT);
                assert_eq!(hash_of(&target), hash_of(source));
                let sent: u64 = wire.sessions().iter().map(crate::support::record::Session::bytes).sum();
                let share = sent as f64 / fs::metadata(source).unwrap().len() as f64;
                eprintln!("{backend}, {way:?}, {mode}, {}: {share:.4}", source.display());
                let (least, most) = match (mode, source == &text) {
                    ("none" | "off", _) | (_, false) => (1.0, 1.001),
                    // Whether it pays depends on how fast this machine's pipes are.
                    ("auto", true) => (0.0, 1.001),
                    (_, true) => (0.0, 0.5),
                };
                assert!(share >= least && share <= most, "{backend}, {way:?}, {mode}: {share}");
            }
        }
    }
}

#[test]
fn stats_say_in_one_line_what_was_compressed() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    text_file(&source, 9 * MIB);
    for (backend, way) in ways() {
        let pipes = Pipes::new(backend);
        for (mode, lines) in [("zstd", 1), ("lz4", 1), ("none", 0)] {
            let flags = ["--compress", mode, "--stats"];
            let ended = processes::complete(&mut copy(backend, &pipes, way, &flags, &source, &target));
            ended.assert_exit(0);
            let told: Vec<_> = ended.lines().into_iter().filter(|line| line.contains("compression")).collect();
            assert_eq!((told.len(), ended.lines().len()), (lines, lines + 1), "{ended:?}");
            let numbers =
                told.iter().all(|line| line.starts_with("haul: ") && line.contains(|c: char| c.is_ascii_digit()));
            assert!(numbers, "{told:?}");
            // Who does not ask is not told.
            let quiet = processes::complete(&mut copy(backend, &pipes, way, &flags[..2], &source, &target));
            assert_eq!(quiet.lines().len(), 1, "{quiet:?}");
        }
    }
}

/// How many frames with content the client sent on the one connection, and their bytes.
fn content_frames(wire: &Wire) -> (usize, usize) {
    let sessions = wire.sessions();
    let [session] = &sessions[..] else { panic!("{} connections", sessions.len()) };
    let up = session.up();
    let frames = raw::split(&up).unwrap();
    let content = frames.iter().filter(|frame| [kind::DATA, kind::DATA_COMPRESSED].contains(&frame.kind));
    content.fold((0, 0), |(count, bytes), frame| (count + 1, bytes + frame.body.len()))
}

/// A far end with a store of its own for blocks, of at most so many MiB.
fn with_store(backend: &str, dir: &Path, cap: usize) -> Record {
    let store = dir.join("store");
    fs::create_dir_all(&store).unwrap();
    trees::set_mode(&store, 0o700);
    Record::new(backend, &format!("export HAUL_CAS_DIR='{}' HAUL_CAS_CAP_MB={cap}", store.display()))
}

#[test]
fn what_was_uploaded_with_dedup_once_is_not_sent_again() {
    const SIZE: usize = 64 * MIB;
    for backend in BACKENDS {
        let dir = trees::scratch();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        random_file(&source, SIZE, 8);
        let Record { pipes, wire } = with_store(backend, dir.path(), 256);
        let up = |flags: &[&str], target: &Path| {
            wire.forget();
            let output = finish(copy(backend, &pipes, Way::Up, &[flags, &["--json"]].concat(), &source, target));
            assert_exit(&output, 0);
            assert_nobody_at_home(&pipes.home(), LIMIT);
            assert_eq!(hash_of(target), hash_of(&source));
            (content_frames(&wire), summary(&output))
        };
        // Without the option nothing is kept for later.
        up(&[], &target);
        let ((frames, bytes), _) = up(&["--dedup"], &target);
        assert!(frames >= SIZE / raw::BLOCK && bytes >= SIZE, "{frames} frames of {bytes} bytes");
        for other in [&target, &dir.path().join("other")] {
            let (sent, summary) = up(&["--dedup"], other);
            assert_eq!(sent, (0, 0), "{backend}");
            assert_eq!(summary["verified"], true);
        }
        // One byte of it has changed, and a block is all that travels.
        let file = fs::File::options().write(true).open(&source).unwrap();
        file.write_all_at(b"!", 30_000_000).unwrap();
        let ((frames, bytes), _) = up(&["--dedup"], &target);
        assert!(frames == 1 && bytes < raw::BLOCK + 100, "{frames} frames of {bytes} bytes");
    }
}

/// Number and bytes of the blocks below a directory.
fn blocks(dir: &Path) -> (usize, u64) {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.fold((0, 0), |(count, bytes), path| {
        let (more, their) = match path.extension() {
            Some(ending) if ending == "blk" => (1, fs::metadata(&path).unwrap().len()),
            _ if path.is_dir() => blocks(&path),
            _ => (0, 0),
        };
        (count + more, bytes + their)
    })
}

#[test]
fn the_block_store_stays_below_its_cap() {
    for backend in BACKENDS {
        let dir = trees::scratch();
        let Record { pipes, wire: _wire } = with_store(backend, dir.path(), 32);
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        for seed in 0..3 {
            random_file(&source, 24 * MIB, 100 + seed);
            assert_exit(&finish(copy(backend, &pipes, Way::Up, &["--dedup"], &source, &target)), 0);
            assert_nobody_at_home(&pipes.home(), LIMIT);
            assert_eq!(hash_of(&target), hash_of(&source));
            let (count, bytes) = blocks(&dir.path().join("store"));
            assert!(count > 0 && count <= 8 && bytes <= 32 * MIB as u64, "{backend}: {count} blocks, {bytes} bytes");
        }
    }
}
