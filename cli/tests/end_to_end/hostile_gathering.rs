//! Servers of several logins that say of the process they run in what is not so, or nothing: no file is published that is
//! not whole, and nobody waits for ever.

use crate::support::frames::{RESUMING, bytes_of};
use crate::support::processes::{Ended, LIMIT, Running, assert_nobody_at_home, names, script};
use crate::support::{BACKENDS, Pipes, Remote, at, binary, hash_of, haul, random_file, trees};
use haul_engine::wire::frame::Frame;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

/// Four ranges of 16 MiB.
const SIZE: usize = 64 << 20;
const LOGINS: usize = 2;
/// Of such a frame, what stands before the name.
const NAMED: usize = 10;

/// What becomes of the frame in which a server names its process.
#[derive(Clone, Copy)]
enum Word {
    /// It names another one, and all name the same.
    False,
    /// That answer is left out, and another one comes in its place.
    Missing,
    /// Nothing comes from there on.
    Silence,
}

/// Hands on what a server says, frame by frame.
fn hand_on(mut from: impl Read, mut to: impl Write, word: Word) {
    let name = bytes_of(&Frame::Ok { hash: Some([7; 32]) }, RESUMING);
    let mut named = false;
    loop {
        let mut frame = vec![0; 4];
        if from.read_exact(&mut frame).is_err() {
            return;
        }
        let len = u32::from_le_bytes(frame[..].try_into().unwrap());
        if !matches!(from.by_ref().take(len.into()).read_to_end(&mut frame), Ok(count) if count == len as usize) {
            return;
        }
        // The first hash that it says, as a file's comes only behind it.
        if !named && frame.len() == name.len() && frame[..NAMED] == name[..NAMED] {
            named = true;
            match word {
                Word::False => frame.clone_from(&name),
                Word::Missing => continue,
                Word::Silence => {
                    let _ = std::io::copy(&mut from, &mut std::io::sink());
                    return;
                }
            }
        }
        if to.write_all(&frame).is_err() {
            return;
        }
    }
}

/// A login whose streams are these two FIFOs: a server of its own, with somebody in between.
fn serve(backend: &str, home: &Path, fifos: &[PathBuf; 2], number: usize, word: Word) {
    let (Ok(input), Ok(output)) = (File::open(&fifos[0]), File::create(&fifos[1])) else { return };
    let gather = format!("{:016x}{number:016x}", std::process::id());
    let mut server = Command::new(binary());
    server.args(["serve", "--root", "/", "--gather", &gather]).env("HAUL_BACKEND", backend).env("HOME", home);
    let mut server = server.stdin(input).stdout(Stdio::piped()).spawn().unwrap();
    hand_on(server.stdout.take().unwrap(), output, word);
    let _ = server.kill();
    server.wait().unwrap();
}

/// Sends `source` up to `target` over two logins.
fn upload(backend: &'static str, word: Word, source: &Path, target: &Path) -> Ended {
    let dir = trees::scratch();
    let fifos: Vec<_> =
        (0..LOGINS).map(|number| ["in", "out"].map(|name| dir.path().join(format!("{name}{number}")))).collect();
    assert!(Command::new("mkfifo").args(fifos.iter().flatten()).status().unwrap().success());
    let program = dir.path().join("haul");
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo haul 0; exit; fi\nn=0\n\
         until mkdir '{0}/login'$n 2>/dev/null; do n=$((n + 1)); done\n\
         exec 3<&0\ncat <&3 >'{0}/in'$n 3<&- &\nexec cat '{0}/out'$n 3<&-\n",
        dir.path().display()
    );
    script(&program, &text);
    let pipes = Pipes::with_program(backend, &program);
    let mut command = haul(backend, ["copy", "--compress=none", "--connections=2", "--timeout=6"]);
    command.args(pipes.args()).arg(source).arg(at(&pipes, target));
    let home = pipes.home();
    let serving = (0..LOGINS).map(|number| {
        let (home, fifos) = (home.clone(), fifos[number].clone());
        std::thread::spawn(move || serve(backend, &home, &fifos, number, word))
    });
    let logins: Vec<_> = serving.collect();
    let ended = Running::start(&mut command).finish();
    // One that nobody came to still waits for that.
    while !logins.iter().all(JoinHandle::is_finished) {
        for fifo in fifos.iter().flatten() {
            drop(File::options().read(true).write(true).open(fifo).unwrap());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_nobody_at_home(&home, LIMIT);
    ended
}

#[test]
fn servers_that_lie_or_say_nothing_of_their_process_get_no_file_published_that_is_not_whole() {
    let dir = trees::scratch();
    let source = dir.path().join("source");
    random_file(&source, SIZE, 1);
    let table = [
        (Word::False, 23, "cannot put: no such file was begun here"),
        (Word::Missing, 2, "haul: protocol error: the server sent another reply than asked for"),
        (Word::Silence, 30, "haul: connection: the server has said nothing for "),
    ];
    for (backend, (word, code, line)) in BACKENDS.into_iter().flat_map(|backend| table.map(|row| (backend, row))) {
        let met = (0..10).any(|_| {
            let target = tempfile::tempdir_in(dir.path()).unwrap();
            let ended = upload(backend, word, &source, target.path());
            // What the first has begun it goes on with alone where the second comes late: nobody is told a lie then.
            if matches!(word, Word::False) && ended.status.success() {
                assert_eq!(hash_of(&target.path().join("source")), hash_of(&source));
                return false;
            }
            ended.assert_exit(code);
            assert!(ended.lines().last().is_some_and(|said| said.contains(line)), "{ended:?}");
            assert!(ended.took < Duration::from_secs(12), "{ended:?}");
            assert!(names(target.path()).is_empty(), "{:?}", names(target.path()));
            true
        });
        assert!(met, "{backend}: the second login always comes too late");
    }
}
