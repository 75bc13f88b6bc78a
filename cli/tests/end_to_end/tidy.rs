//! What every source file of the workspace keeps to.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of one file.
const MAX_LINES: usize = 700;
/// The one file that may talk to the kernel by itself.
const UNSAFE_ALLOWED: &str = "engine/src/uring/sys.rs";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Every file with one of these endings, by its path in the workspace.
fn files(endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut todo = vec![workspace()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let kind = fs::symlink_metadata(&path).unwrap();
            if kind.is_dir() && !["target", ".git", "corpus", "artifacts"].contains(&&*name) {
                todo.push(path);
            } else if kind.is_file() && endings.iter().any(|ending| name.ends_with(ending)) {
                let shown = path.strip_prefix(workspace()).unwrap().to_string_lossy().into_owned();
                found.push((shown, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.iter().any(|(path, _)| path.starts_with("engine")), "there are no sources");
    found.sort();
    found
}

/// The code of a file: comments, strings and characters are replaced by blanks, lines stay where they are.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = skipped(&bytes[at..], code.ends_with(|c: char| c.is_alphanumeric() || c == '_'))
            .map_or(at + 1, |len| at + len);
        let blank = end > at + 1;
        for &byte in &bytes[at..end] {
            code.push(if byte == b'\n' {
                '\n'
            } else if blank || !byte.is_ascii() {
                ' '
            } else {
                char::from(byte)
            });
        }
        at = end;
    }
    code
}

/// How long the comment, string or character is that begins here, if one does.
fn skipped(rest: &[u8], inside_a_word: bool) -> Option<usize> {
    let until = |needle: &[u8], from: usize| {
        rest[from..]
            .windows(needle.len())
            .position(|window| window == needle)
            .map_or(rest.len(), |at| from + at + needle.len())
    };
    if rest.starts_with(b"//") {
        return Some(until(b"\n", 0) - 1);
    }
    if rest.starts_with(b"/*") {
        return Some(until(b"*/", 2));
    }
    if rest[0] == b'r' && !inside_a_word {
        let hashes = rest[1..].iter().take_while(|&&byte| byte == b'#').count();
        if rest.get(1 + hashes) == Some(&b'"') {
            return Some(until(&[b"\"".as_slice(), &b"#".repeat(hashes)].concat(), 2 + hashes));
        }
    }
    let quoted = |quote: u8| {
        let mut at = 1;
        while at < rest.len() && rest[at] != quote {
            at += if rest[at] == b'\\' { 2 } else { 1 };
        }
        at + 1
    };
    match rest[0] {
        b'"' => Some(quoted(b'"').min(rest.len())),
        // A lifetime has no second quote right behind one character.
        b'\'' if rest.get(1) == Some(&b'\\') => Some(quoted(b'\'').min(rest.len())),
        b'\'' => {
            let width =
                std::str::from_utf8(&rest[1..rest.len().min(5)]).map_or_else(|error| error.valid_up_to(), str::len);
            let first = std::str::from_utf8(&rest[1..1 + width]).ok()?.chars().next()?.len_utf8();
            (rest.get(1 + first) == Some(&b'\'')).then_some(first + 2)
        }
        _ => None,
    }
}

/// Where `word` stands alone in the code, by line number.
fn lines_with(code: &str, word: &str) -> Vec<usize> {
    let alone = |line: &str| {
        let whole = |part: &str| part.chars().all(|c| c.is_alphanumeric() || c == '_');
        line.split_inclusive(|c: char| !whole(&c.to_string()))
            .any(|part| part.trim_end_matches(|c| !whole(&String::from(c))) == word)
    };
    code.lines().enumerate().filter(|(_, line)| alone(line)).map(|(index, _)| index + 1).collect()
}

#[test]
fn the_scanner_itself_tells_code_from_text() {
    let source = "let a = \"unsafe\"; // unsafe\n/* unsafe */ let r = r#\"unsafe \" unsafe\"#;\nlet c = '\"'; let l: &'static str = \"\\\" unsafe\";\nlet q = '\\''; unsafe { x() }\nunsafe_op; \n";
    assert_eq!(lines_with(&code_of(source), "unsafe"), [4]);
    assert_eq!(code_of(source).lines().count(), source.lines().count());
    assert_eq!(lines_with("x = todo!();\nmy_todo!()", "todo"), [1]);
}

#[test]
fn unsafe_code_stands_in_one_file_only() {
    for (path, text) in files(&[".rs"]) {
        let found = lines_with(&code_of(&text), "unsafe");
        assert!(found.is_empty() || path == UNSAFE_ALLOWED, "{path}: unsafe in lines {found:?}");
    }
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let (path, text) = files(&["sys.rs"]).into_iter().find(|(path, _)| path == UNSAFE_ALLOWED).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let found = lines_with(&code_of(&text), "unsafe");
    assert!(!found.is_empty(), "{path} has no unsafe code any more: forbid it there too");
    for line in found {
        // The comment stands right above, over as many lines as it needs; so do attributes.
        let above = lines[..line - 1].iter().rev().take_while(|line| {
            let line = line.trim_start();
            line.starts_with("//") || line.starts_with("#[")
        });
        let said = above.clone().any(|line| line.contains("SAFETY: ") || line.contains("# Safety"));
        assert!(said || lines[line - 1].contains("SAFETY: "), "{path}:{line}: no SAFETY line");
    }
}

#[test]
fn no_source_file_is_too_long_to_be_read() {
    for (path, text) in files(&[".rs"]) {
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{path} has {lines} lines");
    }
}

#[test]
fn no_file_names_a_directory_of_one_machine() {
    // Put together, so that this file does not name them either.
    let machines = ["work", "root", "home"].map(|dir| format!("/{dir}/"));
    for (path, text) in files(&[".rs", ".md", ".toml", ".yml", ".yaml", ".sh"]) {
        for (number, line) in text.lines().enumerate() {
            for machine in &machines {
                // `~/work/` and `{0}/root/` are somewhere else.
                let named = line
                    .match_indices(machine)
                    .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "}~.>_-/".contains(c)));
                assert!(!named, "{path}:{}: {line}", number + 1);
            }
        }
    }
}

#[test]
fn nothing_is_left_to_be_done_later() {
    for (path, text) in files(&[".rs"]) {
        let code = code_of(&text);
        for word in ["todo", "unimplemented", "dbg"] {
            let macros: Vec<usize> = lines_with(&code, word)
                .into_iter()
                .filter(|&line| code.lines().nth(line - 1).unwrap().contains(&format!("{word}!")))
                .collect();
            assert!(macros.is_empty(), "{path}: {word}! in lines {macros:?}");
        }
    }
}
