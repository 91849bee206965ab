//! The findings and their presentation.

use serde::Serialize;
use std::fmt;

/// How bad a finding is, from good to bad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is lost.
    Note,
    /// The agent works, but some targets or figures are lost.
    Degraded,
    /// The agent cannot work.
    Fatal,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Degraded => "degraded",
            Self::Fatal => "fatal",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found, and what follows from it.
    pub found: String,
    /// What to do about it, if anything can be done.
    pub remedy: Option<String>,
}

impl Check {
    /// A finding without a remedy.
    #[must_use]
    pub fn new(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { name, verdict, found: found.into(), remedy: None }
    }

    /// The same finding with what to do about it.
    #[must_use]
    pub fn with_remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    /// Whether the agent cannot work for it.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        self.verdict == Verdict::Fatal
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.found)?;
        self.remedy.as_ref().map_or(Ok(()), |remedy| write!(f, " ({remedy})"))
    }
}

/// All findings, in the order they are to be read. Displays as a table, one line a check, remedies indented below.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The findings.
    pub checks: Vec<Check>,
}

impl Report {
    /// The worst verdict of all checks.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok)
    }

    /// What a program that ran these checks exits with: 0 it works, 1 it works in part, 2 it does not.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.verdict() {
            Verdict::Ok | Verdict::Note => 0,
            Verdict::Degraded => 1,
            Verdict::Fatal => 2,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdicts = self.checks.iter().map(|check| check.verdict.name().len()).max().unwrap_or(0);
        let names = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        for check in &self.checks {
            writeln!(f, "{:verdicts$}  {:names$}  {}", check.verdict.name(), check.name, check.found)?;
            if let Some(remedy) = &check.remedy {
                writeln!(f, "{:indent$}-> {remedy}", "", indent = verdicts + names + 4)?;
            }
        }
        Ok(())
    }
}
