//! Several logins that send: each has a process of its own, which resolves the operand for itself. Who swaps it in between mixes
//! nothing in.

use crate::support::processes::{complete, script};
use crate::support::routes::{assert_same_tree, contents_of, is_same_tree};
use crate::support::{BACKENDS, Pipes, Remote, at, haul, random_file};
use std::fs;
use std::path::Path;

const FILES: u64 = 1500;
const BYTES: usize = 32 * 1024;

fn fill(tree: &Path, seed: u64) {
    fs::create_dir(tree).unwrap();
    (0..FILES).for_each(|number| random_file(&tree.join(number.to_string()), BYTES, seed + number));
}

/// Has every login but the first wait until the first has the tree open, and put a link to another one in its place.
fn swap_at_second_login(pipes: &Pipes, dir: &Path) {
    let (ssh, real) = (pipes.dir().join("ssh"), pipes.dir().join("ssh.real"));
    fs::rename(&ssh, &real).unwrap();
    let text = format!(
        "#!/bin/sh\nif mkdir '{0}/first' 2>/dev/null; then echo $$ > '{0}/lead'; exec '{1}' \"$@\"; fi\n\
         left=200\nwhile [ $left -gt 0 ] && ! ls -l /proc/$(cat '{0}/lead')/fd | grep -q '{0}/tree$'; do\n\
         sleep 0.02; left=$((left - 1)); done\n\
         if [ $left -gt 0 ] && mkdir '{0}/swapped' 2>/dev/null; then mv '{0}/tree' '{0}/meant'; ln -s other '{0}/tree'; fi\n\
         exec '{1}' \"$@\"\n",
        dir.display(),
        real.display()
    );
    script(&ssh, &text);
}

fn check(backend: &str, flags: &[&str], fill_tree: impl Fn(&Path), other: impl Fn(&Path)) {
    let swapped = (0..5).any(|_| {
        let scratch = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        let dir = scratch.path().canonicalize().unwrap();
        let (tree, target) = (dir.join("tree"), dir.join("target"));
        fill_tree(&tree);
        other(&dir.join("other"));
        let pipes = Pipes::new(backend);
        swap_at_second_login(&pipes, &dir);
        let mut copy = haul(backend, ["copy", "-r", "--connections=4"]);
        copy.args(flags).args(pipes.args()).arg(at(&pipes, &contents_of(&tree))).arg(&target);
        let ended = complete(&mut copy);
        let swapped = dir.join("swapped").exists();
        ended.assert_exit(0);
        // The first login may have looked at the operand before it opens it.
        let opened = if !swapped {
            "tree"
        } else if is_same_tree(&target, &dir.join("other")) {
            "other"
        } else {
            "meant"
        };
        assert_same_tree(&target, &dir.join(opened));
        swapped
    });
    assert!(swapped, "{backend}: the tree was never swapped in time");
}

#[test]
fn an_operand_that_is_swapped_between_two_logins_mixes_in_no_other_tree() {
    for backend in BACKENDS {
        for flags in [&[][..], &["-C"], &["--fast"]] {
            check(backend, flags, |tree| fill(tree, 0), |other| fill(other, FILES));
        }
    }
}

#[test]
fn an_operand_that_is_gone_for_later_logins_is_sent_by_the_first() {
    for backend in BACKENDS {
        check(backend, &[], |tree| fill(tree, 0), |other| fs::create_dir(other).unwrap());
    }
}

/// Of which every login sends ranges.
fn large(tree: &Path, seed: u64) {
    fs::create_dir(tree).unwrap();
    random_file(&tree.join("large"), 160 << 20, seed);
}

#[test]
fn a_large_file_is_no_mixture_of_what_two_logins_find() {
    for backend in BACKENDS {
        check(backend, &[], |tree| large(tree, 0), |other| large(other, 1));
        check(backend, &[], |tree| large(tree, 0), |other| fs::create_dir(other).unwrap());
    }
}
