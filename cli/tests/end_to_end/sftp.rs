//! `haul copy` to and from a host with nothing but sshd: the SFTP server carries the files, to the places where a haul would
//! have put them, and never half of one under its final name.

use crate::support::processes::{self, Ended, LIMIT, Running, complete, names, signal, signal_group, wait_for};
use crate::support::routes::{contents_of, json_lines, of_type};
use crate::support::{Entry, Remote, SFTP, Sshd, at, hash_of, haul, litter, random_file, snapshot, trees};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Both ways, as flags for [`copy`].
const WAYS: [bool; 2] = [true, false];

/// `haul copy FLAGS SOURCES TARGET`, up or down, to its end.
fn copy(sshd: &Sshd, up: bool, flags: &[&str], sources: &[&Path], target: &Path) -> Ended {
    complete(&mut command(sshd, up, flags, sources, target))
}

fn command(sshd: &Sshd, up: bool, flags: &[&str], sources: &[&Path], target: &Path) -> Command {
    let operand = |path: &Path, there: bool| if there { at(sshd, path) } else { OsString::from(path) };
    let mut command = haul("poll", ["copy"]);
    command.args(sshd.args()).args(flags).arg("--");
    command.args(sources.iter().map(|source| operand(source, !up))).arg(operand(target, up));
    command
}

/// Names, kinds and contents, without modes and times below the second.
fn content_of(dir: &Path) -> Vec<(OsString, Option<String>)> {
    let content = |entry| match entry {
        Entry::File { hash, .. } => Some(hash),
        Entry::Link(text) => Some(text.display().to_string()),
        _ => None,
    };
    snapshot(dir).into_iter().map(|(name, entry)| (name, content(entry))).collect()
}

#[test]
fn a_file_arrives_with_its_time_and_its_mode_and_is_said_to_be_unverified() {
    let Some(sshd) = Sshd::bare("poll", SFTP) else { return };
    let source = sshd.dir().join("source");
    for (up, size) in WAYS.into_iter().flat_map(|up| [0, 1, 32 * 1024, 32 * 1024 + 1, 5_000_000].map(|size| (up, size)))
    {
        random_file(&source, size, size as u64);
        fs::set_permissions(&source, fs::Permissions::from_mode(0o640)).unwrap();
        let dir = tempfile::tempdir_in(sshd.dir()).unwrap();
        let target = dir.path().join("new/target");
        let ended = copy(&sshd, up, &["--mkpath"], &[&source], &target);
        ended.assert_exit(0);
        assert!(ended.lines().last().unwrap().ends_with("not verified by haul"), "{ended:?}");
        let (was, is) = (fs::metadata(&source).unwrap(), fs::metadata(&target).unwrap());
        assert_eq!(hash_of(&target), hash_of(&source));
        assert_eq!((is.mode(), is.mtime()), (was.mode(), was.mtime()));
        assert_eq!(names(&dir.path().join("new")), ["target"]);
    }
}

#[test]
fn json_says_that_nothing_was_verified_and_quiet_says_nothing() {
    let Some(sshd) = Sshd::bare("poll", SFTP) else { return };
    let source = sshd.dir().join("source");
    random_file(&source, 1000, 1);
    for up in WAYS {
        let target = sshd.dir().join(format!("target {up}"));
        let output = command(&sshd, up, &["--json"], &[&source], &target).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let lines = json_lines(&output);
        let file = of_type(&lines, "file")[0];
        assert_eq!((&file["verified"], &file["bytes"]), (&false.into(), &1000.into()));
        assert!(file["blake3"].is_null());
        let summary = lines.last().unwrap();
        assert_eq!(
            (&summary["type"], &summary["verified"], &summary["files"]),
            (&"summary".into(), &false.into(), &1.into())
        );
        assert!(summary["hashes"].is_null());
        assert_eq!(of_type(&lines, "notice").len(), 1);
        let ended = copy(&sshd, up, &["-q"], &[&source], &target);
        ended.assert_exit(0);
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""));
    }
}

#[test]
fn a_replaced_file_keeps_its_mode_unless_modes_are_preserved() {
    let Some(sshd) = Sshd::bare("poll", SFTP) else { return };
    let (source, target) = (sshd.dir().join("source"), sshd.dir().join("target"));
    fs::write(&source, "new").unwrap();
    for (up, (flags, mode)) in
        WAYS.into_iter().flat_map(|up| [(&[][..], 0o604), (&["-p"], 0o755)].map(|case| (up, case)))
    {
        fs::set_permissions(&source, fs::Permissions::from_mode(0o4755)).unwrap();
        fs::write(&target, "old content").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o604)).unwrap();
        copy(&sshd, up, flags, &[&source], &target).assert_exit(0);
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, mode, "up {up}, {flags:?}");
    }
}

#[test]
fn modes_become_no_wider_than_they_were() {
    let Some(sshd) = Sshd::bare("poll", SFTP) else { return };
    let source = sshd.dir().join("source");
    let modes = [0o400, 0o444, 0o600, 0o640, 0o755];
    fs::create_dir(&source).unwrap();
    for mode in modes {
        let (file, dir) = (source.join(format!("f{mode:o}")), source.join(format!("d{mode:o}")));
        fs::write(&file, "x").unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("x"), "x").unwrap();
        for path in [file, dir] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    for (top, up) in [0o700, 0o555].into_iter().flat_map(|top| WAYS.map(|up| (top, up))) {
        fs::set_permissions(&source, fs::Permissions::from_mode(top)).unwrap();
        let target = sshd.dir().join(format!("{top} {up}"));
        for flags in ["-r", "-rp"] {
            copy(&sshd, up, &[flags], &[&contents_of(&source)], &target).assert_exit(0);
            let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
            assert_eq!(mode(&target), top, "up {up}");
            for (mode_was, kind) in modes.into_iter().flat_map(|mode| ["f", "d"].map(|kind| (mode, kind))) {
                assert_eq!(mode(&target.join(format!("{kind}{mode_was:o}"))), mode_was, "up {up}, {kind}, {flags}");
            }
        }
    }
}

#[test]
fn sources_land_where_a_haul_would_put_them() {
    let Some(sshd) = Sshd::bare("poll", SFTP) else { return };
    let dir = sshd.dir().join("from");
    fs::create_dir_all(dir.join("d")).unwrap();
    for name in ["f", "g", "d/x"] {
        fs::write(dir.join(name), name).unwrap();
    }
    // The target, what is there before, and where the first source ends up.
    type Row = (&'static [&'static str], &'static [&'static str], [&'static str; 3]);
    let table: [Row; 11] = [
        (&[], &["f"], ["t", "", "t"]),
        (&[], &["f"], ["t", "t/", "t/f"]),
        (&[], &["f"], ["t/", "", "t/f"]),
        (&[], &["f", "g"], ["t", "", "t/f"]),
        (&["-T"], &["f"], ["t", "", "t"]),
        (&["-r"], &["d"], ["t", "", "t/d/x"]),
        (&["-r"], &["d"], ["t", "t/", "t/d/x"]),
        (&["-r"], &["d/"], ["t", "", "t/x"]),
        (&["-r"], &["d/"], ["t", "t/d/", "t/x"]),
        (&["-rT"], &["d"], ["t", "t/", "t/x"]),
        (&["-r", "--mkpath"], &["d", "f"], ["t/u/v", "", "t/u/v/d/x"]),
    ];
    for (up, (flags, sources, [target, before, lands])) in WAYS.into_iter().flat_map(|up| table.map(|row| (up, row))) {
        let to = tempfile::tempdir_in(sshd.dir()).unwrap();
        if !before.is_empty() {
            fs::create_dir_all(to.path().join(before)).unwrap();
        }
        let sources: Vec<_> = sources.iter().map(|source| dir.join(source)).collect();
        let sources: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
        let ended = copy(&sshd, up, flags, &sources, &to.path().join(target));
        ended.assert_exit(0);
        assert!(to.path().join(lands).is_file(), "up {up}: {flags:?} {sources:?} {target}: {:?}", snapshot(to.path()));
    }
}

#[test]
fn trees_arrive_without_links_and_special_files_or_with_the_links() {
    let Some(sshd) = Sshd::bare("poll", SFTP) else { return };
    let source = sshd.dir().join("source");
    trees::deep_tree(&source.join("deep"), 30);
    fs::create_dir_all(source.join("empty")).unwrap();
    for name in trees::odd_names() {
        fs::write(source.join(&name), name.as_bytes()).unwrap();
    }
    let plain = content_of(&source);
    symlink("nowhere", source.join("a link")).unwrap();
    let linked = content_of(&source);
    assert!(Command::new("mkfifo").arg(source.join("a fifo")).status().unwrap().success());
    for up in WAYS {
        let target = sshd.dir().join(format!("target {up}"));
        let ended = copy(&sshd, up, &["-r"], &[&contents_of(&source)], &target);
        ended.assert_exit(0);
        assert!(ended.stderr.ends_with("left out 1 FIFO; left out 1 symbolic link\n"), "{ended:?}");
        assert!(content_of(&target) == plain, "{:?}", content_of(&target));
        // Again, over what is there: a link takes the place of a file, and of another link.
        fs::write(target.join("a link"), "was a file").unwrap();
        for _ in 0..2 {
            copy(&sshd, up, &["-rl"], &[&contents_of(&source)], &target).assert_exit(0);
            assert!(content_of(&target) == linked, "{:?}", content_of(&target));
        }
        let time = |dir: &Path| fs::metadata(dir.join("deep")).unwrap().mtime();
        assert_eq!(time(&target), time(&source));
    }
}

#[test]
fn operands_with_any_name_are_taken_as_they_are() {
    let Some(sshd) = Sshd::bare("poll", SFTP) else { return };
    let from = sshd.dir().join("from");
    fs::create_dir(&from).unwrap();
    let sources: Vec<PathBuf> = trees::odd_names().iter().map(|name| from.join(name)).collect();
    sources.iter().for_each(|source| fs::write(source, source.as_os_str().as_bytes()).unwrap());
    let sources: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
    // As the target too, where nothing can be seen of it but that it is there.
    for (up, name) in WAYS.into_iter().flat_map(|up| ["plain", "* ?[a] 'b' \"c\" $(id) \\\n"].map(|name| (up, name))) {
        let to = sshd.dir().join(format!("{up}")).join(name);
        copy(&sshd, up, &["-q", "--mkpath"], &sources, &to).assert_exit(0);
        assert!(content_of(&to) == content_of(&from), "{:?}", names(&to));
    }
}

#[test]
fn what_cannot_be_copied_is_told_in_one_line_and_stops_nothing_else() {
    let Some(sshd) = Sshd::bare("poll", SFTP) else { return };
    let dir = sshd.dir();
    fs::write(dir.join("f"), "new").unwrap();
    fs::create_dir(dir.join("d")).unwrap();
    fs::write(dir.join("file"), "old").unwrap();
    assert!(Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap().success());
    // Sources, the target, which of the two is named, what is said of it.
    let table: [(&[&str], &str, &str, &str); 6] = [
        (&["missing", "f"], "to/", "missing", "cannot stat: No such file or directory"),
        (&["d", "f"], "to/", "d", "left out: it is a directory, and -r was not given"),
        (&["fifo", "f"], "to/", "fifo", "cannot open: Not a regular file"),
        (&["f"], "fifo", "fifo", "cannot create: Not a regular file"),
        (&["d"], "file", "file", "cannot copy into it: Not a directory"),
        (&["f", "f"], "file", "file", "cannot copy into it: Not a directory"),
    ];
    for (up, (sources, target, named, words)) in WAYS.into_iter().flat_map(|up| table.map(|row| (up, row))) {
        let sources: Vec<_> = sources.iter().map(|source| dir.join(source)).collect();
        let sources: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
        let ended = copy(&sshd, up, &[], &sources, &dir.join(target));
        ended.assert_exit(23);
        let errors: Vec<_> = ended.lines().into_iter().filter(|line| line.starts_with("haul: ")).skip(1).collect();
        let line = format!("{}: {words}", dir.join(named).display());
        assert!(matches!(errors[..], [error] if error.ends_with(&line)), "{line}, up {up}: {ended:?}");
        if target == "to/" {
            assert_eq!(fs::read_to_string(dir.join("to/f")).unwrap(), "new");
            fs::remove_dir_all(dir.join("to")).unwrap();
        }
        assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "old");
        assert!(fs::symlink_metadata(dir.join("fifo")).unwrap().file_type().is_fifo());
        assert!(litter(dir).is_empty());
    }
}

/// The sizes of the files that are being made in `to`: under temporary names, or by the client without any.
fn begun(running: &Running, to: &Path) -> Vec<u64> {
    let open = fs::read_dir(format!("/proc/{}/fd", running.pid())).into_iter().flatten().flatten();
    let nameless = open.map(|entry| entry.path()).filter(|path| {
        let name = fs::read_link(path).unwrap_or_default();
        name.starts_with(to) && name.as_os_str().as_bytes().ends_with(b" (deleted)")
    });
    let named = names(to).into_iter().filter(|name| name.as_bytes().starts_with(b".haul-")).map(|name| to.join(name));
    nameless.chain(named).filter_map(|path| fs::metadata(path).ok()).map(|meta| meta.len()).collect()
}

#[test]
fn a_copy_that_is_stopped_leaves_nothing_behind() {
    let Some(sshd) = Sshd::bare("poll", SFTP) else { return };
    let source = sshd.dir().join("source");
    // Long enough to be met in the middle.
    trees::sparse_gibibyte(&source);
    for (up, stop) in WAYS.into_iter().flat_map(|up| [Signal::INT, Signal::TERM].map(|stop| (up, stop))) {
        let to = tempfile::tempdir_in(sshd.dir()).unwrap();
        fs::write(to.path().join("f"), "old").unwrap();
        let running = Running::start(&mut command(&sshd, up, &[], &[&source], &to.path().join("f")));
        let arrived = || begun(&running, to.path()).into_iter().sum::<u64>() > 1 << 20;
        assert!(wait_for(LIMIT, arrived), "nothing arrives");
        signal(running.pid(), stop);
        let ended = running.finish();
        ended.assert_exit(20);
        assert!(ended.lines().last().unwrap().starts_with("haul: interrupted at "), "{ended:?}");
        assert_eq!(names(to.path()), ["f"]);
        assert_eq!(fs::read_to_string(to.path().join("f")).unwrap(), "old");
    }
}

/// A terminal's Ctrl-C reaches ssh as well, and what was begun over there is removed all the same.
#[test]
fn a_copy_stopped_by_a_terminal_leaves_nothing_behind() {
    let Some(sshd) = Sshd::bare("poll", SFTP) else { return };
    let source = sshd.dir().join("source");
    trees::sparse_gibibyte(&source);
    for up in WAYS {
        let to = tempfile::tempdir_in(sshd.dir()).unwrap();
        let mut command = command(&sshd, up, &["--json", "-C"], &[&source], &to.path().join("f"));
        let running = Running::start(command.process_group(0));
        assert!(wait_for(LIMIT, || !begun(&running, to.path()).is_empty()), "nothing arrives");
        signal_group(running.pid(), Signal::INT);
        let ended = running.finish();
        ended.assert_exit(20);
        assert!(ended.stderr.starts_with("haul: interrupted at "), "{ended:?}");
        assert!(ended.stderr.contains("0 complete files kept, nothing else"), "{ended:?}");
        assert!(ended.stdout.lines().last().unwrap().contains("\"verified\":false"), "{ended:?}");
        assert!(names(to.path()).is_empty(), "{:?}", names(to.path()));
    }
}

/// A packet of the protocol.
fn packet(kind: u8, fields: &[&[u8]]) -> Vec<u8> {
    let body = fields.concat();
    [&u32::try_from(body.len() + 1).unwrap().to_be_bytes(), [kind].as_slice(), &body].concat()
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// Runs `haul copy -rl far:d TO` against an SFTP server that says these packets whatever it is asked.
fn against(packets: &[Vec<u8>]) -> (Ended, tempfile::TempDir) {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    fs::create_dir(dir.path().join("to")).unwrap();
    fs::write(dir.path().join("said"), packets.concat()).unwrap();
    // Stands in for ssh: the start script finds nothing here, and the subsystem is the one above.
    let script = format!(
        "#!/bin/sh\nsubsystem=\nfor word; do if [ \"$word\" = -s ]; then subsystem=1; fi; done\n\
         if [ $subsystem ]; then cat '{0}/said'; exec cat >/dev/null; fi\nexport HOME='{0}' PATH=/usr/bin:/bin\nexec sh -c \"$word\"\n",
        dir.path().display()
    );
    fs::create_dir(dir.path().join("bin")).unwrap();
    processes::script(&dir.path().join("bin/ssh"), &script);
    let mut command = haul("poll", ["copy", "-rl", "far:d"]);
    command.arg(dir.path().join("to")).env("PATH", format!("{}/bin:/usr/bin:/bin", dir.path().display()));
    (complete(&mut command), dir)
}

const DIRECTORY: u32 = 0o040_755;

/// What a server that lists directories says, by the number of the request.
mod says {
    use super::{DIRECTORY, packet, string};

    fn attrs(mode: u32) -> Vec<u8> {
        [4u32.to_be_bytes(), mode.to_be_bytes()].concat()
    }

    pub(super) fn version() -> Vec<u8> {
        packet(2, &[&3u32.to_be_bytes()])
    }

    pub(super) fn ok(id: u32) -> Vec<u8> {
        packet(101, &[&id.to_be_bytes(), &[0; 4], &string(b""), &string(b"")])
    }

    pub(super) fn end(id: u32) -> Vec<u8> {
        packet(101, &[&id.to_be_bytes(), &1u32.to_be_bytes(), &string(b""), &string(b"")])
    }

    pub(super) fn directory(id: u32) -> Vec<u8> {
        packet(105, &[&id.to_be_bytes(), &attrs(DIRECTORY)])
    }

    pub(super) fn handle(id: u32) -> Vec<u8> {
        packet(102, &[&id.to_be_bytes(), &string(b"h")])
    }

    pub(super) fn names(id: u32, entries: &[(&[u8], u32)]) -> Vec<u8> {
        let count = u32::try_from(entries.len()).unwrap();
        let entries: Vec<u8> =
            entries.iter().flat_map(|(name, mode)| [string(name), string(b""), attrs(*mode)].concat()).collect();
        packet(104, &[&id.to_be_bytes(), &count.to_be_bytes(), &entries])
    }
}

/// The requests are known: stat of the source, then stat, opendir, readdir until the end, and close of the directory.
fn listing(entries: &[(&[u8], u32)]) -> Vec<Vec<u8>> {
    use says::*;
    vec![version(), directory(1), directory(2), handle(3), names(4, entries), end(5), ok(6)]
}

#[test]
fn a_server_cannot_make_the_client_write_outside_of_the_target() {
    let elsewhere = tempfile::tempdir().unwrap();
    let absolute = elsewhere.path().join("escaped");
    for unsafe_name in [b"../escaped".as_slice(), absolute.as_os_str().as_bytes(), b"a/b", b"", b"a\0b"] {
        let (ended, dir) = against(&listing(&[(unsafe_name, DIRECTORY), (b"..", DIRECTORY)]));
        ended.assert_exit(23);
        assert!(ended.stderr.contains(": left out: the server sent an unsafe name"), "{ended:?}");
        assert_eq!(names(dir.path()), ["bin", "said", "to"]);
        assert!(names(&dir.path().join("to/d")).is_empty() && names(elsewhere.path()).is_empty());
    }
    // First a link that leads out, then a directory of the same name.
    let mut packets = listing(&[(b"l", 0o120_777), (b"l", DIRECTORY)]);
    packets.truncate(5);
    packets.extend([says::names(5, &[(b"../../bin", 0o120_777)]), says::end(6), says::ok(7)]);
    let (ended, dir) = against(&packets);
    ended.assert_exit(23);
    assert!(
        ended.stderr.contains("d/l: left out: it is a symbolic link over there; what is below it is left out, too\n"),
        "{ended:?}"
    );
    assert_eq!(names(&dir.path().join("bin")), ["ssh"]);
}

/// One directory in the other, so many levels, each of this name.
fn nested(name: &[u8], levels: u32) -> Vec<Vec<u8>> {
    use says::*;
    let level = |level: u32| {
        let id = 5 * level + 2;
        [directory(id), handle(id + 1), names(id + 2, &[(name, DIRECTORY)]), end(id + 3), ok(id + 4)]
    };
    [version(), directory(1)].into_iter().chain((0..levels).flat_map(level)).collect()
}

#[test]
fn a_server_cannot_make_the_client_remember_names_without_end() {
    let long = [b'n'; 256];
    let table = [
        (listing(&[(&long, DIRECTORY), (b"e", 0o010_644)]), "a part of the name is longer than 255 bytes"),
        (nested(b"d", 1100), "cannot list: Nested deeper than the 1024 directories that are walked"),
        (nested(&long[..255], 100), "the name is longer than 16384 bytes"),
    ];
    for (packets, words) in table {
        let (ended, _dir) = against(&packets);
        ended.assert_exit(23);
        assert_eq!(ended.stderr.matches(words).count(), 1, "not {words}: {ended:?}");
    }
    // Of what a listing without end says, no more than this is kept.
    let page: Vec<Vec<u8>> = (0..900).map(|number| format!("{number:0>250}").into_bytes()).collect();
    let page: Vec<(&[u8], u32)> = page.iter().map(|name| (name.as_slice(), DIRECTORY)).collect();
    let mut packets = listing(&[]);
    packets.truncate(4);
    packets.extend((4..200).map(|id| says::names(id, &page)));
    let (ended, _dir) = against(&packets);
    assert!(
        ended.stderr.contains("d: cannot list: the server lists more directories than can be remembered"),
        "{ended:?}"
    );
}

#[test]
fn a_file_is_read_to_the_size_that_was_said_and_no_further() {
    const REGULAR: u32 = 0o100_644;
    // Size and mode are there.
    let attrs = |size: u64| [5u32.to_be_bytes().as_slice(), &size.to_be_bytes(), &REGULAR.to_be_bytes()].concat();
    let stat = |id: u32, size: u64| packet(105, &[&id.to_be_bytes(), &attrs(size)]);
    let unsized_stat = |id: u32| packet(105, &[&id.to_be_bytes(), &4u32.to_be_bytes(), &REGULAR.to_be_bytes()]);
    let handle = packet(102, &[&2u32.to_be_bytes(), &string(b"h")]);
    let chunk = |id: u32, len: usize| packet(103, &[&id.to_be_bytes(), &string(&vec![7; len])]);
    let fine = |id: u32| packet(101, &[&id.to_be_bytes(), &0u32.to_be_bytes(), &string(b""), &string(b"")]);
    // Whatever is read, there is more, and the size is still what it was.
    let endless = |size: u64| vec![stat(3, size), chunk(4, 32 * 1024), stat(5, size), fine(6)];
    let (more, unknown) = ("there is more of it than the server said", "the server does not say how large it is");
    for (rest, words) in [(endless(10), more), (endless(0), more), (vec![unsized_stat(3), fine(4)], unknown)] {
        let begin = [packet(2, &[&3u32.to_be_bytes()]), stat(1, 10), handle.clone()];
        let (ended, dir) = against(&begin.into_iter().chain(rest).collect::<Vec<_>>());
        ended.assert_exit(23);
        assert!(ended.stderr.contains(words), "{ended:?}");
        assert!(names(&dir.path().join("to")).is_empty());
    }
}

#[test]
fn a_server_that_talks_nonsense_is_told_in_one_line() {
    let version = packet(2, &[&3u32.to_be_bytes()]);
    let absent =
        "haul: cannot start haul on the remote side: it is not installed there, and no SFTP server answers either\n";
    let nonsense = "haul: connection lost: the server does not speak SFTP";
    let table: [(&[Vec<u8>], i32, &str); 5] = [
        (&[b"Welcome to this host\n".to_vec()], 5, absent),
        (&[packet(101, &[&[0; 8]])], 5, absent),
        (&[version.clone(), b"\xff\xff\xff\xff\x69".to_vec()], 12, nonsense),
        (&[version.clone(), packet(105, &[&9u32.to_be_bytes()])], 12, nonsense),
        (&[version, packet(105, &[&1u32.to_be_bytes(), &[0xff; 3]])], 12, nonsense),
    ];
    for (packets, code, line) in table {
        let (ended, dir) = against(packets);
        ended.assert_exit(code);
        assert!(ended.stderr.contains(line), "{ended:?}");
        assert!(names(&dir.path().join("to")).is_empty());
    }
}
