//! The users of one server that are told apart: a bounded table of rows that are never taken back. In: names and tokens.
//! Out: labels.

use std::collections::{BTreeSet, HashMap};

use super::identity::{NONE, OTHER};

/// How many users beside those with a row are remembered, at least.
const CANDIDATES: usize = 256;
/// A part of the rows this small is kept for those who use much: one in four.
const KEPT_PART: usize = 4;
/// How much more than an even share of all tokens a user must have used to get one of the rows that are kept.
const SHARES: u64 = 2;

/// The users told apart.
///
/// Who has a row keeps it as long as the server's series are there, since a counter must not fall, and what was counted
/// under one name must never be counted under another, too. Three quarters of the rows are for whoever comes; the rest is
/// for those who have used more than two even shares of all tokens (a part of 2/`most`). A client that names itself anew
/// with every request thus cannot take what is kept, unless it uses as much as everybody else together; and memory is
/// bounded whatever it does.
#[derive(Clone, Debug, Default)]
pub struct Users {
    most: usize,
    rows: BTreeSet<String>,
    /// Tokens of those without a row, as far as they are remembered.
    waiting: HashMap<String, u64>,
    /// Tokens of all.
    total: u64,
}

impl Users {
    /// A table of `most` rows.
    pub fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    /// `user` has used `tokens` more. Returns the label under which they count.
    pub fn label<'a>(&mut self, user: Option<&'a str>, tokens: u64) -> &'a str {
        self.total = self.total.saturating_add(tokens);
        let Some(user) = user.filter(|user| *user != NONE) else { return NONE };
        if user == OTHER {
            return OTHER;
        }
        if self.rows.contains(user) {
            return user;
        }
        if self.rows.len() < self.most - self.most / KEPT_PART {
            self.rows.insert(user.to_owned());
            return user;
        }
        if self.rows.len() >= self.most {
            // No row will be free again.
            self.waiting = HashMap::new();
            return OTHER;
        }
        let used = self.wait(user, tokens);
        if used.saturating_mul(self.most as u64) > self.total.saturating_mul(SHARES) {
            self.waiting.remove(user);
            self.rows.insert(user.to_owned());
            return user;
        }
        OTHER
    }

    /// The label under which a user counts now, who has used nothing more.
    pub fn known<'a>(&self, user: Option<&'a str>) -> &'a str {
        match user {
            None | Some(NONE) => NONE,
            Some(user) if self.rows.contains(user) => user,
            // As it will be when it has used something.
            Some(user) if user != OTHER && self.rows.len() < self.most - self.most / KEPT_PART => user,
            Some(_) => OTHER,
        }
    }

    /// Remembers what a user without a row has used; the one who used least is forgotten for it.
    fn wait(&mut self, user: &str, tokens: u64) -> u64 {
        if let Some(used) = self.waiting.get_mut(user) {
            *used = used.saturating_add(tokens);
            return *used;
        }
        if self.waiting.len() >= CANDIDATES.max(2 * self.most)
            && let Some(least) =
                self.waiting.iter().min_by_key(|(_, used)| **used).map(|(name, _)| name.clone())
        {
            self.waiting.remove(&least);
        }
        self.waiting.insert(user.to_owned(), tokens);
        tokens
    }

    /// Who is told apart.
    pub fn told_apart(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name<'a>(users: &mut Users, user: &'a str, tokens: u64) -> &'a str {
        users.label(Some(user), tokens)
    }

    #[test]
    fn free_rows_are_taken_and_the_rest_is_other() {
        let mut users = Users::new(2);
        assert_eq!(["a", "b", "c"].map(|user| name(&mut users, user, 10)), ["a", "b", OTHER]);
        assert_eq!(users.label(None, 1_000), NONE);
        assert_eq!(name(&mut users, OTHER, 1_000), OTHER);
        assert_eq!(users.told_apart().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(name(&mut Users::new(0), "a", 1), OTHER);
    }

    #[test]
    fn nobody_ever_loses_a_row() {
        let mut users = Users::new(1);
        let used = [("a", 100), ("b", 250), ("a", 600), ("b", 100_000), ("a", 1), ("c", u64::MAX), ("a", 1)];
        assert_eq!(
            used.map(|(user, tokens)| name(&mut users, user, tokens)),
            ["a", OTHER, "a", OTHER, "a", OTHER, "a"]
        );
        assert!(users.waiting.is_empty(), "nobody needs to be remembered");
    }

    #[test]
    fn a_quarter_of_the_rows_is_kept_for_who_uses_more_than_two_even_shares() {
        let mut users = Users::new(20);
        for n in 0..100 {
            let new = format!("n{n}");
            assert_eq!(name(&mut users, &new, 100) == OTHER, n >= 15, "{n}");
        }
        // 10,000 tokens so far: the next needs more than a tenth of what is used then.
        assert_eq!(name(&mut users, "d", 1_000), OTHER);
        assert_eq!(name(&mut users, "d", 300), "d");
        assert_eq!(name(&mut users, "n1", 1), "n1");
        assert_eq!(users.told_apart().count(), 16);
    }

    #[test]
    fn ever_new_users_take_neither_memory_nor_what_is_kept() {
        let mut users = Users::new(8);
        for n in 0..100_000 {
            let new = format!("new {n}");
            assert_eq!(name(&mut users, &new, 20) == OTHER, n >= 6);
        }
        assert_eq!((users.told_apart().count(), users.waiting.len()), (6, CANDIDATES));
        // A real one still gets through the crowd.
        for _ in 0..9 {
            name(&mut users, "d", 70_000);
            name(&mut users, "new", 1);
        }
        assert_eq!(name(&mut users, "d", 70_000), "d");
    }
}
