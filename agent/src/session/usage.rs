//! Who has used what of one server: rows by user whose sums are the server's totals.

use std::collections::BTreeMap;

use super::{
    charge::Charge,
    cost::{Basis, TokenPrices},
    identity::NONE,
    users::Users,
};

/// What one user has used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Row {
    /// Tokens and engine time.
    pub charge: Charge,
    /// What it costs, dollars, by [`Basis`].
    pub dollars: [f64; Basis::COUNT],
    /// Engine time of which the cost is not shared out yet.
    unshared_ns: u64,
}

/// The rows of one server. None of them ever falls or goes: what counted for a user counts for it as long as the series
/// of the server are there.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    users: Users,
    rows: BTreeMap<String, Row>,
    /// What was charged to requests.
    requests: Charge,
    /// What belongs to no request that was seen.
    remainder: Charge,
    /// How long users waited for requests of users, nanoseconds.
    waits: BTreeMap<(String, String), u64>,
}

impl Usage {
    /// Nobody has used anything; `users` will be told apart.
    pub fn new(users: usize) -> Self {
        Self { users: Users::new(users), ..Self::default() }
    }

    /// Charges a user, or all others where as many as can be are told apart already.
    pub fn charge(&mut self, user: Option<&str>, charge: Charge, prices: Option<TokenPrices>) {
        self.requests.add(charge);
        let label = self.users.label(user, charge.all_tokens());
        self.add(label, charge, prices);
    }

    /// A user has waited for a prompt of another, or of the same.
    pub fn wait(&mut self, victim: Option<&str>, culprit: Option<&str>, ns: u64) {
        let [victim, culprit] = [victim, culprit].map(|user| self.users.label(user, 0).to_owned());
        *self.waits.entry((victim, culprit)).or_default() += ns;
    }

    /// Who has waited for whom, and how long, nanoseconds.
    pub fn waits(&self) -> impl Iterator<Item = ((&str, &str), u64)> {
        self.waits.iter().map(|((victim, culprit), ns)| ((victim.as_str(), culprit.as_str()), *ns))
    }

    /// The server has used `total`: what no request accounts for is charged to nobody. It never takes back.
    ///
    /// `total` must have been read before what was charged: then it may be behind, and never counts anything twice.
    pub fn balance(&mut self, total: Charge, prices: Option<TokenPrices>) {
        let more = total.since(self.requests).since(self.remainder);
        if !more.is_empty() {
            self.remainder.add(more);
            self.add(NONE, more, prices);
        }
    }

    fn add(&mut self, user: &str, charge: Charge, prices: Option<TokenPrices>) {
        let row = match self.rows.get_mut(user) {
            Some(row) => row,
            None => self.rows.entry(user.to_owned()).or_default(),
        };
        row.charge.add(charge);
        row.unshared_ns += charge.engine_ns;
        row.dollars[Basis::Tokens as usize] += prices.map_or(0.0, |prices| prices.dollars(charge));
    }

    /// The label under which a user counts.
    pub fn label<'a>(&self, user: Option<&'a str>) -> &'a str {
        self.users.known(user)
    }

    /// Who is told apart.
    pub fn told_apart(&self) -> impl Iterator<Item = &str> {
        self.users.told_apart()
    }

    /// Engine time of which the cost is not shared out yet, nanoseconds.
    pub fn unshared_ns(&self) -> u64 {
        self.rows.values().map(|row| row.unshared_ns).sum()
    }

    /// Shares it out at `dollars_per_ns`.
    pub fn share(&mut self, dollars_per_ns: f64) {
        for row in self.rows.values_mut() {
            row.dollars[Basis::Host as usize] += std::mem::take(&mut row.unshared_ns) as f64 * dollars_per_ns;
        }
    }

    /// The rows by user.
    pub fn rows(&self) -> impl Iterator<Item = (&str, &Row)> {
        self.rows.iter().map(|(user, row)| (user.as_str(), row))
    }

    /// What all users together have used, and what it costs by [`Basis`].
    pub fn total(&self) -> (Charge, [f64; Basis::COUNT]) {
        let mut total = (Charge::default(), [0.0; 2]);
        for row in self.rows.values() {
            total.0.add(row.charge);
            total.1.iter_mut().zip(row.dollars).for_each(|(sum, dollars)| *sum += dollars);
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::{super::identity::OTHER, *};

    fn charge(prompt: u64, generated: u64, engine_ns: u64) -> Charge {
        Charge { tokens: [prompt, 0, generated], engine_ns }
    }

    #[test]
    fn rows_add_up_to_the_total_whatever_belongs_to_no_request() {
        let mut usage = Usage::new(2);
        usage.charge(Some("a"), charge(10, 5, 100), None);
        usage.balance(charge(12, 6, 130), None);
        assert_eq!(usage.total().0, charge(12, 6, 130));
        // Requests may be ahead of the total that was read before them.
        usage.charge(Some("b"), charge(3, 3, 50), None);
        usage.balance(charge(13, 6, 130), None);
        assert_eq!(usage.total().0, charge(15, 9, 180));
        usage.balance(charge(15, 9, 181), None);
        assert_eq!(usage.total().0, charge(15, 9, 181));
        let rows: Vec<_> = usage.rows().map(|(user, row)| (user, row.charge.engine_ns)).collect();
        assert_eq!(rows, [("a", 100), ("b", 50), (NONE, 31)]);
    }

    #[test]
    fn no_row_ever_falls_and_who_comes_too_late_is_among_the_others() {
        let prices = TokenPrices { prompt: 1.0, cached: 0.0, generated: 1.0 };
        let mut usage = Usage::new(1);
        let mut before: BTreeMap<String, Row> = BTreeMap::new();
        for (user, tokens) in [("a", 100), ("b", 250), ("a", 600), ("b", 9_000), ("c", 1), ("a", 5)] {
            usage.charge(Some(user), charge(tokens, tokens, tokens), Some(prices));
            usage.balance(charge(usage.requests.tokens[0] + 7, 0, 0), Some(prices));
            for (user, row) in usage.rows() {
                let was = before.insert(user.to_owned(), *row).unwrap_or_default();
                assert!(
                    row.charge.since(was.charge).all_tokens() + was.charge.all_tokens()
                        == row.charge.all_tokens()
                );
                assert!(row.dollars >= was.dollars, "{user}");
            }
        }
        let rows: Vec<_> = usage.rows().map(|(user, row)| (user, row.charge.tokens[0])).collect();
        assert_eq!(rows, [("a", 705), (NONE, 7), (OTHER, 9_251)]);
        assert_eq!(usage.total().0.tokens, [9_963, 0, 9_956]);
        assert_eq!(usage.told_apart().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn who_waits_for_whom_is_bounded_by_the_users_told_apart() {
        let mut usage = Usage::new(2);
        for (victim, culprit) in [("a", "b"), ("a", "b"), ("b", "c"), ("d", "c")] {
            usage.wait(Some(victim), Some(culprit), 5);
        }
        usage.wait(None, Some("a"), 1);
        let waits: Vec<_> = usage.waits().collect();
        assert_eq!(waits, [(("a", "b"), 10), (("b", OTHER), 5), ((NONE, "a"), 1), ((OTHER, OTHER), 5)]);
    }

    #[test]
    fn the_time_of_the_host_is_shared_out_once() {
        let prices = TokenPrices { prompt: 1.0, cached: 0.0, generated: 1.0 };
        let mut usage = Usage::new(1);
        usage.charge(Some("a"), charge(1_000_000, 0, 100), Some(prices));
        usage.charge(Some("b"), charge(0, 2_000_000, 300), Some(prices));
        assert_eq!((usage.total().1, usage.unshared_ns()), ([3.0, 0.0], 400));
        usage.share(0.5);
        assert_eq!((usage.total().1, usage.unshared_ns()), ([3.0, 200.0], 0));
        usage.share(0.5);
        assert_eq!(usage.total().1, [3.0, 200.0]);
    }
}
