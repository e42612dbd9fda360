//! What a check of a store finds, in words that engines and the library share.
//!
//! Keeps invariant: a report is bounded ([`Report::MAX`]), whatever is damaged. Does not know what is checked.

/// What a finding means for whoever owns the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gravity {
    /// Could not be looked at: in use, or not kept.
    Unjudged,
    /// Takes room or time and harms nobody.
    Leftover,
    /// Something is not what it should be: reads of it fail, or would be wrong.
    Damage,
}

/// One thing that a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub gravity: Gravity,
    /// Short name of the kind, for programs; never changes its meaning.
    pub kind: &'static str,
    /// Where: pool, object, image, file.
    pub place: String,
    /// What is wrong there.
    pub what: String,
    /// What to do about it; empty when a repair has nothing to add.
    pub advice: String,
    /// Whether this check has put it right.
    pub mended: bool,
}

/// How to check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Put right what can be without losing anything.
    pub repair: bool,
    /// Read all data too, so that a medium that fails to give it is noticed.
    pub read_data: bool,
}

/// Findings, in the order in which they were made.
#[derive(Debug, Default)]
pub struct Report {
    findings: Vec<Finding>,
    left_out: u64,
}

impl Report {
    /// Most findings of a report; more are counted.
    pub const MAX: usize = 10_000;

    /// Adds one.
    pub fn add(&mut self, finding: Finding) {
        match self.findings.len() < Self::MAX {
            true => self.findings.push(finding),
            false => self.left_out += 1,
        }
    }

    /// Adds one that is not mended.
    pub fn note(
        &mut self,
        gravity: Gravity,
        kind: &'static str,
        place: impl Into<String>,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(Finding {
            gravity,
            kind,
            place: place.into(),
            what: what.into(),
            advice: advice.into(),
            mended: false,
        });
    }

    /// Marks the last finding as put right, which it is as told.
    pub fn mended(&mut self, how: impl Into<String>) {
        if let Some(last) = self.findings.last_mut() {
            last.mended = true;
            last.advice = how.into();
        }
    }

    /// Whether nothing of at least `gravity` was found that is not mended.
    pub fn is_free_of(&self, gravity: Gravity) -> bool {
        let found = |finding: &Finding| !finding.mended && finding.gravity >= gravity;
        self.left_out == 0 && !self.findings.iter().any(found)
    }

    /// What was found; the last one tells how many more were.
    pub fn into_findings(mut self) -> Vec<Finding> {
        if self.left_out > 0 {
            self.findings.push(Finding {
                gravity: Gravity::Damage,
                kind: "and-more",
                place: String::new(),
                what: format!("{} more findings are not told", self.left_out),
                advice: "mend these, and check again".to_owned(),
                mended: false,
            });
        }
        self.findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_bounded_and_says_what_it_leaves_out() {
        let mut report = Report::default();
        assert!(report.is_free_of(Gravity::Unjudged));
        for _ in 0..Report::MAX + 3 {
            report.note(Gravity::Leftover, "k", "p", "w", "");
        }
        assert!(!report.is_free_of(Gravity::Damage), "who knows what is left out");
        let findings = report.into_findings();
        assert_eq!(findings.len(), Report::MAX + 1);
        assert_eq!(findings[Report::MAX].what, "3 more findings are not told");
    }

    #[test]
    fn what_is_mended_counts_no_more() {
        let mut report = Report::default();
        report.note(Gravity::Damage, "k", "p", "w", "do");
        assert!(!report.is_free_of(Gravity::Leftover));
        report.mended("done");
        assert!(report.is_free_of(Gravity::Unjudged));
        assert_eq!(report.into_findings()[0].advice, "done");
    }
}
