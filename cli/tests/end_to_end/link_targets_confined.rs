//! Links at the target where nothing may lead out of the served directory: as elsewhere, what leads to something that is no regular
//! file is not replaced, and what leads out is not looked at.

use crate::support::daemon::Listening;
use crate::support::processes::Ended;
use crate::support::routes::contents_of;
use crate::support::{BACKENDS, litter, trees};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

const SPECIAL: &str = "a symbolic link to something that is no regular file";
const OUTSIDE: &str = "Path escapes server root";

/// What a link says, and what is said of it; nothing where it is replaced.
fn links(root: &Path, outside: &Path) -> Vec<(PathBuf, Option<&'static str>)> {
    assert!(Command::new("mkfifo").arg(root.join("fifo")).status().unwrap().success());
    fs::create_dir_all(root.join("dir/inner")).unwrap();
    fs::write(root.join("file"), "a file").unwrap();
    symlink("../fifo", root.join("dir/to-fifo")).unwrap();
    fs::write(outside.join("file"), "outside").unwrap();
    let canonical = root.canonicalize().unwrap();
    vec![
        ("../fifo".into(), Some(SPECIAL)),
        (canonical.join("fifo"), Some(SPECIAL)),
        ("../dir/to-fifo".into(), Some(SPECIAL)),
        ("../dir".into(), Some(SPECIAL)),
        ("..".into(), Some(SPECIAL)),
        ("/dev/zero".into(), Some(OUTSIDE)),
        (outside.to_path_buf(), Some(OUTSIDE)),
        (outside.join("file"), Some(OUTSIDE)),
        (outside.join("nothing"), Some(OUTSIDE)),
        ("../../beside".into(), Some(OUTSIDE)),
        ("../file".into(), None),
        (canonical.join("file"), None),
        ("nowhere".into(), None),
        ("link".into(), None),
    ]
}

#[track_caller]
fn assert_refused(ended: &Ended, says: &str) {
    ended.assert_exit(23);
    assert!(ended.stderr.contains(says), "{ended:?}, not {says}");
}

#[test]
fn links_in_a_served_directory_are_refused_as_elsewhere_and_never_looked_at_outside() {
    let scratch = trees::scratch();
    let source = scratch.path().join("source");
    fs::create_dir(&source).unwrap();
    // What is large is written beside the target, where that is to be kept.
    fs::write(source.join("link"), vec![b'x'; 3 << 20]).unwrap();
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        let (root, outside) = (daemon.root(), tempfile::tempdir_in(scratch.path()).unwrap());
        fs::create_dir(root.join("d")).unwrap();
        let (link, home) = (root.join("d/link"), daemon.at("d/"));
        for (text, says) in links(&root, outside.path()) {
            let copies: [(&[&str], OsString, OsString); 3] = [
                (&["-r"], contents_of(&source).into(), home.clone().into()),
                (&["-r", "-C"], contents_of(&source).into(), home.clone().into()),
                (&[], source.join("link").into(), home.clone().into()),
            ];
            for (flags, from, to) in copies {
                symlink(&text, &link).unwrap();
                let ended = daemon.copy(backend, flags, from, to);
                match says {
                    Some(says) => {
                        assert_refused(&ended, says);
                        assert_eq!(fs::read_link(&link).unwrap(), text, "{backend} {flags:?}");
                    }
                    None => {
                        ended.assert_exit(0);
                        assert!(fs::symlink_metadata(&link).unwrap().is_file(), "{backend} {text:?} {flags:?}");
                    }
                }
                fs::remove_file(&link).unwrap();
            }
        }
        assert_eq!(fs::read(outside.path().join("file")).unwrap(), b"outside");
        assert_eq!(fs::read(root.join("file")).unwrap(), b"a file");
        assert_eq!(litter(&root), Vec::<OsString>::new());
    }
}
