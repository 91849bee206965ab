//! Who has used what of one server: rows by user whose sums are the server's totals.

use std::collections::BTreeMap;

use super::{
    charge::Charge,
    cost::{Basis, TokenPrices},
    identity::{NONE, OTHER},
};

/// What one user has used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Row {
    /// Tokens and engine time.
    pub charge: Charge,
    /// What it costs, dollars, by [`Basis`].
    pub dollars: [f64; 2],
    /// Engine time of which the cost is not shared out yet.
    unshared_ns: u64,
}

/// The rows of one server.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    rows: BTreeMap<String, Row>,
    /// What was charged to requests.
    requests: Charge,
    /// What belongs to no request that was seen.
    remainder: Charge,
}

impl Usage {
    /// Charges a user.
    pub fn charge(&mut self, user: &str, charge: Charge, prices: Option<TokenPrices>) {
        self.requests.add(charge);
        self.add(user, charge, prices);
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

    /// A user is not told apart any more.
    pub fn fold(&mut self, user: &str) {
        let Some(row) = self.rows.remove(user) else { return };
        let other = self.rows.entry(OTHER.to_owned()).or_default();
        other.charge.add(row.charge);
        other.unshared_ns += row.unshared_ns;
        other.dollars.iter_mut().zip(row.dollars).for_each(|(mine, more)| *mine += more);
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
    pub fn total(&self) -> (Charge, [f64; 2]) {
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
    use super::*;

    fn charge(prompt: u64, generated: u64, engine_ns: u64) -> Charge {
        Charge { tokens: [prompt, 0, generated], engine_ns }
    }

    #[test]
    fn rows_add_up_to_the_total_whatever_belongs_to_no_request() {
        let mut usage = Usage::default();
        usage.charge("a", charge(10, 5, 100), None);
        usage.balance(charge(12, 6, 130), None);
        assert_eq!(usage.total().0, charge(12, 6, 130));
        // Requests may be ahead of the total that was read before them.
        usage.charge("b", charge(3, 3, 50), None);
        usage.balance(charge(13, 6, 130), None);
        assert_eq!(usage.total().0, charge(15, 9, 180));
        usage.balance(charge(15, 9, 181), None);
        assert_eq!(usage.total().0, charge(15, 9, 181));
        let rows: Vec<_> = usage.rows().map(|(user, row)| (user, row.charge.engine_ns)).collect();
        assert_eq!(rows, [("a", 100), ("b", 50), (NONE, 31)]);
    }

    #[test]
    fn who_is_not_told_apart_any_more_is_among_the_others() {
        let prices = TokenPrices { prompt: 1.0, cached: 0.0, generated: 1.0 };
        let mut usage = Usage::default();
        usage.charge("a", charge(1_000_000, 0, 100), Some(prices));
        usage.charge(OTHER, charge(0, 2_000_000, 300), Some(prices));
        let before = usage.total();
        usage.fold("a");
        usage.fold("nobody");
        assert_eq!((usage.total(), usage.rows().count()), (before, 1));
        assert_eq!((before.1, usage.unshared_ns()), ([3.0, 0.0], 400));
        usage.share(0.5);
        assert_eq!((usage.total().1, usage.unshared_ns()), ([3.0, 200.0], 0));
        usage.share(0.5);
        assert_eq!(usage.total().1, [3.0, 200.0]);
    }
}
