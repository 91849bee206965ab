//! The users that are told apart: a bounded table of those who use most. In: names and tokens. Out: labels.

use std::collections::HashMap;

use super::identity::{NONE, OTHER};

/// How many users beside the seated ones are remembered, at least.
const CANDIDATES: usize = 1024;
/// How much more than the least of the seated a user must have used to take that seat: two that are nearly equal must not
/// take turns.
const MARGIN: u64 = 2;

/// The users told apart, by tokens used since the start.
///
/// A free seat is taken by whoever comes; then by who has used twice as much as the least of the seated. A client that
/// names itself anew with every request thus gets no further than the seats that nobody needs, and memory is bounded
/// whatever it does.
#[derive(Debug)]
pub struct Users {
    most: usize,
    seated: HashMap<String, u64>,
    /// Tokens of those without a seat, as far as they are remembered.
    waiting: HashMap<String, u64>,
}

/// The label under which a user is counted.
#[derive(Debug, PartialEq, Eq)]
pub struct Label {
    /// The user, or [`OTHER`].
    pub name: String,
    /// Who lost the seat to it: what was counted for it belongs to [`OTHER`] now.
    pub displaced: Option<String>,
}

impl Users {
    /// A table of `most` seats.
    pub fn new(most: usize) -> Self {
        Self { most, seated: HashMap::new(), waiting: HashMap::new() }
    }

    /// `user` has used `tokens` more.
    pub fn label(&mut self, user: Option<&str>, tokens: u64) -> Label {
        let Some(user) = user.filter(|user| ![NONE, OTHER].contains(user)) else {
            return Label { name: user.unwrap_or(NONE).to_owned(), displaced: None };
        };
        let seated = |displaced| Label { name: user.to_owned(), displaced };
        if let Some(used) = self.seated.get_mut(user) {
            *used += tokens;
            return seated(None);
        }
        if self.seated.len() < self.most {
            self.seated.insert(user.to_owned(), tokens);
            return seated(None);
        }
        let used = self.wait(user, tokens);
        let least = self.seated.iter().min_by(|a, b| a.1.cmp(b.1).then_with(|| a.0.cmp(b.0)));
        match least.map(|(name, least)| (name.clone(), *least)) {
            Some((name, least)) if used > least.saturating_mul(MARGIN) => {
                self.waiting.remove(user);
                self.seated.remove(&name);
                self.wait(&name, least);
                self.seated.insert(user.to_owned(), used);
                seated(Some(name))
            }
            _ => Label { name: OTHER.to_owned(), displaced: None },
        }
    }

    /// Remembers what a user without a seat has used; the one who used least is forgotten for it.
    fn wait(&mut self, user: &str, tokens: u64) -> u64 {
        if let Some(used) = self.waiting.get_mut(user) {
            *used += tokens;
            return *used;
        }
        if self.waiting.len() >= CANDIDATES.max(4 * self.most)
            && let Some(least) =
                self.waiting.iter().min_by_key(|(_, used)| **used).map(|(name, _)| name.clone())
        {
            self.waiting.remove(&least);
        }
        self.waiting.insert(user.to_owned(), tokens);
        tokens
    }

    /// How many are told apart now.
    pub fn seated(&self) -> usize {
        self.seated.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(users: &mut Users, user: &str, tokens: u64) -> String {
        users.label(Some(user), tokens).name
    }

    #[test]
    fn free_seats_are_taken_and_the_rest_is_other() {
        let mut users = Users::new(2);
        assert_eq!(["a", "b", "c"].map(|user| name(&mut users, user, 10)), ["a", "b", OTHER]);
        assert_eq!(users.label(None, 1_000).name, NONE);
        assert_eq!(name(&mut users, OTHER, 1_000), OTHER);
        assert_eq!(users.seated(), 2);
        assert_eq!(name(&mut Users::new(0), "a", 1), OTHER);
    }

    #[test]
    fn who_uses_twice_as_much_takes_the_seat_of_the_least() {
        let mut users = Users::new(2);
        assert_eq!(
            [("a", 100), ("b", 10), ("c", 20)].map(|(user, n)| name(&mut users, user, n)),
            ["a", "b", OTHER]
        );
        let label = users.label(Some("c"), 1);
        assert_eq!(label, Label { name: "c".to_owned(), displaced: Some("b".to_owned()) });
        // What it has used before counts when it comes back.
        assert_eq!(users.label(Some("b"), 33).displaced.as_deref(), Some("c"));
        assert_eq!(name(&mut users, "c", 60), OTHER, "43 and 81: not yet twice");
    }

    #[test]
    fn ever_new_users_take_neither_memory_nor_the_seats_of_others() {
        let mut users = Users::new(3);
        for user in ["a", "b", "c"] {
            name(&mut users, user, 500);
        }
        for n in 0..100_000 {
            assert_eq!(name(&mut users, &format!("new {n}"), 20), OTHER);
        }
        assert_eq!((users.seated(), users.waiting.len()), (3, CANDIDATES));
        assert_eq!(name(&mut users, "a", 1), "a");
        // A real one still gets through the crowd.
        assert_eq!(name(&mut users, "d", 900), OTHER);
        name(&mut users, "new", 1);
        assert_eq!(name(&mut users, "d", 900), "d");
    }
}
