//! The begin of an answer's text, for the one purpose of looking for phrases in it. It goes no further.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::json::{Key, opening};

/// How much of an answer's text is looked at, bytes.
const PREFIX: usize = 256;

/// Phrases that are looked for, as an operator lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phrases(Vec<String>);

impl Phrases {
    /// Reads a list: one phrase a line; empty lines and lines that begin with `#` say nothing.
    pub fn parse(list: &str) -> Self {
        let lines = list.lines().map(str::trim);
        Self(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(plain).collect())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a text holds one of them.
    fn any_in(&self, text: &str) -> bool {
        let text = plain(text);
        self.0.iter().any(|phrase| text.contains(phrase.as_str()))
    }
}

/// Case and the two apostrophes do not matter.
fn plain(text: &str) -> String {
    text.to_lowercase().replace('\u{2019}', "'")
}

/// The begin of one answer's text. It is compared and dropped: no copy, and nothing to see when printed.
#[derive(Default)]
pub struct Opening(String);

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opening")
    }
}

impl Opening {
    /// Takes a text that the answer adds.
    pub(super) fn take(&mut self, key: Key<'_>) {
        let room = PREFIX.saturating_sub(self.0.len());
        self.0.push_str(&opening(key.value, room));
    }

    /// Whether one of the phrases stands in it.
    pub fn holds(&self, phrases: &Phrases) -> bool {
        phrases.any_in(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;
    use crate::session::{
        payload::answer::Answer,
        staged::{STREAM, answer, chunk},
    };

    fn holds(writes: &[&[u8]]) -> bool {
        let phrases = Phrases::parse("# what models say\n\nI can\u{2019}t help\nas an AI\n");
        let mut taken = Answer::default();
        taken.keep_opening();
        for write in writes {
            taken.feed(taken.read_to(), false, write, 1);
        }
        taken.opening().is_some_and(|opening| opening.holds(&phrases))
    }

    #[test]
    fn phrases_are_found_in_every_format_and_across_chunks() {
        let chat = answer(
            "200 OK",
            r#"{"choices":[{"message":{"role":"assistant","content":"Sorry, I can't help with"}}]}"#,
        );
        assert!(holds(&[&chat]));
        assert!(holds(&[&answer("200 OK", r#"{"index":0,"content":"\u0041s an ai, no"}"#)]));
        let delta = |text: &str| chunk(&format!(r#"{{"choices":[{{"delta":{{"content":"{text}"}}}}]}}"#));
        let parts = [delta("I ca"), delta("n\u{2019}t"), delta(" HELP")];
        assert!(holds(&[STREAM, &parts[0], &parts[1], &parts[2]]));
        let response = chunk(r#"{"type":"response.output_text.delta","delta":"I can't help"}"#);
        assert!(holds(&[STREAM, &response]));
        assert!(!holds(&[STREAM, &parts[0], &parts[2]]));
    }

    #[test]
    fn only_the_begin_counts_and_errors_do_not() {
        let late = format!(r#"{{"content":"{}I can't help"}}"#, "x".repeat(PREFIX));
        assert!(!holds(&[&answer("200 OK", &late)]));
        assert!(!holds(&[&answer("500", r#"{"error":{"message":"m"},"prompt":"as an AI"}"#)]));
        assert!(Phrases::parse(" \n# a\n").is_empty());
    }

    #[test]
    fn any_bytes_are_taken() {
        let sample = answer("200 OK", r#"{"content":"\ud83d\ude00 \u12 \\","text":"\q"#);
        fuzz("openings of answers", &[&sample], |bytes| {
            let mut taken = Answer::default();
            taken.keep_opening();
            taken.feed(0, false, bytes, 1);
        });
    }
}
