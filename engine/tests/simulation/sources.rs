//! What a copy should have made of the source's tree, and what the client said of that.

use super::*;

/// Files below the target, with the source each should equal.
pub(super) fn expected(scenario: &Scenario, source: &BTreeMap<Vec<u8>, Entry>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    of_targets(scenario, source, |entry| entry.content.clone())
}

/// Files below the target, with what `of` says of their sources.
pub(super) fn of_targets<T>(
    scenario: &Scenario,
    source: &BTreeMap<Vec<u8>, Entry>,
    of: impl Fn(&Entry) -> T,
) -> BTreeMap<Vec<u8>, T> {
    let mut files = BTreeMap::new();
    for operand in &scenario.sources {
        let prefix = operand.trim_end_matches('/').as_bytes();
        for (path, entry) in source {
            if entry.attributes.kind != Kind::Regular || !path.starts_with(prefix) {
                continue;
            }
            let below = &path[prefix.len()..];
            if !below.is_empty() && below[0] != b'/' {
                continue;
            }
            let name: &[u8] = match operand.ends_with('/') {
                true => b"",
                false => prefix.rsplit(|&byte| byte == b'/').next().unwrap(),
            };
            let slash: &[u8] = if name.is_empty() { b"dst" } else { b"dst/" };
            files.insert([slash, name, below].concat(), of(entry));
        }
    }
    files
}

/// Names of files that say they have another size than they have.
pub(super) fn liars(source: &BTreeMap<Vec<u8>, Entry>) -> Vec<String> {
    let lies =
        |entry: &Entry| entry.attributes.kind == Kind::Regular && entry.attributes.size != entry.content.len() as u64;
    let name = |path: &[u8]| String::from_utf8_lossy(path.rsplit(|&byte| byte == b'/').next().unwrap()).into_owned();
    source.iter().filter(|(_, entry)| lies(entry)).map(|(path, _)| name(path)).collect()
}

/// What a client said at the end.
#[derive(Default)]
pub(super) struct Verdict {
    pub(super) copied: BTreeMap<Vec<u8>, Option<Hash>>,
    pub(super) failures: Vec<String>,
}

impl Verdict {
    pub(super) fn of(reports: &[Report]) -> Verdict {
        let mut verdict = Verdict::default();
        for report in reports {
            match report {
                Report::Copied { target, hash, .. } | Report::Unchanged { target, hash, .. } => {
                    verdict.copied.insert(target.clone(), *hash);
                }
                Report::Failed(failure) | Report::Fatal(failure) => {
                    verdict.failures.push(format!("{}: {}", failure.path.escape_ascii(), failure.reason()));
                }
                _ => {}
            }
        }
        verdict
    }
}
