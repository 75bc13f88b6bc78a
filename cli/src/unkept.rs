//! Attributes that a target could not keep: told once, counted, and an error only where the user asked for them by name.

use haul_engine::wire::frame::Unkept;

/// What was not kept in a run.
#[derive(Default)]
pub(crate) struct Tally {
    /// Files, directories and links that are without something.
    pub(crate) names: u64,
    /// What was missing anywhere.
    all: Unkept,
}

impl Tally {
    /// Counts one more name. The line for the user where something is missing that was not before.
    pub(crate) fn count(&mut self, what: Unkept) -> Option<String> {
        self.names += 1;
        let news = !self.all.has(what);
        self.all = self.all.or(what);
        news.then(|| format!("the target does not let {} be set; the content is complete", words(what).join(" and ")))
    }

    /// For the last line of the run; empty where everything was kept.
    pub(crate) fn summary(&self) -> String {
        match self.names {
            0 => String::new(),
            names => format!("; {names} without {}", words(self.all).join(" and ")),
        }
    }
}

/// The attributes by name.
pub(crate) fn words(what: Unkept) -> Vec<&'static str> {
    [(Unkept::MODE, "permissions"), (Unkept::OWNER, "owner"), (Unkept::TIMES, "times")]
        .into_iter()
        .filter(|(one, _)| what.has(*one))
        .map(|(_, name)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_told_once_and_all_are_counted() {
        let mut tally = Tally::default();
        assert_eq!(tally.summary(), "");
        let line = tally.count(Unkept::MODE).unwrap();
        assert_eq!(line, "the target does not let permissions be set; the content is complete");
        assert_eq!(tally.count(Unkept::MODE), None);
        assert!(tally.count(Unkept::MODE.or(Unkept::TIMES)).is_some_and(|line| line.contains("permissions and times")));
        assert_eq!(tally.count(Unkept::TIMES), None);
        assert_eq!(tally.summary(), "; 4 without permissions and times");
    }
}
