//! No descriptor is left: what needs one waits, and no file fails. Alone in its process, whose limit it changes.

#![cfg(target_os = "linux")]

#[allow(dead_code)]
#[path = "files/rig.rs"]
mod rig;

use haul_engine::backend::*;
use haul_engine::block::Slices;
use rig::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::time::Duration;

/// Leaves the process none, until this is dropped.
struct Starved(Rlimit);

impl Starved {
    fn left() -> Starved {
        let usual = getrlimit(Resource::Nofile);
        // The next one that is opened is the first that is free.
        let free = fs::File::open("/dev/null").unwrap();
        let current = Some(std::os::fd::AsRawFd::as_raw_fd(&free) as u64);
        setrlimit(Resource::Nofile, Rlimit { current, ..usual }).unwrap();
        drop(free);
        assert!(fs::File::open("/dev/null").is_err());
        Starved(usual)
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).unwrap();
    }
}

/// Carries it out while there is none, and then there are some again. Whether it waited.
fn starved(rig: &mut Rig, kind: OpKind) -> (bool, Result<Output, Errno>) {
    let mut completions = Vec::new();
    let none = Starved::left();
    rig.offload.submit(Op { token: token(SESSION, 1), kind }, &mut completions);
    let waited = completions.is_empty() && rig.woken.recv_timeout(Duration::from_millis(300)).is_err();
    drop(none);
    while completions.is_empty() {
        rig.offload.drain(&mut completions);
        let _ = rig.woken.recv_timeout(Duration::from_millis(20));
    }
    (waited, completions.pop().unwrap().result)
}

/// A default ACL by which new files are 0750 at most; false where the file system has none.
fn set_default_acl(dir: &std::path::Path) -> bool {
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions) in [(1_u16, 7_u16), (4, 5), (0x20, 0)] {
        acl.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        acl.extend(u32::MAX.to_le_bytes());
    }
    rustix::fs::setxattr(dir, "system.posix_acl_default", &acl, rustix::fs::XattrFlags::empty()).is_ok()
}

#[test]
fn without_descriptors_a_flushed_or_published_file_waits_and_does_not_fail() {
    let mut rig = Rig::new();
    let synced = Finish { sync: true, ..PLAIN };
    let from = Slices::from_iter([rig.slice(b"small")]);
    let store = Store { place: rig.place("small"), from, finish: synced, overwrite: true };
    let (waited, result) = starved(&mut rig, OpKind::Store(Box::new(store)));
    assert!(waited && result.is_ok(), "{waited} {result:?}");
    assert_eq!(fs::read(rig.path("small")).unwrap(), b"small");

    let clone = FsOp::Clone { from: rig.place("small"), to: rig.place("cloned"), finish: synced };
    let (waited, result) = starved(&mut rig, OpKind::Fs(Box::new(clone)));
    // Where the kernel cannot clone it says so, once it has opened both.
    assert!(waited && !matches!(result, Err(Errno::TOO_MANY_FILES)), "{waited} {result:?}");

    // A partial, whose mode is decided at the end: by the umask, which takes no descriptor, or by the directory.
    fs::create_dir(rig.path("acl")).unwrap();
    let has_acl = set_default_acl(&rig.path("acl"));
    for (name, waits, sync) in [("plain", false, false), ("plain2", false, true), ("acl/f", has_acl, true)] {
        let (file, _) = rig.open(name, OpenMode::Continue { size: 4, token: None }).unwrap();
        rig.write(file, 0, b"part");
        let finish = Finish { sync, ..finish(attributes(0o777, (5, 6)), haul_engine::wire::frame::Preserve(0)) };
        let (waited, result) = starved(&mut rig, OpKind::Publish { file, finish: Box::new(finish) });
        assert!(result.is_ok() && waited == waits, "{name}: {waited} {result:?}");
        assert_eq!(fs::read(rig.path(name)).unwrap(), b"part", "{name}");
    }
    assert!(!has_acl || mode(&rig.path("acl/f")) == 0o750);
}
